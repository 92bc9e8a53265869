# ruff: noqa: E501 - one fault a line reads as a table
"""The suite can fail: each line of FAULTS breaks one line of one module, and the named test must turn red.

A fault whose text is no longer in the module, or stands there twice, fails as well.
"""

import contextlib
import functools
import importlib
import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import FunctionType, ModuleType
from typing import Any

import engine_cases
import numpy as np
import pytest
import test_atomic
import test_engine
import test_fingerprint_file
import test_index
import test_moments
import test_plan
import test_resume
import test_store
from engine import test_collect, test_cpu, test_files, test_settings
from kernel_backends import backends

RED = (Exception, pytest.fail.Exception)
"""How a test fails: anything that comes out of it."""


@dataclass(frozen=True)
class Fault:
    """``old`` replaced by ``new`` in ``module``; ``check`` with ``arguments`` must turn red."""

    module: str
    label: str
    old: str
    new: str
    check: Callable[..., None]
    arguments: dict[str, Any] = field(default_factory=dict)


def layout(name: str, slot_bytes: int = 50) -> dict[str, Any]:
    return {"backend": next(iter(backends())), "layout": name, "dtype": "bf16", "slot_bytes": slot_bytes}


PLAN, MOMENTS, STORE, FILE, ATOMIC = "plan", "moments", "store", "fingerprint_file", "atomic"
FILES, COLLECT, CPU, GUARD, SETTINGS = (f"engine.{name}" for name in ("files", "collect", "cpu", "guard", "settings"))
FIGURES = test_engine.test_reduction_against_float64
FAILING_CALL = test_atomic.test_a_call_that_fails_leaves_the_old_or_the_new
ORDER = test_atomic.test_the_file_is_on_disk_before_it_gets_its_name_and_the_name_after
NUMPY = test_moments.test_figures_are_those_of_numpy_and_scipy
FEW = {"values": np.array([-1.0, 0.0, 0.0, 5.0])}
LARGE = 2**22
INDEX, SEGMENT, MATCH, PACKED, SCAN = "index", "index_file", "match", "compare.packed", "scan"

