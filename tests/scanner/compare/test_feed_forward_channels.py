"""Channels of feed-forward blocks: what is tested, what is said, and that experts made out of one block count once."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pytest
from compare.build import STACK, Shape, chi_square, fingerprint, judged, model, weights

from weightprint.attention_part import attention_part
from weightprint.compare import compare_all, compare_pair, prepare
from weightprint.compare import prepared as preparing
from weightprint.compare.experts import counted_once
from weightprint.data import Comparison, Coverage, Fingerprint, MatrixStats

Energies = npt.NDArray[np.float32]
WIDTH, EXPERTS, LAYERS = 64, 4, 3
ATTENTION = Shape(layers=LAYERS)


ROLES = ("gate", "up", "down")


def with_blocks(
    of: Fingerprint, energies: Energies, width: int = WIDTH, roles: Sequence[str] = ROLES, seed: int = 0
) -> Fingerprint:
    """``of`` with feed-forward blocks whose units have these energies [layers, units] in every role."""
    generator = np.random.default_rng(seed)
    units = energies.shape[1]
    stats = tuple(
        MatrixStats(
            **{"stack": STACK, "layer": layer, "role": role, "tensors": (f"{layer}.{role}",), "dtype": "f32"},
            **{"shape": (units, 48), "count": units * 48, "mean": 0.0, "std": float(generator.random())},
            **{"skewness": 0.0, "kurtosis": 3.0, "abs_max": 1.0, "zeros": 0, "non_finite": 0, "head_width": width},
        )
        for layer in range(len(energies))
        for role in roles
    )
    own = {(STACK, layer, role): row for layer, row in enumerate(energies) for role in roles}
    blocks = Coverage(len(energies), len(energies))
    return replace(of, matrices=of.matrices + stats, energies={**of.energies, **own}, feed_forward=blocks)


def independent(seed: int, experts: int = EXPERTS) -> Energies:
    return chi_square(seed, LAYERS, experts * WIDTH, freedom=48)


def upcycled(seed: int, drift: float = 0.0, experts: int = EXPERTS) -> Energies:
    """Every expert a copy of one block, some training later."""
    one = chi_square(seed, LAYERS, 1, WIDTH, freedom=48)
    noise = np.random.default_rng(seed + 10**6).normal(scale=drift, size=(LAYERS, experts, WIDTH))
    return (one * np.exp(noise)).reshape(LAYERS, -1).astype(np.float32)


def moe(name: str, energies: Energies, seed: int = 0, **changes: object) -> Fingerprint:
    return with_blocks(model(name, seed, ATTENTION), energies, **changes)  # type: ignore[arg-type]


def test_every_channel_is_tested_and_paid_for() -> None:
    pair = compare_pair(moe("a", independent(1), 1), moe("b", independent(2), 2))
    parts = {"v": "heads", "o": "heads", "gate": "experts", "up": "experts", "down": "experts"}
    names = [
        f"{channel} {how}" for channel, part in parts.items() for how in ("whole", "layers", part, f"matched {part}")
    ]
    assert [test.name for test in pair.tests] == names
    paid = {"whole": 1, "layers": 9, "heads": 3 * 4 * 4, "experts": 3 * 4 * 4, "matched": 2 * 4 ** (3 * 4)}
    for test in pair.tests:
        assert test.log10_factor == pytest.approx(np.log10(20 * float(paid[test.name.split()[1]])))
    assert {test.blocks for test in pair.tests if test.name == "gate whole"} == {LAYERS * EXPERTS * WIDTH // 8}
    assert pair.reasons == ()


def test_blocks_are_as_long_as_the_width_of_an_expert_allows() -> None:
    energies = chi_square(1, LAYERS, 4 * 12)
    pair = compare_pair(moe("a", energies, 1, width=12), moe("b", chi_square(2, LAYERS, 48), 2, width=12))
    assert {test.blocks for test in pair.tests if test.name == "gate whole"} == {LAYERS * 48 // 6}


def test_relatives_are_found_by_their_blocks_alone() -> None:
    """Attention of another origin, expert e with expert e."""
    base = independent(1)
    child = base * np.exp(np.random.default_rng(9).normal(scale=0.05, size=base.shape)).astype(np.float32)
    pair = judged(moe("a", base, 1), moe("b", child, 2))
    assert pair.verdict == "shared-origin"
    best = min(pair.tests, key=lambda test: test.log10_p + test.log10_factor)
    assert best.name.split()[0] in ("gate", "up", "down")


def spread(pairs: Sequence[Comparison], name: str = "gate whole") -> float:
    return float(np.std([test.z for pair in pairs for test in pair.tests if test.name == name]))


def many_pairs(sides: Sequence[Fingerprint]) -> list[Comparison]:
    ready = [prepare(side) for side in sides]
    return [compare_pair(ready[i], ready[j]) for i in range(len(ready)) for j in range(i)]


@pytest.mark.parametrize("kind", ["independent", "upcycled", "upcycled-and-trained", "mixed"])
def test_unrelated_pairs_are_as_the_law_says(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """sd of z over pairs of unrelated networks; experts that all follow one block would make it twice as large."""
    drift = {"upcycled-and-trained": 0.1}.get(kind, 0.02)
    made = [
        independent(seed) if kind == "independent" or (kind == "mixed" and seed % 2) else upcycled(seed, drift)
        for seed in range(24)
    ]
    sides = [moe(str(seed), energies, seed, roles=("gate",)) for seed, energies in enumerate(made)]
    pairs = many_pairs(sides)
    assert 0.85 < spread(pairs) < 1.15
    assert min(pair.pair_log10_p or 0.0 for pair in pairs) > -5
    if kind.startswith("upcycled"):
        monkeypatch.setattr(preparing, "counted_once", lambda energies, width: (energies, 0))
        assert spread(many_pairs(sides)) > 1.4, "without the guard the law is broken, so this test can fail"


def test_upcycled_relatives_are_found_and_what_is_left_out_is_said() -> None:
    base = upcycled(1, 0.02)
    pair = judged(moe("a", base, 1), moe("b", base * np.float32(1.5), 2))
    assert pair.verdict == "shared-origin"
    said = "channel gate of model.layers in a is not used in 9 of 12 experts: they follow the order of others of their"
    assert any(reason.startswith(said) for reason in pair.reasons)


def test_experts_count_once_where_some_agree() -> None:
    energies = independent(1, 6).reshape(LAYERS, 6, WIDTH)
    energies[1, 4] = energies[1, 2] * 2
    kept, repeated = counted_once(energies.reshape(LAYERS, -1), WIDTH)
    gone = np.isnan(kept.reshape(LAYERS, 6, WIDTH)).all(axis=2)
    assert (repeated, np.argwhere(gone).tolist()) == (1, [[1, 4]])
    everywhere = energies.copy()
    everywhere[:, 5] = everywhere[:, 0] + everywhere[:, 5] / 8
    kept, _ = counted_once(everywhere.reshape(LAYERS, -1), WIDTH)
    assert np.isnan(kept.reshape(LAYERS, 6, WIDTH)[:, 5]).all()


def test_a_dense_block_is_left_as_it_is() -> None:
    energies = independent(1, 1)
    kept, repeated = counted_once(energies, WIDTH)
    assert (kept is energies, repeated) == (True, 0)


def test_reading_blocks_of_one_side_changes_nothing_but_a_reason() -> None:
    a, b = model("a", 1, ATTENTION), model("b", 2, ATTENTION)
    alone, one, both = (
        compare_pair(a, b),
        compare_pair(with_blocks(a, independent(1)), b),
        compare_pair(with_blocks(a, independent(1)), with_blocks(b, independent(2))),
    )
    said = "feed-forward blocks are not compared: of b none was read (--read all reads them)"
    assert one == replace(alone, reasons=(said,))
    assert alone.reasons == ()
    assert both.screen == alone.screen
    attention = [test for test in both.tests if test.name[0] in "vo"]
    assert [(t.name, t.statistic, t.log10_p) for t in attention] == [
        (t.name, t.statistic, t.log10_p) for t in alone.tests
    ]


def test_copies_are_said_of_the_matrices_that_were_read() -> None:
    bare = model("a", 1, ATTENTION)
    full = with_blocks(bare, independent(1))
    said = {
        what: judged(one, replace(other, name="b")).reasons[0].partition("(")[2].partition(")")[0]
        for what, one, other in (("bare", bare, bare), ("mixed", full, bare), ("full", full, full))
    }
    assert said == {
        "bare": "attention; nothing else was read",
        "mixed": "attention",
        "full": "attention and feed-forward blocks",
    }


def test_the_position_of_attention_does_not_move_with_blocks() -> None:
    """A hybrid whose first layers have no attention, read in full, against itself read with attention alone."""
    own = {(STACK, layer + 2, role): value for (_, layer, role), value in weights(1, ATTENTION).items()}
    alone = fingerprint("a", own)
    pair = compare_pair(with_blocks(alone, chi_square(1, LAYERS + 2, WIDTH)), replace(alone, name="b"))
    assert {test.name for test in pair.tests if test.statistic == 168 * test.blocks} >= {"v whole", "o whole"}


def test_an_ungated_block_lacks_no_gate() -> None:
    two = ("up", "down")
    pair = compare_pair(moe("a", independent(1), 1, roles=two), moe("b", independent(2), 2, roles=two))
    assert pair.reasons == ()
    pair = compare_pair(moe("a", independent(1), 1), moe("b", independent(2), 2, roles=two))
    assert pair.reasons == ("b has no units of channel gate",)
    narrow = moe("b", chi_square(2, LAYERS, 4 * 32), 2, width=32, roles=("up",))
    pair = compare_pair(moe("a", independent(1), 1, roles=("up",)), narrow)
    assert pair.reasons == ("unit counts differ: up 256 against 128, in experts of 64 and 32",)


def test_experts_made_out_of_a_dense_block_are_found_beside_it() -> None:
    """Attention of another origin; in each layer one expert is left to stand for all, and meets the dense block."""
    dense = chi_square(1, LAYERS, WIDTH, freedom=48)
    noise = np.random.default_rng(3).normal(scale=0.02, size=(LAYERS, EXPERTS, WIDTH))
    experts = (dense[:, None] * np.exp(noise)).reshape(LAYERS, -1).astype(np.float32)
    pair = judged(moe("dense", dense, 1), moe("experts", experts, 2))
    assert pair.verdict == "shared-origin"
    assert [entry[:2] for entry in pair.layer_map] == [(layer, layer) for layer in range(LAYERS)]
    assert {test.name for test in pair.tests if test.log10_p < -15} == {
        f"{role} {what}" for role in ROLES for what in ("experts", "matched experts")
    }


def test_the_same_weights_read_further_on_one_side() -> None:
    a = model("a", 1, ATTENTION)
    whole = with_blocks(a, independent(1))
    pair = judged(whole, replace(a, name="b"))
    assert pair.verdict == "identical"
    assert "this is said of the attention matrices alone: feed-forward blocks of b were not read" in pair.reasons
    assert judged(whole, replace(whole, name="b")).verdict == "identical"


def test_blocks_that_were_trained_on_are_not_identical() -> None:
    a = model("a", 1, ATTENTION)
    whole, other = with_blocks(a, independent(1)), with_blocks(a, independent(1) * np.float32(1.01), seed=1)
    assert judged(whole, replace(other, name="b")).verdict == "shared-origin"
    less = replace(whole, name="b", feed_forward=Coverage(LAYERS, LAYERS - 1))
    assert judged(whole, less).verdict == "shared-origin"


def test_blocks_without_attention_are_compared() -> None:
    sides = []
    for name, energies in (("a", independent(1)), ("b", independent(1)), ("c", independent(2))):
        whole = with_blocks(model(name, 1, ATTENTION), energies)
        sides.append(
            replace(
                whole,
                matrices=tuple(m for m in whole.matrices if m.role not in "qkvo"),
                energies={key: row for key, row in whole.energies.items() if key[2] not in "vo"},
            )
        )
    assert judged(sides[0], sides[1]).verdict == "identical"
    assert judged(sides[0], sides[2]).verdict == "no-evidence"
    assert attention_part(sides[0]).matrices == ()


def test_in_bulk_as_one_by_one() -> None:
    sides = [
        *(moe(f"m{seed}", independent(seed), seed) for seed in range(4)),
        moe("relative", independent(0) * np.float32(2), 9),
        moe("upcycled", upcycled(7), 7),
        *(model(f"alone{seed}", seed, ATTENTION) for seed in (2, 5)),
    ]
    numbers = [(i, j) for i in range(len(sides)) for j in range(i)]
    bulk = compare_all(sides, numbers)
    assert list(bulk) == [compare_pair(sides[i], sides[j]) for i, j in numbers]
