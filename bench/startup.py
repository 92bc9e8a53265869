"""Start-up: help, headers of a checkpoint of 100 GB, planning 200,000 tensors, and many tiny checkpoints.

The 100 GB are sparse files with real headers. Whole processes are timed as a user sees them; figures are medians.

    python bench/startup.py [--rounds 5] [--tiny 300] [--json]
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from tables import print_machine, print_table

from weightprint.data import Matrix, Part, TensorSpec
from weightprint.engine.settings import processors
from weightprint.plan import plan_reads
from weightprint.throughput.machine import machine
from weightprint.throughput.synthetic import Shape, write_llama, write_safetensors

PROGRAM = [sys.executable, "-m", "weightprint"]
INCOMPLETE = 3  # inspect says that sparse files look like downloads that did not finish
LAYERS_OF_100_GB = 230  # of Llama-3.1-8B's shape: 0.44 GB each
TINY = Shape(hidden=64, key_value=32, feed_forward=128)
MODULES = "import sys, runpy; sys.argv = sys.argv[1:]\ntry:\n runpy.run_module('weightprint', run_name='__main__')\n"
MODULES += "finally:\n sys.stderr.write(' '.join(m for m in ('torch', 'numba', 'triton') if m in sys.modules))"


def process_seconds(arguments: list[str], rounds: int, status: int = 0, **environment: str) -> float:
    """Median wall time of the program with these arguments, which must exit with ``status``."""
    spent = []
    for _ in range(rounds):
        started = time.perf_counter()
        done = subprocess.run(
            [*PROGRAM, *arguments], check=False, capture_output=True, env={**os.environ, **environment}
        )
        spent.append(time.perf_counter() - started)
        assert done.returncode == status, done.stderr
    return median(spent)


def heavy_modules(arguments: list[str]) -> str:
    """Which of torch, numba and triton the program has imported at its end."""
    command = [sys.executable, "-c", MODULES, "weightprint", *arguments]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    return done.stderr.splitlines()[-1] if done.stderr else ""


def planning(layers: int) -> float:
    """Seconds to plan four matrices a layer, spread over shards of 500 tensors."""
    paths = [Path(f"model-{number:05}.safetensors") for number in range(-(-layers * 4 // 500))]
    matrices = []
    for number in range(layers * 4):
        layer, role = divmod(number, 4)
        spec = TensorSpec(f"{layer}.{role}", (64, 64), "bf16", paths[number // 500], number % 500 * 8292, 8192)
        matrices.append(Matrix("model.layers", layer, "qkvo"[role], (64, 64), (Part(spec, (64, 64), ((0, 64),)),)))
    started = time.perf_counter()
    plan_reads(matrices)
    return time.perf_counter() - started


def write_tiny(folder: Path, number: int) -> None:
    """Checkpoints of four layers and half a megabyte."""
    for seed in range(number):
        own = folder / f"model-{seed:04}"
        own.mkdir(parents=True)
        shapes = {
            f"model.layers.{layer}.{name}.weight": size for layer in range(4) for name, size in TINY.layer().items()
        }
        write_safetensors(own / "model.safetensors", shapes, np.random.default_rng(seed))


def fingerprinting(folder: Path, store: Path) -> tuple[float, float]:
    """Wall and processor seconds from the first header to the last fingerprint, the engine being started."""
    from weightprint.gather import gather_scanned
    from weightprint.scan import LazyEngine, ScanOptions, bring_up_to_date

    options = ScanOptions(paths=(folder,), store=store, device="cpu")
    found = gather_scanned(options.paths, (), (), store)
    store.mkdir()
    with LazyEngine("cpu") as engine:
        list(bring_up_to_date(found.checkpoints[:2], options, engine))
        started, cpu = time.perf_counter(), time.process_time()
        outcomes = list(bring_up_to_date(found.checkpoints[2:], options, engine))
        assert {outcome.fingerprint.status for outcome in outcomes} == {"complete"}
        share = len(outcomes) / len(found.checkpoints)
        return (time.perf_counter() - started) / share, (time.process_time() - cpu) / share


def measure(rounds: int, tiny: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        large, small, one = folder / "large", folder / "small", folder / "one"
        large.mkdir()
        write_llama(large, Shape(), LAYERS_OF_100_GB, sparse=True)
        size = sum(path.stat().st_size for path in large.glob("*.safetensors"))
        write_tiny(small, tiny)
        write_tiny(one, 1)
        store = ["--store", str(folder / "store"), "--quiet", "--device", "cpu"]
        cold = process_seconds(["scan", str(one), *store, "--rescan"], 1, NUMBA_CACHE_DIR=str(folder / "cache"))
        wall, cpu = fingerprinting(small, folder / "tiny-store")
        return {
            "help": process_seconds(["--help"], rounds),
            "inspect": process_seconds(["inspect", str(large)], rounds, INCOMPLETE),
            "inspect_gigabytes": size / 1e9,
            "inspect_imports": heavy_modules(["inspect", str(large)]),
            "scan_of_one_tiny_checkpoint": process_seconds(["scan", str(one), *store, "--rescan"], rounds),
            "scan_that_compiles_first": cold,
            "planning_200000_tensors": median(planning(50_000) for _ in range(3)),
            "tiny_checkpoints": tiny,
            "tiny_a_second": tiny / wall,
            "tiny_a_processor_second": tiny / cpu,
            "processors": processors(),
            "machine": machine(),
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tiny", type=int, default=300)
    parser.add_argument("--json", action="store_true", help="figures as JSON instead of a table")
    options = parser.parse_args()
    found = measure(options.rounds, options.tiny)
    if options.json:
        print(json.dumps(found, indent=1))
        return
    print_machine(found["machine"])
    print_table(
        ["what", "figure", "target"],
        [
            ["--help", f"{found['help']:.2f} s", "0.3 s"],
            [f"inspect {found['inspect_gigabytes']:.0f} GB", f"{found['inspect']:.2f} s", "0.6 s"],
            ["heavy modules inspect imports", found["inspect_imports"] or "none", "none"],
            ["scan of one tiny checkpoint", f"{found['scan_of_one_tiny_checkpoint']:.2f} s", ""],
            ["the same, compiling first", f"{found['scan_that_compiles_first']:.2f} s", ""],
            ["planning 200,000 tensors", f"{found['planning_200000_tensors']:.2f} s", "2 s"],
            [f"{found['tiny_checkpoints']} tiny checkpoints", f"{found['tiny_a_second']:.0f} a second", ""],
            ["", f"{found['tiny_a_processor_second']:.0f} a second of a core", "100"],
        ],
    )


if __name__ == "__main__":
    main()
