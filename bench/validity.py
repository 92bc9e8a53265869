"""How often unrelated networks would be told apart from chance, if units that are not exchangeable were taken for such.

Two simulations of independent networks, each with the units that weightprint uses beside the ones that it refuses: the
columns of O under grouped-query attention (docs/decisions/0001), and blocks that reach across heads of different
strength (docs/decisions/0002). Valid units give z of standard deviation 1 and p <= 0.001 in one pair of a thousand.

    python bench/validity.py [--models 120]
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from weightprint.compare.blocks import order_codes, standardised
from weightprint.compare.exact import log10_tail

LAYERS, SPREAD = 12, 0.3
VALUE_HEADS, SHARED, WIDTH = 8, 4, 16
SEED = 0

Energies = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Case:
    """One way to take the units of the same networks: energies [models, layers, units]."""

    name: str
    energies: Energies
    block: int


def chi_square(generator: np.random.Generator, shape: tuple[int, ...], weights: int = 256) -> npt.NDArray[np.float64]:
    """Energies of rows of so many Gaussian weights."""
    return generator.chisquare(weights, shape)


def grouped(models: int) -> Iterator[Case]:
    """Columns of O that read one row of V share its strength."""
    generator = np.random.default_rng(SEED)
    strength = np.exp(SPREAD * generator.normal(size=(models, LAYERS, VALUE_HEADS, 1, WIDTH)))
    columns = strength * chi_square(generator, (models, LAYERS, VALUE_HEADS, SHARED, WIDTH))
    yield Case("column by column", columns.reshape(models, LAYERS, -1).astype(np.float32), 8)
    yield Case(
        "summed over the heads that share", columns.sum(axis=3).reshape(models, LAYERS, -1).astype(np.float32), 8
    )


def across_heads(models: int, width: int) -> Iterator[Case]:
    """Rows of V in heads of ``width``, some heads stronger than others."""
    generator = np.random.default_rng(SEED)
    strength = np.exp(SPREAD * generator.normal(size=(models, LAYERS, 240 // width, 1)))
    rows = (strength * chi_square(generator, (models, LAYERS, 240 // width, width))).reshape(models, LAYERS, -1)
    for block in (8, 2):
        yield Case(f"blocks of {block}", rows.astype(np.float32), block)


def judge(case: Case) -> tuple[float, float, float]:
    """Standard deviation of z, share of p <= 0.001 and smallest log10 p over all pairs of models."""
    models = len(case.energies)
    codes = order_codes(case.energies, case.block).reshape(models, -1).astype(np.float64)
    blocks = codes.shape[1] // case.block
    statistic = np.rint(codes @ codes.T)[np.triu_indices(models, 1)].astype(np.int64)
    values, counts = np.unique(statistic, return_counts=True)
    log10_p = np.array([log10_tail(int(value), blocks, case.block) for value in values])
    deviation = float(standardised(statistic, blocks, case.block).std())
    return deviation, float(counts[log10_p <= -3].sum() / counts.sum()), float(log10_p.min())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=int, default=120, help="independent networks; all pairs are tested")
    models = parser.parse_args().models
    tables = {f"columns of O, {SHARED} query heads to a value head of {WIDTH}": grouped(models)}
    tables |= {f"rows of V, heads of {width}": across_heads(models, width) for width in (4, 12, 20)}
    print(f"{models * (models - 1) // 2} pairs of independent networks of {LAYERS} layers\n")
    print("| units | taken as | sd of z | p <= 0.001 | smallest log10 p |\n| --- | --- | --- | --- | --- |")
    for units, cases in tables.items():
        for case in cases:
            deviation, share, smallest = judge(case)
            print(f"| {units} | {case.name} | {deviation:.2f} | {share:.2%} | {smallest:.1f} |")


if __name__ == "__main__":
    main()
