"""The six words and their reasons: evidence from the exact test alone, corrected over the report, and no accusation."""

import itertools
import math
import re
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
from compare.build import LAW, Shape, Weights, fingerprint, judged, model, relayered, scored, tuned, weights, without
from hypothesis import given
from hypothesis import strategies as st

from weightprint.compare import compare_all, compare_pair, families, holm, judge
from weightprint.compare.families import EVIDENCE
from weightprint.compare.verdict import ALPHA, SAME_SEED
from weightprint.data import Comparison, Fingerprint, Test

WORDS = ("identical", "re-encoded", "shared-origin", "similar-profile", "no-evidence", "not-comparable")
SHAPE = Shape(5, 64, 48)
OTHER_HEADS = "unit counts differ: v 64 against 128, in heads of 16 and 32"
ACCUSING = re.compile(
    r"stolen|steal|theft|copied|copying|plagiar|pirat|guilt|% (similar|identical|match)", re.IGNORECASE
)


def rounded(of: Weights) -> Weights:
    return {key: value.astype(np.float16).astype(np.float64) for key, value in of.items()}


def like(of: Weights, seed: int) -> Weights:
    """Independent weights with nearly the standard deviations of another model."""
    noise = weights(seed, SHAPE)
    wobble = np.random.default_rng(seed)
    return {key: value / value.std() * of[key].std() * (1 + 0.02 * wobble.normal()) for key, value in noise.items()}


@cache
def one_of_each() -> dict[str, Comparison]:
    """One report with a pair for every word, from fingerprints, and a background for the screen."""
    base = weights(1, SHAPE)
    prints = [
        fingerprint("base", base),
        fingerprint("identical", base),
        fingerprint("re-encoded", rounded(base), dtype="f16"),
        fingerprint("shared-origin", tuned(base, 2)),
        fingerprint("similar-profile", like(base, 3)),
        model("no-evidence", 4, SHAPE),
        model("not-comparable", 5, Shape(5, 128, 48), head_width=32),
    ]
    compared = compare_all(prints, [(0, other) for other in range(1, 7)])
    untested = [scored(f"x{n}", f"y{n}", 0.1, None) for n in range(20)]
    return {own.b: own for own in judge([*compared, *untested]) if own.a == "base"}


def paired(a: str, b: str, log10_p: float, score: float | None = None, verdict: str = "no-evidence") -> Comparison:
    test = Test("v whole", 4000, 200, 4.5, log10_p - math.log10(2), math.log10(2))
    return replace(scored(a, b, score, log10_p), tests=(test,), verdict=verdict)


@pytest.mark.parametrize("word", WORDS)
def test_every_word_is_reached(word: str) -> None:
    assert one_of_each()[word].verdict == word


@pytest.mark.parametrize(
    ("word", "first", "also"),
    [
        ("identical", r"every stored statistic of 20 matrices \(attention; .* is equal to the last bit", None),
        ("re-encoded", r"standard deviations and unit energies of 20 matrices .* within the rounding", SAME_SEED),
        ("shared-origin", r"independent initialisation is rejected: p <= 1e-\d+ after correction over 5", SAME_SEED),
        ("similar-profile", r"the seed score [01]\.\d+ lies above.*a screen and no evidence", None),
        ("no-evidence", r"independent initialisation is not rejected at 1e-06: p = [\d.e-]+ after", None),
        ("not-comparable", r"no test of the order of units could be made", OTHER_HEADS),
    ],
)  # fmt: skip
def test_reasons(word: str, first: str, also: str | None) -> None:
    reasons = one_of_each()[word].reasons
    assert re.match(first, reasons[0])
    assert also is None or also in reasons


def test_the_screen_s_word_says_what_the_order_says() -> None:
    found = one_of_each()["similar-profile"]
    assert found.screen.score == pytest.approx(1.0, abs=0.02)
    assert found.log10_p is not None
    assert found.log10_p > -2
    assert re.match("independent initialisation is not rejected", found.reasons[1])


def test_rejection_says_how_strong_and_by_which_test() -> None:
    found = one_of_each()["shared-origin"]
    (reason,) = [reason for reason in found.reasons if "is rejected" in reason]
    match = re.search(r"p <= 1e(-\d+) .*\(order of units, test ([vo] \w+), (\d+) blocks, z ([\d.]+)\)", reason)
    assert match is not None
    assert found.log10_p is not None
    assert found.log10_p <= int(match[1]) < found.log10_p + 1
    best = min(found.tests, key=lambda test: test.log10_p + test.log10_factor)
    assert (match[2], match[3], match[4]) == (best.name, str(best.blocks), f"{best.z:.1f}")


