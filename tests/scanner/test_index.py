"""The index of a directory of fingerprints: the same answers as without it, rebuilt when stale, never trusted."""

import os
import re
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from compare.build import Shape, fingerprint, model, tuned, weights, without
from fingerprints import same, small_fingerprint

from weightprint import index, index_file
from weightprint import scan as scans
from weightprint import store as stores
from weightprint.compare import compare_all, judge
from weightprint.compare.comparisons import Comparisons
from weightprint.compare.packed import DamagedCodes
from weightprint.compare.verdict import Judged
from weightprint.data import Comparison, Fingerprint
from weightprint.errors import StoreError
from weightprint.fingerprint_file import SUFFIX, read_fingerprint
from weightprint.gather import gather
from weightprint.index import cache_of, fingerprints_below, matrix_figures, stored_of, whole
from weightprint.index_file import DamagedSegment
from weightprint.match import match
from weightprint.report.documents import outcome_document
from weightprint.scan import Outcome, ScanOptions, scan

SHAPE = Shape(4, 48, 16)
BASE = weights(1, SHAPE)
SUSPECT = fingerprint("suspect", tuned(BASE, 2))


def references() -> list[Fingerprint]:
    """A relative, unrelated ones of two depths, and one of each kind that is not regular or has something to say."""
    ties = {key: np.full_like(row, 7.0) for key, row in model("t", 20, SHAPE).energies.items()}
    return [
        fingerprint("base", BASE),
        *(model(f"m{seed}", seed, SHAPE) for seed in range(3, 8)),
        *(model(f"d{seed}", seed, Shape(6, 48, 16)) for seed in range(8, 10)),
        model("widthless", 10, SHAPE, head_width=None),
        replace(model("tied", 11, SHAPE), energies=ties),
        replace(without(model("partial", 12, SHAPE), [1]), status="partial", code="E_READ", reason="layer 1 is gone"),
        small_fingerprint(),
    ]


