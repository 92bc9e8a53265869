"""How matching grows with the number of fingerprints: one suspect against many references, and all pairs of many.

Synthetic fingerprints of 32 layers x 1,024 units x 2 channels: uniform order in every block of 8, so independent under
the null hypothesis, and random curves of standard deviations. Planted relatives have some blocks in a new order; one
has its layers reversed. Every size is measured in a process of its own, which reports what the operating system says of
its memory. The figures are checked: planted pairs must be found with their layer maps, and a sample of the others must
equal what comparing each pair alone gives.

Cases: "one" and "all" have the codes in memory; "files" goes the whole way, from fingerprint files through the index to
the report document; "segments" measures the index alone, opened and streamed from its files.

    python bench/match.py [--references 100 1000 10000] [--all-pairs 1000] [--files 1000] [--segments 10000] [--json]
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from weightprint import index, index_file
from weightprint.compare import ALPHA, bulk, compare_pair, judge, prepare
from weightprint.compare.bulk import compare_collection
from weightprint.compare.comparisons import Comparisons
from weightprint.compare.packed import INT8, Collection, Label, Shape, ShapeClass, join
from weightprint.compare.prepared import GroupShape
from weightprint.compare.products import product_for
from weightprint.data import Bytes, Coverage, Fingerprint, MatrixStats, SourceFile
from weightprint.engine.settings import processors
from weightprint.fingerprint_file import SUFFIX, to_bytes
from weightprint.index import SEGMENT_FILES, cache_of, fingerprints_below, light
from weightprint.index_file import Entry, Segment
from weightprint.match import match
from weightprint.report.documents import pair_documents, report_document
from weightprint.report.files import WRITERS
from weightprint.scan import ScanOptions, scan

LAYERS, UNITS, BLOCK, HEAD_WIDTH, HIDDEN = 32, 1024, 8, 128, 4096
STACK = "model.layers"
REDRAWN = 0.5  # share of a relative's blocks whose order is its own
CHECKED = 200  # pairs that are compared alone as well


def shape() -> Shape:
    """The one shape of all synthetic fingerprints."""
    layers = tuple(range(LAYERS))
    groups = tuple(GroupShape(STACK, channel, UNITS, HEAD_WIDTH, layers, layers, LAYERS) for channel in "vo")
    return Shape(groups, (BLOCK, BLOCK), ((STACK, LAYERS),), tuple((STACK, role, layers) for role in "koqv"))


def random_codes(count: int, generator: np.random.Generator) -> INT8:
    """Codes [count, layers, units] in which the order of every block is uniform."""
    codes = np.empty((count, LAYERS * UNITS // BLOCK, BLOCK), np.int8)
    order = np.array([2 * generator.permutation(BLOCK) - (BLOCK - 1) for _ in range(2**15)], np.int8)
    for one in codes:
        one[:] = order[generator.integers(0, len(order), len(one))]
    return codes.reshape(count, LAYERS, UNITS)


def related(codes: INT8, generator: np.random.Generator) -> INT8:
    """The same codes [layers, units] with REDRAWN of the blocks in a new order."""
    own = codes.reshape(-1, BLOCK).copy()
    redrawn = generator.random(len(own)) < REDRAWN
    own[redrawn] = random_codes(1, generator).reshape(-1, BLOCK)[redrawn]
    return own.reshape(codes.shape)


def synthetic(count: int, seed: int, planted: bool) -> ShapeClass:
    """``count`` fingerprints; if ``planted``, 1 is related to 0, and 3 to 2 with its layers reversed."""
    generator = np.random.default_rng(seed)
    codes = tuple(random_codes(count, generator) for _ in "vo")
    for channel in codes if planted else ():
        channel[1] = related(channel[0], generator)
        channel[3] = related(channel[2], generator)[::-1]
    points = 0.02 + 0.005 * generator.random((count, 4 * LAYERS))
    return ShapeClass(shape(), np.arange(count), codes, points, generator.integers(0, 2**63, count).astype(np.uint64))


def in_memory_codes(of: ShapeClass) -> tuple[INT8, ...]:
    """Codes int8 [members, layers, units] of each group of a synthetic class."""
    return cast("tuple[INT8, ...]", of.codes)


def fingerprint(of: ShapeClass, row: int) -> Fingerprint:
    """A whole fingerprint with these codes and standard deviations: an energy is its code, moved above zero."""
    codes = in_memory_codes(of)
    energies = {
        (STACK, layer, channel): codes[group][row, layer].astype(np.float32) + BLOCK
        for group, channel in enumerate("vo")
        for layer in range(LAYERS)
    }
    matrices = tuple(
        MatrixStats(
            stack=STACK,
            layer=layer,
            role=role,
            tensors=(f"{STACK}.{layer}.self_attn.{role}_proj.weight",),
            shape=(HIDDEN, UNITS) if role == "o" else (UNITS, HIDDEN),
            dtype="bf16",
            count=UNITS * HIDDEN,
            mean=0.0,
            std=float(of.points[row, "koqv".index(role) * LAYERS + layer]),
            skewness=0.0,
            kurtosis=3.0,
            abs_max=0.5,
            zeros=0,
            non_finite=0,
            head_width=HEAD_WIDTH if role in "vo" else None,
        )
        for layer in range(LAYERS)
        for role in "koqv"
    )
    return Fingerprint(
        name=f"model-{row}",
        path=f"/models/model-{row}",
        status="complete",
        code=None,
        reason=None,
        matrices=matrices,
        energies=energies,
        coverage=Coverage(LAYERS, LAYERS),
        sources=(SourceFile("model.safetensors", row, row, "safetensors", f"{row:064x}"),),
        bytes=Bytes(1, 1, 1),
        backend="synthetic",
        tool_version="0",
    )


class Stages:
    """Seconds spent in the stages of :mod:`weightprint.compare.bulk`, whose functions it stands in front of."""

    NAMES = (("products", "_statistics"), ("p-values", "log10_tails"), ("screen", "_correlations"))

    def __init__(self) -> None:
        self.seconds = dict.fromkeys([stage for stage, _ in self.NAMES], 0.0)

    @contextmanager
    def watch(self) -> Iterator[None]:
        """Time the stages until the end of the block."""
        originals = {name: getattr(bulk, name) for _, name in self.NAMES}
        for stage, name in self.NAMES:
            setattr(bulk, name, self._timed(stage, originals[name]))
        try:
            yield
        finally:
            for name, original in originals.items():
                setattr(bulk, name, original)

    def _timed(self, stage: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*arguments: Any) -> Any:
            started = time.perf_counter()
            result = function(*arguments)
            self.seconds[stage] += time.perf_counter() - started
            return result

        return timed


def collection_of(own: ShapeClass) -> Collection:
    """A collection of one class."""
    return join([Label(f"model-{row}", "complete", None, ()) for row in range(len(own.members))], [own])


def one_suspect(count: int) -> npt.NDArray[np.int64]:
    """Number 0 against ``count`` others."""
    return np.stack([np.zeros(count, np.int64), np.arange(1, count + 1)], axis=1)


def all_pairs(count: int) -> npt.NDArray[np.int64]:
    """Every pair of ``count``."""
    return np.stack(np.triu_indices(count, 1), axis=1)


def measured(own: ShapeClass, pairs: npt.NDArray[np.int64], rounds: int) -> dict[str, Any]:
    """Compare and judge ``pairs`` in so many rounds after one that is not counted; check what comes out."""
    collection = collection_of(own)

    def load(row: int) -> Any:
        return prepare(fingerprint(own, row))

    totals, stages = [], []
    for number in range(rounds + 1):
        watched = Stages()
        started = time.perf_counter()
        with watched.watch():
            found = compare_collection(collection, pairs, load, compare_pair, product_for("cpu", len(pairs)))
        compared = time.perf_counter()
        judged = judge(found)
        judged_at = time.perf_counter()
        if number:
            totals.append(judged_at - started)
            spent = {**watched.seconds, "judge": judged_at - compared}
            stages.append({**spent, "rest": totals[-1] - sum(spent.values())})
    check(found, pairs, own)
    started = time.perf_counter()
    report_bytes = sum(map(len, WRITERS[".json"]({"pairs": pair_documents(judged)})))
    reported = time.perf_counter() - started
    middle = statistics.median(totals)
    streamed = sum(codes.nbytes for codes in in_memory_codes(own))
    return {
        "pairs": len(pairs),
        "seconds": middle,
        "rounds": rounds,
        "spread": [min(totals), max(totals)],
        "stages": {stage: statistics.median(entry[stage] for entry in stages) for stage in stages[0]},
        "report_seconds": reported,
        "report_bytes": report_bytes,
        "one_by_one": len(found.made_one_by_one),
        "code_bytes": streamed,
        "gigabytes_per_second": streamed / middle / 1e9,
        "giga_multiply_adds_per_second": len(pairs) * 2 * LAYERS**2 * UNITS / middle / 1e9,
        "findings": sum(pair.verdict == "shared-origin" for pair in (judged[n] for n in found.made_one_by_one)),
    }


def check(found: Comparisons, pairs: npt.NDArray[np.int64], own: ShapeClass) -> None:
    """Planted layer maps, and a sample of pairs against each compared alone; raises AssertionError."""
    expected = {(0, 1): [(layer, layer) for layer in range(LAYERS)]}
    expected[2, 3] = [(layer, LAYERS - 1 - layer) for layer in range(LAYERS)]
    number_of = {tuple(pair): number for number, pair in enumerate(pairs[:10_000].tolist())}
    for pair, layer_map in expected.items():
        if pair in number_of:
            assert [entry[:2] for entry in found[number_of[pair]].layer_map] == layer_map, pair
    for number in np.random.default_rng(0).choice(len(pairs), min(CHECKED, len(pairs)), replace=False).tolist():
        a, b = pairs[number].tolist()
        assert found[number] == compare_pair(fingerprint(own, a), fingerprint(own, b)), (a, b)


def peak_mib() -> float:
    """Peak resident memory of this process."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def in_memory(case: str, count: int, rounds: int) -> dict[str, Any]:
    """Codes that are in memory: one suspect against ``count``, or all pairs of ``count``."""
    own = synthetic(count + (case == "one"), seed=0, planted=True)
    before = peak_mib()
    row = measured(own, one_suspect(count) if case == "one" else all_pairs(count), rounds)
    return {**row, "synthetic_mib": before, "peak_mib": peak_mib()}


