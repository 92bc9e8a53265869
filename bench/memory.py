"""Peak memory and bytes read of one scan, at two sizes of checkpoint: neither may grow with the other.

Makes sharded bf16 checkpoints of the Llama layout (safetensors, random weights), scans each in a process of its own and
prints what the operating system says of that process, beside a process that only imports what a scan imports.

    python bench/memory.py [--sizes 0.5 4] [--directory DIR]
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

from weightprint.throughput.synthetic import Shape, write_llama

SHAPE = Shape(hidden=4096, key_value=2048, feed_forward=2048)  # 96 MiB of attention a layer: slots are full
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
import safetensors.numpy, weightprint.scan
from weightprint.engine.choose import open_engine
from weightprint.engine.guard import installed_guard
installed_guard()
open_engine("cpu").__exit__()
sys.stderr.write(json.dumps({"peak_kib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss}))
"""


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
        per_layer = 2 * sum(rows * columns for rows, columns in SHAPE.layer().values())
        attention = write_llama(checkpoint, SHAPE, max(3, round(size * 1e9 / per_layer)))
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
    parser.add_argument("--sizes", type=float, nargs="+", default=[0.5, 4.0], help="gigabytes of each checkpoint")
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
