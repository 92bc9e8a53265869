"""Which files of a directory are weights and which belong together: told by names and indices, nothing opened."""

import json
import os
from pathlib import Path

import pytest

from weightprint.errors import CheckpointError
from weightprint.weight_files import Sorted, read_json_object, refusal, sort_files

INDEX = "model.safetensors.index.json"


def sort_names(directory: Path, *names: str) -> Sorted:
    """Sort one-byte files of these names."""
    for name in names:
        (directory / name).write_bytes(b"x")
    return sort_here(directory)


def sort_here(directory: Path) -> Sorted:
    return sort_files(directory, sorted(directory.iterdir()))


def write_index(directory: Path, weight_map: object, name: str = INDEX) -> Path:
    path = directory / name
    path.write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return path


def codes(found: Sorted) -> list[str]:
    return [notice.code for entry in found.sets for notice in entry.missing]


def files_of(found: Sorted) -> list[list[str]]:
    """The file names of each set, best first."""
    return [[path.name for path in entry.files] for entry in found.sets]


@pytest.mark.parametrize(
    "name", ["model.safetensors", "pytorch_model.bin", "a.pt", "consolidated.00.pth", "epoch=3-step=9.ckpt", "é.bin"]
)
def test_weight_files_are_told_by_suffix(tmp_path: Path, name: str) -> None:
    found = sort_names(tmp_path, name, "config.json", "README.md", "vocab.txt", "model.safetensors.lock")
    assert files_of(found) == [[name]]
    assert (found.side, found.refused) == ((), ())


@pytest.mark.parametrize(
    "name",
    [
        "optimizer.pt",
        "optimizer.bin",
        "optimizer_0.bin",
        "optim.pth",
        "training_args.bin",
        "scheduler.pt",
        "scaler.pt",
        "rng_state.pth",
        "rng_state_3.pth",
        "random_states_0.pth",
        "trainer_state.pt",
        "tokenizer.bin",
        "vocab.bin",
        "model_optim.safetensors",
        "step10-optimizer-00001-of-00002.pt",
        "bf16_zero_pp_rank_0_mp_rank_00_optim_states.pt",
        "._model.safetensors",
    ],
)
def test_side_files_are_set_aside_with_the_reason(tmp_path: Path, name: str) -> None:
    found = sort_names(tmp_path, name)
    assert found.sets == ()
    assert found.side == ((tmp_path / name, "holds no weights by its name"),)


@pytest.mark.parametrize("name", ["optimus-model.safetensors", "my_tokenizer_model.bin", "sampler.pt"])
def test_names_that_only_resemble_side_files_are_weights(tmp_path: Path, name: str) -> None:
    assert files_of(sort_names(tmp_path, name)) == [[name]]


@pytest.mark.parametrize(
    ("name", "what"),
    [
        ("model.Q8_0.gguf", "GGUF"),
        ("tf_model.h5", "Keras"),
        ("model.weights.hdf5", "Keras"),
        ("any.keras", "Keras"),
        ("flax_model.msgpack", "Flax"),
        ("params.npz", "numpy"),
        ("decoder.onnx", "ONNX"),
        ("model.tflite", "TFLite"),
        ("model.nemo", "NeMo"),
        ("bert_model.ckpt.data-00000-of-00001", "TensorFlow"),
        ("saved_model.pb", "TensorFlow"),
        ("__0_0.distcp", "distributed"),
        ("rust_model.ot", "rust-bert"),
    ],
)
def test_refused_formats_say_what_they_are_and_what_to_do(tmp_path: Path, name: str, what: str) -> None:
    found = sort_names(tmp_path, name)
    assert found.sets == ()
    ((path, reason),) = found.refused
    assert path.name == name
    assert what in reason
    assert "not read" in reason
    assert any(remedy in reason for remedy in ("scan the", "convert", "unpack"))


@pytest.mark.parametrize("name", ["dataset.h5", "states.npz", "cache.msgpack", "config.json", "onnx"])
def test_other_data_is_no_weight_file(name: str) -> None:
    assert refusal(Path(name)) is None


