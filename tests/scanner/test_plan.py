"""The planner: every selected byte is read once, nothing else but small gaps, and regions keep their place."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from weightprint.data import Matrix, Part, TensorSpec
from weightprint.plan import Plan, Slot, plan_reads
from weightprint_kernels.layout import CHUNK_ELEMENTS, ITEMSIZE

FILE = Path("model.safetensors")


def tensor(name: str, rows: int, columns: int, offset: int, dtype: str = "f32", path: Path = FILE) -> TensorSpec:
    return TensorSpec(name, (rows, columns), dtype, path, offset, rows * columns * ITEMSIZE[dtype])


def matrix(
    role: str, spec: TensorSpec, ranges: tuple[tuple[int, int], ...] | None = None, transposed: bool = False
) -> Matrix:
    rows, columns = spec.shape
    whole = ((0, columns if transposed else rows),)
    chosen = ranges or whole
    out = sum(stop - start for start, stop in chosen)
    shape = (out, rows if transposed else columns)
    return Matrix("stack", 0, role, shape, (Part(spec, (rows, columns), chosen),), transposed)


def elements(plan: Plan, itemsize: int) -> dict[int, list[tuple[int, int, int]]]:
    """Matrix -> (file offset, row unit, column unit) of every element that the plan gives to it."""
    taken: dict[int, list[tuple[int, int, int]]] = {}
    for slot in plan.slots:
        for piece in slot.pieces:
            for region in piece.regions:
                for row in range(region.top, region.bottom):
                    for column in range(region.left, region.right):
                        offset = piece.offset + (row - piece.top) * piece.stride + (column - piece.left) * itemsize
                        assert 0 <= offset <= slot.length - itemsize
                        units = region.row_unit + row - region.top, region.column_unit + column - region.left
                        taken.setdefault(region.matrix, []).append((slot.offset + offset, *units))
    return taken


def test_neighbouring_tensors_are_one_read() -> None:
    tensors = [tensor(name, 8, 16, 100 + 512 * number) for number, name in enumerate("qkvo")]
    plan = plan_reads([matrix(role, spec) for role, spec in zip("qkvo", tensors, strict=True)])
    assert [(slot.offset, slot.length) for slot in plan.slots] == [(100, 2048)]
    assert plan.selected == plan.read == 2048


def test_small_gap_is_read_over_and_counted() -> None:
    plan = plan_reads([matrix("q", tensor("q", 100, 100, 0)), matrix("k", tensor("k", 100, 100, 40_000 + 400))])
    assert len(plan.slots) == 1
    assert plan.selected == 80_000
    assert plan.read == 80_400


def test_large_gap_is_not_read() -> None:
    plan = plan_reads([matrix("q", tensor("q", 100, 100, 0)), matrix("k", tensor("k", 100, 100, 40_000 + 401))])
    assert [slot.length for slot in plan.slots] == [40_000, 40_000]


def test_files_are_never_joined() -> None:
    other = Path("other.safetensors")
    plan = plan_reads([matrix("q", tensor("q", 4, 4, 0)), matrix("k", tensor("k", 4, 4, 64, path=other))])
    assert [slot.path for slot in plan.slots] == [FILE, other]


def test_fused_columns_are_read_once() -> None:
    fused = tensor("c_attn", 6, 12, 0)
    roles = [matrix(role, fused, ((4 * n, 4 * n + 4),), transposed=True) for n, role in enumerate("qkv")]
    plan = plan_reads(roles)
    assert plan.read == fused.nbytes
    taken = elements(plan, 4)
    for number in range(3):
        assert sorted(taken[number]) == [
            (row * 48 + (4 * number + column) * 4, row, column) for row in range(6) for column in range(4)
        ]


def test_interleaved_heads_keep_unit_order() -> None:
    fused = tensor("query_key_value", 12, 5, 0)
    heads = ((0, 2), (6, 8))
    plan = plan_reads([matrix("q", fused, heads)])
    assert plan.read == 4 * 5 * 4
    units = {(offset // 20, unit) for offset, unit, _ in elements(plan, 4)[0]}
    assert units == {(0, 0), (1, 1), (6, 2), (7, 3)}


def test_rows_longer_than_a_slot_are_cut_between_chunks() -> None:
    wide = tensor("q", 3, 3 * CHUNK_ELEMENTS + 5, 16, "bf16")
    plan = plan_reads([matrix("q", wide)], slot_bytes=2 * CHUNK_ELEMENTS * 2)
    assert max(slot.length for slot in plan.slots) <= 4 * CHUNK_ELEMENTS
    assert plan.read == wide.nbytes
    lefts = {piece.left for slot in plan.slots for piece in slot.pieces}
    assert all(left % CHUNK_ELEMENTS == 0 for left in lefts)


@given(
    rows=st.integers(1, 40),
    columns=st.integers(1, 30),
    dtype=st.sampled_from(sorted(ITEMSIZE)),
    slot_bytes=st.integers(64, 4000),
    transposed=st.booleans(),
    data=st.data(),
)
def test_every_selected_element_exactly_once(
    rows: int, columns: int, dtype: str, slot_bytes: int, transposed: bool, data: st.DataObject
) -> None:
    spec = tensor("fused", rows, columns, data.draw(st.integers(0, 99)), dtype)
    length = columns if transposed else rows
    cuts = sorted(data.draw(st.lists(st.integers(0, length), min_size=2, max_size=6)))
    ranges = tuple((a, b) for a, b in zip(cuts[::2], cuts[1::2], strict=False) if a < b) or ((0, length),)
    plan = plan_reads([matrix("v", spec, ranges, transposed)], slot_bytes)
    itemsize = ITEMSIZE[dtype]
    units = [index for start, stop in ranges for index in range(start, stop)]
    expected = []
    for unit, index in enumerate(units):
        for other in range(rows if transposed else columns):
            row, column = (other, index) if transposed else (index, other)
            offset = spec.offset + (row * columns + column) * itemsize
            expected.append((offset, other, unit) if transposed else (offset, unit, other))
    assert sorted(elements(plan, itemsize)[0]) == sorted(expected)
    assert plan.read >= plan.selected
    assert plan.read <= plan.selected * 1.02


@pytest.mark.parametrize("slot_bytes", [1024, 4096, 2**22])
def test_slots_stay_within_their_size(slot_bytes: int) -> None:
    specs = [tensor(f"t{n}", 64, 32, n * 64 * 32 * 4) for n in range(20)]
    plan = plan_reads([matrix("q", spec) for spec in specs], slot_bytes)
    slots: tuple[Slot, ...] = plan.slots
    assert max(slot.length for slot in slots) <= slot_bytes
    assert sum(slot.length for slot in slots) == 20 * 64 * 32 * 4


def test_nothing_to_read() -> None:
    assert plan_reads([]) == Plan((), (), 0)
