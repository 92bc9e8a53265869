"""The seed score against section 1 of the method, computed here with numpy's own tools; what was not read is said."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import pytest
from compare.build import LAW, STACK, Shape, fingerprint, model, scored, tuned, weights, without
from hypothesis import given
from hypothesis import strategies as st

from weightprint.compare import compare_pair, judge, prepare
from weightprint.compare.screen import FEWEST_LAYERS, pearson, screen_pair, stretch
from weightprint.data import Fingerprint, Screen

Curves = Mapping[str, Sequence[float]]
ROLES = "qkvo"


def with_curves(name: str, curves: Curves, stack: str = STACK, first: int = 0) -> Fingerprint:
    """A fingerprint whose standard deviations are given, by role and layer."""
    depth = max(map(len, curves.values()))
    whole = model(name, 1, Shape(depth, 16, 8, stack))
    matrices = tuple(
        replace(m, layer=m.layer + first, std=curves[m.role][m.layer])
        for m in whole.matrices
        if m.layer < len(curves.get(m.role, ()))
    )
    energies = {(s, layer + first, channel): own for (s, layer, channel), own in whole.energies.items()}
    return replace(whole, matrices=matrices, energies=energies)


def drawn(seed: int, depth: int, roles: str = ROLES) -> dict[str, list[float]]:
    drawn = {role: np.random.default_rng([seed, depth, ord(role)]).random(depth) for role in roles}
    return {role: (0.02 + 0.01 * curve).tolist() for role, curve in drawn.items()}


def seed_score(a: Curves, b: Curves) -> dict[str, float]:
    """Section 1 of the method: z-scores, the shorter interpolated onto the longer, Pearson's r, mean over the roles."""
    scores = {}
    for role in ROLES:
        if role in a and role in b:
            curves = [np.array(curve) for curve in (a[role], b[role])]
            x, y = [(curve - curve.mean()) / curve.std() for curve in curves]
            if len(x) > len(y):
                x, y = y, x
            x = np.interp(np.linspace(0, len(x) - 1, len(y)), np.arange(len(x)), x)
            scores[role] = float(np.corrcoef(x, y)[0, 1])
    return {**scores, "score": float(np.mean(list(scores.values())))}


def screen_of(a: Fingerprint, b: Fingerprint) -> tuple[Screen, tuple[str, ...]]:
    return screen_pair(prepare(a), prepare(b))


@pytest.mark.parametrize(
    ("depth_a", "depth_b"), [(6, 6), (32, 32), (6, 12), (12, 6), (3, 40), (24, 32), (7, 6)], ids=str
)
def test_seed_score_as_in_the_method(depth_a: int, depth_b: int) -> None:
    a, b = drawn(1, depth_a), drawn(2, depth_b)
    screen, reasons = screen_of(with_curves("a", a), with_curves("b", b))
    expected = seed_score(a, b)
    found = {name: getattr(screen, name) for name in ("q", "k", "v", "o", "score")}
    assert found == {name: pytest.approx(value, abs=1e-12) for name, value in expected.items()}
    assert reasons == ()
    assert (screen.background_percentile, screen.background_pairs) == (None, 0)


def test_curve_is_that_of_whole_matrices() -> None:
    """From weights, not from moments: the population standard deviation of all entries."""
    a, b = weights(1), weights(2)
    curves = [{role: [own[STACK, layer, role].std() for layer in range(6)] for role in ROLES} for own in (a, b)]
    screen, _ = screen_of(fingerprint("a", a), fingerprint("b", b))
    assert screen.score == pytest.approx(seed_score(*curves)["score"], abs=1e-9)


@pytest.mark.parametrize("roles", ["q", "v", "qk", "kvo"])
def test_role_missing_on_one_side_is_left_out_and_said(roles: str) -> None:
    a, b = drawn(1, 8), {role: curve for role, curve in drawn(2, 8).items() if role not in roles}
    for one, other in ((a, b), (b, a)):
        screen, reasons = screen_of(with_curves("a", one), with_curves("b", other))
        assert screen.score == pytest.approx(seed_score(a, b)["score"], abs=1e-12)
        assert [getattr(screen, role) for role in roles] == [None] * len(roles)
        assert reasons == (f"the screen leaves out {', '.join(roles)}: not on both sides",)


def test_no_role_on_both_sides_is_no_score() -> None:
    screen, reasons = screen_of(with_curves("a", drawn(1, 8, "qk")), with_curves("b", drawn(2, 8, "vo")))
    assert screen == Screen(None)
    assert reasons == ("the screen leaves out q, k, v, o: not on both sides",)


