"""An installation that cannot be written, for a user without a cache: what Numba compiles is kept nowhere."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import tiny
import weightprint
import weightprint_kernels

PROGRAM = """
import os, sys
for place in sys.argv[1:4]:
    if os.access(place, os.W_OK):
        sys.exit(f"{place} can be written")
from weightprint.cli.main import main
from weightprint_kernels import numba_kernels
assert numba_kernels.__file__.startswith(sys.argv[1]), numba_kernels.__file__
sys.argv[1:] = sys.argv[4:]
main()
"""


def test_a_read_only_installation_without_a_cache_works(tmp_path: Path) -> None:
    """Root can write everywhere, so the capability to do so is taken away."""
    command = [sys.executable, "-B"]
    if os.geteuid() == 0:
        if shutil.which("setpriv") is None:
            pytest.skip("root can write everywhere")
        command = ["setpriv", "--bounding-set=-dac_override,-dac_read_search", *command]
    site, home, cache = (tmp_path / name for name in ("site", "home", "cache"))
    for package in (weightprint, weightprint_kernels):
        assert package.__file__ is not None
        source = Path(package.__file__).parent
        shutil.copytree(source, site / source.name, ignore=shutil.ignore_patterns("__pycache__"))
    home.mkdir()
    cache.mkdir()
    model = tiny.save(tmp_path / "models/a", tiny.llama(0, layers=1))
    closed = [path for path in (site, *site.rglob("*"), home, cache) if path.is_dir()]
    for path in closed:
        path.chmod(0o555)
    environment = {
        **os.environ,
        "HOME": str(home),
        "XDG_CACHE_HOME": str(home),
        "NUMBA_CACHE_DIR": str(cache),
        "PYTHONPATH": str(site),
    }
    arguments = ["scan", str(model), "--store", str(tmp_path / "store"), "--refs", str(model), "--device", "cpu", "-q"]
    try:
        done = subprocess.run(
            [*command, "-c", PROGRAM, str(site), str(home), str(cache), *arguments],
            capture_output=True,
            text=True,
            check=False,
            env=environment,
            timeout=300,
        )
    finally:
        for path in closed:
            path.chmod(0o755)
    assert (done.returncode, done.stderr) == (0, "")
    assert "1 checkpoint found: 1 complete" in done.stdout
    assert [list(path.iterdir()) for path in (home, cache)] == [[], []]
    assert not list(site.rglob("*.nbi"))
