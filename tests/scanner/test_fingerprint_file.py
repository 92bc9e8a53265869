"""The .weightprint file: nothing lost, canonical bytes, every flipped bit found, old files readable."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from fingerprints import same, small_fingerprint
from safetensors import safe_open

from weightprint.data import Coverage
from weightprint.errors import StoreError
from weightprint.fingerprint_file import from_bytes, read_fingerprint, to_bytes, to_document

GOLDEN = Path(__file__).parent / "golden" / "version-1.weightprint"
HERE = Path("x.weightprint")


def test_nothing_is_lost() -> None:
    fingerprint = small_fingerprint()
    assert same(from_bytes(to_bytes(fingerprint), HERE), fingerprint)


def test_empty_fingerprint_round_trips() -> None:
    empty = replace(small_fingerprint(), matrices=(), energies={}, notices=(), coverage=Coverage(0, 0), status="failed")
    assert same(from_bytes(to_bytes(empty), HERE), empty)


def test_hostile_names_round_trip() -> None:
    hostile = replace(small_fingerprint(), name='\x1b[31m"\\\n\udcff../é', reason="<script>")
    assert same(from_bytes(to_bytes(hostile), HERE), hostile)


def test_same_fingerprint_gives_same_bytes() -> None:
    assert to_bytes(small_fingerprint()) == to_bytes(small_fingerprint())


def test_any_safetensors_tool_opens_it(tmp_path: Path) -> None:
    path = tmp_path / "a.weightprint"
    path.write_bytes(to_bytes(small_fingerprint()))
    with safe_open(path, framework="numpy") as file:
        assert file.get_tensor("moments").shape == (8, 8)
        assert file.get_tensor("moments").dtype == np.float64
        assert file.get_tensor("energies").dtype == np.float32
        document = json.loads(file.metadata()["weightprint"])
    assert document["schema"] == "weightprint.fingerprint/1"
    assert document["matrices"][0]["std"] == small_fingerprint().matrices[0].std


def test_golden_file_of_version_1_stays_readable() -> None:
    assert same(read_fingerprint(GOLDEN), small_fingerprint())


def test_golden_bytes_are_what_is_written() -> None:
    assert to_bytes(small_fingerprint()) == GOLDEN.read_bytes()


@pytest.mark.parametrize("bit", range(8))
def test_every_flipped_bit_is_found(bit: int) -> None:
    content = to_bytes(replace(small_fingerprint(), matrices=small_fingerprint().matrices[:1]))
    for position in range(len(content)):
        flipped = bytearray(content)
        flipped[position] ^= 1 << bit
        with pytest.raises(StoreError) as caught:
            from_bytes(bytes(flipped), HERE)
        assert caught.value.code in ("E_FINGERPRINT_CORRUPT", "E_FINGERPRINT_VERSION")


@pytest.mark.parametrize("length", [0, 7, 8, 100, -1])
def test_truncated_file_is_found(length: int) -> None:
    with pytest.raises(StoreError) as caught:
        from_bytes(to_bytes(small_fingerprint())[:length], HERE)
    assert caught.value.code == "E_FINGERPRINT_CORRUPT"
    assert caught.value.path == str(HERE)


def test_newer_version_is_refused_by_name() -> None:
    content = to_bytes(small_fingerprint())
    newer = content.replace(b"weightprint.fingerprint/1", b"weightprint.fingerprint/2")
    with pytest.raises(StoreError, match="newer version") as caught:
        from_bytes(newer, HERE)
    assert caught.value.code == "E_FINGERPRINT_VERSION"


def test_document_is_plain_json() -> None:
    text = json.dumps(to_document(small_fingerprint()), allow_nan=False)
    document = json.loads(text)
    assert document["matrices"][1]["skewness"] is None
    assert document["not_understood"][0]["code"] == "E_NOT_UNDERSTOOD"
    assert set(document["bytes"]) == {"files", "selected", "read"}
