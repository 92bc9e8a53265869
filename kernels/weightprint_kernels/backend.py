"""What a backend is, and how one is chosen.

Requirements of the design: a backend places bytes where it computes, reduces them in a fixed order (same input, same
backend: same bits) and returns float32 on the host. It never raises for a value in the bytes. ``reference`` is
float64 numpy and is the oracle of the others; ``numba`` runs on the CPU; ``torch`` runs on CPU and CUDA, where the
other two are missing; ``triton`` runs on CUDA, and in Triton's interpreter for tests. Nothing heavy is imported until a
backend is built.
"""

from __future__ import annotations

from typing import Any, Protocol

from weightprint_kernels.layout import FLOAT32, UINT8, Chunks, Rectangles, Reduced, Tiles


class Backend(Protocol):
    """Bytes in, partial rows out. ``dtype`` is a key of :data:`weightprint_kernels.layout.ITEMSIZE`."""

    name: str
    device: str

    def place(self, data: UINT8) -> Any:
        """Put one-dimensional bytes where this backend computes; without a copy where that is the host."""
        ...

    def moments(self, buffer: Any, chunks: Chunks, dtype: str) -> FLOAT32:
        """Partial rows, float32 [len(chunks), 8], columns as in ROW_FIELDS."""
        ...

    def column_energies(self, buffer: Any, tiles: Tiles, dtype: str) -> FLOAT32:
        """Σ w² per column of each tile, float32 [len(tiles), TILE_COLUMNS], zero beyond the tile's columns."""
        ...


class OnePassBackend(Backend, Protocol):
    """A backend that reduces whole rectangles in one visit to the bytes, in float64 where float32 does not hold."""

    def reduce(self, buffer: Any, rectangles: Rectangles, dtype: str) -> Reduced:
        """Merged moments and energies of ``rectangles``."""
        ...


class DeviceBackend(Backend, Protocol):
    """A backend whose results stay where it computes until they are asked for: nothing here waits for the device."""

    def moments_there(self, buffer: Any, chunks: Chunks, dtype: str) -> Any:
        """Partial rows as :meth:`moments` gives them, as a tensor on the device."""
        ...

    def column_energies_there(self, buffer: Any, tiles: Tiles, dtype: str) -> Any:
        """Energies as :meth:`column_energies` gives them, as a tensor on the device."""
        ...
