"""The flag: raised where curves agree to rounding, not by likeness, and never against evidence."""

from dataclasses import replace

import numpy as np
import pytest
from compare.build import Shape, Weights, fingerprint, judged, model, tuned, weights

from weightprint.compare import WORDS, compare_all, compare_pair, judge, words_of
from weightprint.compare.invariants import (
    BACKGROUND_ENOUGH,
    LAUNDERING,
    Agreements,
    agreements_of,
    flagged,
    sentence,
)
from weightprint.data import Agreement

SHAPE = Shape(6, 64, 48)
WIDTH = 16
Change = str


def laundered(of: Weights, how: Change, seed: int = 0) -> Weights:
    """The same function by other weights."""
    generator = np.random.default_rng(seed)
    found = dict(of)
    for stack, layer, role in of:
        if role != "v":
            continue
        v, o = of[stack, layer, "v"], of[stack, layer, "o"]
        if how == "permuted":
            order = np.concatenate([start + generator.permutation(WIDTH) for start in range(0, len(v), WIDTH)])
            v, o = v[order], o[:, order]
        elif how == "mixed":
            v, o = v.copy(), o.copy()
            for start in range(0, len(v), WIDTH):
                here = slice(start, start + WIDTH)
                mix = generator.normal(size=(WIDTH, WIDTH))
                v[here], o[:, here] = mix @ v[here], o[:, here] @ np.linalg.inv(mix)
        else:
            order = np.concatenate([start + generator.permutation(WIDTH) for start in range(0, len(v), WIDTH)])
            factor = np.exp(generator.normal())
            own = np.ones(len(v)) if "by units" not in how else np.exp(generator.normal(size=len(v)))
            v, o = own[:, None] * v, o / own
            v, o = factor * v[order], o[:, order] / factor
            found[stack, layer, "q"] = of[stack, layer, "q"] * factor
            found[stack, layer, "k"] = of[stack, layer, "k"] * (factor if "by units" in how else 1 / factor)
        found[stack, layer, "v"], found[stack, layer, "o"] = v, o
    return found


@pytest.mark.parametrize(
    ("how", "kept"),
    [
        ("permuted", {"qk", "vo", "q", "k", "v", "o", "units"}),
        ("mixed", {"qk", "q", "k"}),
        ("rescaled and permuted", {"qk", "vo", "units"}),
        ("rescaled by units and permuted", {"units"}),
    ],
)
def test_a_laundered_copy_is_flagged_by_the_curves_that_it_kept(how: Change, kept: set[str]) -> None:
    base = weights(1, SHAPE)
    found = judged(fingerprint("a", base), fingerprint("b", laundered(base, how)))
    assert found.agreement is not None
    assert set(found.agreement.curves) == kept
    assert found.agreement.points == SHAPE.layers
    assert found.verdict == "similar-profile"
    assert found.reasons[0].startswith(LAUNDERING)
    assert "--confirm" in found.reasons[0]


@pytest.mark.parametrize(
    ("residual", "said"),
    [
        (0.0, "agree, the closest are equal to the rounding of storage (within 0.0005), and"),
        (0.00123, "agree, the closest to 0.0012, 0.013 of their own spread, and"),
    ],
)
def test_how_close_is_said_in_words_or_with_two_digits(residual: float, said: str) -> None:
    assert said in sentence(Agreement(("q", "k"), residual, 0.0131, 6), 0)


def test_evidence_keeps_its_word() -> None:
    base = weights(1, SHAPE)
    found = judged(fingerprint("a", base), fingerprint("b", tuned(base, 2)))
    assert found.verdict == "shared-origin"
    assert not any(reason.startswith(LAUNDERING) for reason in found.reasons)


def test_words_and_reasons_of_a_report_agree() -> None:
    """The column of words, from which counts and exit codes come, says what the comparisons say."""
    base = weights(1, SHAPE)
    prints = [fingerprint("a", base), fingerprint("b", laundered(base, "permuted")), model("c", 2, SHAPE)]
    found = judge(compare_all(prints, [(0, 1), (0, 2), (1, 2)]))
    words = [WORDS[word] for word in words_of(found).tolist()]
    assert words == [own.verdict for own in found] == ["similar-profile", "no-evidence", "no-evidence"]


def test_unrelated_networks_are_not_flagged() -> None:
    prints = [model(f"m{seed}", seed, SHAPE) for seed in range(12)]
    pairs = [(i, j) for i in range(12) for j in range(i)]
    for found in judge(compare_all(prints, pairs)):
        assert found.verdict == "no-evidence"
    for i, j in pairs:
        assert judged(prints[i], prints[j]).verdict == "no-evidence"


