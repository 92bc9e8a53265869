"""What is measured is what was asked for: bytes, values and files. How long it takes is no test's business."""

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from command_line import run, run_json
from weightprint.discover import discover
from weightprint.engine.choose import open_engine
from weightprint.errors import CheckpointError
from weightprint.fingerprint import read_structure
from weightprint.plan import Plan
from weightprint.throughput import reading
from weightprint.throughput.reading import (
    codes,
    copy_everything,
    evict,
    not_resident,
    read_everything,
    reduce_everything,
    spans_of,
)
from weightprint.throughput.synthetic import Shape, write_llama
from weightprint_kernels.layout import ITEMSIZE, UINT8
from weightprint_kernels.reference import value_table

SHAPE = Shape(hidden=128, key_value=64, feed_forward=96)
LAYERS = 4


@pytest.fixture
def plan(tmp_path: Path) -> Plan:
    """Of a checkpoint that was made for measuring."""
    attention = write_llama(tmp_path, SHAPE, LAYERS)
    (checkpoint,) = discover([tmp_path])
    plan = read_structure(checkpoint).plan
    assert plan.read == plan.selected == attention == LAYERS * SHAPE.attention_bytes()
    return plan


@pytest.mark.parametrize("threads", [1, 3])
def test_the_limit_looks_at_every_byte_that_is_read(plan: Plan, threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Once each, and nothing beside them."""
    seen: list[bytes] = []
    monkeypatch.setattr(reading, "read_words", lambda: lambda data: seen.append(data.tobytes()))
    read_everything(spans_of([plan]), threads)
    expected = [path.read_bytes()[first : first + size] for path, first, size in spans_of([plan])]
    assert sorted(seen) == sorted(expected)
    assert sum(map(len, seen)) == plan.read


def test_words_are_looked_at_with_and_without_numba(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both give the exclusive or of all words, so neither leaves one out."""
    data: UINT8 = np.random.default_rng(0).integers(0, 256, 80, np.uint8)
    expected = np.bitwise_xor.reduce(data.view(np.uint64))
    reading.read_words.cache_clear()
    assert reading.read_words()(data) == expected
    monkeypatch.setattr(reading, "numba_refusal", lambda: "numba is not installed")
    reading.read_words.cache_clear()
    assert reading.read_words()(data) == expected
    reading.read_words.cache_clear()


@pytest.mark.parametrize("threads", [1, 3])
def test_copying_reads_the_slots(plan: Plan, threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each into memory that is there already; a file that is cut off is named."""
    read: list[tuple[Path, int, bytes]] = []
    original = reading.read_slot

    def noted(slot: reading.Slot, descriptor: int, buffer: UINT8) -> None:
        original(slot, descriptor, buffer)
        read.append((slot.path, slot.offset, buffer.tobytes()))

    monkeypatch.setattr(reading, "read_slot", noted)
    copy_everything([plan], threads)
    assert sorted(read) == sorted(
        (path, first, path.read_bytes()[first : first + size]) for path, first, size in spans_of([plan])
    )
    os.truncate(plan.paths[0], 1000)
    with pytest.raises(CheckpointError) as failed:
        copy_everything([plan], threads)
    assert str(plan.paths[0]) in str(failed.value)


def test_evicting_and_reading_again(plan: Plan) -> None:
    """What was just written is cached; where the system drops it, a scan reads it all the same."""
    spans = spans_of([plan])
    assert not_resident(spans) == []
    evict(spans)
    assert set(not_resident(spans)) <= set(spans)
    with open_engine("cpu") as engine:
        (found,) = reduce_everything([plan], engine)
    assert found.bytes_read == plan.read
    assert len(found.moments) == len(plan.matrices)


@pytest.mark.parametrize("dtype", ITEMSIZE)
def test_weights_of_a_format_are_normal(dtype: str) -> None:
    """With the deviation that weights have; 8 bits hold numbers about one."""
    raw = codes(2**18, dtype)
    if dtype == "f32":
        values = raw.view(np.float32).astype(np.float64)
    else:
        width = {1: np.uint8, 2: np.uint16}[ITEMSIZE[dtype]]
        numbers = raw.view(width).astype(np.int64)
        magnitude = (1 << (8 * ITEMSIZE[dtype] - 1)) - 1
        values = np.where(numbers > magnitude, -1, 1) * value_table(dtype)[numbers & magnitude]
    assert np.isfinite(values).all()
    deviation = 0.02 if ITEMSIZE[dtype] > 1 else 1.0
    if dtype != "f8_e4m3":  # whose codes are those of E5M2, read otherwise
        assert values.std() == pytest.approx(deviation, rel=0.1)  # codes are cut, not rounded
    assert abs(values.mean()) < 0.05 * values.std()


def test_sparse_checkpoints_take_no_room(tmp_path: Path) -> None:
    """Of any size: what inspect is measured with."""
    write_llama(tmp_path, Shape(), 32, sparse=True)
    files = list(tmp_path.glob("*.safetensors"))
    assert sum(file.stat().st_size for file in files) > 10**10
    assert sum(file.stat().st_blocks for file in files) * 512 < 10**7


def test_bench_reads_what_it_is_given(tmp_path: Path) -> None:
    """Its checkpoints stay as they were, and what it prints for machines and people names them."""
    (tmp_path / "checkpoint").mkdir()
    write_llama(tmp_path / "checkpoint", SHAPE, LAYERS)
    before = {path: path.read_bytes() for path in sorted((tmp_path / "checkpoint").iterdir())}
    document = run_json("bench", str(tmp_path / "checkpoint"), "--device", "cpu", "--json")
    assert document["reading"]["size"] == LAYERS * SHAPE.attention_bytes()
    assert document["reading"]["checkpoints"] == 1
    assert {entry["dtype"] for entry in document["kernels"]} == {"bf16", "f8_e4m3"}
    assert all(entry["gigabytes_per_second"] > 0 for entry in document["kernels"])
    assert {path: path.read_bytes() for path in sorted((tmp_path / "checkpoint").iterdir())} == before


def test_a_file_that_shrinks_under_the_limit_is_named(plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before it is mapped, and while it is looked at."""
    path, spans, size = plan.paths[0], spans_of([plan]), plan.paths[0].stat().st_size
    reading.read_words()

    def shrink(data: UINT8) -> None:
        os.truncate(path, 5000)
        data.sum()

    with monkeypatch.context() as patch, pytest.raises(CheckpointError, match=r"model-00001.*became shorter"):
        patch.setattr(reading, "read_words", lambda: shrink)
        read_everything(spans, 1)
    for left in (5000, 0):
        os.truncate(path, left)
        with pytest.raises(CheckpointError, match=r"model-00001.*became shorter"):
            read_everything(spans, 1)
    assert size > 5000


@pytest.mark.parametrize("name", ["WEIGHTPRINT_THREADS", "WEIGHTPRINT_SLOT_MIB"])
def test_bench_with_a_bad_setting_says_so(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is no fault of the checkpoints."""
    monkeypatch.setenv(name, "x")
    assert f"{name} is 'x'" in run("bench", str(tmp_path), expect=2).stderr


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_bench_of_a_device_that_is_not_there_says_so(tmp_path: Path) -> None:
    write_llama(tmp_path, SHAPE, LAYERS)
    assert "E_DEVICE" in run("bench", str(tmp_path), "--device", "cuda", expect=2).stderr


def test_bench_says_what_is_wrong_with_the_only_checkpoint(tmp_path: Path) -> None:
    """And of several, which were left out."""
    write_llama(tmp_path, SHAPE, LAYERS)
    (weights,) = tmp_path.glob("*.safetensors")
    (tmp_path / "good").mkdir()
    write_llama(tmp_path / "good", SHAPE, LAYERS)
    os.truncate(weights, 1000)
    done = run("bench", str(tmp_path), "--device", "cpu")
    assert "left out: " in done.stderr and "fetch the file again" in done.stderr
    assert "too little to say what a night could scan" in done.stdout
    shutil.rmtree(tmp_path / "good")
    assert "fetch the file again" in run("bench", str(tmp_path), "--device", "cpu", expect=3).stderr


def test_bench_without_checkpoints_says_so(tmp_path: Path) -> None:
    """As a scan does."""
    done = run("bench", str(tmp_path), "--device", "cpu", expect=11)
    assert str(tmp_path) in done.stderr
