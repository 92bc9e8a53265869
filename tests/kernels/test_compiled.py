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


def test_what_was_compiled_from_other_sources_is_compiled_again(program: Path, tmp_path: Path) -> None:
    """Also where only a file beside the function's own has changed: it may hold what the function calls."""
    beside = program.with_name("beside.py")
    beside.write_text("LIMIT = 1\n")
    assert [run(program, tmp_path / "cache") for _ in range(2)] == ["0 0", "1 1"]
    beside.write_text("LIMIT = 2\n")
    assert [run(program, tmp_path / "cache") for _ in range(2)] == ["0 0", "1 1"]


def test_functions_stay_as_they_are_where_nothing_is_compiled(program: Path) -> None:
    """Under NUMBA_DISABLE_JIT a kernel is its Python source."""
    program.write_text(PROGRAM.split("@compiled_callback", maxsplit=1)[0] + "assert twice(21) == 42\n")
    environment = {**os.environ, "NUMBA_DISABLE_JIT": "1"}
    subprocess.run([sys.executable, str(program)], env=environment, check=True)


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
