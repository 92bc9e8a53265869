"""What is compiled is kept on disk, and whatever happens to it there costs a compilation and nothing else."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = """
import sys
from numba import types
from weightprint_kernels.compiled import compiled, compiled_callback

@compiled()
def twice(number):
    return 2 * number

@compiled_callback(types.int64(types.int64))
def thrice(number):
    return 3 * number

assert twice(21) == 42 and thrice.ctypes(14) == 42
print(sum(twice.stats.cache_hits.values()), thrice.cache_hits)
"""


def run(program: Path, cache: Path) -> str:
    done = subprocess.run(
        [sys.executable, str(program)],
        env={**os.environ, "NUMBA_CACHE_DIR": str(cache)},
        check=False,
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.strip()


@pytest.fixture
def program(tmp_path: Path) -> Path:
    (tmp_path / "program.py").write_text(PROGRAM)
    return tmp_path / "program.py"


def test_a_second_process_loads_what_the_first_compiled(program: Path, tmp_path: Path) -> None:
    assert run(program, tmp_path / "cache") == "0 0"
    assert run(program, tmp_path / "cache") == "1 1"


@pytest.mark.parametrize("suffix", [".nbi", ".nbc"])
@pytest.mark.parametrize("content", [b"", b"\0" * 100], ids=["empty", "zeros"])
def test_a_damaged_cache_costs_a_compilation(content: bytes, suffix: str, program: Path, tmp_path: Path) -> None:
    """As after a power cut, which leaves the names and not the bytes."""
    run(program, tmp_path / "cache")
    damaged = list((tmp_path / "cache").rglob(f"*{suffix}"))
    assert len(damaged) == 2
    for file in damaged:
        file.write_bytes(content)
    assert run(program, tmp_path / "cache").startswith("0 ")
    assert run(program, tmp_path / "cache").startswith("1 ")


def test_without_a_directory_everything_is_compiled(program: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    assert run(program, tmp_path / "file" / "cache") == "0 0"