def test_factored_roles_are_not_scored_as_others() -> None:
    a, b = with_curves("a", drawn(1, 8)), with_curves("b", drawn(2, 8))
    latent = {"q": "q_b", "k": "kv_b", "v": "kv_a"}
    a, b = (replace(f, matrices=tuple(replace(m, role=latent.get(m.role, m.role)) for m in f.matrices)) for f in (a, b))
    screen, reasons = screen_of(a, b)
    assert (screen.q, screen.k, screen.v) == (None, None, None)
    assert screen.score == screen.o == pytest.approx(seed_score(drawn(1, 8, "o"), drawn(2, 8, "o"))["o"])
    assert reasons == ("the screen leaves out q, k, v: not on both sides",)


@pytest.mark.parametrize("depth", [1, 2])
def test_two_layers_are_no_curve(depth: int) -> None:
    for a, b in ((depth, depth), (depth, 6)):
        screen, reasons = screen_of(with_curves("a", drawn(1, a)), with_curves("b", drawn(2, b)))
        assert screen == Screen(None)
        assert reasons == (f"the screen leaves out q, k, v, o: fewer than {FEWEST_LAYERS} layers",)


def test_constant_curve_has_no_correlation() -> None:
    a = {**drawn(1, 8), "k": [0.02] * 8, "v": [0.0] * 8}
    screen, reasons = screen_of(with_curves("a", a), with_curves("b", drawn(2, 8)))
    expected = seed_score(drawn(1, 8, "qo"), drawn(2, 8, "qo"))
    assert (screen.k, screen.v) == (None, None)
    assert screen.score == pytest.approx(expected["score"], abs=1e-12)
    assert reasons == ("the screen leaves out k, v: the same standard deviation in every layer",)


@pytest.mark.parametrize("hole", ["matrix", "nan"])
def test_hole_is_left_out_on_both_sides(hole: str) -> None:
    a, b = drawn(1, 8), drawn(2, 8)
    one, other = with_curves("a", a), with_curves("b", b)
    if hole == "matrix":
        one = without(one, [3], "v")
    else:
        damaged = (replace(m, std=math.nan) if (m.layer, m.role) == (3, "v") else m for m in one.matrices)
        one = replace(one, matrices=tuple(damaged))
    screen, reasons = screen_of(one, other)
    kept = [curve["v"][:3] + curve["v"][4:] for curve in (a, b)]
    expected = seed_score({**a, "v": kept[0]}, {**b, "v": kept[1]})
    assert screen.v == pytest.approx(expected["v"], abs=1e-12)
    assert screen.score == pytest.approx(expected["score"], abs=1e-12)
    assert reasons == ()


def test_hole_and_unequal_depth_are_not_guessed() -> None:
    screen, reasons = screen_of(without(with_curves("a", drawn(1, 8)), [3], "vo"), with_curves("b", drawn(2, 12)))
    assert (screen.v, screen.o) == (None, None)
    assert reasons == ("the screen leaves out v, o: layers are missing and the depths differ",)


def test_holes_that_leave_too_few_common_layers() -> None:
    one = without(with_curves("a", drawn(1, 6)), [1, 3, 5], "q")
    other = without(with_curves("b", drawn(2, 6)), [0, 2, 4], "q")
    screen, reasons = screen_of(one, other)
    assert screen.q is None
    assert reasons == ("the screen leaves out q: fewer than 3 layers",)


def test_numbering_from_one_pairs_with_numbering_from_zero() -> None:
    a = drawn(1, 6)
    screen, _ = screen_of(without(with_curves("a", a), [2], "q"), with_curves("b", a, first=1))
    assert screen.score == pytest.approx(1.0, abs=1e-12)


def both(first: Fingerprint, second: Fingerprint) -> Fingerprint:
    return replace(first, matrices=first.matrices + second.matrices, energies={**first.energies, **second.energies})