@pytest.mark.parametrize("log10_p", [-6.0, -6.2, -27.000001, -300.0, -264098.9])
def test_power_of_ten_is_never_below_p(log10_p: float) -> None:
    (found,) = judge([paired("a", "b", log10_p)])
    match = re.search(r"p <= 1e(-\d+) after correction over 1 pair ", found.reasons[0])
    assert match is not None
    assert log10_p <= int(match[1]) < log10_p + 1


def unusual() -> list[Comparison]:
    """Pairs with every other reason that there is."""
    base, deep = weights(1, SHAPE), relayered(weights(1, SHAPE), [0, 1, 2, 1, 2, 3, 4])
    wide = weights(9, Shape(4, 128, 48))
    varying = {**base, **{(stack, layer + 5, role): value for (stack, layer, role), value in wide.items()}}
    prints = [
        fingerprint("base", base),
        fingerprint("deep", deep),
        fingerprint("deep too", tuned(deep, 3)),
        fingerprint("no heads", base, head_width=1),
        without(fingerprint("no o", base), range(5), "o"),
        replace(without(fingerprint("part", base), [0, 3], "v"), status="partial", reason="layer 0"),
        replace(fingerprint("failed", base), status="failed", reason="truncated"),
        fingerprint("nan", {key: value * np.nan for key, value in base.items()}),
        fingerprint("varying", varying),
        fingerprint("other heads", wide, head_width=32),
    ]
    pairs = list(itertools.combinations(range(len(prints)), 2))
    return [*judge(compare_all(prints, pairs)), *one_of_each().values()]


def test_words_never_accuse() -> None:
    found = unusual()
    texts = [reason for own in found for reason in own.reasons]
    assert len(set(texts)) > 40
    assert [text for text in texts if ACCUSING.search(text)] == []
    assert {own.verdict for own in found} == set(WORDS)
    assert not re.search("stolen|copied from|plagiar", " ".join(texts))


def test_every_verdict_gives_a_reason() -> None:
    for own in unusual():
        assert own.verdict in WORDS
        assert own.reasons
        assert all(reason == reason.strip() and reason for reason in own.reasons)
        assert len(set(own.reasons)) == len(own.reasons)


def test_common_seed_is_named_wherever_evidence_is() -> None:
    for own in unusual():
        assert (SAME_SEED in own.reasons) == (own.verdict in {"shared-origin", "re-encoded"})


def test_holm_over_all_pairs_tested() -> None:
    found = judge(
        [paired("a", "b", -7.0), paired("c", "d", -6.4), scored("e", "f", None, None), paired("g", "h", -1.0)]
    )
    assert [own.log10_p for own in found] == holm([-7.0, -6.4, None, -1.0])
    assert [own.pair_log10_p for own in found] == [-7.0, -6.4, None, -1.0]
    assert [own.verdict for own in found] == ["shared-origin", "shared-origin", "not-comparable", "no-evidence"]
    assert "after correction over 3 pairs" in found[0].reasons[0]


@pytest.mark.parametrize(("pairs", "word"), [(1, "shared-origin"), (9, "shared-origin"), (12, "no-evidence")])
def test_one_pair_of_many_pays_for_all(pairs: int, word: str) -> None:
    many = [paired(f"a{n}", f"b{n}", -0.3) for n in range(pairs - 1)]
    assert judge([*many, paired("a", "b", -7.0)])[-1].verdict == word


@pytest.mark.parametrize(("log10_p", "word"), [(-6.0, "shared-origin"), (-5.999999, "no-evidence")])
def test_at_the_level_itself(log10_p: float, word: str) -> None:
    assert ALPHA == 1e-6
    assert judge([paired("a", "b", log10_p)])[0].verdict == word


@pytest.mark.parametrize(("alpha", "word"), [(1e-3, "shared-origin"), (1e-6, "no-evidence")])
def test_level_can_be_set(alpha: float, word: str) -> None:
    (found,) = judge([paired("a", "b", -4.0)], alpha)
    assert found.verdict == word
    assert word == "shared-origin" or f"not rejected at {alpha:g}: p = 0.0001" in found.reasons[0]


def test_identical_needs_no_test() -> None:
    said = ("every stored statistic is equal",)
    (found,) = judge([replace(scored("a", "b", 1.0, None), verdict="identical", reasons=said)])
    assert (found.verdict, found.reasons, found.log10_p) == ("identical", said, None)


def test_re_encoded_falls_with_its_test() -> None:
    """Seven pairs more, and what looked like rounding is no longer beyond chance: its sentence goes too."""
    same = replace(paired("a", "b", -6.5, verdict="re-encoded"), reasons=("agree within rounding", "gap"))
    (alone,) = judge([same])
    assert (alone.verdict, alone.reasons[0], alone.reasons[-1]) == ("re-encoded", "agree within rounding", "gap")
    found = judge([same, *(paired(f"a{n}", f"b{n}", -0.3) for n in range(7))])[0]
    assert found.verdict == "no-evidence"
    assert "agree within rounding" not in found.reasons
    assert "gap" in found.reasons


