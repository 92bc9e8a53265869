"""Scanning a checkpoint end to end, against the limits of its stages and against what others do, in turn in one run.

Makes a sharded bf16 checkpoint of the Llama layout (or takes --path), reads it once so that it lies in the page cache,
and then lets all take turns:

* limit: fresh mappings, every 8 bytes of the selected ranges looked at, as many threads;
* scan: the engine of a scan on the same ranges, plan to merged moments;
* with --device cuda, limits of its own: reading into memory by as many threads as the engine reads with, and the copy
  of pinned memory to the device;
* safe_open + var_mean: each attention tensor loaded by safetensors and reduced by torch.var_mean in float32;
* from_pretrained + std: transformers loads the model, .float().std() of each attention matrix (where transformers is
  installed, and only for a checkpoint that this script made);
* with --device cuda also safetensors' own loading onto it + var_mean.

    python bench/scan.py [--size 1.5] [--path DIR] [--device cpu|cuda] [--rounds 5] [--json]
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from typing import Any, cast

import numpy as np
from stages import stages_on_cpu, stages_on_device
from tables import print_machine, print_table

from weightprint.discover import discover
from weightprint.engine.choose import open_engine
from weightprint.engine.settings import processors, read_settings
from weightprint.fingerprint import read_structure
from weightprint.plan import Plan
from weightprint.throughput.machine import interleaved, machine
from weightprint.throughput.reading import copy_everything, read_everything, reduce_everything, spans_of
from weightprint.throughput.synthetic import Shape, write_llama
from weightprint_kernels.backend import Backend, DeviceBackend
from weightprint_kernels.select import select_backend

SHAPE = Shape(hidden=4096, key_value=1024, feed_forward=1024)
CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": SHAPE.hidden,
    "intermediate_size": SHAPE.feed_forward,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "vocab_size": 8,
    "torch_dtype": "bfloat16",
    "tie_word_embeddings": True,
}


def with_threads(count: int, action: Callable[[], object]) -> Callable[[], object]:
    """The action with so many threads of ours and of torch's."""

    def run() -> None:
        os.environ["WEIGHTPRINT_THREADS"] = str(count)
        if "torch" in sys.modules:
            sys.modules["torch"].set_num_threads(count)
        action()

    return run


def scan(plan: Plan, device: str) -> None:
    """What a scan does between headers and moments, the engine's start and end included."""
    with open_engine(device) as engine:
        (reduction,) = reduce_everything([plan], engine)
    assert len(reduction.moments) == len(plan.matrices)


def var_mean(paths: list[Path], names: frozenset[str], device: str = "cpu") -> None:
    """safetensors and torch, as one would write it."""
    import torch
    from safetensors import safe_open

    for path in paths:
        with safe_open(path, framework="pt", device=device) as file:
            for name in file.keys():  # noqa: SIM118  it is no mapping
                if name in names:
                    variance, _mean = torch.var_mean(file.get_tensor(name).float())
                    variance.item()


