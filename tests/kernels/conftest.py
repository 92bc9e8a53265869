"""numpy plays the GPU in Triton's interpreter: overflow there is what the kernels are meant to produce."""

from collections.abc import Iterator

import numpy as np
import pytest
from kernel_backends import INTERPRETING


@pytest.fixture(autouse=True)
def quiet_interpreter() -> Iterator[None]:
    if not INTERPRETING:
        yield
        return
    with np.errstate(all="ignore"):
        yield
