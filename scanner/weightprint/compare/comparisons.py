"""Sequences of comparisons that are made when looked at: half a million of them in full would take gigabytes.

What decisions over all pairs need is kept in columns (:class:`Figures`); a :class:`Comparison` with its tests and
sentences is put together for each access, and equal to what comparing that pair alone gives.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import overload

import numpy as np
import numpy.typing as npt

from weightprint.compare.blocks import FLOAT64, INT64
from weightprint.compare.invariants import Agreements, agreements_of
from weightprint.compare.packed import Label
from weightprint.compare.plans import PairPlan
from weightprint.compare.stacks import CURVE_ROLES
from weightprint.data import Comparison, Screen, Test

WORDS = ("identical", "re-encoded", "shared-origin", "similar-profile", "no-evidence", "not-comparable")
"""Every verdict, strongest first."""

_WORD = {word: number for number, word in enumerate(WORDS)}


@dataclass(frozen=True)
class Figures:
    """Columns over the pairs: places of the two names in ``table``, int64 [pairs, 2]; verdict as a place in WORDS; p of
    the pair, corrected inside it and over the report; seed score; how well the invariants agree. nan where there is
    none."""

    table: tuple[str, ...]
    names: INT64
    words: npt.NDArray[np.int8]
    pair_log10_p: FLOAT64
    log10_p: FLOAT64
    scores: FLOAT64
    agreements: Agreements

    def ranked(self) -> npt.NDArray[np.intp]:
        """Numbers of the pairs: strongest verdict first, then the smallest p, then by name; pairs that were not tested
        come last."""
        rank = np.empty(len(self.table), np.int64)
        rank[sorted(range(len(self.table)), key=self.table.__getitem__)] = np.arange(len(self.table))
        a, b = rank[self.names].T
        return np.lexsort((b, a, np.nan_to_num(self.log10_p, nan=math.inf), self.words))


@dataclass(frozen=True)
class Batch:
    """Pairs of two shapes in which nothing was found: their numbers int64 [pairs], T and log10 p [pairs, tests] of the
    plan's tests, r of its curves [pairs, curves], and how well the invariants agree."""

    plan: PairPlan
    pairs: INT64
    statistic: INT64
    log10_p: FLOAT64
    correlations: FLOAT64
    agreements: Agreements

    def smallest(self) -> FLOAT64:
        """The smallest p of each pair, corrected inside it; nan without a test."""
        if not self.plan.tests:
            return np.full(len(self.pairs), math.nan)
        factors = np.array([test.log10_factor for test in self.plan.tests])
        return np.asarray(np.minimum((self.log10_p + factors).min(axis=1), 0.0))

    def scores(self) -> FLOAT64:
        """The seed score of each pair; nan without a curve."""
        if not self.plan.curves:
            return np.full(len(self.pairs), math.nan)
        return np.asarray(self.correlations.mean(axis=1))


class LazyComparisons(Sequence[Comparison]):
    """A sequence of comparisons, equal to any other that holds equal ones."""

    @property
    @abstractmethod
    def figures(self) -> Figures:
        """The columns, for which no comparison is made."""

    @abstractmethod
    def at(self, number: int) -> Comparison:
        """Comparison ``number``, which is in range."""

    @overload
    def __getitem__(self, index: int) -> Comparison: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[Comparison, ...]: ...
    def __getitem__(self, index: int | slice) -> Comparison | tuple[Comparison, ...]:
        places = range(len(self))[index]
        return self.at(places) if isinstance(places, int) else tuple(self.at(number) for number in places)

    def __iter__(self) -> Iterator[Comparison]:
        return (self.at(number) for number in range(len(self)))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Sequence):
            return NotImplemented
        return len(self) == len(other) and all(x == y for x, y in zip(self, other, strict=True))

    __hash__ = None  # type: ignore[assignment]


