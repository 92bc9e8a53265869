"""Kernels compiled to machine code without a GPU, and what the code says: registers, stack, width of its loads."""

import re
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

CUOBJDUMP = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"


@dataclass(frozen=True)
class MachineCode:
    """One compiled kernel: figures of ``cuobjdump -res-usage`` and its global loads, in order."""

    registers: int
    stack: int
    local: int
    loads: tuple[str, ...]
    ptx: str

    def wide_loads(self) -> int:
        return sum(".128" in load for load in self.loads)


def compile_kernel(kernel: Any, element: str, constants: dict[str, Any], warps: int, capability: int) -> MachineCode:
    """Compile ``kernel(buffer, table, out, **constants)`` as the launcher would for pointers aligned to 16 bytes."""
    signature = {"buffer": f"*{element}", "table": "*i64", kernel.arg_names[2]: "*fp32"}
    signature |= dict.fromkeys(constants, "constexpr")
    source = ASTSource(
        fn=kernel,
        signature=signature,
        constexprs={(kernel.arg_names.index(name),): value for name, value in constants.items()},
        attrs={(position,): [["tt.divisibility", 16]] for position in range(3)},
    )
    compiled = triton.compile(source, target=GPUTarget("cuda", capability, 32), options={"num_warps": warps})
    return _read(compiled.asm["cubin"], compiled.asm["ptx"])


def _read(cubin: bytes, ptx: str) -> MachineCode:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.cubin"
        path.write_bytes(cubin)
        usage, code = (
            subprocess.run([CUOBJDUMP, option, path], check=True, capture_output=True, text=True).stdout
            for option in ("-res-usage", "-sass")
        )
    figures = dict(re.findall(r"(REG|STACK|LOCAL):(\d+)", usage))
    loads = tuple(re.findall(r"\b(LDG\S*)", code))
    return MachineCode(int(figures["REG"]), int(figures["STACK"]), int(figures["LOCAL"]), loads, ptx)
