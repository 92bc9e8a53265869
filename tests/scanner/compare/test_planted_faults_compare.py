# ruff: noqa: E501 - one fault a line reads as a table
"""The suite can fail: each line of FAULTS breaks one line of one module, and the named check must turn red.

A fault whose text is no longer in the module fails as well. The package is copied, broken, and imported afresh together
with the tests that use it, so that no cache and no class of the sound one is left in it.
"""

import importlib
import inspect
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from compare.build import Shape

import weightprint
import weightprint.compare

REPLACED = ("weightprint.compare", "compare")
GREEN: set[str] = set()


@dataclass(frozen=True)
class Fault:
    """``old`` replaced by ``new`` in ``module``; shown by the test ``check`` of ``suite`` with these arguments."""

    label: str
    module: str
    old: str
    new: str
    suite: str
    check: str
    arguments: dict[str, Any] = field(default_factory=dict)


EXACT, BLOCKS, HOLM, CONTROL, PREPARED = "exact", "blocks", "holm", "selfcontrol", "prepared"
LAYERS, PAIR, SAME, SCREEN, STACKS = "layers", "pair", "sameness", "screen", "stacks"
VERDICT, FAMILIES, COMPARISONS, HEADS = "verdict", "families", "comparisons", "heads"
EXPERTS, MEETING, BLOCKS_OF = "experts", "meeting", "feed_forward_channels"
BULK, PACKED, PLANS, PRODUCTS, FUSED = "bulk", "packed", "plans", "products", "fused"
INVARIANTS = "invariants"

BIG_INTEGERS = "test_up_to_many_blocks_against_big_integers"
SPOILT = "test_spoilt_block_is_dropped_on_both_sides"
PAID = "test_every_test_of_the_pair_is_paid_for"
DOUBLED = "test_copied_layers_on_both_sides"
FORTY = {"block": 8, "blocks": 40}
KINDS, DECIDED = "test_kinds_of_fingerprints", "test_regular_pairs_are_decided_in_bulk"
THREE = {"name": "numpy", "wide": False, "layers": (3, 3)}
NARROW = Shape(4, 8, 24)
NINE = {"name": "numba", "wide": False, "layers": (9, 7)}


def one_more_zero(matrix: Any) -> Any:
    return replace(matrix, zeros=matrix.zeros + 1)


def infinite(row: object) -> float:
    return float("inf")


def tie(row: Any) -> float:
    return float(row[4])