def suspect_of(own: ShapeClass) -> Fingerprint:
    """A relative of number 0 that is not among the references."""
    generator = np.random.default_rng(1)
    codes = tuple(related(channel[0], generator)[None] for channel in in_memory_codes(own))
    points = 0.02 + 0.005 * generator.random((1, own.points.shape[1]))
    return replace(fingerprint(replace(own, codes=codes, points=points), 0), name="suspect", path="/suspect")


def through_files(count: int, rounds: int, folder: Path) -> dict[str, Any]:
    """The whole way: ``count`` fingerprint files, their index built, opened and used by a scan of one suspect."""
    own = synthetic(count, seed=0, planted=False)
    store = folder / "store"
    store.mkdir()
    for row in range(count):
        (store / f"model-{row}{SUFFIX}").write_bytes(to_bytes(fingerprint(own, row)))
    (folder / f"suspect{SUFFIX}").write_bytes(to_bytes(suspect_of(own)))
    files = sum(file.stat().st_size for file in store.iterdir())
    del own
    before = peak_mib()
    started = time.perf_counter()
    fingerprints_below(store, sorted(store.iterdir()))
    build = time.perf_counter() - started
    options = ScanOptions((folder / f"suspect{SUFFIX}",), folder / "own-store", (store,))
    totals, stages = [], []
    for number in range(rounds + 1):
        started = time.perf_counter()
        report = scan(options)
        scanned = time.perf_counter()
        document = report_document(report)
        totals.append(time.perf_counter() - started)
        found = [pair for pair in report.comparisons if pair.verdict == "shared-origin"]
        assert [pair.b for pair in found] == ["model-0"], found
        assert [entry[:2] for entry in found[0].layer_map] == [(layer, layer) for layer in range(LAYERS)]
        assert len(document["pairs"]) == len(document["references"]) == count
        stages.append({"scan": scanned - started, "report": totals[-1] - (scanned - started)})
        if not number:
            totals.clear()
            stages.clear()
    index_bytes = sum(file.stat().st_size for file in cache_of(store).iterdir())
    middle = statistics.median(totals)
    return {
        "pairs": count,
        "seconds": middle,
        "rounds": rounds,
        "spread": [min(totals), max(totals)],
        "stages": {stage: statistics.median(entry[stage] for entry in stages) for stage in stages[0]},
        "code_bytes": index_bytes,
        "gigabytes_per_second": index_bytes / middle / 1e9,
        "giga_multiply_adds_per_second": count * 2 * LAYERS**2 * UNITS / middle / 1e9,
        "build_seconds": build,
        "index_bytes": index_bytes,
        "file_bytes": files,
        "synthetic_mib": before,
        "peak_mib": peak_mib(),
    }


