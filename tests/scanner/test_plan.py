"""The planner: every selected byte is read once, nothing else but small gaps, and regions keep their place."""

import itertools
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from weightprint.data import Matrix, Part, TensorSpec
from weightprint.plan import GAP_BYTES, GAP_SHARE, Plan, plan_reads
from weightprint_kernels.layout import CHUNK_ELEMENTS, COLUMN_ENERGY, ITEMSIZE, NO_ENERGY, ROW_ENERGY

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


def rectangles(plan: Plan) -> Iterator[tuple[int, int, int, int, int, int, int, int]]:
    """(slot number, matrix, offset in the file, stride, rows, columns, axis, unit) of every rectangle, in plan order;
    each lies in its slot."""
    for number, slot in enumerate(plan.slots):
        assert len({batch.dtype for batch in slot.batches}) == len(slot.batches)
        for batch in slot.batches:
            own = batch.rectangles
            table = (batch.matrix, own.offset, own.stride, own.rows, own.columns, own.axis, batch.unit)
            for matrix, offset, stride, rows, columns, axis, unit in zip(
                *(column.tolist() for column in table), strict=True
            ):
                assert rows > 0
                assert columns > 0
                assert offset >= 0
                assert offset + (rows - 1) * stride + columns * ITEMSIZE[batch.dtype] <= slot.length
                assert {part.tensor.dtype for part in plan.matrices[matrix].parts} == {batch.dtype}
                yield number, matrix, slot.offset + offset, stride, rows, columns, axis, unit


Element = tuple[Path, int, int | None]
"""File, offset there, and number of the unit whose energy it belongs to, if there is one."""


def elements(plan: Plan) -> dict[int, Counter[Element]]:
    """Matrix -> every element that the plan gives to it."""
    taken: dict[int, Counter[Element]] = {}
    for slot, number, offset, stride, rows, columns, axis, unit in rectangles(plan):
        itemsize = ITEMSIZE[plan.matrices[number].parts[0].tensor.dtype]
        counter = taken.setdefault(number, Counter())
        for row, column in itertools.product(range(rows), range(columns)):
            own = {NO_ENERGY: None, ROW_ENERGY: unit + row, COLUMN_ENERGY: unit + column}[axis]
            counter[plan.paths[plan.file[slot]], offset + row * stride + column * itemsize, own] += 1
    return taken


def wanted(matrix: Matrix) -> Counter[Element]:
    """The same by the definitions of Matrix and Part, element by element: V's units are outputs, O's are inputs, and
    those of down are inputs that go on from part to part."""
    counter: Counter[Element] = Counter()
    unit = before = 0
    for part in matrix.parts:
        spec = part.tensor
        rows, columns = part.stored
        for start, stop in part.ranges:
            for output in range(start, stop):
                for other in range(rows if matrix.transposed else columns):
                    row, column = (other, output) if matrix.transposed else (output, other)
                    place = column * rows + row if spec.column_major else row * columns + column
                    own = {"v": unit, "gate": unit, "o": other, "down": before + other}.get(matrix.role)
                    counter[spec.path, spec.offset + place * ITEMSIZE[spec.dtype], own] += 1
                unit += 1
        before += rows if matrix.transposed else columns
    return counter


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
    taken = elements(plan)
    for number, role in enumerate("qkv"):
        places = [(row, 4 * number + column, column) for row in range(6) for column in range(4)]
        expected = {(FILE, 48 * row + 4 * column, unit if role == "v" else None) for row, column, unit in places}
        assert taken[number] == Counter(expected)