FAULTS = [
    Fault("own-step-left-out", EXACT, "min(steps - total.first + 1,", "min(steps - total.first,", EXACT, "test_two_blocks_by_all_pairs_of_permutations"),
    Fault("own-rounding-taken-off", EXACT, "(total.law[: len(span)] + total.rounding)", "(total.law[: len(span)] - total.rounding)", EXACT, BIG_INTEGERS, FORTY),
    Fault("shared-rounding-taken-off", EXACT, "np.maximum(total.law, 0.0) + total.rounding", "total.law - total.rounding", EXACT, BIG_INTEGERS, FORTY),
    Fault("no-tilt", EXACT, "    return high\n", "    return 0.0\n", EXACT, BIG_INTEGERS, FORTY),
    Fault("tilt-sign", EXACT, "growth = np.exp(total.tilt", "growth = np.exp(-total.tilt", EXACT, "test_shared_tilt_agrees_with_own_tilt", {"blocks": 64, "block": 8}),
    Fault("moment-not-undone", EXACT, "exponent = blocks * total.log_mgf + total.tilt", "exponent = total.log_mgf + total.tilt", EXACT, "test_anchor_where_the_normal_tail_is_wrong"),
    Fault("too-narrow", EXACT, "_NEGLIGIBLE = 46.0", "_NEGLIGIBLE = 4.0", EXACT, "test_where_the_law_is_cut_off", {"block": 3, "blocks": 500}),
    Fault("rolled-the-wrong-way", EXACT, "-(first % length))", "first % length)", EXACT, "test_where_the_law_is_cut_off", {"block": 3, "blocks": 500}),
    Fault("power", EXACT, "result = result * base\n", "result = base\n", EXACT, BIG_INTEGERS, FORTY),
    Fault("critical-stops-early", EXACT, "while missed - reached > 1:", "while missed - reached > 40:", CONTROL, "test_significant_is_every_exact_p_at_or_below", {"log10_p": -2.0}),
    Fault("ties-ranked", BLOCKS, "(smaller.sum(axis=-1) == block * (block - 1) // 2)", "True", BLOCKS, SPOILT, {"spoil": tie, "side": "a"}),
    Fault("infinity-ranked", BLOCKS, "np.isfinite(cut).all(axis=-1) & ", "", BLOCKS, SPOILT, {"spoil": infinite, "side": "b"}),
    Fault("dropped-block-still-counted", BLOCKS, "if a.all_valid and b.all_valid:", "if True:", BLOCKS, SPOILT, {"spoil": tie, "side": "both"}),
    Fault("codes-off-centre", BLOCKS, "- np.int8(block - 1)", "- np.int8(block)", BLOCKS, "test_codes_of_a_block", {"block": 8}),
    Fault("head-width-ignored", BLOCKS, "if width % length == 0", "if units % length == 0", BLOCKS, "test_block_length", {"units": 96, "widths": (12, 16), "length": 4}),
    Fault("heads-mixed", BLOCKS, "if width % length == 0", "if units % length == 0", "null", "test_heads_of_different_strength", {"width": 12, "known": "both sides"}),
    Fault("longer-blocks", BLOCKS, "LONGEST_BLOCK = 8", "LONGEST_BLOCK = 7", BLOCKS, "test_block_length", {"units": 768, "widths": (64, None), "length": 8}),
    Fault("variance", BLOCKS, "np.maximum(counts, 1) / (block - 1)", "np.maximum(counts, 1) / block", BLOCKS, "test_standardised_has_variance_one", {"block": 8}),
    Fault("step-up", HOLM, "np.arange(len(order), 0, -1)", "np.arange(1, len(order) + 1)", HOLM, "test_worked_example"),
    Fault("falls-below-the-one-before", HOLM, "np.maximum.accumulate(raised)", "raised", HOLM, "test_worked_example"),
    Fault("above-one", HOLM, "min(0.0, log10_p + log10_factor)", "log10_p + log10_factor", HOLM, "test_bonferroni", {"log10_p": -1.0, "number": 100, "corrected": 0.0}),
    Fault("factor-not-paid", HOLM, "min(0.0, log10_p + log10_factor)", "min(0.0, log10_p)", LAYERS, PAID),
    Fault("never-fails", CONTROL, "self.median > self.threshold", "False", CONTROL, "test_matrix_read_transposed_fails_and_is_refused", {"layers": 12}),
    Fault("fails-too-often", CONTROL, "math.sqrt(2 * variance * _EXPONENT) +", "", CONTROL, "test_independent_layers_practically_never_fail", {"layers": 12, "blocks": 48}),
    Fault("fails-too-seldom", CONTROL, "math.sqrt(2 * variance * _EXPONENT)", "4 * math.sqrt(2 * variance * _EXPONENT)", CONTROL, "test_matrix_read_transposed_fails_and_is_refused", {"layers": 6}),
    Fault("layer-with-itself", CONTROL, "np.triu(counts > 0, 1)", "np.triu(counts > 0, 0)", CONTROL, "test_figures_of_independent_layers"),
    Fault("copies-not-found", CONTROL, "COPY_LOG10_P = -9.0", "COPY_LOG10_P = -900.0", CONTROL, "test_copies_that_were_trained_on_are_found"),
    Fault("bits-not-compared", CONTROL, "sorted(set(same))", "range(len(same))", CONTROL, "test_bit_identical_layers_count_once"),
    Fault("critical-left-out", CONTROL, "statistic >= critical", "statistic > critical", CONTROL, "test_significant_is_every_exact_p_at_or_below", {"log10_p": -0.5}),
    Fault("numbers-for-positions", PREPARED, "tuple(layer - start for layer in layers)", "tuple(layers)", LAYERS, "test_map_names_layers_as_the_checkpoint_does"),
    Fault("hole-shifts", PREPARED, "extent[stack].first if stack in extent else min(layers)", "min(layers)", LAYERS, "test_hole_shifts_nothing", {"layers": [0]}),
    Fault("copies-counted-twice", LAYERS, "if not a.control.copies or not b.control.copies:", "if True:", "null", DOUBLED),
    Fault("layer-pairs-not-paid", LAYERS, "number * grid.layer_pairs)", "number)", LAYERS, PAID),
    Fault("tests-not-paid", LAYERS, "number = sum(grid.made for grid in grids)", "number = 1", LAYERS, PAID),
    Fault("whole-at-unequal-depth", LAYERS, "if a.depth == b.depth else", "if True else", LAYERS, "test_unequal_depth_has_no_whole_test"),
    Fault("failed-channel-used", LAYERS, "if group.control.failed:", "if False:", CONTROL, "test_nothing_is_tested_where_the_only_channel_fails", {"wrong_side": "both"}),
    Fault("worst-layer-pair", LAYERS, "grid.statistic[grid.counts == blocks].max()", "grid.statistic[grid.counts == blocks].min()", LAYERS, "test_whole_and_layer_statistics_from_ranks"),
    Fault("largest-statistic-wins", LAYERS, "key=lambda entry: log10_tail(entry[0], entry[1], block)", "key=lambda entry: -entry[0]", LAYERS, "test_smallest_p_is_found_among_unequal_numbers_of_blocks"),
    Fault("head-pairs-not-paid", LAYERS, "number * grid.heads.pairs)", "number)", LAYERS, "test_every_test_of_the_pair_is_paid_for"),
    Fault("heads-of-one-layer", HEADS, "every = tuple(range(len(b.layers)))", "every = (0,)", HEADS, "test_statistic_is_the_best_of_all_pairs_of_heads"),
    Fault("heads-in-place-mapped", LAYERS, "return layer_map, () if in_place else head_map", "return layer_map, head_map", HEADS, "test_no_map_of_heads_that_are_where_their_layer_says"),
    Fault("choices-not-paid", HEADS, "return choosing * math.log10(self.from_b if by_a else self.from_a) + twice", "return twice", HEADS, "test_null_of_the_matched_test"),
    Fault("repeated-heads-counted", "repeats", "repeated = first != np.arange(first.shape[1])", "repeated = first < 0", HEADS, "test_repeated_heads_count_once"),
    Fault("equal-heads-not-told", "repeats", "seen.setdefault(head.tobytes(), number)", "seen.setdefault(bytes(number), number)", HEADS, "test_unrelated_models_of_repeated_heads_are_not_linked", {"shape": NARROW, "width": 4, "repeats": 8, "layer": None}),
    Fault("heads-not-in-bulk", BULK, "np.maximum(best, sums.best, out=best)", "np.minimum(best, sums.best, out=best)", BULK, DECIDED, {"device": "cpu", "many": 4096}),
    Fault("map-of-one-side", LAYERS, "sorted({*best_of_a.values(), *best_of_b.values()})", "sorted(best_of_a.values())", LAYERS, "test_layers_are_found_wherever_they_went", {"sources": [0, 0, 1, 1, 2, 2], "later": "copied"}),
    Fault("map-of-every-stack", LAYERS, "if _stacks(g) == _stacks(best_grid)]", "]", LAYERS, "test_map_is_of_the_stacks_with_the_best_test"),
    Fault("failed-scored", PAIR, 'side.fingerprint.status == "failed" or ', "", PAIR, "test_failed_checkpoint_is_not_scored_by_what_it_still_holds"),
    Fault("coverage-ignored", PAIR, "return (a.coverage.found, a.coverage.understood) == (", "return () != (", SAME, "test_what_was_not_understood_forbids_re_encoded"),
    Fault("lossless-is-identical", PAIR, " and not (recast and linked)", "", SAME, "test_lossless_cast_is_re_encoded"),
    Fault("partial-not-said", PAIR, "*evidence.reasons, *gaps, *partial)", "*evidence.reasons, *gaps)", PAIR, "test_partial_checkpoint_is_compared_and_said"),
    Fault("wide-margin", SAME, "_MARGIN = 3.0", "_MARGIN = 30.0", SAME, "test_training_on_top_is_not_re_encoded", {"dtype": "f32", "target": "bf16", "drift": 0.0008}),
    Fault("same-format-rounds", SAME, "if a.dtype == b.dtype:", "if False:", SAME, "test_training_on_top_is_not_re_encoded", {"dtype": "bf16", "target": "bf16", "drift": 0.0001}),
    Fault("bias-only", SAME, "linear = 2 * roundoff", "linear = 0 * roundoff", SAME, "test_cast_is_re_encoded", {"source": "f32", "target": "bf16"}),
    Fault("steps-ignored", SAME, "2 * step / math.sqrt(12 * square * count)", "0", SAME, "test_rounding_model_holds_without_its_margin", {"source": "f32", "target": "f8_e4m3", "kind": "small"}),
    Fault("statistic-not-compared", SAME, '"abs_max", "zeros", "non_finite")', '"abs_max", "non_finite")', SAME, "test_one_bit_of_one_statistic_is_not_identical", {"change": one_more_zero}),
    Fault("units-not-compared", SAME, "np.array_equal(x, y, equal_nan=True)", "True", SAME, "test_one_bit_of_one_unit_is_not_identical"),
    Fault("stretched-too-far", SCREEN, "np.linspace(0, own - 1, length)", "np.linspace(0, own - 1.5, length)", SCREEN, "test_seed_score_as_in_the_method", {"depth_a": 6, "depth_b": 12}),
    Fault("missing-scored-as-zero", SCREEN, "[score for score in scores.values() if score is not None]", "[score or 0.0 for score in scores.values()]", SCREEN, "test_role_missing_on_one_side_is_left_out_and_said", {"roles": "q"}),
    Fault("missing-not-said", SCREEN, "for why, own in roles.items())", "for why, own in ())", SCREEN, "test_role_missing_on_one_side_is_left_out_and_said", {"roles": "q"}),
    Fault("holes-closed-up", SCREEN, "if len(first) < depths[0] or len(second) < depths[1]:", "if False:", SCREEN, "test_hole_and_unequal_depth_are_not_guessed"),
    Fault("two-layers-scored", SCREEN, "FEWEST_LAYERS = 3", "FEWEST_LAYERS = 2", SCREEN, "test_two_layers_are_no_curve", {"depth": 2}),
    Fault("nan-in-a-curve", STACKS, " and math.isfinite(matrix.std)", "", STACKS, "test_curves_count_positions_and_skip_what_is_not_finite"),
    Fault("part-of-a-name", STACKS, 'a.endswith(f".{b}")', "a.endswith(b)", STACKS, "test_names_correspond_up_to_a_prefix", {"a": "myencoder.layer", "b": "encoder.layer", "same": False}),
    Fault("no-holm", VERDICT, "self._corrected = holm_of(figures.pair_log10_p, lost)", "self._corrected = figures.pair_log10_p", VERDICT, "test_one_pair_of_many_pays_for_all", {"pairs": 12, "word": "no-evidence"}),
    Fault("screen-is-evidence", VERDICT, "    elif rejected:", "    elif rejected or (high and comparison.tests):", VERDICT, "test_similar_profile_is_no_evidence_and_joins_no_family"),
    Fault("family-in-the-background", VERDICT, "((roots[:, 0] == -1) | (roots[:, 0] != roots[:, 1]))", "(np.full(len(roots), True))", SCREEN, "test_background_holds_no_linked_pair"),
    Fault("own-score-in-the-background", VERDICT, "0, len(scores) - outside)", "0, len(scores))", SCREEN, "test_percentile_among_the_other_pairs"),
    Fault("power-too-small", VERDICT, "math.ceil(log10_p)", "math.floor(log10_p)", VERDICT, "test_power_of_ten_is_never_below_p", {"log10_p": -6.2}),
    Fault("stale-reason", VERDICT, 'own = own[1:] if comparison.verdict == "re-encoded" else own', "own = own", VERDICT, "test_re_encoded_falls_with_its_test"),
    Fault("seed-not-named", VERDICT, "_rejection(comparison, report), SAME_SEED,", "_rejection(comparison, report),", VERDICT, "test_common_seed_is_named_wherever_evidence_is"),
    Fault("accuses", VERDICT, 'f"independent initialisation is rejected:', 'f"one was copied from the other:', VERDICT, "test_words_never_accuse"),
    Fault("screen-joins-families", FAMILIES, '"shared-origin"})', '"shared-origin", "similar-profile"})', FAMILIES, "test_only_evidence_joins", {"word": "similar-profile"}),
    Fault("paths-do-not-join", FAMILIES, "return {name: root(name) for", "return {name: parent[name] for", FAMILIES, "test_largest_first_then_by_name"),
    Fault("places-mixed-up", EXACT, "np.float64)[places.reshape(statistics.shape)]", "np.float64)[np.sort(places).reshape(statistics.shape)]", EXACT, "test_many_at_once_are_the_same_bits"),
    Fault("float32-skips-integers", PRODUCTS, "= np.float64 if wide else np.float32", "= np.float32", PRODUCTS, "test_exact_where_float32_skips_integers", {"name": "numpy"}),
    Fault("float32-skips-integers-on-torch", PRODUCTS, "torch.float64 if wide else torch.float32", "torch.float32", PRODUCTS, "test_exact_where_float32_skips_integers", {"name": "torch"}),
    Fault("best-of-one-layer", PRODUCTS, "of_layers_of_b.max(axis=-1)", "of_layers_of_b[..., 0]", PRODUCTS, "test_sums_of_integers", THREE),
    Fault("whole-of-other-layers", PRODUCTS, "inner[:, chosen[0], :, chosen[1]]", "inner[:, chosen[0], :, chosen[0]]", PRODUCTS, "test_sums_of_integers", THREE),
    Fault("rows-left-over", FUSED, "range(0, first.shape[1], _SIDE)", "range(0, layers_a - _SIDE + 1, _SIDE)", PRODUCTS, "test_sums_of_integers", NINE),
    Fault("row-of-another", FUSED, "inner[2, 0], inner[2, 1], inner[2, 2], inner[2, 3] = s20", "inner[2, 0], inner[2, 1], inner[2, 2], inner[2, 3] = s10", PRODUCTS, "test_sums_of_integers", NINE),
    Fault("float32-skips-integers-in-numba", FUSED, "    if wide:", "    if False:", PRODUCTS, "test_exact_where_float32_skips_integers", {"name": "numba"}),
    Fault("last-piece-left-out", BLOCKS, "for start in range(step, a.shape[1], step):", "for start in range(step, a.shape[1] - step, step):", BLOCKS, "test_products_in_pieces"),
    Fault("wide-too-late", PRODUCTS, "units * (block - 1) ** 2 >=", "units * (block - 1) >=", PRODUCTS, "test_wide_begins_where_a_sum_can_reach_the_limit"),
    Fault("not-recoded", PRODUCTS, "if stored == block:", "if True:", PRODUCTS, "test_shorter_blocks_follow_from_longer_ones"),
    Fault("tile-too-large", PRODUCTS, "TILE_BYTES // (4 * layers_b * units)", "TILE_BYTES // layers_b", PRODUCTS, "test_tiles_keep_to_their_bytes"),
    Fault("copies-packed", PACKED, "group.control.failed or group.control.copies", "group.control.failed", BULK, KINDS, {"fault": "copied", "head_width": 16}),
    Fault("failed-control-packed", PACKED, "group.control.failed or group.control.copies", "group.control.copies", BULK, KINDS, {"fault": "transposed", "head_width": 16}),
    Fault("invalid-packed", PACKED, "if codes.all_valid else None", "if True else None", BULK, KINDS, {"fault": "nan", "head_width": 16}),
    Fault("failed-packed", PACKED, 'fingerprint.status == "failed" or ', "", BULK, KINDS, {"fault": "failed", "head_width": 16}),
    Fault("short-blocks-packed", PACKED, "group.head_width or group.units", "group.head_width", BULK, DECIDED, {"device": "cpu", "many": 4096}),
    Fault("another-row", PACKED, "row_of[own.members[rows]] = rows", "row_of[own.members[rows]] = 0", BULK, DECIDED, {"device": "cpu", "many": 4096}),
    Fault("gone-but-compared", PACKED, "rows = np.flatnonzero(own.members >= 0)", "rows = np.arange(len(own.members))", PACKED, "test_members_that_take_no_part"),
    Fault("words-not-summed", PACKED, 'rows.view("<u8").sum(axis=1', 'rows.view("<u8")[:, :1].sum(axis=1', PACKED, "test_any_flipped_bit_changes_the_sum", {"units": 64}),
    Fault("blocks-that-do-not-fit", PLANS, "fitting=all(", "fitting=True or all(", BULK, KINDS, {"fault": "none", "head_width": 6}),
    Fault("factor-of-one-grid", PLANS, "number * pairs)", "pairs)", BULK, DECIDED, {"device": "cpu", "many": 4096}),
    Fault("depths-not-looked-at", PLANS, "alike and x.depth == y.depth else []", "alike else []", BULK, DECIDED, {"device": "cpu", "many": 4096}),
    Fault("partial-not-said-in-bulk", PLANS, 'if s.status != "complete")', "if False)", BULK, KINDS, {"fault": "partial", "head_width": 16}),
    Fault("unused-not-said-in-bulk", PLANS, "for left in side.unused]", "for left in ()]", BULK, KINDS, {"fault": "grouped", "head_width": None}),
    Fault("found-but-decided", BULK, "undecided |= _decisive(column, test, limit)", "undecided |= False & _decisive(column, test, limit)", BULK, "test_what_is_found_is_compared_one_by_one"),
    Fault("bit-equal-not-looked-at", BULK, "open_ended = a.deviations[pairs.rows_a] == b.deviations[pairs.rows_b]", "open_ended = np.zeros(len(pairs.numbers), bool)", BULK, "test_equal_standard_deviations_are_looked_at_one_by_one"),
    Fault("constant-scored", BULK, "open_ended |= flat_a", "open_ended |= False & flat_a", BULK, KINDS, {"fault": "constant", "head_width": 16}),
    Fault("neighbours-taken", PACKED, "if len(codes) > len(rows):", "if False:", BULK, "test_rows_that_are_no_neighbours"),
    Fault("one-tile-only", BULK, "yield from np.split(order, edges)", "yield from np.split(order, edges)[1:]", BULK, "test_tiles_of_any_size_give_the_same", {"rows": 1}),
    Fault("word-not-corrected", VERDICT, "cases = [was[0], self._rejected & was[1],", "cases = [was[0], was[1],", COMPARISONS, "test_re_encoded_needs_its_rejection"),
    Fault("equal-to-shorter-ones", COMPARISONS, "len(self) == len(other) and all(x == y for x, y in zip(self, other, strict=True))", "all(x == y for x, y in zip(self, other, strict=False))", COMPARISONS, "test_a_sequence_is_equal_to_equal_ones_only"),
    Fault("experts-count-again", EXPERTS, "if not repeated.any():", "if True:", BLOCKS_OF, "test_experts_count_once_where_some_agree"),
    Fault("only-in-all-layers", EXPERTS, "_repeated(own, block) | together", "together", BLOCKS_OF, "test_experts_count_once_where_some_agree"),
    Fault("blocks-move-attention", PREPARED, "extent = of_blocks if channel in FEED_FORWARD_ROLES else of_attention", "extent = of_blocks", BLOCKS_OF, "test_the_position_of_attention_does_not_move_with_blocks"),
    Fault("blocks-in-the-stack", STACKS, "if matrix.role not in roles:", "if False:", BLOCKS_OF, "test_the_position_of_attention_does_not_move_with_blocks"),
    Fault("unread-not-said", MEETING, "if any(with_blocks) and not all(with_blocks):", "if False:", BLOCKS_OF, "test_reading_blocks_of_one_side_changes_nothing_but_a_reason"),
    Fault("unread-is-different", SAME, "if len(lacking) != 1:", "if True:", BLOCKS_OF, "test_the_same_weights_read_further_on_one_side"),
    Fault("blocks-not-covered", PAIR, "if _blocks(a) != _blocks(b):", "if False:", BLOCKS_OF, "test_blocks_that_were_trained_on_are_not_identical"),
    Fault("names-not-ranked", COMPARISONS, "np.lexsort((b, a, ", "np.lexsort((", COMPARISONS, "test_words_are_those_of_the_comparisons"),
    Fault("copies-hide-a-copy", INVARIANTS, "float(np.median(agreements.ratio[known]))", "float(np.min(agreements.ratio[known]))", INVARIANTS, "test_copies_in_the_background_do_not_hide_a_copy"),
    Fault("own-ratio-in-the-background", INVARIANTS, "number > BACKGROUND_ENOUGH:  # one", "number >= BACKGROUND_ENOUGH:  # one", INVARIANTS, "test_a_small_background_is_none", {"others": 19}),
    Fault("few-layers-are-enough", INVARIANTS, "np.clip((points - 1) / 2, 0.5, MOST_DIMENSIONS)", "np.full(points.shape, MOST_DIMENSIONS)", INVARIANTS, "test_few_layers_need_more"),
    Fault("likeness-is-agreement", INVARIANTS, "LARGEST_RATIO_ALONE, LARGEST_RESIDUAL_ALONE = 0.01, 1e-3", "LARGEST_RATIO_ALONE, LARGEST_RESIDUAL_ALONE, UNRELATED_RATIO = 0.5, 0.5, 9.0", INVARIANTS, "test_likeness_to_some_percents_is_no_agreement"),
    Fault("units-scaled-apart", STACKS, "+ np.log(other.astype(np.float64))).mean()", "- np.log(other.astype(np.float64))).mean()", INVARIANTS, "test_a_laundered_copy_is_flagged_by_the_curves_that_it_kept", {"how": "rescaled by units and permuted", "kept": {"units"}}),
    Fault("flag-dropped-from-the-word", VERDICT, "similar = high | self._flagged", "similar = high", INVARIANTS, "test_words_and_reasons_of_a_report_agree"),
]  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: f"{fault.module}-{fault.label}")
def test_fault_turns_a_check_red(fault: Fault, tmp_path: Path) -> None:
    key = f"{fault.suite} {fault.check} {fault.arguments}"
    if key not in GREEN:
        with imported(tmp_path / "sound", fault, broken=False) as check:
            check()
        GREEN.add(key)
    with imported(tmp_path / "broken", fault, broken=True) as check, pytest.raises(AssertionError):
        check()


