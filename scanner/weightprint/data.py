"""The records that travel from discover to report. Frozen, no behaviour beyond derived figures, no I/O."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from weightprint.errors import Notice

FLOAT32 = npt.NDArray[np.float32]

ATTENTION_ROLES = ("q", "k", "v", "o", "q_a", "q_b", "kv_a", "kv_b", "o_a", "o_b")
"""Roles of an attention matrix, in the order of tables."""

FEED_FORWARD_ROLES = ("gate", "up", "down")
"""Roles of a feed-forward matrix, in the order of tables: into the hidden units (gate, up) and out of them (down)."""

ROLES = ATTENTION_ROLES + FEED_FORWARD_ROLES
"""Roles of a matrix, in the order of tables."""


@dataclass(frozen=True)
class Declared:
    """An origin that a checkpoint's own files name: ``source`` is the file, ``name`` what stands there."""

    source: str
    name: str


@dataclass(frozen=True)
class Checkpoint:
    """One checkpoint on disk; nothing of its weight files has been read yet.

    ``files`` are the weight files to read, in order, as found (links not resolved). ``weight_map`` is the shard index
    (tensor -> file) or None. ``config`` is the parsed config.json, empty when absent or unusable. ``set_aside`` says
    of every other file that looks like weights why it is not read. ``notices`` are the faults found so far.
    ``declared`` are the origins that files beside the weights name.
    """

    name: str
    path: Path
    files: tuple[Path, ...]
    weight_map: Mapping[str, Path] | None = None
    config: Mapping[str, Any] = field(default_factory=dict)
    set_aside: tuple[tuple[Path, str], ...] = ()
    notices: tuple[Notice, ...] = ()
    declared: tuple[Declared, ...] = ()


@dataclass(frozen=True)
class TensorSpec:
    """Where one tensor's bytes lie: contiguous, row-major, little-endian, ``nbytes`` bytes from ``offset`` of ``path``.

    ``dtype`` is a lower-case name: a key of ITEMSIZE, or another (f64, i64, u8, ...) that no kernel decodes.
    ``column_major`` says that the bytes of a 2-D tensor are those of its transpose (PyTorch saves views as they are).
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    path: Path
    offset: int
    nbytes: int
    column_major: bool = False


@dataclass(frozen=True)
class SourceFile:
    """Identity of one weight file as it was read: freshness is decided by these. ``header_digest`` is the hex
    SHA-256 of the header bytes (safetensors header, pickles, zip directory) that described the tensors."""

    name: str
    size: int
    mtime_ns: int
    format: str
    header_digest: str


@dataclass(frozen=True)
class Headers:
    """All that a checkpoint's headers say: tensors in file order, the files, and what could not be read."""

    tensors: tuple[TensorSpec, ...]
    sources: tuple[SourceFile, ...]
    notices: tuple[Notice, ...] = ()


@dataclass(frozen=True)
class Part:
    """What one tensor gives to one matrix: half-open index ranges of output units, in unit order.

    ``stored`` is the tensor seen as a row-major 2-D array. Output units run along its rows, or along its columns
    when the matrix is ``transposed``.
    """

    tensor: TensorSpec
    stored: tuple[int, int]
    ranges: tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Matrix:
    """One projection of attention or of a feed-forward block: W of logical shape (out, in), y = W x.

    ``stack`` is the part of the tensor names before the layer number, ``layer`` that number. ``transposed`` says that
    the bytes are stored (in, out). ``head_width`` is the number of consecutive units of one head (of V's rows and O's
    columns) where the config says it, else None; of a feed-forward matrix the hidden units of one expert.

    The experts of a layer are one matrix, expert after expert: each is a part, or some. Parts follow each other along
    the outputs, but those of "down" along the inputs: each has outputs of its own range and as many inputs as it has.
    """

    stack: str
    layer: int
    role: str
    shape: tuple[int, int]
    parts: tuple[Part, ...]
    transposed: bool = False
    head_width: int | None = None


@dataclass(frozen=True)
class Coverage:
    """How much of a checkpoint's attention was understood: modules found, understood, and tensors that were not. Of
    feed-forward blocks likewise, whose holes are among ``not_understood`` too."""

    found: int
    understood: int
    not_understood: tuple[Notice, ...] = ()


@dataclass(frozen=True)
class Understanding:
    """Matrices of a checkpoint, sorted by stack, layer, role; and what was not understood. ``feed_forward`` is None
    where feed-forward blocks were not looked for."""

    matrices: tuple[Matrix, ...]
    coverage: Coverage
    notices: tuple[Notice, ...] = ()
    feed_forward: Coverage | None = None


