"""Kernels compiled to machine code without a GPU, and what the code says: registers, stack, instructions."""

import functools
import re
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
INSTRUCTION = re.compile(r"^\s+/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][\w.]*)", re.MULTILINE)


@dataclass(frozen=True)
class MachineCode:
    """One compiled kernel: figures of ``cuobjdump -res-usage``, and its instructions, read when they are asked for."""

    cubin: bytes
    registers: int
    stack: int
    local: int

    @functools.cached_property
    def instructions(self) -> tuple[str, ...]:
        """Names of all instructions, in order."""
        # Three times as fast as cuobjdump -sass, which analyses the flow of data.
        return tuple(INSTRUCTION.findall(_run("nvdisasm", "-c", "-ndf", cubin=self.cubin)))

    @property
    def loads(self) -> tuple[str, ...]:
        """Loads from global memory."""
        return tuple(name for name in self.instructions if name.startswith("LDG"))

    @property
    def wide_loads(self) -> int:
        """Those of 128 bits a thread."""
        return sum(".128" in load for load in self.loads)

    @property
    def atomics(self) -> tuple[str, ...]:
        """Atomic instructions on any memory; REDUX, a sum inside one warp, is none."""
        return tuple(name for name in self.instructions if re.match(r"ATOM|RED(\.|$)|REDG|REDS|UREDG", name))

    @property
    def flushing(self) -> tuple[str, ...]:
        """Instructions that take subnormal numbers for zero."""
        return tuple(name for name in self.instructions if ".FTZ" in name)


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
    return read_code(compiled.asm["cubin"])


def read_code(cubin: bytes) -> MachineCode:
    """What a compiled kernel needs."""
    figures = dict(re.findall(r"(REG|STACK|LOCAL):(\d+)", _run("cuobjdump", "-res-usage", cubin=cubin)))
    return MachineCode(cubin, int(figures["REG"]), int(figures["STACK"]), int(figures["LOCAL"]))


def _run(tool: str, *options: str, cubin: bytes) -> str:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.cubin"
        path.write_bytes(cubin)
        return subprocess.run([TOOLS / tool, *options, path], check=True, capture_output=True, text=True).stdout