def test_interleaved_heads_keep_unit_order() -> None:
    fused = tensor("query_key_value", 12, 5, 0)
    plan = plan_reads([matrix("v", fused, ((0, 2), (6, 8)))])
    assert plan.read == 4 * 5 * 4
    units = {(offset // 20, unit) for _, offset, unit in elements(plan)[0]}
    assert units == {(0, 0), (1, 1), (6, 2), (7, 3)}


def test_rows_longer_than_a_slot_are_cut_between_chunks() -> None:
    wide = tensor("q", 3, 3 * CHUNK_ELEMENTS + 5, 16, "bf16")
    plan = plan_reads([matrix("q", wide)], slot_bytes=2 * CHUNK_ELEMENTS * 2)
    assert max(slot.length for slot in plan.slots) <= 4 * CHUNK_ELEMENTS
    assert plan.read == wide.nbytes
    lefts = {(offset - 16) // 2 % (3 * CHUNK_ELEMENTS + 5) for _, _, offset, *_ in rectangles(plan)}
    assert lefts == {0, 2 * CHUNK_ELEMENTS}


def test_encodings_come_apart_inside_a_slot() -> None:
    """Each dtype is one batch, whatever the order in the file."""
    offset = 0
    matrices = []
    for number, dtype in enumerate(["bf16", "f32", "bf16", "f8_e4m3", "f32"]):
        spec = tensor(f"t{number}", 4, 4, offset, dtype)
        offset += spec.nbytes
        matrices.append(matrix("q", spec))
    (slot,) = plan_reads(matrices).slots
    assert [(batch.dtype, batch.matrix.tolist()) for batch in slot.batches] == [
        ("bf16", [0, 2]),
        ("f32", [1, 4]),
        ("f8_e4m3", [3]),
    ]


@st.composite
def checkpoints(draw: st.DrawFn) -> list[Matrix]:
    """Tensors of one to three files, with gaps of any size in between, each cut among one to three matrices that may
    share parts of it, and matrices out of two tensors."""
    dtype = draw(st.sampled_from(sorted(ITEMSIZE)))
    ends: Counter[Path] = Counter()
    parts: list[tuple[Part, bool]] = []
    for number in range(draw(st.integers(1, 4))):
        path = Path(draw(st.sampled_from("abc")))
        rows, columns = draw(st.integers(1, 14)), draw(st.integers(1, 12))
        ends[path] += draw(st.sampled_from((0, 1, 2, 3, 40, 3000)))
        transposed, column_major = draw(st.booleans()), draw(st.booleans())
        spec = TensorSpec(f"t{number}", (rows, columns), dtype, path, ends[path], rows * columns * ITEMSIZE[dtype])
        spec = replace(spec, column_major=column_major)
        ends[path] += spec.nbytes
        outputs = columns if transposed else rows
        for _ in range(draw(st.integers(1, 3))):
            cuts = sorted(draw(st.lists(st.integers(0, outputs), min_size=2, max_size=6)))
            ranges = [(a, b) for a, b in zip(cuts[::2], cuts[1::2], strict=False) if a < b] or [(0, outputs)]
            shuffled = tuple(draw(st.permutations(ranges)))
            parts.append((Part(spec, (rows, columns), shuffled), transposed))
    matrices = []
    while parts:
        part, transposed = parts.pop()
        own = [part]
        inputs = part.stored[0 if transposed else 1]
        for other in [*parts]:
            same = other[1] == transposed and other[0].stored[0 if transposed else 1] == inputs
            if same and other[0].tensor != part.tensor and len(own) < 2:
                parts.remove(other)
                own.append(other[0])
        outputs = sum(stop - start for part in own for start, stop in part.ranges)
        role = draw(st.sampled_from(("q", "v", "o", "gate", "down")))
        matrices.append(Matrix("stack", 0, role, (outputs, inputs), tuple(own), transposed))
    return matrices


@given(checkpoints(), st.integers(8, 1500))
def test_every_element_belongs_to_one_rectangle_of_each_of_its_matrices(
    matrices: list[Matrix], slot_bytes: int
) -> None:
    """Against a count of every element by the definitions."""
    plan = plan_reads(matrices, slot_bytes)
    assert elements(plan) == {number: wanted(matrix) for number, matrix in enumerate(matrices)}


@given(checkpoints(), st.integers(8, 1500))
def test_no_byte_is_read_twice_and_few_that_are_not_wanted(matrices: list[Matrix], slot_bytes: int) -> None:
    """Slots lie in file order and apart, and hold one row at least. What no rectangle of a slot covers is gaps, each of
    at most 1% of what the slot reads before it, and the rest of rows of which a part is wanted."""
    plan = plan_reads(matrices, slot_bytes)
    row_bytes = [
        (part.stored[0] if part.tensor.column_major else part.stored[1]) * ITEMSIZE[part.tensor.dtype]
        for matrix in matrices
        for part in matrix.parts
    ]
    ends: dict[Path, int] = {}
    rows = stored_rows(matrices)
    seen = list(dict.fromkeys(slot.path for slot in plan.slots))
    assert [path for path, _ in itertools.groupby(slot.path for slot in plan.slots)] == seen
    for slot in plan.slots:
        assert slot.offset >= ends.get(slot.path, 0)
        ends[slot.path] = slot.offset + slot.length
        assert 0 < slot.length <= max(slot_bytes, *row_bytes)
        inside = [(start, stop) for path, start, stop in rows if path == slot.path]
        reached = slot.offset
        for start, stop in sorted(inside):
            if stop > slot.offset and start < slot.offset + slot.length:
                gap = start - reached
                assert gap <= 0 or (gap <= GAP_BYTES and gap * GAP_SHARE <= reached - slot.offset)
                reached = max(reached, stop)
        assert reached >= slot.offset + slot.length
    selected = sum(stop - start for _, start, stop in rows)
    assert plan.selected == selected
    assert plan.selected <= plan.read <= 1.01 * plan.selected
    assert plan.read == sum(slot.length for slot in plan.slots)


def stored_rows(matrices: list[Matrix]) -> set[tuple[Path, int, int]]:
    """File, first byte and end of every stored row of which some matrix wants an element."""
    rows = set()
    for matrix in matrices:
        for part in matrix.parts:
            spec = part.tensor
            length = (part.stored[0] if spec.column_major else part.stored[1]) * ITEMSIZE[spec.dtype]
            places = {offset for _, offset, _ in wanted(replace(matrix, parts=(part,)))}
            for place in places:
                start = spec.offset + (place - spec.offset) // length * length
                rows.add((spec.path, start, start + length))
    return rows


@pytest.mark.parametrize(("gap", "joined"), [(GAP_BYTES, True), (GAP_BYTES + 1, False)])
def test_no_gap_of_more_than_a_mebibyte_is_read_over(gap: int, joined: bool) -> None:
    """After 128 MiB, of which 1% would be more."""
    first = tensor("q", 2**10, 2**15, 0)
    second = tensor("k", 4, 4, first.nbytes + gap)
    plan = plan_reads([matrix("q", first), matrix("k", second)], slot_bytes=2**28)
    assert len(plan) == (1 if joined else 2)
    assert plan.read - plan.selected == (gap if joined else 0)


def test_two_hundred_thousand_tensors() -> None:
    """As many as the largest mixtures of experts have, in a hundred files: half of them side by side, half apart."""
    rows, columns, files, each = 8, 16, 100, 2000
    size = rows * columns * 2
    matrices = []
    for number in range(files * each):
        file, place = divmod(number, each)
        offset = 64 + place * size + (5000 * (place - each // 2) if place > each // 2 else 0)
        path = Path(f"model-{file:03}.safetensors")
        spec = TensorSpec(f"t{number}", (rows, columns), "bf16", path, offset, size)
        matrices.append(Matrix("stack", number, "qkvo"[number % 4], (rows, columns), (Part(spec, (8, 16), ((0, 8),)),)))
    plan = plan_reads(matrices)
    assert plan.selected == plan.read == files * each * size
    assert len(plan) == files * each // 2
    assert (len(plan.rectangles), plan.matrix.tolist()) == (files * each, list(range(files * each)))
    assert [plan.slot(number).length for number in (0, 1, len(plan) - 1)] == [(each // 2 + 1) * size, size, size]
    assert plan.rectangles.axis.tolist() == [NO_ENERGY, NO_ENERGY, ROW_ENERGY, COLUMN_ENERGY] * (files * each // 4)


@pytest.mark.parametrize("slot_bytes", [1024, 4096, 2**22])
def test_slots_stay_within_their_size(slot_bytes: int) -> None:
    specs = [tensor(f"t{n}", 64, 32, n * 64 * 32 * 4) for n in range(20)]
    plan = plan_reads([matrix("q", spec) for spec in specs], slot_bytes)
    assert max(slot.length for slot in plan.slots) <= slot_bytes
    assert sum(slot.length for slot in plan.slots) == plan.read == 20 * 64 * 32 * 4


def test_nothing_to_read() -> None:
    plan = plan_reads([])
    assert (len(plan), plan.slots, plan.read, plan.selected, plan.paths, plan.matrices) == (0, (), 0, 0, (), ())


def test_a_slot_is_made_of_its_part_of_the_columns() -> None:
    specs = [tensor(name, 4, 4, 1000 * number, "bf16") for number, name in enumerate("ab")]
    plan = plan_reads([matrix("v", spec) for spec in specs])
    assert (len(plan), plan.first.tolist(), plan.matrix.tolist()) == (2, [0, 1, 2], [0, 1])
    for number in (0, 1):
        slot = plan.slot(number)
        assert (slot.path, slot.offset, slot.length) == (FILE, 1000 * number, 32)
        (batch,) = slot.batches
        assert [column.tolist() for column in vars(batch.rectangles).values()] == [[0], [8], [4], [4], [ROW_ENERGY]]
        assert (batch.matrix.tolist(), batch.unit.tolist()) == ([number], [0])