def make_store(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A store with an index of its own, whatever its size."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
    monkeypatch.setattr(index, "FEWEST_FILES", 0)
    for own in references():
        stores.save(folder / "store", own)
    return folder / "store"


def watch_builds(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The names of the files that each segment will have been built of."""
    calls: list[list[str]] = []
    original = index.build

    def build(files: dict[str, tuple[Path, index_file.State]]) -> object:
        calls.append(sorted(files))
        return original(files)

    monkeypatch.setattr(index, "build", build)
    return calls


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return make_store(tmp_path, monkeypatch)


@pytest.fixture
def built(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    return watch_builds(monkeypatch)


def files_of(store: Path) -> list[Path]:
    return sorted(store.glob(f"*{SUFFIX}"))


def file_of(store: Path, name: str) -> Path:
    (file,) = (file for file in files_of(store) if file.name.startswith(f"{name}-"))
    return file


def load(store: Path) -> list[Fingerprint]:
    found, notices = fingerprints_below(store, files_of(store))
    assert not notices
    return found


def segments(store: Path) -> list[Path]:
    return sorted(cache_of(store).glob("*"))


def against_all(found: list[Fingerprint], suspect: Fingerprint = SUSPECT) -> Judged:
    pairs = np.array([(0, number) for number in range(1, len(found) + 1)], np.int64).reshape(-1, 2)
    return match([suspect, *found], pairs, 1e-6)


def expected(store: Path, suspect: Fingerprint = SUSPECT) -> Judged:
    """Without any index."""
    read = [read_fingerprint(file) for file in files_of(store)]
    return judge(compare_all([suspect, *read], [(0, number) for number in range(1, len(read) + 1)]))


def test_the_same_comparisons_as_without_an_index(store: Path) -> None:
    wanted = expected(store)
    assert {pair.verdict for pair in wanted} == {"shared-origin", "no-evidence", "not-comparable"}
    for _ in range(2):
        assert against_all(load(store)) == wanted
    assert len(segments(store)) == 1


def test_references_against_each_other(store: Path) -> None:
    found = load(store)
    read = [whole(own) for own in found]
    first, second = np.triu_indices(len(found), 1)
    pairs = np.stack([first, second], axis=1)
    assert match(found, pairs, 1e-6) == judge(compare_all(read, pairs))


@pytest.mark.parametrize("device", ["torch-cpu", "cuda"])
def test_on_a_device_of_torch_as_well(device: str, store: Path) -> None:
    """Where there is no CUDA device, numpy takes its place."""
    found = load(store)
    pairs = np.array([(0, number) for number in range(1, len(found) + 1)], np.int64)
    assert match([SUSPECT, *found], pairs, 1e-6, device) == expected(store)


def test_only_findings_and_what_is_not_regular_open_a_file(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    load(store)
    found = load(store)
    opened: list[str] = []
    original = index.read_content

    def read_content(path: Path) -> bytes:
        opened.append(path.name.rsplit("-", 1)[0])
        return original(path)

    monkeypatch.setattr(index, "read_content", read_content)
    against_all(found)
    assert sorted(opened) == ["base", "family-model", "tied"]


def test_reports_open_no_file(store: Path) -> None:
    load(store)
    for light, own in zip(load(store), [read_fingerprint(file) for file in files_of(store)], strict=True):
        shutil.move(stored_of(light).file, store / "moved")  # type: ignore[union-attr]
        outcomes = [Outcome(one, 0.0, fresh=True, reference=True) for one in (light, own)]
        assert outcome_document(outcomes[0]) == outcome_document(outcomes[1])
        assert matrix_figures(light) == matrix_figures(own)
        assert replace(light, matrices=(), energies={}) == replace(own, matrices=(), energies={})


def test_everything_is_there_when_it_is_looked_at(store: Path) -> None:
    load(store)
    for light, file in zip(load(store), files_of(store), strict=True):
        own = read_fingerprint(file)
        assert same(whole(light), own)
        assert repr(tuple(light.matrices)) == repr(own.matrices)
        assert repr(light.matrices[1:3]) == repr(own.matrices[1:3])
        assert light.energies.keys() == own.energies.keys()


def rewritten(file: Path, by: Callable[[Fingerprint], Fingerprint]) -> None:
    """The file written anew, as a scan would."""
    stores.write_fingerprint(file, by(read_fingerprint(file)))


def test_an_added_file_is_packed_alone(store: Path, built: list[list[str]]) -> None:
    load(store)
    added = stores.save(store, model("new", 30, SHAPE))
    assert len(load(store)) == len(references()) + 1
    assert built[1:] == [[added.name]]
    assert len(segments(store)) == 2
    assert against_all(load(store)) == expected(store)
    assert len(built) == 2


def test_small_segments_are_joined(store: Path, built: list[list[str]]) -> None:
    load(store)
    for seed in (30, 31, 32, 33):
        stores.save(store, model(f"new{seed}", seed, SHAPE))
        load(store)
    assert len(segments(store)) == 2
    # A new file takes along the segments that are no larger than what is new.
    assert [len(names) for names in built] == [12, 1, 2, 1, 4]
    assert against_all(load(store)) == expected(store)


def test_a_removed_file_is_gone(store: Path) -> None:
    load(store)
    file_of(store, "base").unlink()
    assert "base" not in {own.name for own in load(store)}
    assert against_all(load(store)) == expected(store)


def test_a_changed_file_is_packed_again(store: Path, built: list[list[str]]) -> None:
    load(store)
    file = file_of(store, "m3")
    rewritten(file, lambda own: replace(fingerprint("m3", tuned(BASE, 9)), path=own.path))
    assert against_all(load(store)) == expected(store)
    assert [pair.verdict for pair in against_all(load(store)) if pair.b == "m3"] == ["shared-origin"]
    assert built[1:] == [[file.name]]


@pytest.mark.parametrize("part", range(4))
def test_any_part_of_the_state_makes_a_file_stale(
    part: int, store: Path, built: list[list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Size, both times and inode."""
    load(store)
    changed = file_of(store, "m3")
    state_of = index._state

    def state(file: Path) -> index_file.State | None:
        found = list(state_of(file) or ())
        found[part] += file == changed
        size, mtime_ns, ctime_ns, inode = found
        return size, mtime_ns, ctime_ns, inode

    monkeypatch.setattr(index, "_state", state)
    fingerprints_below(store, files_of(store))
    assert built[1:] == [[changed.name]]


def test_a_file_whose_size_and_time_were_put_back_is_stale(store: Path, built: list[list[str]]) -> None:
    load(store)
    file = file_of(store, "m3")
    before = file.stat()
    with file.open("r+b") as content:
        content.write(content.read(1))
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    fingerprints_below(store, files_of(store))
    assert built[1:] == [[file.name]]


def test_a_damaged_fingerprint_is_a_notice_each_time(store: Path) -> None:
    file = file_of(store, "m3")
    file.write_bytes(file.read_bytes()[:-1])
    for _ in range(3):
        found, notices = fingerprints_below(store, files_of(store))
        assert [notice.code for notice in notices] == ["E_FINGERPRINT_CORRUPT"]
        assert len(found) == len(references()) - 1


def test_a_segment_of_which_little_counts_goes(store: Path) -> None:
    load(store)
    (old,) = segments(store)
    for file in files_of(store)[:7]:
        file.unlink()
    assert len(load(store)) == 5
    assert old not in segments(store)


def flips(content: bytes) -> Iterator[int]:
    """Places all over the file, and in each of the fields at its start."""
    yield from (0, 17, 25, 40)
    yield from np.random.default_rng(0).integers(0, len(content), 150).tolist()


def test_every_flipped_bit_is_found(store: Path) -> None:
    """In header and figures when the segment is opened, in codes when they are used."""
    load(store)
    (path,) = segments(store)
    content = path.read_bytes()
    intact = [[codes[:] for codes in own.codes] for own in index_file.read(path).classes]
    for place in flips(content):
        path.write_bytes(content[:place] + bytes([content[place] ^ 4]) + content[place + 1 :])
        try:
            segment = index_file.read(path)
        except DamagedSegment:
            continue
        for own, arrays in zip(segment.classes, intact, strict=True):
            for group, array in enumerate(arrays):
                rows = np.arange(len(array))
                if np.array_equal(own.codes[group][:], array):
                    own.taken(group, rows)  # the bit lies between two arrays
                else:
                    with pytest.raises(DamagedCodes):
                        own.taken(group, rows)


def test_codes_that_were_damaged_are_not_used(store: Path) -> None:
    load(store)
    (path,) = segments(store)
    content = bytearray(path.read_bytes())
    segment = index_file.read(path)
    codes = np.frombuffer(content, np.int8)
    # The relative's codes are made to look unrelated, where they begin.
    number = next(n for n, entry in enumerate(segment.entries) if entry.light.name == "base")
    own = next(own for own in segment.classes if number in own.members)
    row = int(np.flatnonzero(own.members == number)[0])
    start = bytes(content).index(own.codes[0][row : row + 1].tobytes())
    codes[start : start + 192] = -codes[start : start + 192]
    path.write_bytes(content)
    assert against_all(load(store)) == expected(store)
    assert path not in segments(store)


@pytest.mark.parametrize("length", [0, 10, 63, 64, 1000, -1])
def test_a_truncated_segment_is_built_again(length: int, store: Path, built: list[list[str]]) -> None:
    load(store)
    (path,) = segments(store)
    path.write_bytes(path.read_bytes()[:length])
    assert against_all(load(store)) == expected(store)
    assert len(built) == 2
    assert path not in segments(store)


def test_a_segment_cut_off_after_it_was_opened_is_not_used(store: Path) -> None:
    found = load(store)
    (path,) = segments(store)
    os.truncate(path, 100)
    assert against_all(found) == expected(store)
    assert segments(store) == []


@pytest.mark.parametrize("members", [[0, 0], [-1], [999], ["x"]], ids=str)
def test_members_that_are_not_there_are_damage(
    members: list[object], store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the digest says: whoever wrote the segment may have been mistaken."""
    load(store)
    (path,) = segments(store)
    segment, header = index_file.read(path), index_file._header

    def wrong(of: index_file.Segment) -> dict[str, object]:
        document = header(of)
        document["classes"][0]["members"][: len(members)] = members
        return document

    monkeypatch.setattr(index_file, "_header", wrong)
    other = path.with_stem("other")
    index_file.write(other, segment)
    with pytest.raises(DamagedSegment):
        index_file.read(other)


def corrected_over(comparisons: Sequence[Comparison]) -> set[int]:
    """Over how many pairs was corrected, as the reasons say."""
    found = [re.search(r"correction over (\d+) pair", reason) for pair in comparisons for reason in pair.reasons]
    return {int(match[1]) for match in found if match}


@pytest.mark.parametrize("what", ["damaged", "gone"])
def test_a_reference_that_is_lost_after_it_was_packed_costs_a_notice(
    what: str, store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where something is found in it, its file is opened: the others are compared all the same."""
    stores.save(tmp_path / "suspects", SUSPECT)
    options = ScanOptions(paths=(tmp_path / "suspects",), store=tmp_path / "own", references=(store,))
    whole_scan = scan(options)
    file = file_of(store, "base")
    original = scans._compare

    def meanwhile(*arguments: object) -> object:
        if file.exists() and what == "gone":
            file.unlink()
        return original(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(scans, "_compare", meanwhile)
    if what == "damaged":
        content = bytearray(file.read_bytes())
        content[-1] ^= 1
        unseen, state_of = index._state(file), index._state
        with file.open("r+b") as opened:
            opened.write(content)
        monkeypatch.setattr(index, "_state", lambda asked: unseen if asked == file else state_of(asked))
    report = scan(options)
    assert corrected_over(report.comparisons) == corrected_over(whole_scan.comparisons)
    assert [notice.path for notice in report.notices] == [str(file)]
    assert [notice.code for notice in report.notices] == [
        "E_FINGERPRINT_CORRUPT" if what == "damaged" else "E_NOT_REGULAR"
    ]
    assert {pair.b for pair in whole_scan.comparisons} - {pair.b for pair in report.comparisons} == {"base"}
    assert {own.fingerprint.name for own in report.references} == {pair.b for pair in report.comparisons}


@pytest.mark.parametrize("what", ["SCHEMA", "__version__"])
def test_a_segment_of_another_version_is_built_again(
    what: str, store: Path, built: list[list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    load(store)
    monkeypatch.setattr(index_file, what, "another")
    load(store)
    assert len(built) == 2
    load(store)
    assert len(built) == 2


def test_a_finding_is_that_of_the_file(store: Path) -> None:
    """An index that calls an unrelated model a relative accuses nobody: the file counts."""
    found = load(store)
    at = {own.name: number for number, own in enumerate(found)}
    segment = stored_of(found[at["base"]]).segment  # type: ignore[union-attr]
    (own,) = (own for own in segment.classes if at["base"] in own.members)
    rows = {name: int(np.flatnonzero(own.members == at[name])[0]) for name in ("base", "m5")}
    swapped = []
    for codes in own.codes:
        changed = np.array(codes[:])
        changed[rows["m5"]] = changed[rows["base"]]
        swapped.append(changed)
    object.__setattr__(own, "codes", tuple(swapped))
    object.__setattr__(own, "sums", ())
    assert against_all(found) == expected(store)


def test_what_a_weaker_level_finds_is_that_of_the_file(store: Path) -> None:
    """At a level of 0.2 chance alone finds something; all of it is compared from the files."""
    found = load(store)
    suspect = model("suspect", 43, SHAPE)
    pairs = np.array([(0, number) for number in range(1, len(found) + 1)], np.int64)
    judged = match([suspect, *found], pairs, 0.2)
    rejected = [number for number, pair in enumerate(judged) if pair.verdict == "shared-origin"]
    assert isinstance(judged.preliminary, Comparisons)
    made = set(judged.preliminary.made_one_by_one)
    assert rejected
    assert set(rejected) <= made


def test_a_high_score_is_that_of_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(index, "FEWEST_FILES", 0)
    for seed in range(3, 27):
        stores.save(tmp_path / "store", model(f"m{seed}", seed, SHAPE))
    found = load(tmp_path / "store")
    segment = stored_of(found[0]).segment  # type: ignore[union-attr]
    (own,) = segment.classes
    # The curves of the suspect itself, a little noisy: the highest score there can be.
    points = own.points.copy()
    for number, matrix in enumerate(SUSPECT.matrices):
        place = own.shape.curve_start(matrix.stack, matrix.role) + matrix.layer
        points[4, place] = matrix.std * (1 + 1e-6 * number)
    object.__setattr__(own, "points", points)
    assert against_all(found) == expected(tmp_path / "store")
    assert not any(pair.screen.score and pair.screen.score > 0.99 for pair in against_all(found))


def test_a_file_changed_unseen_costs_the_segment_where_it_is_found(
    store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As within one tick of the file system's clock."""
    load(store)
    (path,) = segments(store)
    file = file_of(store, "base")
    unseen = index._state(file)
    other = stores.to_bytes(replace(read_fingerprint(file), tool_version="0"))
    file.write_bytes(other)
    state_of = index._state
    monkeypatch.setattr(index, "_state", lambda asked: unseen if asked == file else state_of(asked))
    assert against_all(load(store)) == expected(store)
    assert path not in segments(store)


def test_where_the_cache_cannot_be_written_the_answers_are_the_same(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert against_all(load(store)) == expected(store)


def test_nothing_is_left_of_a_segment_that_could_not_be_written(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def write(path: Path, segment: object) -> None:
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(index_file, "write", write)
    assert against_all(load(store)) == expected(store)
    assert segments(store) == []


@pytest.mark.parametrize(("age", "kept"), [(0, True), (2 * index.LEFT_SECONDS, False)])
def test_what_a_killed_process_left_goes_after_a_day(store: Path, age: int, kept: bool) -> None:
    """Before, somebody may still write it."""
    load(store)
    left = segments(store)[0].with_name("0123.99.tmp")
    left.write_bytes(b"half")
    os.utime(left, (time.time() - age,) * 2)
    load(store)
    assert left.exists() == kept


def test_an_interruption_leaves_nothing_of_a_segment(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def write(path: Path, segment: object) -> None:
        path.write_bytes(b"half")
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(index_file, "write", write)
        load(store)
    load(store)
    (path,) = segments(store)
    assert list(path.parent.iterdir()) == [path]


def test_a_store_that_may_only_be_read_has_an_index_as_well(store: Path) -> None:
    store.chmod(0o500)
    assert against_all(load(store)) == expected(store)
    assert len(segments(store)) == 1
    assert sorted(os.listdir(store)) == [file.name for file in files_of(store)]  # noqa: PTH208  hidden files too


def test_a_segment_that_another_process_replaced_is_still_read(store: Path) -> None:
    """It was opened, and is not damaged."""
    found = load(store)
    for path in segments(store):
        path.unlink()
    assert against_all(found) == expected(store)
    assert segments(store) == []


def test_a_pipe_is_no_segment(store: Path) -> None:
    """And nobody waits for its other end."""
    load(store)
    (path,) = segments(store)
    os.mkfifo(path.with_stem("0"))
    assert against_all(load(store)) == expected(store)
    assert segments(store) == [path]


def test_a_temporary_that_goes_meanwhile_costs_nothing(store: Path, built: list[list[str]]) -> None:
    load(store)
    (path,) = segments(store)
    path.with_name("gone.tmp").symlink_to(path.with_name("nowhere"))
    assert against_all(load(store)) == expected(store)
    assert built[1:] == []


def test_what_cannot_be_read_any_more_is_not_taken_from_a_segment_that_goes(
    store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """New files make a new segment, which takes along what a small one holds, where it can still be read."""
    load(store)
    lost = file_of(store, "m3")
    for seed in range(100, 100 + len(files_of(store)) + 1):
        stores.save(store, model(f"m{seed}", seed, SHAPE))
    original = index.read_content

    def read_content(path: Path) -> bytes:
        if path == lost:
            raise StoreError("E_READ", "Input/output error", path=path)
        return original(path)

    monkeypatch.setattr(index, "read_content", read_content)
    found, notices = fingerprints_below(store, files_of(store))
    assert [notice.path for notice in notices] == [str(lost)]
    assert "m3" not in {own.name for own in found}
    assert len(found) == len(files_of(store)) - 1


def test_two_segments_of_the_same_files_count_once(store: Path) -> None:
    load(store)
    (path,) = segments(store)
    shutil.copy2(path, path.with_name(f"0{path.name}"))
    assert len(load(store)) == len(references())
    assert against_all(load(store)) == expected(store)


def test_few_fingerprints_are_read_without_an_index(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(index, "FEWEST_FILES", len(references()) + 1)
    assert [stored_of(own) for own in load(store)] == [None] * len(references())
    assert not (tmp_path / "cache").exists()


def test_a_directory_that_is_given_comes_through_the_index_and_a_file_does_not(store: Path) -> None:
    found = gather([store, file_of(store, "m3")], indexed=True)
    assert [stored_of(own) is not None for own in found.fingerprints] == [False] + [True] * len(references())
    assert all(stored_of(own) is None for own in gather([store]).fingerprints)