@contextmanager
def imported(folder: Path, fault: Fault, broken: bool) -> Iterator[Callable[[], None]]:
    """The fault's check, bound to a copy of the package in ``folder``; afterwards everything is as it was."""
    package = shutil.copytree(Path(weightprint.compare.__path__[0]), folder / "compare")
    file = package / f"{fault.module}.py"
    source = file.read_text()
    assert fault.old in source, f"{fault.module} no longer holds {fault.old!r}: move the fault"
    if broken:
        file.write_text(source.replace(fault.old, fault.new))
    path, sound = weightprint.__path__, weightprint.compare
    kept = {name: sys.modules.pop(name) for name in list(sys.modules) if is_replaced(name)}
    weightprint.__path__ = [str(folder), *path]
    try:
        suite = importlib.import_module(f"compare.test_{fault.suite}")
        assert Path(sys.modules["weightprint.compare"].__path__[0]) == package
        with pytest.MonkeyPatch.context() as monkeypatch:
            check = getattr(suite, fault.check)
            asked = {"monkeypatch": monkeypatch} if "monkeypatch" in inspect.signature(check).parameters else {}
            yield lambda: check(**fault.arguments, **asked)
    finally:
        for name in list(sys.modules):
            if is_replaced(name):
                del sys.modules[name]
        sys.modules.update(kept)
        weightprint.__path__ = path
        weightprint.compare = sound


def is_replaced(name: str) -> bool:
    return any(name == package or name.startswith(f"{package}.") for package in REPLACED)
