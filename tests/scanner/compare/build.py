"""Fingerprints for tests, with real statistics and energies of Gaussian weights."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
from hypothesis import settings

from weightprint.compare import compare_pair, judge
from weightprint.data import Bytes, Comparison, Coverage, Fingerprint, MatrixStats, Screen

Matrix = npt.NDArray[np.float64]
Energies = dict[tuple[str, int, str], npt.NDArray[np.float32]]
Weights = dict[tuple[str, int, str], Matrix]
STACK = "model.layers"
LAW = settings(deadline=None, derandomize=True, max_examples=60)
"""Every law is drawn from the same examples in every run."""


@dataclass(frozen=True)
class Shape:
    """Geometry of a model: V is [units, hidden], O is [hidden, units]."""

    layers: int = 6
    units: int = 64
    hidden: int = 48
    stack: str = STACK


def weights(seed: int, shape: Shape = Shape()) -> Weights:
    """Gaussian weights whose scale differs from layer to layer."""
    generator = np.random.default_rng(seed)
    sizes = {
        "q": (shape.units, shape.hidden),
        "k": (shape.units, shape.hidden),
        "v": (shape.units, shape.hidden),
        "o": (shape.hidden, shape.units),
    }
    return {
        (shape.stack, layer, role): generator.normal(scale=0.02 * (1 + generator.random()), size=size)
        for layer in range(shape.layers)
        for role, size in sizes.items()
    }


def tuned(base: Weights, seed: int, drift: float = 0.002) -> Weights:
    """The same weights a few steps of training later."""
    generator = np.random.default_rng(seed)
    return {key: value + generator.normal(scale=drift, size=value.shape) for key, value in base.items()}


def relayered(base: Weights, sources: Iterable[int], stack: str = STACK) -> Weights:
    """A model whose layer l is layer ``sources[l]`` of ``base``: dropped, repeated or reordered layers."""
    return {
        (stack, layer, role): value
        for layer, source in enumerate(sources)
        for (_, own, role), value in base.items()
        if own == source
    }


def fingerprint(
    name: str,
    of: Weights,
    head_width: int | None = 16,
    dtype: str = "f32",
    energies: Mapping[tuple[str, int, str], npt.NDArray[np.float32]] | None = None,
) -> Fingerprint:
    """What a scan would keep of these weights; ``energies`` replaces some or all of what the weights give."""
    own = {(stack, layer, role): _energies(role, value) for (stack, layer, role), value in of.items() if role in "vo"}
    matrices = tuple(_stats(key, value, head_width, dtype) for key, value in sorted(of.items()))
    return Fingerprint(
        name=name,
        path=f"/models/{name}",
        status="complete",
        code=None,
        reason=None,
        matrices=matrices,
        energies={**own, **(energies or {})},
        coverage=Coverage(len(of) // 4, len(of) // 4),
        sources=(),
        bytes=Bytes(1, 1, 1),
    )


def model(name: str, seed: int, shape: Shape = Shape(), head_width: int | None = 16) -> Fingerprint:
    """Fingerprint of an independent model."""
    return fingerprint(name, weights(seed, shape), head_width)


def without(of: Fingerprint, layers: Iterable[int], roles: str = "qkvo") -> Fingerprint:
    """The fingerprint with a hole: some roles of some layers were not understood."""
    gone = {(layer, role) for layer in layers for role in roles}
    return replace(
        of,
        matrices=tuple(m for m in of.matrices if (m.layer, m.role) not in gone),
        energies={key: value for key, value in of.energies.items() if key[1:] not in gone},
    )


def chi_square(seed: int, *shape: int, freedom: int = 64) -> npt.NDArray[np.float32]:
    """Energies of Gaussian units that have ``freedom`` weights each."""
    return np.random.default_rng(seed).chisquare(freedom, size=shape).astype(np.float32)


def with_energies(name: str, of: npt.NDArray[np.float32], head_width: int | None = 16, seed: int = 1) -> Fingerprint:
    """A model of which channel v has these energies [layers, units] and channel o none."""
    layers, units = of.shape
    own: Energies = {(STACK, layer, "v"): row for layer, row in enumerate(of)}
    whole = fingerprint(name, weights(seed, Shape(layers, units, 8)), head_width, energies=own)
    return replace(whole, energies={key: row for key, row in whole.energies.items() if key[2] == "v"})


def read_transposed(of: Weights, seed: int) -> Energies:
    """Channel v where square matrices were read transposed: the units are residual dimensions, which have one order
    in all layers."""
    scales = np.random.default_rng(seed).lognormal(sigma=0.3, size=next(iter(of.values())).shape[1])
    return {
        (stack, layer, role): ((value * scales) ** 2).sum(axis=0).astype(np.float32)
        for (stack, layer, role), value in of.items()
        if role == "v"
    }


def judged(a: Fingerprint, b: Fingerprint) -> Comparison:
    """The final word of a report of one pair."""
    (comparison,) = judge([compare_pair(a, b)])
    return comparison


def scored(a: str, b: str, score: float | None, log10_p: float | None = -0.5) -> Comparison:
    """A preliminary comparison of which only the seed score and the p-value matter."""
    word = "not-comparable" if log10_p is None else "no-evidence"
    return Comparison(a, b, word, log10_p, log10_p, (), Screen(score))


def _energies(role: str, value: Matrix) -> npt.NDArray[np.float32]:
    with np.errstate(over="ignore"):
        squares: npt.NDArray[np.float32] = (value**2).sum(axis=1 if role == "v" else 0).astype(np.float32)
    return np.where(np.isfinite(squares), squares, np.float32(np.nan))


def _stats(key: tuple[str, int, str], value: Matrix, head_width: int | None, dtype: str) -> MatrixStats:
    stack, layer, role = key
    finite = value[np.isfinite(value)]
    mean = float(finite.mean()) if finite.size else float("nan")
    std = float(finite.std()) if finite.size else float("nan")
    standard = (finite - mean) / std if finite.size and std > 0 else np.full(1, np.nan)
    return MatrixStats(
        stack=stack,
        layer=layer,
        role=role,
        tensors=(f"{stack}.{layer}.self_attn.{role}_proj.weight",),
        shape=(value.shape[0], value.shape[1]),
        dtype=dtype,
        count=finite.size,
        mean=mean,
        std=std,
        skewness=float((standard**3).mean()),
        kurtosis=float((standard**4).mean()),
        abs_max=float(np.abs(finite).max()) if finite.size else float("nan"),
        zeros=int((finite == 0).sum()),
        non_finite=value.size - finite.size,
        head_width=head_width if role in "vo" else None,
    )
