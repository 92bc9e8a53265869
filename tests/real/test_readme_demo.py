"""The demo's output in README is what the demo prints; figures may differ as the arithmetic of two machines does."""

import math
import re
from pathlib import Path

import pytest
from lay_out_demo import lay_out

from command_line import run

pytestmark = pytest.mark.real

README = Path(__file__).parents[2] / "README.md"


def words(text: str) -> list[str]:
    """The words of a text, folded lines or not, with seconds, which differ from run to run, blanked."""
    return re.sub(r"\d+(\.\d+)? (ms|s)\b", "SECONDS", text).split()


def alike(shown: str, printed: str) -> bool:
    """Equal, or figures so close that a rank that fell the other way explains it."""
    powers = [re.fullmatch(r"1e(-\d+)", word) for word in (shown, printed)]
    if powers[0] and powers[1]:
        return abs(int(powers[0][1]) - int(powers[1][1])) <= 1
    decimals = [re.fullmatch(r"-?\d+\.\d+", word) for word in (shown, printed)]
    if all(decimals):
        return math.isclose(float(shown), float(printed), rel_tol=0.02, abs_tol=2e-4)
    return shown == printed


@pytest.fixture
def shown() -> list[str]:
    """The block of README that follows the word that introduces it."""
    block = re.search(r"What the demo prints on stdout:\n\n```\n(.*?)```", README.read_text(), re.DOTALL)
    assert block is not None
    return words(block[1])


def test_readme_shows_what_the_demo_prints(real: dict[str, Path], tmp_path: Path, shown: list[str]) -> None:
    lay_out(tmp_path / "demo", real)
    reference_set = tmp_path / "demo" / "reference-set"
    run("refs", "add", str(tmp_path / "demo" / "references"), "--refs", str(reference_set))
    checkpoints, store = tmp_path / "demo" / "checkpoints", tmp_path / "store"
    done = run("scan", str(checkpoints), "--refs", str(reference_set), "--store", str(store))
    printed = words(done.stdout)
    assert len(shown) == len(printed)
    assert [pair for pair in zip(shown, printed, strict=True) if not alike(*pair)] == []
