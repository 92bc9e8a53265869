"""Identical, re-encoded or neither: bits, the rounding of storage formats by torch's own casts, and training on top."""

import itertools
import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from compare.build import (
    STACK,
    Matrix,
    Shape,
    Weights,
    fingerprint,
    judged,
    model,
    relayered,
    tuned,
    weights,
    without,
)

from weightprint.compare import compare_pair
from weightprint.compare.sameness import FLOOR, FORMATS, bit_equal, bound, matched, relative_rms, within_rounding
from weightprint.data import Coverage, Fingerprint

SHAPE = Shape(4, 128, 96)
TORCH = {
    "f64": torch.float64,
    "f32": torch.float32,
    "bf16": torch.bfloat16,
    "f16": torch.float16,
    "f8_e4m3": torch.float8_e4m3fn,
    "f8_e5m2": torch.float8_e5m2,
}
CASTS = [
    ("f64", "f32"),
    ("f32", "bf16"),
    ("f32", "f16"),
    ("f32", "f8_e4m3"),
    ("f32", "f8_e5m2"),
    ("bf16", "f16"),
    ("bf16", "f8_e4m3"),
    ("f16", "f8_e5m2"),
]


def stored(of: Weights, dtype: str) -> Weights:
    """What a file of this encoding holds of the weights."""
    return {key: torch.from_numpy(value).to(TORCH[dtype]).to(torch.float64).numpy() for key, value in of.items()}


def kinds(kind: str) -> Weights:
    """Weights as they come: plain, heavy-tailed, with outlying units, with a mean, small, sparse."""
    generator = np.random.default_rng(5)
    base = weights(5, SHAPE)
    change = {
        "plain": lambda w: w,
        "heavy-tailed": lambda w: 0.02 * generator.standard_t(5, size=w.shape),
        "outlying units": lambda w: w * np.where(generator.random(w.shape[0]) < 0.05, 12.0, 1.0)[:, None],
        "mean": lambda w: w + 0.05,
        "small": lambda w: w / 8,
        "sparse": lambda w: w * (generator.random(w.shape) < 0.3),
    }[kind]
    return {key: change(value) for key, value in base.items()}


def pair_of(a: Fingerprint, b: Fingerprint) -> bool:
    pairs = matched(a, b)
    assert pairs is not None
    return within_rounding(a, b, pairs)


@pytest.mark.parametrize("dtype", ["f32", "bf16", "f16", "f8_e4m3", "i4"])
def test_same_statistics_are_identical(dtype: str) -> None:
    own = weights(1, SHAPE)
    found = judged(fingerprint("a", own, dtype=dtype), fingerprint("b", own, dtype=dtype))
    assert found.verdict == "identical"
    expected = (
        "every stored statistic of 16 matrices (attention; nothing else was read) is equal to the last bit "
        f"(stored as {dtype})"
    )
    assert found.reasons[0] == expected


def test_stack_names_may_differ_by_a_prefix() -> None:
    own = weights(1, SHAPE)
    prefixed = {(f"text.{stack}", layer, role): value for (stack, layer, role), value in own.items()}
    assert judged(fingerprint("a", own), fingerprint("b", prefixed)).verdict == "identical"


@pytest.mark.parametrize(
    "change",
    [
        lambda m: replace(m, mean=math.nextafter(m.mean, 1)),
        lambda m: replace(m, std=math.nextafter(m.std, 1)),
        lambda m: replace(m, skewness=math.nextafter(m.skewness, 9)),
        lambda m: replace(m, kurtosis=math.nextafter(m.kurtosis, 9)),
        lambda m: replace(m, kurtosis=math.nan),
        lambda m: replace(m, abs_max=math.nextafter(m.abs_max, 1)),
        lambda m: replace(m, zeros=m.zeros + 1),
        lambda m: replace(m, count=m.count - 1),
        lambda m: replace(m, non_finite=m.non_finite + 1),
    ],
    ids=["mean", "std", "skewness", "kurtosis", "nan", "abs_max", "zeros", "count", "non_finite"],
)
def test_one_bit_of_one_statistic_is_not_identical(change: object) -> None:
    assert callable(change)
    a = model("a", 1, SHAPE)
    b = replace(a, name="b", matrices=(*a.matrices[:5], change(a.matrices[5]), *a.matrices[6:]))
    assert judged(a, b).verdict != "identical"


