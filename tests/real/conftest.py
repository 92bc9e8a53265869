"""The published checkpoints, fetched once into the cache; a machine that cannot fetch them fails these tests."""

from pathlib import Path

import pytest
from fetch_real import cache_directory, fetch


@pytest.fixture(scope="session")
def real() -> dict[str, Path]:
    """Name -> directory of every published checkpoint."""
    return fetch(cache_directory())


def pytest_addoption(parser: pytest.Parser) -> None:
    """An option for the long run; it is known where tests/real is named on the command line."""
    parser.addoption("--every-matrix", action="store_true", help="let Triton's interpreter reduce every matrix")


@pytest.fixture(scope="session")
def every_matrix(pytestconfig: pytest.Config) -> bool:
    """Whether slow backends get every matrix too."""
    return bool(pytestconfig.getoption("--every-matrix", default=False))