def from_pretrained(path: Path) -> None:
    """transformers and torch, as one would write it."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(path, torch_dtype=torch.bfloat16)
    for name, weight in model.named_parameters():
        if "self_attn" in name:
            weight.detach().float().std().item()


def to_device(size: int) -> Callable[[], object]:
    """A copy of ``size`` bytes of pinned memory to the device, in pieces of 16 MiB: what the link gives."""
    import torch

    host = torch.empty(16 * 2**20, dtype=torch.uint8, pin_memory=True)
    there = torch.empty_like(host, device="cuda")

    def run() -> None:
        for _ in range(size // len(host)):
            there.copy_(host, non_blocking=True)
        torch.cuda.synchronize()

    return run


def largest_error(plan: Plan, device: str) -> float:
    """Largest relative error of a matrix's variance against float64 over what the file holds."""
    with open_engine(device) as engine:
        (reduction,) = reduce_everything([plan], engine)
    worst = 0.0
    for number, matrix in list(enumerate(plan.matrices))[:8]:
        spec = matrix.parts[0].tensor
        words = np.fromfile(spec.path, np.uint16, spec.nbytes // 2, offset=spec.offset)
        values = (words.astype(np.uint32) << 16).view(np.float32).astype(np.float64)
        merged = reduction.moments[number]
        worst = max(worst, abs(merged.m2 / merged.n_finite / values.var() - 1))
    return worst


def peers(
    options: argparse.Namespace, folder: Path, plan: Plan, own: bool
) -> Iterator[tuple[str, Callable[[], object]]]:
    """What others do, by name."""
    names = frozenset(part.tensor.name for matrix in plan.matrices for part in matrix.parts)
    paths = list(plan.paths)
    yield "safe_open + var_mean", lambda: var_mean(paths, names)
    if own:
        try:
            import transformers  # noqa: F401
        except ImportError:
            print("transformers is not installed: from_pretrained + std is left out", file=sys.stderr)
        else:
            yield "from_pretrained + std", lambda: from_pretrained(folder)
    if options.device == "cuda":
        yield "safe_open on cuda + var_mean", lambda: var_mean(paths, names, "cuda")


def limits(plan: Plan, device: str, threads: int) -> dict[str, Callable[[], object]]:
    """What a scan cannot be faster than, by name: of a device each of its stages."""
    if device == "cpu":
        spans = spans_of([plan])
        return {"read": lambda: read_everything(spans, threads)}
    return {"read into memory": lambda: copy_everything([plan], threads), "copy to the device": to_device(plan.read)}


def measure(options: argparse.Namespace, folder: Path, own: bool) -> dict[str, Any]:
    (checkpoint,) = discover([folder])
    structure = read_structure(checkpoint)
    plan = structure.plan
    counts = sorted({1, processors()}) if options.device == "cpu" else [read_settings().readers]
    actions: dict[str, Callable[[], object]] = {}
    for count in counts:
        for name, action in limits(plan, options.device, count).items():
            actions[f"limit: {name}, {count} threads"] = with_threads(count, action)
        actions[f"scan, {count} threads"] = with_threads(count, lambda: scan(plan, options.device))
    for name, action in peers(options, folder, plan, own):
        actions[f"{name}, {counts[-1]} threads"] = with_threads(counts[-1], action)
    interleaved(actions, 1)
    seconds = {name: median(values) for name, values in interleaved(actions, options.rounds).items()}
    backend, reason = select_backend(options.device)
    return {
        "bytes": {
            "files": sum(source.size for source in structure.sources),
            "selected": plan.selected,
            "read": plan.read,
        },
        "engine": f"{backend.name}: {reason}",
        "slots": len(plan),
        "rounds": options.rounds,
        "seconds": seconds,
        "gigabytes_per_second": {name: plan.read / value / 1e9 for name, value in seconds.items()},
        "share_of_the_limit": {
            str(count): max(
                value
                for name, value in seconds.items()
                if name.startswith("limit") and name.endswith(f" {count} threads")
            )
            / seconds[f"scan, {count} threads"]
            for count in counts
        },
        "times_as_fast_as": {
            name: value / seconds[f"scan, {counts[-1]} threads"]
            for name, value in seconds.items()
            if not name.startswith(("limit", "scan"))
        },
        "stages": stages_of(plan, backend),
        "one_scan": one_scan(plan, options.device, actions[f"scan, {counts[-1]} threads"]),
        "largest_relative_error_of_a_variance": largest_error(plan, options.device),
        "machine": machine(),
    }


def stages_of(plan: Plan, backend: Backend) -> dict[str, float]:
    """Seconds of each stage, one after the other."""
    if backend.device == "cpu":
        return stages_on_cpu(plan, backend)
    from weightprint.engine.streams import streams_of

    return stages_on_device(plan, cast(DeviceBackend, backend), streams_of(backend.device))


def one_scan(plan: Plan, device: str, again: Callable[[], object]) -> dict[str, float]:
    """Processor seconds of a scan with all threads; on a device also who waited for whom, and the memory it took."""
    cpu = time.process_time()
    again()
    found = {"cpu_seconds": time.process_time() - cpu}
    if device == "cuda":
        import torch

        from weightprint.engine.device import DeviceEngine

        torch.cuda.reset_peak_memory_stats()
        with open_engine(device) as engine:
            reduce_everything([plan], engine)
            if isinstance(engine, DeviceEngine):
                found["reader_starved_seconds"] = engine.ring.stalls.reader_starved
                found["slot_starved_seconds"] = engine.ring.stalls.slot_starved
                found["pinned_mib"] = engine.ring.host_bytes / 2**20
        found["device_peak_mib"] = torch.cuda.max_memory_allocated() / 2**20
    return found


def show(found: dict[str, Any]) -> None:
    print_machine(found["machine"])
    sizes = found["bytes"]
    print(f"{found['engine']}; medians of {found['rounds']} rounds")
    gigabytes = f"{sizes['read'] / 1e9:.3f} GB read, {sizes['selected'] / 1e9:.3f} GB selected"
    print(f"{gigabytes} of {sizes['files'] / 1e9:.3f} GB in files, in {found['slots']} slots\n")
    speeds = found["gigabytes_per_second"]
    print_table(
        ["in turn", "seconds", "GB/s"], ([n, f"{s:.4f}", f"{speeds[n]:.2f}"] for n, s in found["seconds"].items())
    )
    print()
    print_table(
        ["threads", "scan / slowest limit"], ([n, f"{share:.2f}"] for n, share in found["share_of_the_limit"].items())
    )
    print()
    print_table(
        ["a scan is as many times as fast as", ""], ([n, f"{x:.0f}"] for n, x in found["times_as_fast_as"].items())
    )
    whole = sum(found["stages"].values())
    print("\nstages, one after the other on one thread:")
    print_table(
        ["stage", "ms", "share", "GB/s"],
        (
            [name, f"{1000 * own:.1f}", f"{own / whole:.2f}", f"{sizes['read'] / own / 1e9:.1f}"]
            for name, own in found["stages"].items()
        ),
    )
    print()
    print_table(["one scan with all threads", ""], ([n, f"{value:.3f}"] for n, value in found["one_scan"].items()))
    print(f"\nlargest relative error of a variance {found['largest_relative_error_of_a_variance']:.1e}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=float, default=1.5, help="GB of attention of the checkpoint that is made")
    parser.add_argument("--path", type=Path, help="a checkpoint to take instead, bf16 and one tensor a matrix")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", action="store_true", help="figures as JSON instead of tables")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as own:
        folder = options.path
        if folder is None:
            folder = Path(own) / "checkpoint"
            folder.mkdir()
            layers = max(3, round(options.size * 1e9 / SHAPE.attention_bytes()))
            write_llama(folder, SHAPE, layers)
            (folder / "config.json").write_text(json.dumps({**CONFIG, "num_hidden_layers": layers}))
        found = measure(options, folder, own=options.path is None)
    if options.json:
        print(json.dumps(found, indent=1))
    else:
        show(found)


if __name__ == "__main__":
    main()