def through_segments(count: int, rounds: int, folder: Path) -> dict[str, Any]:
    """Only the index: segments of ``count`` references written directly, opened and matched with one suspect. The
    fingerprint files are made when something is found in them."""
    paths, written = [], 0.0
    first = synthetic(min(SEGMENT_FILES, count), seed=0, planted=False)
    suspect, content = suspect_of(first), to_bytes(fingerprint(first, 0))
    digest = hashlib.sha256(content).hexdigest()
    del first
    for number, start in enumerate(range(0, count, SEGMENT_FILES)):
        own = synthetic(min(SEGMENT_FILES, count - start), seed=number, planted=False)
        entries = tuple(entry_of(row, start, digest) for row in range(len(own.members)))
        paths.append(folder / f"{number:06}{index_file.SUFFIX}")
        started = time.perf_counter()
        index_file.write(paths[-1], Segment(entries, (own,)))
        written += time.perf_counter() - started
    index.read_content = lambda path: content  # type: ignore[attr-defined]  # only number 0 is related to the suspect
    del own, entries
    before = peak_mib()
    totals, stages, cold = [], [], 0.0
    for number in range(rounds + 2):
        if not number:
            forget_pages(paths)
        watched = Stages()
        started = time.perf_counter()
        found = [
            light(Path("/no/such/file"), segment, place)
            for segment in map(index_file.read, paths)
            for place in range(len(segment.entries))
        ]
        opened = time.perf_counter()
        with watched.watch():
            judged = match([suspect, *found], one_suspect(count), ALPHA)
        total = time.perf_counter() - started
        assert [judged[at].b for at in np.flatnonzero(judged.figures.words <= 2).tolist()] == ["model-0"]
        spent = {"open": opened - started, **watched.seconds}
        if number > 1:
            totals.append(total)
            stages.append({**spent, "rest": total - sum(spent.values())})
        elif not number:
            cold = total
    middle = statistics.median(totals)
    size = sum(path.stat().st_size for path in paths)
    return {
        "pairs": count,
        "seconds": middle,
        "rounds": rounds,
        "spread": [min(totals), max(totals)],
        "cold_seconds": cold,
        "stages": {stage: statistics.median(entry[stage] for entry in stages) for stage in stages[0]},
        "code_bytes": size,
        "gigabytes_per_second": size / middle / 1e9,
        "giga_multiply_adds_per_second": count * 2 * LAYERS**2 * UNITS / middle / 1e9,
        "index_bytes": size,
        "write_seconds": written,
        "synthetic_mib": before,
        "peak_mib": peak_mib(),
    }


