"""Packed fingerprints: who is regular, who takes part, and sums that give damage away."""

import numpy as np
import pytest
from compare.build import Shape, fingerprint, model, relayered, weights, with_energies
from compare.test_products import random_codes

from weightprint.compare import prepare
from weightprint.compare.packed import (
    DamagedCodes,
    Label,
    ShapeClass,
    classes_of,
    join,
    pack,
    word_sums,
)

SHAPE = Shape(4, 48, 16)
NOBODY = Label("", "complete", None, ())


def packed_class(*seeds: int) -> ShapeClass:
    packed = [pack(prepare(model(f"m{seed}", seed, SHAPE))) for seed in seeds]
    (own,) = classes_of((number, one) for number, one in enumerate(packed) if one is not None)
    return own


def test_codes_are_those_of_the_energies() -> None:
    own = packed_class(1, 2, 3)
    for row, seed in enumerate((1, 2, 3)):
        for group, codes in zip(prepare(model("m", seed, SHAPE)).groups, own.codes, strict=True):
            assert group.codes is not None
            assert codes.dtype == np.int8
            assert np.array_equal(codes[row], group.codes.values)


def test_who_is_not_regular() -> None:
    base = weights(1, SHAPE)
    tied = np.ones((4, 48), np.float32)
    assert pack(prepare(fingerprint("regular", base))) is not None
    assert pack(prepare(fingerprint("copied", relayered(base, [0, 0, 1, 2, 3])))) is None
    assert pack(prepare(with_energies("tied", tied))) is None


def test_members_that_take_no_part() -> None:
    own = packed_class(1, 2, 3)
    partly = ShapeClass(own.shape, np.array([2, -1, 0]), own.codes, own.points, own.deviations)
    collection = join([NOBODY] * 4, [partly])
    assert collection.class_of.tolist() == [0, -1, 0, -1]
    assert collection.row_of.tolist() == [2, -1, 0, -1]


@pytest.mark.parametrize("units", [64, 60], ids=["whole-words", "half-words"])
def test_any_flipped_bit_changes_the_sum(units: int) -> None:
    codes = random_codes(1, 3, 2, units, block=4)
    before = word_sums(codes)
    for place in range(2 * units):
        for bit in range(8):
            changed = codes.copy()
            changed.reshape(3, -1).view(np.uint8)[1, place] ^= 1 << bit
            assert (word_sums(changed) != before).tolist() == [False, True, False]


def test_codes_are_checked_when_they_are_taken() -> None:
    own = packed_class(1, 2, 3)
    sums = tuple(word_sums(codes) for codes in own.codes)
    changed = tuple(codes.copy() for codes in own.codes)
    changed[1][2, 3, 5] ^= 1
    stored = ShapeClass(own.shape, own.members, changed, own.points, own.deviations, sums, "segment")
    assert np.array_equal(stored.taken(1, np.array([0, 1])), own.codes[1][:2])
    assert np.array_equal(stored.taken(0, np.array([0, 2])), own.codes[0][[0, 2]])
    for rows in ([2], [1, 2], [0, 2]):
        with pytest.raises(DamagedCodes, match="segment"):
            stored.taken(1, np.array(rows))