def test_one_bit_of_one_unit_is_not_identical() -> None:
    a = model("a", 1, SHAPE)
    moved = a.energies[STACK, 2, "o"].copy()
    moved[17] = np.nextafter(moved[17], np.float32(9))
    b = replace(a, name="b", energies={**a.energies, (STACK, 2, "o"): moved})
    pairs = matched(a, b)
    assert pairs is not None
    assert not bit_equal(a, b, pairs)
    assert judged(a, b).verdict == "re-encoded", "a bit of float32 is within the arithmetic of two backends"


def test_figures_that_do_not_exist_are_equal() -> None:
    own = weights(1, SHAPE)
    own[STACK, 1, "q"] = np.zeros((SHAPE.units, SHAPE.hidden))
    own[STACK, 2, "v"][3, 3] = np.nan
    own[STACK, 3, "k"][:] = np.inf
    a, b = fingerprint("a", own), fingerprint("b", own)
    assert any(math.isnan(m.kurtosis) for m in a.matrices)
    assert judged(a, b).verdict == "identical"


def test_nothing_finite_is_nothing_to_be_identical() -> None:
    """Two models that diverged to nan have no weight in common that could be read."""
    nothing = {key: np.full(value.shape, np.nan) for key, value in weights(1, SHAPE).items()}
    assert judged(fingerprint("a", nothing), fingerprint("b", nothing)).verdict == "not-comparable"


def test_identical_needs_the_same_modules_to_have_been_found() -> None:
    """Six layers of twelve were understood on one side; the other side has only six."""
    a = model("a", 1, SHAPE)
    half = replace(a, name="b", status="partial", reason="layers 4-7", coverage=Coverage(8, 4))
    assert judged(a, half).verdict == "shared-origin"


@pytest.mark.parametrize(("source", "target"), CASTS, ids=lambda name: name)
def test_cast_is_re_encoded(source: str, target: str) -> None:
    own = stored(weights(1, SHAPE), source)
    found = judged(fingerprint("a", own, dtype=source), fingerprint("b", stored(own, target), dtype=target))
    assert found.verdict == "re-encoded"
    formats = " and ".join(sorted((source, target)))
    what = "standard deviations and unit energies of 16 matrices (attention; nothing else was read)"
    expected = f"{what} agree within the rounding of storage (stored as {formats})"
    assert found.reasons[0] == expected


def test_lossless_cast_is_re_encoded() -> None:
    """bf16 in an f32 file: every statistic is the same, the bytes are not."""
    own = stored(weights(1, SHAPE), "bf16")
    found = judged(fingerprint("a", own, dtype="bf16"), fingerprint("b", own, dtype="f32"))
    assert found.verdict == "re-encoded"


def test_two_encodings_inside_one_matrix() -> None:
    """A fused matrix of which parts are stored differently."""
    own = weights(1, SHAPE)
    found = judged(fingerprint("a", own), fingerprint("b", stored(own, "bf16"), dtype="bf16+f32"))
    assert found.verdict == "re-encoded"


