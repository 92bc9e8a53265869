"""Property-based tests draw the same examples in every run and are not timed: a busy machine is no failure.

Code that Numba compiled is kept apart for every state of the kernels' sources. Numba itself looks only at the file in
which a function stands: what was compiled out of an older line_sums or layout would go on being tested.
"""

import hashlib
import os
from pathlib import Path

from hypothesis import HealthCheck, settings

ROOT = Path(__file__).parents[1]


def compiled_code() -> Path:
    """A directory for the sources as they are now."""
    digest = hashlib.sha256()
    for path in sorted([*ROOT.glob("kernels/*/*.py"), *ROOT.glob("scanner/weightprint/engine/*.py")]):
        digest.update(path.read_bytes())
    return ROOT / ".cache" / "numba" / digest.hexdigest()[:16]


# Before Numba is imported here, and for the processes that tests start.
os.environ["NUMBA_CACHE_DIR"] = str(compiled_code())

settings.register_profile(
    "weightprint", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow], print_blob=True
)
settings.load_profile("weightprint")
