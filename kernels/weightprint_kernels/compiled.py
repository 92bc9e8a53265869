# mypy: disable-error-code="no-untyped-call"
"""Compiling for this processor, with what was compiled kept on disk, whatever the disk does.

Numba keeps machine code beside the source or in the user's cache directory. A directory that cannot be written, a file
there that a power cut left empty, or a disk that is full must cost a compilation and nothing else.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

from numba import cfunc, njit


def compiled(**options: Any) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """A decorator as ``numba.njit(**options)``: compiles at the first call, or loads what an earlier process compiled.
    The lock of the interpreter is released."""

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        try:
            kernel: Any = njit(cache=True, nogil=True, **options)(function)
        except RuntimeError:  # no directory for compiled code can be written
            kernel = njit(nogil=True, **options)(function)
        else:
            _forgive(kernel._cache)
        return kernel  # type: ignore[no-any-return]

    return decorate


def compiled_callback(signature: Any) -> Callable[[Callable[..., Any]], Any]:
    """A decorator as ``numba.cfunc(signature)``: a function that C can call by its address, kept on disk likewise."""

    def decorate(function: Callable[..., Any]) -> Any:
        try:
            return cfunc(signature, cache=True)(function)
        except Exception:  # noqa: BLE001  no directory, or a damaged file in it
            return cfunc(signature)(function)

    return decorate


def _forgive(cache: Any) -> None:
    """Let a kernel's cache on disk fail without a word: what cannot be loaded is compiled, and overwritten."""
    load, save = cache.load_overload, cache.save_overload

    def load_overload(*arguments: Any) -> Any:
        try:
            return load(*arguments)
        except Exception:  # noqa: BLE001  a damaged file can fail anywhere
            with contextlib.suppress(OSError):
                cache.flush()
            return None

    def save_overload(*arguments: Any) -> None:
        with contextlib.suppress(Exception):
            save(*arguments)

    cache.load_overload, cache.save_overload = load_overload, save_overload