def entry_of(row: int, start: int, digest: str) -> Entry:
    """The entry of one synthetic reference."""
    name = f"model-{start + row}"
    source = SourceFile("model.safetensors", row, start, "safetensors", f"{start + row:064x}")
    light_one = Fingerprint(
        name, f"/models/{name}", "complete", None, None, (), {}, Coverage(LAYERS, LAYERS), (source,), Bytes(1, 1, 1)
    )
    return Entry(f"{name}{SUFFIX}", (1, start, start, row), digest, light_one, (), 4 * LAYERS, 0, ("bf16",))


def forget_pages(paths: list[Path]) -> None:
    """Write files out and drop them from the page cache, where the system lets us."""
    for path in paths if hasattr(os, "posix_fadvise") else ():
        with path.open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def child(case: str, count: int, rounds: int) -> dict[str, Any]:
    """One measurement, in this process."""
    with tempfile.TemporaryDirectory(dir=os.environ.get("WEIGHTPRINT_BENCH_DIRECTORY")) as name:
        os.environ["XDG_CACHE_HOME"] = f"{name}/cache"
        if case in ("one", "all"):
            row = in_memory(case, count, rounds)
        elif case == "files":
            row = through_files(count, rounds, Path(name))
        else:
            row = through_segments(count, rounds, Path(name))
    return {"case": case, "count": count, **row}