FAULTS = [
    Fault(PLAN, "orientation", "along_rows = matrix.transposed == spec.column_major", "along_rows = not matrix.transposed", FIGURES, layout("column-major")),
    Fault(PLAN, "shape-not-turned", "part.stored[::-1] if spec.column_major else part.stored", "part.stored", FIGURES, layout("column-major")),
    Fault(PLAN, "units-of-ranges", "unit += stop - start", "unit += 0", FIGURES, layout("fused-groups")),
    Fault(PLAN, "experts-on-top-of-each-other", "part.stored[0] if matrix.transposed else part.stored[1]", "0", FIGURES, layout("experts")),
    Fault(PLAN, "inputs-of-experts", "part.stored[0] if matrix.transposed else", "part.stored[1] if matrix.transposed else", FIGURES, layout("experts-in-out")),
    Fault(PLAN, "gap-too-large", "GAP_SHARE = 100", "GAP_SHARE = 10", test_plan.test_large_gap_is_not_read),
    Fault(PLAN, "no-gap", "0 <= gap <= GAP_BYTES and", "gap == 0 and", test_plan.test_small_gap_is_read_over_and_counted),
    Fault(PLAN, "any-gap", "0 <= gap <= GAP_BYTES and", "0 <= gap and", test_plan.test_no_gap_of_more_than_a_mebibyte_is_read_over, {"gap": 2**20 + 1, "joined": False}),
    Fault(PLAN, "files-joined", "near = own == last and", "near = last >= 0 and", test_plan.test_files_are_never_joined),
    Fault(PLAN, "slot-overfull", "not near or begin + size - start > slot_bytes", "not near", test_plan.test_slots_stay_within_their_size, {"slot_bytes": 1024}),
    Fault(PLAN, "too-many-rows", "piece_bytes // np.maximum(row_bytes, 1)", "4 * piece_bytes // np.maximum(row_bytes, 1)", test_plan.test_slots_stay_within_their_size, {"slot_bytes": 4096}),
    Fault(PLAN, "cut-inside-a-chunk", "// itemsize // CHUNK_ELEMENTS, 1) * CHUNK_ELEMENTS", "// itemsize - 1, 1)", test_plan.test_rows_longer_than_a_slot_are_cut_between_chunks),
    Fault(PLAN, "row-units-of-pieces", "[regions.axis[region] == ROW_ENERGY], [down]", "[regions.axis[region] == ROW_ENERGY], [0 * down]", FIGURES, layout("row-major")),
    Fault(PLAN, "column-units-of-pieces", "[down], along)", "[down], 0 * along)", FIGURES, layout("wide")),
    Fault(PLAN, "last-row-dropped", "(regions.bottom - 1 - base) // rows_each + 1", "(regions.bottom - 1 - base) // rows_each", FIGURES, layout("row-major")),
    Fault(PLAN, "last-column-dropped", "across = -(-columns // columns_each)", "across = columns // columns_each", FIGURES, layout("wide")),
    Fault(PLAN, "gaps-not-counted", "return int(self.length.sum())", "return self.selected", test_plan.test_small_gap_is_read_over_and_counted),
    Fault(PLAN, "intervals-apart", "joined[-1][2] = max(joined[-1][2], bottom)", "joined[-1][2] = bottom", test_plan.test_every_element_belongs_to_one_rectangle_of_each_of_its_matrices),
    Fault(PLAN, "rows-read-twice", "top <= joined[-1][2]", "top < joined[-1][1]", test_plan.test_no_byte_is_read_twice_and_few_that_are_not_wanted),
    Fault(PLAN, "outside-the-region", "top = np.maximum(regions.top[region], pieces.top[piece])", "top = pieces.top[piece]", FIGURES, layout("fused-groups", LARGE)),
    Fault(PLAN, "left-of-the-region", "* width + left - pieces.left[piece]", "* width", FIGURES, layout("fused-columns")),
    Fault(PLAN, "energies-of-the-wrong-axis", "UNITS_ARE_OUTPUTS[role] == outputs_along_rows", "UNITS_ARE_OUTPUTS[role]", FIGURES, layout("stored-in-out")),
    Fault(PLAN, "batches-mixed", "if self.dtype[start] != self.dtype[stop - 1]:", "if False:", test_plan.test_encodings_come_apart_inside_a_slot),
    Fault(COLLECT, "half-a-matrix-kept", "if number not in lost}\n        energies", "}\n        energies", test_engine.test_a_matrix_of_which_some_slots_are_gone_is_lost_whole),
    Fault(COLLECT, "other-files-lost", "np.flatnonzero(self.plan.file == file)", "np.flatnonzero(self.plan.file >= 0)", test_engine.test_a_matrix_out_of_two_files_is_lost_with_either),
    Fault(COLLECT, "read-by-chance-kept", "if number >= first]", "if number == first]", test_collect.test_of_a_file_nothing_counts_from_its_failure_on, {"failed": 1}),
    Fault(COLLECT, "last-failure-said", "self.failures.setdefault(int(self.plan.file[number]), (number, error))", "self.failures[int(self.plan.file[number])] = (number, error)", test_collect.test_the_first_failure_of_each_file_is_what_is_said),
    Fault(COLLECT, "skipped-counts", "gone = list(self.skipped)", "gone = []", test_collect.test_a_matrix_that_lost_a_slot_is_lost_whole, {"lost": 2, "how": "skipped"}),
    Fault(COLLECT, "bytes-not-counted", "self.bytes_read += slot.length", "self.bytes_read = slot.length", FIGURES, layout("row-major")),
    Fault(COLLECT, "energies-overwritten", "[unit : unit + size] += result", "[unit : unit + size] = result", FIGURES, layout("row-major")),
    Fault(COLLECT, "energies-misplaced", "[unit : unit + size] += result", "[0:size] += result", FIGURES, layout("row-major")),
    Fault(COLLECT, "energies-of-the-first", "start += size", "start += 0", FIGURES, layout("non-finite", LARGE)),
    Fault(COLLECT, "units-of-o", "matrix.shape[0] if UNITS_ARE_OUTPUTS[matrix.role] else matrix.shape[1]", "max(matrix.shape)", FIGURES, layout("row-major")),
    Fault(COLLECT, "rectangles-not-sorted", 'np.argsort(matrix, kind="stable")', "np.arange(len(matrix))", FIGURES, layout("fused-groups")),
    Fault(FILES, "short-read-taken", "while done < slot.length:", "while not done:", test_engine.test_reads_that_come_in_bits_are_put_together),
    Fault(FILES, "read-from-the-start", "[view[done : done + READ_BYTES]], slot.offset + done)", "[view[done : done + READ_BYTES]], slot.offset)", test_engine.test_reads_that_come_in_bits_are_put_together),
    Fault(FILES, "pipe-opened", "if not stat.S_ISREG(os.fstat(descriptor).st_mode):", "if not descriptor:", test_engine.test_only_regular_files_are_opened_for_reading),
    Fault(FILES, "descriptor-left-open", "os.close(self._descriptors.pop(path))", "pass", test_files.test_a_file_is_open_from_its_first_slot_to_its_last),
    Fault(FILES, "given-up-left-open", "self._descriptors.clear()", "pass", test_files.test_slots_that_are_given_up_count_and_what_is_left_is_closed),
    Fault(FILES, "missing-pages-taken", "if page_was_missing():", "if False:", test_files.test_a_file_cut_to_half_while_its_bytes_are_held),
    Fault(FILES, "start-of-the-page", "yield data[before:]", "yield data[: slot.length]", FIGURES, layout("wide", 20_000)),
    Fault(FILES, "first-sample-only", "for sample in range(SAMPLES):", "for sample in range(1):", test_files.test_residency_is_asked_over_the_whole_range, {"missing": 63}),
    Fault(FILES, "always-dropped", "    if not resident:\n        _advise(slot, descriptor, \"POSIX_FADV_DONTNEED\")\n\n\ndef _advise", "    _advise(slot, descriptor, \"POSIX_FADV_DONTNEED\")\n\n\ndef _advise", test_files.test_what_was_in_the_page_cache_stays),
    Fault(FILES, "never-dropped", "    if not resident:\n        _advise(slot, descriptor, \"POSIX_FADV_DONTNEED\")\n\n\ndef _advise", "\n\ndef _advise", test_files.test_what_was_not_in_the_page_cache_is_dropped_again),
    Fault(CPU, "disk-fault-propagates", "        except CheckpointError as error:\n            self._collector", "        except ZeroDivisionError as error:\n            self._collector", test_engine.test_a_disk_that_fails_in_the_middle),
    Fault(CPU, "failed-file-read-on", "self._failed.add(file)", "pass", test_cpu.test_a_file_that_failed_is_read_no_further),
    Fault(CPU, "waits-for-all", "self._pool.shutdown(cancel_futures=True)", "self._pool.shutdown(wait=False)", test_cpu.test_leaving_the_engine_gives_up_what_is_not_done),
    Fault(SETTINGS, "no-limit", "not least <= int(text) <= most", "least > int(text)", test_settings.test_a_bad_value_is_wrong_usage, {"name": "WEIGHTPRINT_THREADS", "value": "99999"}),
    Fault(SETTINGS, "half-numbers", "not text.isdecimal() or", "not text.strip().isdecimal() or", test_settings.test_a_bad_value_is_wrong_usage, {"name": "WEIGHTPRINT_THREADS", "value": " 2"}),
    Fault(MOMENTS, "sample-variance", "float(merged.m2) / count", "float(merged.m2) / (count - 1)", NUMPY, FEW),
    Fault(MOMENTS, "excess-kurtosis", "/ std**4", "/ std**4 - 3", NUMPY, FEW),
    Fault(MOMENTS, "skewness", "/ std**3", "/ std**2", NUMPY, FEW),
    Fault(MOMENTS, "shape-of-noise", "std > abs_max * 1e-12", "std > 0", test_moments.test_a_spread_below_rounding_has_no_shape),
    Fault(MOMENTS, "nothing-is-zero", "abs_max = math.nan", "abs_max = 0.0", test_moments.test_nothing_finite_has_no_figure),
    Fault(MOMENTS, "not-counted", "non_finite=size - count", "non_finite=0", test_moments.test_what_is_not_finite_is_counted_and_left_out),
    Fault(MOMENTS, "transposed-size", "0 if matrix.transposed else 1", "1", test_moments.test_a_transposed_part_counts_its_columns),
    Fault(MOMENTS, "first-part-only", "for part in matrix.parts\n        for start", "for part in matrix.parts[:1]\n        for start", test_moments.test_parts_of_several_tensors_are_added_up),
    Fault(STORE, "name-instead-of-path", "hashlib.sha256(path.encode(", "hashlib.sha256(name.encode(", test_store.test_found_under_another_name),
    Fault(STORE, "always-fresh", "fingerprint.sources == tuple(sources)", "True", test_store.test_changed_source_is_not_fresh, {"field": {"size": 1}}),
    Fault(STORE, "old-version-trusted", "fresh and not outdated", "fresh", test_store.test_incomplete_fingerprint_of_another_version_is_not_fresh),
    Fault(STORE, "read-fault-kept", " and not unlucky", "", test_resume.test_a_disk_that_failed_once_is_asked_again),
    Fault(STORE, "damage-raised", "    except StoreError:\n        return None", "    except StoreError:\n        raise", test_store.test_damaged_file_counts_as_absent),
    Fault(STORE, "kept-twice", "find(store, fingerprint.name, fingerprint.path) or store", "store", test_resume.test_a_checkpoint_scanned_under_two_names_is_kept_once),
    Fault(STORE, "written-in-place", "write_atomic(path, to_bytes(fingerprint))", "path.write_bytes(to_bytes(fingerprint))", test_atomic.test_the_store_says_why_and_keeps_what_it_had, {"fault": "rename", "error": "EIO"}),
    Fault(FILE, "damage-unsaid", "notices.append(error.notice())", "pass", test_store.test_damaged_files_are_named),
    Fault(STORE, "temporary-files-read", 'read(store, sorted(store.rglob(f"*{SUFFIX}")))', 'read(store, sorted(store.rglob("*")))', test_store.test_temporary_files_are_ignored),
    Fault(STORE, "half-removed", "if not found:", "if False:", test_store.test_remove_named),
    Fault(STORE, "any-file-name", 'r"[^A-Za-z0-9._-]+"', 'r"[^A-Za-z0-9._/-]+"', test_store.test_file_names_are_plain, {"name": "../../etc/passwd"}),
    Fault(FILE, "canonical-form-unchecked", "to_bytes(fingerprint) == content", "bool(content)", test_fingerprint_file.test_every_flipped_bit_is_found, {"bit": 0}),
    Fault(FILE, "tensors-not-in-the-digest", "digest.update(name.encode() + tensors[name].tobytes())", "pass", test_fingerprint_file.test_every_flipped_bit_is_found, {"bit": 0}),
    Fault(FILE, "nan-is-null", "**entry, **figures, **whole", "**entry, **whole", test_fingerprint_file.test_nothing_is_lost),
    Fault(FILE, "order-of-keys", "sort_keys=True", "sort_keys=False", test_fingerprint_file.test_golden_bytes_are_what_is_written),
    Fault(FILE, "order-of-energies", "keys = sorted(fingerprint.energies)", "keys = list(fingerprint.energies)", test_fingerprint_file.test_golden_bytes_are_what_is_written),
    Fault(FILE, "units-misplaced", "values[start : start + count]", "values[:count]", test_fingerprint_file.test_golden_file_of_version_1_stays_readable),
    Fault(FILE, "newer-version-guessed", "int(version) > VERSION", "int(version) > VERSION + 1", test_fingerprint_file.test_newer_version_is_refused_by_name),
    Fault(ATOMIC, "not-synced", "os.fsync(file.fileno())", "pass", ORDER),
    Fault(ATOMIC, "not-flushed", "file.flush()", "pass", ORDER),
    Fault(ATOMIC, "directory-not-synced", "os.fsync(directory)", "pass", ORDER),
    Fault(ATOMIC, "in-place", "temporary.replace(path)", "path.write_bytes(content)", FAILING_CALL, {"fault": "directory-open", "error": "EIO", "existing": True}),
    Fault(ATOMIC, "temporary-left", "temporary.unlink()", "pass", FAILING_CALL, {"fault": "rename", "error": "EIO", "existing": True}),
    Fault(ATOMIC, "left-by-an-interrupt", "except BaseException:", "except OSError:", FAILING_CALL, {"fault": "write", "error": "interrupt", "existing": True}),
    Fault(ATOMIC, "error-swallowed", "        raise\n", "        return\n", FAILING_CALL, {"fault": "fsync", "error": "ENOSPC", "existing": True}),
    Fault(ATOMIC, "one-name-for-all", "secrets.token_hex(4)", "0", test_atomic.test_temporary_names_are_hidden_and_differ),
    Fault(ATOMIC, "not-hidden", 'with_name(f".', 'with_name(f"', test_atomic.test_temporary_names_are_hidden_and_differ),
    Fault(ATOMIC, "name-too-long", "path.name[:40]", "path.name[:100]", test_atomic.test_any_name_that_the_file_system_takes, {"name": "𝛑" * 60}),
    Fault(INDEX, "state-not-looked-at", "states.get(entry.file) == entry.state and", "entry.file in states and", test_index.test_a_changed_file_is_packed_again),
    Fault(INDEX, "half-dead-kept", "2 * len(live) < len(segment.entries)", "not live", test_index.test_a_segment_of_which_little_counts_goes),
    Fault(INDEX, "segments-pile-up", "if len(live) <= len(missing) and", "if not live and", test_index.test_small_segments_are_joined),
    Fault(INDEX, "damage-unsaid", "notices += own", "pass", test_index.test_a_damaged_fingerprint_is_a_notice_each_time),
    Fault(INDEX, "half-written-left", "        discard(temporary)\n        return segment\n", "        return segment\n", test_index.test_nothing_is_left_of_a_segment_that_could_not_be_written),
    Fault(INDEX, "digest-not-compared", "hashlib.sha256(content).hexdigest() != self.entry.digest", "False", test_index.test_a_file_changed_unseen_costs_the_segment_where_it_is_found),
    Fault(INDEX, "lost-yet-known", "                del known[name]\n", "                pass\n", test_index.test_what_cannot_be_read_any_more_is_not_taken_from_a_segment_that_goes),
    Fault(SCAN, "lost-not-counted", "options.alpha, device, lost)", "options.alpha, device)", test_index.test_a_reference_that_is_lost_after_it_was_packed_costs_a_notice, {"what": "gone"}),
    Fault(INDEX, "files-opened-for-a-report", "return MatrixFigures(stored.entry.matrices, stored", "return MatrixFigures(sum(1 for _ in fingerprint.matrices), stored", test_index.test_reports_open_no_file),
    Fault(INDEX, "another-entry", "number_of[list(numbers[key])] = list(numbers[key].values())", "number_of[list(numbers[key])] = list(numbers[key].values())[::-1]", test_index.test_references_against_each_other),
    Fault(SEGMENT, "damage-not-looked-for", "if digest != _digest((header_length, figures_length), header, figures):", "if len(digest) != 32:", test_index.test_every_flipped_bit_is_found),
    Fault(SEGMENT, "any-version", '(document["schema"], document["tool_version"]) != (SCHEMA, __version__)', '"schema" not in document', test_index.test_a_segment_of_another_version_is_built_again, {"what": "__version__"}),
    Fault(SEGMENT, "not-understood-lost", "tuple(notices[at] for at in document[\"not_understood\"])", "()", test_index.test_reports_open_no_file),
    Fault(PACKED, "codes-not-checked", "if self.sums and not np.array_equal", "if not self.sums and np.array_equal", test_index.test_codes_that_were_damaged_are_not_used),
    Fault(PACKED, "sum-of-some", 'rows.view("<u8").sum(axis=1', 'rows.view("<u8")[:, :-1].sum(axis=1', test_index.test_every_flipped_bit_is_found),
    Fault(MATCH, "score-of-the-index", "again = sorted(set(high.tolist()) - set(found.made_one_by_one))", "again = []", test_index.test_a_high_score_is_that_of_the_file),
    Fault(MATCH, "finding-hidden", "limit = max(MAP_LOG10_ALPHA, math.log10(alpha))", "limit = MAP_LOG10_ALPHA", test_index.test_what_a_weaker_level_finds_is_that_of_the_file),
]  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: f"{fault.module}-{fault.label}")
def test_fault_turns_a_test_red(fault: Fault, tmp_path: Path) -> None:
    run(fault, tmp_path / "whole")
    with pytest.MonkeyPatch.context() as patch:
        plant(fault, patch)
        with pytest.raises(RED):
            run(fault, tmp_path / "broken")


