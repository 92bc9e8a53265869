"""Peak memory and bytes read of one scan, at two sizes of checkpoint: neither may grow with the other.

Makes sharded bf16 checkpoints of the Llama layout (safetensors, random weights), scans each in a process of its own and
prints what the operating system says of that process, beside a process that only imports what a scan imports.

    python bench/memory.py [--sizes 0.2 2] [--directory DIR]
"""

from __future__ import annotations

import argparse
import json
import platform
import resource
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

HIDDEN, KEY_VALUE, FEED_FORWARD = 2048, 512, 5632
SHARD_BYTES = 500_000_000
# Reports its own peak, so that neither the parent nor other children take part.
CHILD = """
import json, resource, sys
from weightprint.cli.main import main
sys.argv = sys.argv[1:]
try:
    main()
finally:
    sys.stderr.write(json.dumps({"peak_kib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss}))
"""
IMPORTS = """
import json, resource, sys
import numpy, safetensors.numpy, torch, weightprint.scan
from weightprint_kernels.select import select_backend
select_backend("cpu")
sys.stderr.write(json.dumps({"peak_kib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss}))
"""


def layer_shapes() -> dict[str, tuple[int, int]]:
    """The matrices of one layer by the last part of their names."""
    return {
        "self_attn.q_proj": (HIDDEN, HIDDEN),
        "self_attn.k_proj": (KEY_VALUE, HIDDEN),
        "self_attn.v_proj": (KEY_VALUE, HIDDEN),
        "self_attn.o_proj": (HIDDEN, HIDDEN),
        "mlp.gate_proj": (FEED_FORWARD, HIDDEN),
        "mlp.up_proj": (FEED_FORWARD, HIDDEN),
        "mlp.down_proj": (HIDDEN, FEED_FORWARD),
    }


def write_checkpoint(directory: Path, target: float) -> int:
    """Write a sharded checkpoint of about ``target`` bytes; returns how many of them are attention."""
    per_layer = sum(rows * columns for rows, columns in layer_shapes().values()) * 2
    layers = max(3, round(target / per_layer))
    per_shard = max(1, SHARD_BYTES // per_layer)
    shards = [range(start, min(start + per_shard, layers)) for start in range(0, layers, per_shard)]
    generator = np.random.default_rng(0)
    weight_map = {}
    for number, owned in enumerate(shards, 1):
        file = f"model-{number:05}-of-{len(shards):05}.safetensors"
        names = {
            f"model.layers.{layer}.{name}.weight": shape for layer in owned for name, shape in layer_shapes().items()
        }
        write_safetensors(directory / file, names, generator)
        weight_map.update(dict.fromkeys(names, file))
    (directory / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    attention = sum(r * c for name, (r, c) in layer_shapes().items() if name.startswith("self_attn"))
    return layers * attention * 2


def write_safetensors(path: Path, shapes: dict[str, tuple[int, int]], generator: np.random.Generator) -> None:
    """Write random bf16 tensors one by one, so that writing 2 GB needs no 2 GB."""
    header: dict[str, Any] = {}
    end = 0
    for name, shape in shapes.items():
        size = shape[0] * shape[1] * 2
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [end, end + size]}
        end += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for shape in shapes.values():
            values = generator.standard_normal(shape, dtype=np.float32) * np.float32(0.02)
            file.write((values.view(np.uint32) >> 16).astype(np.uint16).tobytes())


def peak(code: str, *arguments: str) -> tuple[float, dict[str, Any] | None]:
    """Peak resident memory in MiB of a Python process, and the JSON document on its stdout."""
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True)
    document = json.loads(done.stdout) if done.stdout else None
    return json.loads(done.stderr)["peak_kib"] / 1024, document


def measure(size: float, directory: Path, baseline: float) -> dict[str, Any]:
    """Write, scan and remove one checkpoint of ``size`` GB."""
    with tempfile.TemporaryDirectory(dir=directory) as folder:
        checkpoint = Path(folder) / "checkpoint"
        checkpoint.mkdir()
        attention = write_checkpoint(checkpoint, size * 1e9)
        used, document = peak(
            CHILD,
            "weightprint",
            "scan",
            str(checkpoint),
            "--store",
            f"{folder}/store",
            "--json",
            "--quiet",
            "--device",
            "cpu",
        )
        assert document is not None
        figures = document["checkpoints"][0]["bytes"]
        return {
            "gigabytes": figures["files"] / 1e9,
            "attention_bytes": attention,
            "read_bytes": figures["read"],
            "read_over_attention": figures["read"] / attention,
            "seconds": document["summary"]["seconds"],
            "peak_mib": used,
            "over_imports_mib": used - baseline,
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=float, nargs="+", default=[0.2, 2.0], help="gigabytes of each checkpoint")
    parser.add_argument("--directory", type=Path, default=None, help="where the checkpoints are written and removed")
    parser.add_argument("--json", action="store_true", help="figures as JSON instead of a table")
    options = parser.parse_args()
    baseline, _ = peak(IMPORTS)
    rows = [measure(size, options.directory, baseline) for size in options.sizes]
    if options.json:
        machine = {"python": platform.python_version(), "page_kib": resource.getpagesize() // 1024}
        print(json.dumps({"imports_mib": baseline, "scans": rows, **machine}, indent=1))
        return
    print(f"interpreter and imports alone: {baseline:.0f} MiB")
    print(
        f"{'checkpoint':>12} {'attention':>12} {'read/attention':>15} {'seconds':>8} {'peak':>10} {'over imports':>13}"
    )
    for row in rows:
        print(
            f"{row['gigabytes']:>9.2f} GB {row['attention_bytes'] / 1e9:>9.3f} GB {row['read_over_attention']:>15.4f} "
            f"{row['seconds']:>8.2f} {row['peak_mib']:>6.0f} MiB {row['over_imports_mib']:>9.0f} MiB"
        )


if __name__ == "__main__":
    main()