class Comparisons(LazyComparisons):
    """Preliminary comparisons: most in batches, and in full those that were made one by one."""

    def __init__(
        self, labels: Sequence[Label], pairs: INT64, batches: Sequence[Batch], singled: Mapping[int, Comparison]
    ) -> None:
        """``pairs`` int64 [pairs, 2] are numbers of ``labels``; every pair is in a batch or in ``singled``."""
        self._labels = labels
        self._pairs = pairs
        self._batches = tuple(batches)
        self._singled = singled
        self._batch_of = np.full(len(pairs), -1, np.int32)
        self._place = np.zeros(len(pairs), np.int64)
        for number, batch in enumerate(self._batches):
            self._batch_of[batch.pairs] = number
            self._place[batch.pairs] = np.arange(len(batch.pairs))
        self._columns = self._figures()

    def __len__(self) -> int:
        return len(self._pairs)

    @property
    def figures(self) -> Figures:
        return self._columns

    @property
    def labels(self) -> Sequence[Label]:
        """What is said of each side in words."""
        return self._labels

    @property
    def made_one_by_one(self) -> Sequence[int]:
        """Numbers of the pairs that no batch holds."""
        return tuple(self._singled)

    def replaced(self, singled: Mapping[int, Comparison]) -> Comparisons:
        """The same with some pairs, by number, as they were made one by one."""
        return Comparisons(self._labels, self._pairs, self._batches, {**self._singled, **singled})

    def at(self, number: int) -> Comparison:
        if number in self._singled:
            return self._singled[number]
        a, b = (self._labels[side] for side in self._pairs[number])
        batch, place = self._batches[self._batch_of[number]], int(self._place[number])
        plan = batch.plan
        figures = zip(plan.tests, batch.statistic[place].tolist(), batch.log10_p[place].tolist(), strict=True)
        tests = tuple(
            Test(test.name, statistic, test.blocks, statistic / test.deviation, log10_p, test.log10_factor)
            for test, statistic, log10_p in figures
        )
        smallest = _or_none(self.figures.pair_log10_p[number])
        own = batch.correlations[place].tolist()
        roles = {curve.role: value for curve, value in zip(plan.curves, own, strict=True)}
        q, k, v, o = (roles.get(role) for role in CURVE_ROLES)
        screen = Screen(_or_none(self.figures.scores[number]), q=q, k=k, v=v, o=o)
        word = WORDS[self.figures.words[number]]
        reasons, agreement = plan.reasons(a, b), self.figures.agreements.at(number)
        return Comparison(a.name, b.name, word, smallest, smallest, tests, screen, (), reasons, agreement)

    def _figures(self) -> Figures:
        smallest, scores = np.full(len(self), math.nan), np.full(len(self), math.nan)
        words = np.full(len(self), _WORD["no-evidence"], np.int8)
        agreements = Agreements.empty(len(self))
        for batch in self._batches:
            smallest[batch.pairs] = batch.smallest()
            scores[batch.pairs] = batch.scores()
            agreements.put(batch.pairs, batch.agreements)
        words[np.isnan(smallest)] = _WORD["not-comparable"]
        for number, comparison in self._singled.items():
            smallest[number] = _or_nan(comparison.pair_log10_p)
            scores[number] = _or_nan(comparison.screen.score)
            words[number] = _WORD[comparison.verdict]
        single = np.array(list(self._singled), np.int64)
        agreements.put(single, agreements_of([comparison.agreement for comparison in self._singled.values()]))
        numbers: dict[str, int] = {}
        names = np.array([numbers.setdefault(label.name, len(numbers)) for label in self._labels], np.int64)
        return Figures(tuple(numbers), names[self._pairs], words, smallest, smallest, scores, agreements)


def figures_of(comparisons: Sequence[Comparison]) -> Figures:
    """The columns of any sequence of comparisons."""
    if isinstance(comparisons, LazyComparisons):
        return comparisons.figures
    numbers: dict[str, int] = {}
    names = [[numbers.setdefault(name, len(numbers)) for name in (c.a, c.b)] for c in comparisons]
    return Figures(
        table=tuple(numbers),
        names=np.array(names, np.int64).reshape(-1, 2),
        words=np.array([_WORD[comparison.verdict] for comparison in comparisons], np.int8),
        pair_log10_p=np.array([_or_nan(c.pair_log10_p) for c in comparisons], np.float64),
        log10_p=np.array([_or_nan(c.log10_p) for c in comparisons], np.float64),
        scores=np.array([_or_nan(c.screen.score) for c in comparisons], np.float64),
        agreements=agreements_of([comparison.agreement for comparison in comparisons]),
    )


def words_of(comparisons: Sequence[Comparison]) -> npt.NDArray[np.int8]:
    """The verdict of each pair as a place in WORDS."""
    return figures_of(comparisons).words


def _or_none(value: float) -> float | None:
    return None if math.isnan(value) else float(value)


def _or_nan(value: float | None) -> float:
    return math.nan if value is None else value
