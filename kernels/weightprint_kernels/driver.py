"""Whether there may be a GPU, asked without importing anything."""

from __future__ import annotations

import ctypes
import sys
from pathlib import Path


def driver_present() -> bool:
    """Whether a GPU driver can be loaded. Without one torch has no device either, and need not be asked: importing it
    takes a second."""
    if sys.platform != "linux" or Path("/dev/kfd").exists():
        return True
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        return False
    return True