def test_openvino_is_told_by_the_file_beside_it(tmp_path: Path) -> None:
    found = sort_names(tmp_path, "openvino_model.bin", "openvino_model.xml")
    assert found.sets == ()
    assert "OpenVINO" in found.refused[0][1]


def test_one_parallel_shard_is_read_and_several_are_refused(tmp_path: Path) -> None:
    assert files_of(sort_names(tmp_path, "consolidated.00.pth")) == [["consolidated.00.pth"]]
    found = sort_names(tmp_path, "consolidated.01.pth")
    assert found.sets == ()
    assert [path.name for path, _ in found.refused] == ["consolidated.00.pth", "consolidated.01.pth"]


@pytest.mark.parametrize(
    ("names", "first"),
    [
        (("model.safetensors", "pytorch_model.bin"), "model.safetensors"),
        (("pytorch_model.bin", "model.fp16.safetensors"), "model.fp16.safetensors"),
        (("model.safetensors", "model.fp16.safetensors"), "model.safetensors"),
        (("adapter_model.safetensors", "pytorch_model.bin"), "pytorch_model.bin"),
        (("consolidated.safetensors", "model-00001-of-00001.safetensors"), "model-00001-of-00001.safetensors"),
        (("diffusion_pytorch_model.bin", "diffusion_pytorch_model.safetensors"), "diffusion_pytorch_model.safetensors"),
        (("zzz.safetensors", "pytorch_model.bin"), "zzz.safetensors"),
    ],
    ids=lambda value: value if isinstance(value, str) else "-and-".join(value),
)
def test_what_is_read_first(tmp_path: Path, names: tuple[str, ...], first: str) -> None:
    assert files_of(sort_names(tmp_path, *names))[0] == [first]


def test_a_file_that_cannot_be_opened_is_read_last(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "model.safetensors")
    assert files_of(sort_names(tmp_path, "pytorch_model.bin")) == [["pytorch_model.bin"], ["model.safetensors"]]


@pytest.mark.parametrize("pattern", ["model-{:05}-of-00003.safetensors", "pytorch_model_{:02}_of_03.bin"])
def test_numbered_shards_are_one_set(tmp_path: Path, pattern: str) -> None:
    names = [pattern.format(number) for number in (1, 2, 3)]
    found = sort_names(tmp_path, *names)
    assert files_of(found) == [names]
    assert codes(found) == []


def test_shards_may_count_from_zero(tmp_path: Path) -> None:
    found = sort_names(tmp_path, "model-00000-of-00002.safetensors", "model-00001-of-00002.safetensors")
    assert codes(found) == []


def test_missing_numbers_are_named(tmp_path: Path) -> None:
    found = sort_names(tmp_path, "model-00002-of-00003.safetensors")
    assert [(notice.code, notice.path) for notice in found.sets[0].missing] == [
        ("E_SHARD_MISSING", str(tmp_path / f"model-0000{number}-of-00003.safetensors")) for number in (1, 3)
    ]


def test_a_file_that_claims_many_siblings_costs_no_memory(tmp_path: Path) -> None:
    found = sort_names(tmp_path, "model-000001-of-999999.safetensors")
    notices = found.sets[0].missing
    assert len(notices) < 100
    assert "999" in notices[-1].reason


def test_shards_spelled_in_two_ways_are_both_kept(tmp_path: Path) -> None:
    names = ["a-00001-of-00002.bin", "a-01-of-00002.bin", "a_00001_of_00002.bin"]
    found = sort_names(tmp_path, *names)
    assert sorted(file for files in files_of(found) for file in files) == names


def test_index_decides_which_files_are_one(tmp_path: Path) -> None:
    write_index(tmp_path, {"a": "one.safetensors", "b": "two.safetensors", "c": "one.safetensors"})
    found = sort_names(tmp_path, "one.safetensors", "two.safetensors")
    assert files_of(found) == [["one.safetensors", "two.safetensors"]]
    assert found.sets[0].weight_map == {
        "a": tmp_path / "one.safetensors",
        "b": tmp_path / "two.safetensors",
        "c": tmp_path / "one.safetensors",
    }