@pytest.mark.parametrize(
    ("names_a", "names_b", "chosen"),
    [
        (("decoder.layers", "encoder.layers"), ("decoder.layers", "encoder.layers"), (0, 0)),
        (("decoder.layers", "encoder.layers"), ("encoder.layers", "decoder.layers"), (0, 1)),
        (("model.layers", "vision.layers"), ("text.model.layers", "other"), (0, 0)),
        (("one", "two"), ("three", "four"), (0, 0)),
        (("model.layers", "vision.layers"), ("text.model.layers", "vision.layers"), (0, 0)),
    ],
    ids=["same names", "largest of a", "prefix", "no name in common", "prefix before a smaller equal name"],
)
def test_largest_stacks_whose_names_correspond(
    names_a: tuple[str, str], names_b: tuple[str, str], chosen: tuple[int, int]
) -> None:
    """Each side has a stack of nine layers and one of seven, in this order."""
    a, b = ([drawn(seed, 9), drawn(seed, 7)] for seed in (1, 2))
    one = both(*(with_curves("a", curves, name) for curves, name in zip(a, names_a, strict=True)))
    other = both(*(with_curves("b", curves, name) for curves, name in zip(b, names_b, strict=True)))
    screen, _ = screen_of(one, other)
    assert screen.score == pytest.approx(seed_score(a[chosen[0]], b[chosen[1]])["score"], abs=1e-12)


@given(
    st.lists(st.floats(-100, 100), min_size=3, max_size=20).filter(lambda own: np.std(own) > 1e-3),
    st.integers(0, 40),
    st.floats(0.001, 1000),
    st.floats(-1000, 1000),
)
@LAW
def test_blind_to_scale_and_offset(curve: list[float], longer: int, scale: float, offset: float) -> None:
    own = np.array(curve)
    length = len(own) + longer
    direct, moved = stretch(own, length), stretch(scale * own + offset, length)
    assert len(direct) == length
    # An offset costs digits: it is subtracted again.
    assert moved == pytest.approx(direct, abs=1e-6)
    assert pearson(direct, moved) == pytest.approx(1.0, abs=1e-9)
    assert pearson(direct, -moved) == pytest.approx(-1.0, abs=1e-9)


@given(st.integers(3, 30), st.integers(3, 30), st.integers(0, 1000))
@LAW
def test_symmetric_and_bounded(depth_a: int, depth_b: int, seed: int) -> None:
    generator = np.random.default_rng(seed)
    a, b = generator.random(depth_a), generator.random(depth_b)
    length = max(depth_a, depth_b)
    value = pearson(stretch(a, length), stretch(b, length))
    assert value == pearson(stretch(b, length), stretch(a, length))
    assert -1 <= value <= 1


def test_tuned_model_scores_one() -> None:
    base = weights(1, Shape(12))
    assert compare_pair(fingerprint("a", base), fingerprint("b", tuned(base, 2))).screen.score > 0.99


def test_percentile_among_the_other_pairs() -> None:
    scores = [0.9, 0.1, 0.2, 0.3, 0.95]
    found = judge([scored(f"a{n}", f"b{n}", score) for n, score in enumerate(scores)])
    assert [own.screen.background_percentile for own in found] == [75.0, 0.0, 25.0, 50.0, 100.0]
    assert {own.screen.background_pairs for own in found} == {4}


def test_equal_scores_count_half() -> None:
    found = judge([scored(f"a{n}", f"b{n}", score) for n, score in enumerate([0.5, 0.5, 0.5, 0.1])])
    assert [own.screen.background_percentile for own in found] == pytest.approx([200 / 3, 200 / 3, 200 / 3, 0])


def test_background_holds_no_linked_pair() -> None:
    """a-b and b-c are linked by evidence, so a-c is linked by the family; d stands alone."""
    pairs = [
        scored("a", "b", 0.99, -50.0),
        scored("b", "c", 0.98, -50.0),
        scored("a", "c", 0.97),
        scored("a", "d", 0.2),
        scored("b", "d", 0.4),
        scored("c", "d", 0.6),
    ]
    pairs[:2] = [replace(own, tests=compare_pair(model("x", 1), model("y", 2)).tests) for own in pairs[:2]]
    found = judge(pairs)
    assert [own.screen.background_pairs for own in found] == [3, 3, 3, 2, 2, 2]
    assert [own.screen.background_percentile for own in found] == [100.0, 100.0, 100.0, 0.0, 50.0, 100.0]


def test_pair_without_a_score_has_no_percentile_and_is_no_background() -> None:
    found = judge([scored("a", "b", None), scored("c", "d", 0.5), scored("e", "f", 0.7)])
    assert found[0].screen == Screen(None)
    assert [own.screen.background_pairs for own in found] == [0, 1, 1]


def test_no_background_is_no_percentile() -> None:
    (found,) = judge([scored("a", "b", 0.99)])
    assert (found.screen.background_percentile, found.screen.background_pairs) == (None, 0)