@dataclass(frozen=True)
class MatrixStats:
    """Moments of one matrix over its finite elements. ``std`` is the population figure, ``kurtosis`` Pearson's.

    A figure that does not exist (skewness of a constant, anything of no finite element) is nan.
    """

    stack: str
    layer: int
    role: str
    tensors: tuple[str, ...]
    shape: tuple[int, int]
    dtype: str
    count: int
    mean: float
    std: float
    skewness: float
    kurtosis: float
    abs_max: float
    zeros: int
    non_finite: int
    head_width: int | None = None


@dataclass(frozen=True)
class Bytes:
    """Bytes of a checkpoint's weight files, of the selected matrices, and read from weight data."""

    files: int
    selected: int
    read: int


@dataclass(frozen=True)
class Fingerprint:
    """All that is kept of a checkpoint.

    ``energies`` maps (stack, layer, channel) to Σ w² of the exchangeable units, float32 [units], nan where the unit
    holds a non-finite weight: channel "v" are rows of V, channel "o" columns of O, channels "gate" and "up" rows of
    those, channel "down" its columns. ``status`` is complete, partial or failed; ``code`` and ``reason`` are those of
    the first notice when it is not complete. ``feed_forward`` is None where attention alone was read.
    """

    name: str
    path: str
    status: str
    code: str | None
    reason: str | None
    matrices: tuple[MatrixStats, ...]
    energies: Mapping[tuple[str, int, str], FLOAT32]
    coverage: Coverage
    sources: tuple[SourceFile, ...]
    bytes: Bytes
    notices: tuple[Notice, ...] = ()
    backend: str = ""
    tool_version: str = ""
    feed_forward: Coverage | None = None
    declared: tuple[Declared, ...] = ()


@dataclass(frozen=True)
class Test:
    """One exact test. ``log10_p`` is its own p-value, uncorrected; ``log10_factor`` the Bonferroni factor it pays
    inside the pair (channels, stack pairs, resolutions, layer pairs)."""

    __test__ = False  # not a pytest class

    name: str
    statistic: int
    blocks: int
    z: float
    log10_p: float
    log10_factor: float


@dataclass(frozen=True)
class Screen:
    """Seed score of two checkpoints: Pearson r of the standardised sigma curves per role, and their mean.

    None where a curve is missing on either side. ``background_percentile`` is filled in for a whole report.
    """

    score: float | None
    q: float | None = None
    k: float | None = None
    v: float | None = None
    o: float | None = None
    background_percentile: float | None = None
    background_pairs: int = 0


@dataclass(frozen=True)
class Agreement:
    """How well the curves that laundering keeps agree (:mod:`weightprint.compare.invariants`): the names of those that
    do, and residual, ratio and number of points of the closest."""

    curves: tuple[str, ...]
    residual: float
    ratio: float
    points: int


@dataclass(frozen=True)
class ConfirmTest:
    """One exact test of the weights themselves. ``blocks`` are those of an order code, ``count`` the heads that a
    matching could leave in place; ``smallest_log10_p`` is what the best agreement would have had."""

    name: str
    statistic: int
    blocks: int | None
    count: int | None
    log10_p: float
    log10_factor: float
    smallest_log10_p: float


@dataclass(frozen=True)
class UnitMatching:
    """How many of the feed-forward's hidden units find the same partner by gate and by up: a figure without a p."""

    layers: int
    units: int
    agreeing: int


@dataclass(frozen=True)
class Confirmation:
    """What reading the weights of a pair gave: outcome (confirmed, withdrawn, not possible), p after correction over
    the tests made, None without any."""

    outcome: str
    tests: tuple[ConfirmTest, ...]
    log10_p: float | None
    reasons: tuple[str, ...]
    unit_matching: UnitMatching | None = None


@dataclass(frozen=True)
class Comparison:
    """What two fingerprints say about each other.

    ``pair_log10_p`` is the smallest p of the pair after correction inside the pair; ``log10_p`` the same after
    Holm's correction over every pair tested in the report. None where no test could be made.
    """

    a: str
    b: str
    verdict: str
    pair_log10_p: float | None
    log10_p: float | None
    tests: tuple[Test, ...]
    screen: Screen
    layer_map: tuple[tuple[int, int, float], ...] = ()
    reasons: tuple[str, ...] = ()
    agreement: Agreement | None = None
    head_map: tuple[tuple[int, int, int, int, float], ...] = ()
    """(layer of a, head of a, layer of b, head of b, z), where heads are not all at the place that their layer says."""
