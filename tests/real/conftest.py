"""The published checkpoints, fetched once into the cache; a machine that cannot fetch them fails these tests."""

from pathlib import Path

import pytest
from fetch_real import cache_directory, fetch


@pytest.fixture(scope="session")
def real() -> dict[str, Path]:
    """Name -> directory of every published checkpoint."""
    return fetch(cache_directory())
