# mypy: disable-error-code="no-untyped-call"
"""Compiling for this processor, with what was compiled kept on disk, whatever the disk does.

Numba keeps machine code beside the source or in the user's cache directory. A directory that cannot be written, a file
there that a power cut left empty, or a disk that is full must cost a compilation and nothing else. What was compiled
from other sources is not used: Numba looks at the file of the function alone, and much of what a function does, and
every constant that it takes, may be written beside it.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from numba import config, njit
from numba.core.ccallback import CFunc
from numba.core.sigutils import normalize_signature


def compiled(**options: Any) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """A decorator as ``numba.njit(**options)``: compiles at the first call, or loads what an earlier process compiled.
    The lock of the interpreter is released."""

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        try:
            kernel: Any = njit(cache=True, nogil=True, **options)(function)
        except RuntimeError:  # no directory for compiled code can be written
            kernel = njit(nogil=True, **options)(function)
        else:
            if not config.DISABLE_JIT:  # else it is the function itself
                _stamp(kernel._cache, function)
                _forgive(kernel._cache)
        return kernel  # type: ignore[no-any-return]

    return decorate


def compiled_callback(signature: Any) -> Callable[[Callable[..., Any]], Any]:
    """A decorator as ``numba.cfunc(signature)``: a function that C can call by its address, kept on disk likewise."""

    def decorate(function: Callable[..., Any]) -> Any:
        for kept in (True, False):
            callback: Any = CFunc(function, normalize_signature(signature), locals={}, options={})
            try:
                if kept:
                    callback.enable_caching()
                    _stamp(callback._cache, function)
                callback.compile()
            except Exception:  # no directory, or a damaged file in it
                if not kept:
                    raise
            else:
                break
        return callback

    return decorate


def _stamp(cache: Any, function: Callable[..., Any]) -> None:
    """Take what was compiled from other sources of the function's folder for stale."""
    index = cache._cache_file
    index._source_stamp = (index._source_stamp, _digest_of(Path(function.__code__.co_filename).parent))


@functools.cache
def _digest_of(folder: Path) -> str:
    """Of the sources in a folder, and of those of this package, which a function of another may be compiled with."""
    digest = hashlib.sha256()
    for source in sorted({*folder.glob("*.py"), *Path(__file__).parent.glob("*.py")}):
        digest.update(source.read_bytes())
    return digest.hexdigest()


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