@pytest.mark.parametrize("kind", ["plain", "heavy-tailed", "outlying units", "mean", "small", "sparse"])
@pytest.mark.parametrize(("source", "target"), CASTS, ids=lambda name: name)
def test_rounding_model_holds_without_its_margin(source: str, target: str, kind: str) -> None:
    """The documented bound is three times a sum that already covers what torch's casts do, and not much more."""
    own = stored(kinds(kind), source)
    a = fingerprint("a", own, dtype=source)
    b = fingerprint("b", stored(own, target), dtype=target)
    pairs = matched(a, b)
    assert pairs is not None
    shares = []
    for m, n in pairs:
        assert abs(m.std - n.std) <= bound(m, n, m.count) * max(m.std, n.std)
        if m.role in "vo":
            sum_of_model = (bound(m, n, SHAPE.hidden) - FLOOR) / 3
            difference = relative_rms(a.energies[STACK, m.layer, m.role], b.energies[STACK, m.layer, m.role])
            assert difference is not None
            shares.append(difference / (sum_of_model + FLOOR))
    assert max(shares) <= 1
    if (source, target) not in (("f64", "f32"), ("bf16", "f16")):  # below the floor; nearly lossless
        assert max(shares) > 0.15, "a bound far above what rounding does would call anything re-encoded"


@pytest.mark.parametrize(
    ("dtype", "target", "drift"),
    [
        ("f32", "f32", 0.002),
        ("f32", "f32", 2e-6),
        ("bf16", "bf16", 0.0001),
        ("f32", "bf16", 0.0008),
        ("bf16", "f32", 0.002),
        ("f32", "f16", 0.0005),
        ("bf16", "f8_e4m3", 0.02),
        ("bf16", "f8_e5m2", 0.03),
    ],
    ids=str,
)
def test_training_on_top_is_not_re_encoded(dtype: str, target: str, drift: float) -> None:
    own = stored(weights(1, SHAPE), dtype)
    child = stored(tuned(own, 2, drift), target)
    found = judged(fingerprint("a", own, dtype=dtype), fingerprint("b", child, dtype=target))
    assert found.verdict == "shared-origin"


def test_one_tuned_matrix_is_enough() -> None:
    """Only layer 2's value matrix was trained; everything else is a cast."""
    own = weights(1, SHAPE)
    partly = {**own, (STACK, 2, "v"): tuned(own, 2)[STACK, 2, "v"]}
    found = judged(fingerprint("a", own), fingerprint("b", stored(partly, "f16"), dtype="f16"))
    assert found.verdict == "shared-origin"


def test_rescaled_matrices_are_not_re_encoded() -> None:
    """W_Q c and W_K / c: no unit energy moves, the standard deviations do."""
    own = weights(1, SHAPE)
    factors = {"q": 1.5, "k": 1 / 1.5, "v": 1.0, "o": 1.0}
    rescaled = {key: value * factors[key[2]] for key, value in own.items()}
    assert judged(fingerprint("a", own), fingerprint("b", rescaled)).verdict == "shared-origin"


@pytest.mark.parametrize("dtype", ["i4", "u8", "f8_e4m3+i4"])
def test_unknown_encoding_is_never_called_re_encoded(dtype: str) -> None:
    own = weights(1, SHAPE)
    found = judged(fingerprint("a", own), fingerprint("b", stored(own, "f16"), dtype=dtype))
    assert found.verdict == "shared-origin"


def test_independent_models_are_never_re_encoded() -> None:
    """Equal profiles do not help: the order of units must agree first."""
    flat = {key: np.ones_like(value) * 0.02 for key, value in weights(1, SHAPE).items()}
    noise = np.random.default_rng(1)
    a, b = ({key: value + noise.normal(scale=1e-4, size=value.shape) for key, value in flat.items()} for _ in "ab")
    one, other = fingerprint("a", a, dtype="f32"), fingerprint("b", b, dtype="f8_e5m2")
    assert pair_of(one, other), "rounding alone would explain these energies"
    assert judged(one, other).verdict in {"no-evidence", "similar-profile"}


