"""What the slots of a plan were reduced to, put together: merged in float64 and in plan order, whatever order they
were read in, so the same input on the same backend gives the same bits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from weightprint.data import Matrix
from weightprint.errors import CheckpointError, Notice
from weightprint.plan import UNITS_ARE_OUTPUTS, Plan, Slot
from weightprint_kernels.layout import FLOAT64, INT64, MOMENT_FIELDS, Reduced
from weightprint_kernels.merge import MergedMoments, as_merged, merge_moments


@dataclass(frozen=True)
class Reduction:
    """What a checkpoint's bytes were reduced to.

    ``moments`` and ``energies`` (float64 [units]) are by matrix number; matrices of which something could not be read
    are missing. ``backend`` names what reduced them.
    """

    moments: Mapping[int, MergedMoments]
    energies: Mapping[int, FLOAT64]
    bytes_read: int
    notices: tuple[Notice, ...]
    backend: str = ""


@dataclass
class Collector:
    """Takes slots in plan order. Memory is that of the energies, and of 72 bytes a rectangle."""

    plan: Plan
    matrices: list[INT64] = field(default_factory=list)
    moments: list[FLOAT64] = field(default_factory=list)
    energies: dict[int, FLOAT64] = field(default_factory=dict)
    bytes_read: int = 0
    failures: dict[int, tuple[int, CheckpointError]] = field(default_factory=dict)
    skipped: list[int] = field(default_factory=list)

    def add(self, slot: Slot, reduced: Sequence[Reduced]) -> None:
        """Add one slot: a result for each of its batches."""
        self.bytes_read += slot.length
        for batch, result in zip(slot.batches, reduced, strict=True):
            self.matrices.append(batch.matrix)
            self.moments.append(result.moments)
            start = 0
            sizes = batch.rectangles.units()
            wanted = np.flatnonzero(sizes)
            for number, unit, size in zip(
                batch.matrix[wanted].tolist(), batch.unit[wanted].tolist(), sizes[wanted].tolist(), strict=True
            ):
                if number not in self.energies:
                    self.energies[number] = np.zeros(_units(self.plan.matrices[number]))
                self.energies[number][unit : unit + size] += result.energies[start : start + size]
                start += size

    def fail(self, number: int, error: CheckpointError) -> None:
        """Slot ``number`` could not be read: the first failure of its file is what is reported."""
        self.failures.setdefault(int(self.plan.file[number]), (number, error))

    def skip(self, number: int) -> None:
        """Slot ``number`` was not read, because its file had failed."""
        self.skipped.append(number)

    def finish(self, backend: str) -> Reduction:
        """All together. Of a file that failed nothing counts from the failure on."""
        gone = list(self.skipped)
        for file, (first, _) in self.failures.items():
            gone += [number for number in np.flatnonzero(self.plan.file == file).tolist() if number >= first]
        slices = [slice(self.plan.first[number], self.plan.first[number + 1]) for number in gone]
        lost = {matrix for part in slices for matrix in self.plan.matrix[part].tolist()}
        moments = {number: merged for number, merged in self._merged() if number not in lost}
        energies = {number: units for number, units in self.energies.items() if number not in lost}
        notices = tuple(error.notice() for _, error in self.failures.values())
        return Reduction(moments, energies, self.bytes_read, notices, backend)

    def _merged(self) -> list[tuple[int, MergedMoments]]:
        """Moments by matrix; the parts of one are merged in plan order."""
        if not self.matrices:
            return []
        matrix = np.concatenate(self.matrices)
        moments = np.concatenate(self.moments).reshape(-1, len(MOMENT_FIELDS))
        order = np.argsort(matrix, kind="stable")
        numbers, starts = np.unique(matrix[order], return_index=True)
        return list(zip(numbers.tolist(), as_merged(merge_moments(moments[order], starts)), strict=True))


def _units(matrix: Matrix) -> int:
    return matrix.shape[0] if UNITS_ARE_OUTPUTS[matrix.role] else matrix.shape[1]