def test_likeness_to_some_percents_is_no_agreement() -> None:
    """Curves with a correlation above 0.99, as unrelated networks of one recipe have them."""
    base = weights(1, SHAPE)
    generator = np.random.default_rng(3)
    noise = weights(4, SHAPE)
    near = {
        key: value / value.std() * base[key].std() * (1 + 0.01 * generator.normal()) for key, value in noise.items()
    }
    found = judged(fingerprint("a", base), fingerprint("b", near))
    assert found.screen.score is not None
    assert found.screen.score > 0.98
    assert found.verdict == "no-evidence"


def test_the_columns_are_those_of_single_pairs_to_the_bit() -> None:
    base = weights(1, SHAPE)
    prints = [fingerprint("a", base), fingerprint("b", laundered(base, "permuted")), model("c", 3, SHAPE)]
    prints += [model("deep", 4, Shape(9, 64, 48)), replace(model("hole", 5, SHAPE), matrices=prints[2].matrices[:-4])]
    pairs = [(i, j) for i in range(len(prints)) for j in range(len(prints)) if i != j]
    found = compare_all(prints, pairs)
    alone = [compare_pair(prints[i], prints[j]) for i, j in pairs]
    assert [own.agreement for own in found] == [own.agreement for own in alone]
    columns, again = found.figures.agreements, agreements_of([own.agreement for own in alone])
    for one, other in zip(vars(columns).values(), vars(again).values(), strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize(("layers", "others"), [(6, 7), (3, 3)], ids=["depth", "few"])
def test_what_cannot_be_held_against_each_other_has_no_agreement(layers: int, others: int) -> None:
    a, b = weights(1, Shape(layers, 64, 48)), weights(1, Shape(others, 64, 48))
    assert compare_pair(fingerprint("a", a), fingerprint("b", b)).agreement is None


@pytest.mark.parametrize("kind", ["flat", "zero"])
def test_curves_that_say_nothing_are_left_out(kind: str) -> None:
    """The same standard deviation in every layer, or a layer without any."""
    base = weights(1, SHAPE)
    if kind == "flat":
        base = {key: value / value.std() for key, value in base.items()}
    else:
        base = {key: 0 * value if key[1] == 2 else value for key, value in base.items()}
    found = compare_pair(fingerprint("a", base), fingerprint("b", laundered(base, "permuted"))).agreement
    assert found is not None
    assert found.curves == ("units",)
    assert found.points == (6 if kind == "flat" else 5)


def columns(ratio: np.ndarray, points: int) -> Agreements:
    number = len(ratio)
    return Agreements(ratio, ratio / 100, np.full(number, points, np.int16), np.zeros(number, np.uint16))


@pytest.mark.parametrize("points", [5, 6, 12, 32])
def test_the_rate_of_false_flags_with_a_background(points: int) -> None:
    """Curves of independent noise: fewer pairs are flagged than the limit says."""
    generator = np.random.default_rng(points)
    counts = []
    for _ in range(40):
        curves = generator.normal(size=(2, 6, 2000, points))
        centred = curves - curves.mean(-1, keepdims=True)
        spread = np.sqrt((centred**2).mean(-1)).prod(0) ** 0.5
        ratio = (np.sqrt(((centred[0] - centred[1]) ** 2).mean(-1)) / spread).min(0)
        counts.append(int(flagged(columns(ratio, points), np.ones(2000, bool))[0].sum()))
    assert np.mean(counts) <= 0.05


def test_copies_in_the_background_do_not_hide_a_copy() -> None:
    generator = np.random.default_rng(0)
    ratio = np.concatenate([np.full(30, 1e-6), generator.uniform(0.3, 1.5, size=40)])
    found, number = flagged(columns(ratio, 6), np.ones(70, bool))
    assert number == 70
    assert found[:30].all()
    assert not found[30:].any()


@pytest.mark.parametrize("others", [BACKGROUND_ENOUGH - 1, BACKGROUND_ENOUGH])
def test_a_small_background_is_none(others: int) -> None:
    """Without a background less is let pass; the pair's own ratio does not count."""
    ratio = np.concatenate([[0.02], np.full(others, 1.5)])
    found, _ = flagged(columns(ratio, 12), np.ones(len(ratio), bool))
    assert found[0] == (others >= BACKGROUND_ENOUGH)


def test_few_layers_need_more() -> None:
    ratio = np.array([0.009])
    alone = [bool(flagged(columns(ratio, points), np.ones(1, bool))[0][0]) for points in (4, 6, 12)]
    assert alone == [False, True, True]


def test_single_records_make_columns_and_back() -> None:
    own = [None, Agreement(("qk", "o"), 1e-4, 2e-3, 6), Agreement((), 0.2, 0.5, 12)]
    columns_of = agreements_of(own)
    assert [columns_of.at(number) for number in range(3)] == own