def test_what_was_not_understood_forbids_re_encoded() -> None:
    own = weights(1, SHAPE)
    a, b = fingerprint("a", own), fingerprint("b", stored(own, "f16"), dtype="f16")
    assert compare_pair(a, b).verdict == "re-encoded"
    found = judged(a, replace(b, coverage=Coverage(5, 4)))
    assert found.verdict == "shared-origin"


def test_overflow_of_a_cast_is_not_rounding() -> None:
    own = weights(1, SHAPE)
    own[STACK, 1, "q"][0, 0] = 1e6
    cast = stored(own, "f16")
    assert np.isinf(cast[STACK, 1, "q"][0, 0])
    assert judged(fingerprint("a", own), fingerprint("b", cast, dtype="f16")).verdict == "shared-origin"


@pytest.mark.parametrize(
    "other",
    [
        lambda: model("b", 1, Shape(5, 128, 96)),
        lambda: model("b", 1, Shape(4, 128, 88)),
        lambda: model("b", 1, Shape(4, 128, 96, "encoder")),
        lambda: without(model("b", 1, SHAPE), [2], "q"),
        lambda: replace(model("b", 1, SHAPE), energies={}),
        lambda: replace(model("b", 1, SHAPE), matrices=()),
        lambda: fingerprint("b", {(s, layer + 1, r): w for (s, layer, r), w in weights(1, SHAPE).items()}),
    ],
    ids=["deeper", "narrower", "another stack", "hole", "no units", "no matrix", "other layer numbers"],
)
def test_not_every_matrix_has_a_partner(other: Callable[[], Fingerprint]) -> None:
    for a, b in itertools.permutations([model("a", 1, SHAPE), other()]):
        assert matched(a, b) is None


def test_every_matrix_meets_its_own() -> None:
    a = model("a", 1, SHAPE)
    pairs = matched(a, replace(a, matrices=a.matrices[::-1]))
    assert pairs is not None
    assert all(m == n for m, n in pairs)
    assert len(pairs) == 16


def test_reordered_layers_are_not_identical() -> None:
    base = weights(1, SHAPE)
    found = judged(fingerprint("a", base), fingerprint("b", relayered(base, [3, 2, 1, 0])))
    assert found.verdict == "shared-origin"


def test_relative_rms() -> None:
    a = np.array([1.0, 2.0, 4.0, np.nan, 0.0], np.float32)
    b = np.array([1.1, 2.0, 3.6, np.nan, 0.0], np.float32)
    expected = math.sqrt(((0.1 / 1.05) ** 2 + (0.4 / 3.8) ** 2) / 4)
    assert relative_rms(a, b) == relative_rms(b, a) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [([1, np.nan], [1, 1], None), ([np.nan], [np.nan], 0.0), ([0, 0], [0, 0], 0.0), ([0, 1], [1, 1], math.sqrt(2))],
    ids=["gaps differ", "nothing finite", "nothing but zeros", "from nothing"],
)
def test_relative_rms_at_its_edges(a: list[float], b: list[float], expected: float | None) -> None:
    found = relative_rms(np.array(a, np.float32), np.array(b, np.float32))
    assert found == (None if expected is None else pytest.approx(expected))


@pytest.mark.parametrize("dtype", sorted(FORMATS))
def test_formats_are_those_of_torch(dtype: str) -> None:
    info = torch.finfo(TORCH[dtype])
    roundoff, step = FORMATS[dtype]
    assert roundoff == info.eps / 2
    # Below the smallest normal number steps are equal; those of float64 lie beyond every weight.
    assert step == (0.0 if dtype == "f64" else info.smallest_normal * info.eps)


@pytest.mark.parametrize("matrix", [np.zeros((8, 8)), np.full((8, 8), np.nan)], ids=["zeros", "nan"])
def test_no_scale_is_no_tolerance(matrix: Matrix) -> None:
    a = fingerprint("a", {(STACK, 0, "v"): matrix}, dtype="f32").matrices[0]
    assert bound(a, replace(a, dtype="bf16"), 64) == FLOOR
