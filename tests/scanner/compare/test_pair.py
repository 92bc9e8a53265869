"""One pair: what is put together, the same from either side, corrected inside; nothing is scored that was not read."""

import itertools
from dataclasses import astuple, replace

import pytest
from compare.build import STACK, Shape, chi_square, fingerprint, judged, model, tuned, weights, without

from weightprint.compare import compare_all, compare_pair, prepare
from weightprint.data import Comparison, Fingerprint, Screen

SHAPE = Shape(5, 64, 32)


def failed(name: str, reason: str | None) -> Fingerprint:
    whole = model(name, 1, SHAPE)
    return replace(whole, status="failed", code="E_SHARD_MISSING", reason=reason, matrices=(), energies={})


def several() -> list[Fingerprint]:
    base = weights(1, SHAPE)
    return [
        fingerprint("base", base),
        fingerprint("child", tuned(base, 2)),
        fingerprint("twin", base),
        model("other", 3, SHAPE),
        model("deeper", 4, Shape(7, 64, 32)),
        model("wider", 5, Shape(5, 128, 32), head_width=32),
        without(fingerprint("holed", tuned(base, 6)), [1], "vo"),
        without(model("latent", 7, SHAPE), range(5), "v"),
        failed("broken", "shard 2 is missing"),
    ]


def mirrored(found: Comparison) -> Comparison:
    """The same comparison seen from the other side, as far as numbers go."""
    swapped = sorted((b, a, z) for a, b, z in found.layer_map)
    return replace(found, a=found.b, b=found.a, layer_map=tuple(swapped), reasons=())


def test_prepared_or_not_is_the_same() -> None:
    for a, b in itertools.combinations(several(), 2):
        assert compare_pair(a, b) == compare_pair(prepare(a), prepare(b)) == compare_pair(a, prepare(b))


def test_all_pairs_in_the_order_given() -> None:
    prints = several()
    pairs = [(3, 0), (0, 1), (8, 2), (0, 3)]
    assert compare_all(prints, pairs) == tuple(compare_pair(prints[a], prints[b]) for a, b in pairs)


def test_the_same_from_either_side() -> None:
    for a, b in itertools.combinations(several(), 2):
        one, other = compare_pair(a, b), mirrored(compare_pair(b, a))
        assert (one.verdict, one.pair_log10_p) == (other.verdict, other.pair_log10_p)
        assert astuple(one.screen) == pytest.approx(astuple(other.screen), abs=1e-12)
        key = [(test.name, test.statistic, test.blocks, test.log10_p, test.log10_factor) for test in one.tests]
        assert key == [
            (test.name, test.statistic, test.blocks, test.log10_p, test.log10_factor) for test in other.tests
        ]
        assert [entry[:2] for entry in one.layer_map] == [entry[:2] for entry in other.layer_map]


@pytest.mark.parametrize(
    ("number", "word"),
    [(1, "no-evidence"), (2, "identical"), (3, "no-evidence"), (4, "no-evidence"), (5, "not-comparable")],
    ids=["child", "twin", "other", "deeper", "wider"],
)
def test_preliminary_word(number: int, word: str) -> None:
    prints = several()
    found = compare_pair(prints[0], prints[number])
    assert found.verdict == word
    assert (found.a, found.b) == ("base", prints[number].name)


@pytest.mark.parametrize("side", ["a", "b", "both"])
def test_unread_checkpoint_is_not_scored(side: str) -> None:
    whole, broken = model("whole", 1, SHAPE), failed("broken", "shard 2 is missing")
    pair = {"a": (broken, whole), "b": (whole, broken), "both": (broken, replace(broken, name="too"))}[side]
    found = compare_pair(*pair)
    names = [f.name for f in pair if f.status == "failed"]
    assert found.verdict == "not-comparable"
    assert (found.pair_log10_p, found.log10_p, found.tests, found.layer_map) == (None, None, (), ())
    assert found.screen == Screen(None)
    assert found.reasons == tuple(f"{name} could not be read: shard 2 is missing" for name in names)
    assert judged(*pair).verdict == "not-comparable"


def test_failed_checkpoint_is_not_scored_by_what_it_still_holds() -> None:
    """Two fingerprints of the same bits, one of them marked as failed: nothing of it counts."""
    whole = model("whole", 1, SHAPE)
    found = compare_pair(whole, replace(whole, name="broken", status="failed", reason="the disk went away"))
    assert (found.verdict, found.pair_log10_p, found.screen) == ("not-comparable", None, Screen(None))


def test_checkpoint_without_attention_is_said() -> None:
    empty = replace(model("empty", 1, SHAPE), matrices=(), energies={})
    assert compare_pair(empty, model("b", 2, SHAPE)).reasons == (
        "empty could not be read: it holds no attention matrix",
    )


def test_partial_checkpoint_is_compared_and_said() -> None:
    base = weights(1, SHAPE)
    partial = replace(
        without(fingerprint("part", tuned(base, 2)), [1]), status="partial", reason="layer 1: rows do not add up"
    )
    found = compare_pair(fingerprint("base", base), partial)
    assert "part is partial: layer 1: rows do not add up" in found.reasons
    assert found.pair_log10_p is not None
    assert found.pair_log10_p < -30


def test_corrected_inside_the_pair() -> None:
    """Bonferroni over every test made, whole or by layers, in every channel."""
    for a, b in itertools.combinations(several(), 2):
        found = compare_pair(a, b)
        assert (found.pair_log10_p is None) == (not found.tests)
        if found.pair_log10_p is not None:
            paid = [test.log10_p + test.log10_factor for test in found.tests]
            assert found.pair_log10_p == min(0.0, *paid)
            assert all(10**test.log10_factor > len(found.tests) * (1 - 1e-9) for test in found.tests)


def test_units_that_were_not_read_are_in_no_test() -> None:
    """A layer whose value matrix is missing brings no block, and one that is all nan none either."""
    base = weights(1, SHAPE)
    whole = fingerprint("whole", base)
    gone = without(fingerprint("gone", tuned(base, 2)), [2], "vo")
    spoilt = fingerprint(
        "spoilt", tuned(base, 2), energies={(STACK, 2, c): chi_square(1, 64) * float("nan") for c in "vo"}
    )
    for damaged in (gone, spoilt):
        (test,) = [test for test in compare_pair(whole, damaged).tests if test.name == "v whole"]
        assert test.blocks == 4 * 8
        assert test.statistic <= 168 * test.blocks


def test_every_reason_is_said_once() -> None:
    for a, b in itertools.combinations(several(), 2):
        reasons = compare_pair(a, b).reasons
        assert len(set(reasons)) == len(reasons)
