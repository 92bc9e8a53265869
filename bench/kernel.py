"""GB/s of every kernel, format and size, against the read or copy limit of the same run.

On the CPU the limit looks at every 8 bytes of the same buffer with as many threads; on CUDA it is the device's own
copy, counted by the bytes that it reads. All take turns; figures are medians.

    python bench/kernel.py [--device cpu|cuda] [--sizes 1 16 64] [--rounds 5] [--json]
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from typing import Any, cast

from tables import print_machine, print_table

from weightprint.engine.settings import processors
from weightprint.throughput.kernels import KernelRate, largest_error, measure_cpu, measure_device
from weightprint.throughput.machine import machine
from weightprint_kernels.backend import Backend, DeviceBackend
from weightprint_kernels.layout import ITEMSIZE
from weightprint_kernels.select import select_backend

MEBIBYTE = 2**20


def backends(device: str) -> list[Backend]:
    """The backends that this machine has for ``device``: the one that a scan uses, and torch beside it."""
    from weightprint_kernels.torch_backend import TorchBackend

    chosen, _ = select_backend(device)
    return [chosen] if chosen.name.startswith("torch") else [chosen, TorchBackend(chosen.device)]


def measure(device: str, sizes: list[int], rounds: int) -> list[KernelRate]:
    """Every backend, format, size and, on the CPU, number of threads."""
    found: list[KernelRate] = []
    for backend in backends(device):
        for dtype in ITEMSIZE:
            for size in sizes:
                if backend.device != "cpu":
                    found += measure_device(cast(DeviceBackend, backend), dtype, size * MEBIBYTE, rounds)
                    continue
                threads = sorted({1, processors()}) if backend.name == "numba" else [1]
                for count in threads:
                    found += measure_cpu(backend, dtype, size * MEBIBYTE, count, rounds)
    return found


def row(rate: KernelRate) -> list[str]:
    return [
        rate.backend,
        rate.dtype,
        rate.work,
        f"{rate.size // MEBIBYTE} MiB",
        str(rate.threads),
        f"{rate.gigabytes_per_second:.2f}",
        f"{rate.limit:.2f}",
        f"{rate.share:.2f}",
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--sizes", type=int, nargs="+", help="MiB of each buffer")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", action="store_true", help="figures as JSON instead of a table")
    options = parser.parse_args()
    if options.device == "cpu":
        import torch

        torch.set_num_threads(1)
    rates = measure(options.device, options.sizes or ([64] if options.device == "cpu" else [64, 1024]), options.rounds)
    errors = {
        f"{backend.name} {dtype}": largest_error(backend, dtype)
        for backend in backends(options.device)
        for dtype in ITEMSIZE
    }
    document: dict[str, Any] = {
        "kernels": [{**asdict(rate), "share": rate.share} for rate in rates],
        "largest_relative_error_of_the_variance": errors,
        "machine": machine(),
    }
    if options.json:
        print(json.dumps(document, indent=1))
        return
    print_machine(document["machine"])
    print_table(["backend", "dtype", "work", "size", "threads", "GB/s", "limit", "share"], map(row, rates))
    print("\nlargest relative error of the variance, a million weights against float64:")
    print_table(["backend and dtype", "error"], ([name, f"{error:.1e}"] for name, error in errors.items()))


if __name__ == "__main__":
    main()