def test_index_names_a_shard_that_is_not_there(tmp_path: Path) -> None:
    write_index(tmp_path, {"a": "one.safetensors", "b": "two.safetensors"})
    found = sort_names(tmp_path, "one.safetensors")
    assert [(notice.code, notice.path) for notice in found.sets[0].missing] == [
        ("E_SHARD_MISSING", str(tmp_path / "two.safetensors"))
    ]
    assert found.sets[0].weight_map == {"a": tmp_path / "one.safetensors"}


@pytest.mark.parametrize(
    "named",
    ["../one.safetensors", "/etc/passwd", "sub/one.safetensors", "..", ".", "", "a\\b", "a\0b", "\ud800"],
    ids=repr,
)
def test_index_leads_nowhere_else(tmp_path: Path, named: str) -> None:
    index = write_index(tmp_path, {"a": "one.safetensors", "b": named})
    (tmp_path / "sub").mkdir()
    found = sort_names(tmp_path, "one.safetensors", "sub/one.safetensors")
    assert files_of(found)[0] == ["one.safetensors"]
    (notice,) = found.sets[0].missing
    assert (notice.code, notice.path) == ("E_INDEX_ESCAPE", str(index))
    assert "\ud800" not in notice.reason


def test_a_file_that_the_index_names_is_not_set_aside_too(tmp_path: Path) -> None:
    write_index(tmp_path, {"a": "optimizer.bin", "b": "model.gguf"})
    found = sort_names(tmp_path, "optimizer.bin", "model.gguf")
    assert files_of(found) == [["model.gguf", "optimizer.bin"]]
    assert (found.side, found.refused) == ((), ())


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b"\xff\xfe\xff",
        b"[" * 100_000,
        b"{}",
        b'{"weight_map": {}}',
        b'{"weight_map": []}',
        b'{"weight_map": null}',
        b'{"weight_map": "one.safetensors"}',
        b'{"weight_map": {"a": 1}}',
        b'{"weight_map": {"a": null}}',
        b'{"weight_map": {"a": ["one.safetensors"]}}',
        b'{"weight_map": {"\\ud800": "one.safetensors"}}',
        b'{"weight_map": {"a": "one.safetensors", "a": "two.safetensors"}}',
        b'{"weight_map": {"a": "one.safetensors"}, "weight_map": {"a": "two.safetensors"}}',
        b'{"weight_map": {"a": ' + b"9" * 5000 + b"}}",
    ],
    ids=lambda content: repr(content[:60])[2:-1],
)
def test_unusable_index_is_named_and_the_shards_are_read_all_the_same(tmp_path: Path, content: bytes) -> None:
    index = tmp_path / INDEX
    index.write_bytes(content)
    names = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    found = sort_names(tmp_path, *names)
    assert files_of(found) == [names]
    (notice,) = found.sets[0].missing
    assert (notice.code, notice.path) == ("E_INDEX_INVALID", str(index))
    assert "\n" not in notice.reason
    assert len(notice.reason) < 200


def test_unusable_index_without_shards_is_named(tmp_path: Path) -> None:
    (tmp_path / INDEX).write_text("{")
    assert codes(sort_here(tmp_path)) == ["E_INDEX_INVALID"]


def test_index_that_is_a_pipe_blocks_nothing(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / INDEX)
    found = sort_names(tmp_path, "model.safetensors")
    assert files_of(found) == [["model.safetensors"]]
    assert codes(found) == ["E_INDEX_INVALID"]


def test_index_that_leads_nowhere(tmp_path: Path) -> None:
    (tmp_path / INDEX).symlink_to("missing")
    assert codes(sort_names(tmp_path, "model.safetensors")) == ["E_INDEX_INVALID"]


def test_json_object_is_read_with_a_byte_order_mark(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(b'\xef\xbb\xbf{"a": 1}')
    assert read_json_object(path, "E_CONFIG_INVALID", 100) == {"a": 1}


def test_large_json_is_refused_by_its_size_alone(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text(json.dumps({"a": "x" * 200}))
    with pytest.raises(CheckpointError, match="limit 100") as caught:
        read_json_object(path, "E_CONFIG_INVALID", 100)
    assert (caught.value.code, caught.value.path) == ("E_CONFIG_INVALID", str(path))