def in_own_process(*arguments: object) -> dict[str, Any]:
    """The row that this script prints in a process of its own."""
    command = [sys.executable, __file__, "--child", *map(str, arguments)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    row: dict[str, Any] = json.loads(done.stdout)
    return row


def processor() -> str:
    """The model of the processor, where the system says it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def machine() -> dict[str, Any]:
    """What the figures depend on beside the code."""
    return {
        "processor": processor(),
        "processors": processors(),
        "load_average": os.getloadavg(),
        "python": platform.python_version(),
        "numpy": np.__version__,
    }


def print_table(rows: list[dict[str, Any]]) -> None:
    """Rows for people."""
    head = f"{'case':>8} {'count':>8} {'pairs':>8} {'seconds':>8} {'GB/s':>6} {'GMAC/s':>7} {'peak':>9}"
    print(f"{head}   share of the time")
    for row in rows:
        shares = ", ".join(f"{stage} {100 * spent / row['seconds']:.0f} %" for stage, spent in row["stages"].items())
        print(
            f"{row['case']:>8} {row['count']:>8} {row['pairs']:>8} {row['seconds']:>8.3f} "
            f"{row['gigabytes_per_second']:>6.2f} {row['giga_multiply_adds_per_second']:>7.1f} "
            f"{row['peak_mib']:>5.0f} MiB   {shares}"
        )
        more = {
            "report_seconds": "s to write the pairs as JSON",
            "build_seconds": "s to build",
            "cold_seconds": "s with nothing in the page cache",
        }
        said = [f"{row[key]:.1f} {what}" for key, what in more.items() if key in row]
        if "index_bytes" in row:
            said.append(f"index of {row['index_bytes'] / 1e6:.1f} MB")
        print(" " * 18 + ", ".join(said))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--references", type=int, nargs="*", default=[100, 1000, 10_000], help="against one suspect")
    parser.add_argument("--all-pairs", type=int, nargs="*", default=[1000], help="compared with each other")
    parser.add_argument("--files", type=int, nargs="*", default=[1000], help="real fingerprint files, 0.3 MB each")
    parser.add_argument("--segments", type=int, nargs="*", default=[10_000], help="in the index alone, 66 KB each")
    parser.add_argument("--directory", help="where files are written and removed")
    parser.add_argument("--rounds", type=int, default=5, help="of which the median is taken")
    parser.add_argument("--json", action="store_true", help="figures as JSON instead of a table")
    parser.add_argument("--child", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        print(json.dumps(child(options.child[0], int(options.child[1]), int(options.child[2]))))
        return
    before = machine()
    cases = [("one", count, options.rounds) for count in options.references]
    cases += [("all", count, options.rounds) for count in options.all_pairs]
    cases += [("files", count, options.rounds) for count in options.files]
    cases += [("segments", count, options.rounds) for count in options.segments]
    if options.directory:
        os.environ["WEIGHTPRINT_BENCH_DIRECTORY"] = options.directory
    rows = [in_own_process(*case) for case in cases]
    if options.json:
        print(json.dumps({"rows": rows, "before": before, "after": machine()}, indent=1))
        return
    print(", ".join(f"{key} {value}" for key, value in before.items()))
    print_table(rows)


if __name__ == "__main__":
    main()