def run(fault: Fault, folder: Path) -> None:
    """The named test as pytest would run it."""
    folder.mkdir()
    with provided(folder) as fixtures:
        wanted = [name for name in inspect.signature(fault.check).parameters if name not in fault.arguments]
        fault.check(**fault.arguments, **{name: fixtures[name]() for name in wanted})


@contextlib.contextmanager
def provided(folder: Path) -> Iterator[dict[str, Callable[[], object]]]:
    with pytest.MonkeyPatch.context() as patch:
        yield {
            "tmp_path": lambda: folder,
            "monkeypatch": lambda: patch,
            "two_files": lambda: engine_cases.lay_two_files(folder),
            "dropped": lambda: test_files.drop(folder),
            "path": lambda: test_files.write(folder),
            "content": lambda: test_files.CONTENT,
            "way": lambda: patch.setattr(test_files.engine_files, "is_local", lambda descriptor: False),
            "store": lambda: test_index.make_store(folder, patch),
            "built": lambda: test_index.watch_builds(patch),
            "models": lambda: test_resume.make_models(folder),
        }


def plant(fault: Fault, patch: pytest.MonkeyPatch) -> None:
    """Give the module's functions the code that the changed source compiles to, and its constants their values; so
    everybody who imported them has them, and its classes stay what they are."""
    original = importlib.import_module(f"weightprint.{fault.module}")
    assert original.__file__ is not None
    source = Path(original.__file__).read_text()
    assert source.count(fault.old) == 1, f"{fault.module} does not hold {fault.old!r} once: move the fault"
    broken = ModuleType(original.__name__)
    broken.__file__ = original.__file__
    exec(compile(source.replace(fault.old, fault.new), original.__file__, "exec"), vars(broken))
    before, after = dict(functions(original)), dict(functions(broken))
    for name, function in before.items():
        patch.setattr(function, "__code__", after[name].__code__)
    for name, value in vars(broken).items():
        if name.isupper() and isinstance(value, int | str):
            patch.setattr(original, name, value)


def functions(module: ModuleType) -> Iterator[tuple[str, FunctionType]]:
    """Functions of the module and of its classes, out of their wrappers."""
    for name, value in [*vars(module).items()]:
        if getattr(value, "__module__", None) != module.__name__:
            continue
        members = vars(value).items() if inspect.isclass(value) else [("", value)]
        for member, inner in members:
            if isinstance(inner, functools.cached_property):
                function = inner.func
            else:
                function = inner.fget if isinstance(inner, property) else getattr(inner, "__wrapped__", inner)
            if isinstance(function, FunctionType) and function.__code__.co_filename == module.__file__:
                yield f"{name}.{member}", function