PAIRS = st.lists(st.tuples(st.floats(-40, 0), st.floats(-1, 1)), min_size=1, max_size=30)


@given(PAIRS)
@LAW
def test_evidence_comes_from_the_test_alone(pairs: list[tuple[float, float]]) -> None:
    """Whatever the scores are, the same pairs are evidence; the screen only ever makes similar-profile."""
    found, blind = (
        judge([paired(f"a{n}", f"b{n}", p, score if scores else None) for n, (p, score) in enumerate(pairs)])
        for scores in (True, False)
    )
    assert {own.verdict for own in blind} <= {"shared-origin", "no-evidence"}
    for with_score, without_score in zip(found, blind, strict=True):
        assert with_score.log10_p == without_score.log10_p
        assert (with_score.verdict == "shared-origin") == (without_score.verdict == "shared-origin")
        assert with_score.verdict in {"shared-origin", "no-evidence", "similar-profile"}
    assert len(families(found)) == len(families(blind))


def background(number: int, score: float) -> list[Comparison]:
    return [paired(f"x{n}", f"y{n}", -0.2, score) for n in range(number)]


@pytest.mark.parametrize(
    ("score", "others", "word"),
    [
        (0.95, [], "no-evidence"),
        (0.999, background(19, 0.1), "no-evidence"),
        (0.95, background(20, 0.99), "no-evidence"),
        (0.85, background(20, 0.1), "similar-profile"),
        (0.79, background(40, 0.1), "no-evidence"),
        (0.95, background(38, 0.1) + background(2, 0.99), "similar-profile"),
        (0.95, background(37, 0.1) + background(3, 0.99), "no-evidence"),
        (None, background(20, 0.1), "no-evidence"),
    ],
    ids=[
        "high alone",
        "small background is not trusted",
        "many unrelated pairs are higher",
        "above its background",
        "above its background but low",
        "at the percentile",
        "below the percentile",
        "no score",
    ],
)
def test_high_against_its_own_background(score: float | None, others: list[Comparison], word: str) -> None:
    found = judge([paired("a", "b", -3.0, score), *others])[0]
    assert found.verdict == word
    assert ("no evidence" in found.reasons[0]) == (word == "similar-profile")


@pytest.mark.parametrize(("others", "said"), [(0, "0 pairs"), (1, "1 pair "), (19, "19 pairs"), (20, None)])
def test_a_score_without_a_background_is_said_not_to_be_judged(others: int, said: str | None) -> None:
    found = judge([paired("a", "b", -3.0, 0.95), *background(others, 0.99)])[0]
    assert found.verdict == "no-evidence"
    line = next((reason for reason in found.reasons if "is not judged" in reason), None)
    assert (said in line) if said and line else (line is None and said is None)


def test_high_score_without_any_test_is_similar_profile() -> None:
    found = judge([scored("a", "b", 0.97, None), *background(20, 0.1)])[0]
    assert found.verdict == "similar-profile"
    assert found.reasons[1] == "no test of the order of units could be made"


def test_small_p_without_a_score_is_not_similar_profile() -> None:
    """A p-value that misses the level by little is no profile."""
    (found,) = judge([paired("a", "b", -5.9, 0.1)])
    assert found.verdict == "no-evidence"


def test_similar_profile_is_no_evidence_and_joins_no_family() -> None:
    found = judge([paired("a", "b", -5.9, 0.999), *background(20, 0.1)])[0]
    assert found.verdict == "similar-profile"
    assert found.verdict not in EVIDENCE
    assert families([found]) == ()


def test_trained_out_of_the_screen_but_not_out_of_the_order() -> None:
    """Rescaling every matrix moves the curves at will and no order: still shared origin."""
    base = weights(1, SHAPE)
    generator = np.random.default_rng(3)
    child = {key: value * generator.lognormal(sigma=1) for key, value in tuned(base, 2).items()}
    found = judged(fingerprint("a", base), fingerprint("b", child))
    assert found.verdict == "shared-origin"
    assert found.screen.score is not None
    assert found.screen.score < 0.8


def test_order_and_everything_else_is_kept() -> None:
    def prints() -> list[Fingerprint]:
        return [model(f"m{seed}", seed, SHAPE) for seed in range(4)]

    preliminary = [compare_pair(a, b) for a, b in itertools.combinations(prints(), 2)]
    for before, after in zip(preliminary, judge(preliminary), strict=True):
        for name in ("a", "b", "tests", "pair_log10_p", "layer_map"):
            assert getattr(before, name) == getattr(after, name)
        assert after.screen.score == before.screen.score


def test_no_pair_no_verdict() -> None:
    assert judge([]) == ()
