"""Discovery: every checkpoint once, under one name, whatever the tree looks like; nothing opened, nothing unsaid."""

import json
import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from weightprint.data import Checkpoint
from weightprint.discover import MAX_CONFIG, discover
from weightprint.errors import UsageError
from weightprint.formats import read_headers
from weightprint.weight_files import SIDE_FILES, SUFFIXES, refusal


def plant(root: Path, *names: str) -> None:
    """One-byte files at these relative paths."""
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")


def files_by_name(checkpoints: Iterable[Checkpoint]) -> dict[str, list[str]]:
    return {found.name: [path.name for path in found.files] for found in checkpoints}


def codes(checkpoint: Checkpoint) -> list[str]:
    return [notice.code for notice in checkpoint.notices]


def only(root: Path) -> Checkpoint:
    (found,) = discover([root])
    return found


def test_a_directory_with_weights_is_one_checkpoint(tmp_path: Path) -> None:
    plant(tmp_path / "org/llama", "model.safetensors", "config.json", "tokenizer.json")
    found = only(tmp_path)
    assert (found.name, found.path) == ("org/llama", tmp_path / "org/llama")
    assert found.files == (tmp_path / "org/llama/model.safetensors",)
    assert found.set_aside == ()


def test_a_scanned_checkpoint_has_its_own_last_part_as_name(tmp_path: Path) -> None:
    plant(tmp_path / "llama", "model.safetensors")
    assert only(tmp_path / "llama").name == "llama"


def test_a_lone_file_is_one_checkpoint(tmp_path: Path) -> None:
    plant(tmp_path, "a/model.safetensors", "a/pytorch_model.bin")
    found = only(tmp_path / "a/pytorch_model.bin")
    assert (found.name, found.path, found.files) == ("pytorch_model.bin", found.files[0], (found.path,))


def test_both_formats_of_a_model_count_once(tmp_path: Path) -> None:
    plant(tmp_path / "a", "model.safetensors", "pytorch_model.bin", "optimizer.pt", "tf_model.h5")
    found = only(tmp_path)
    assert found.files == (tmp_path / "a/model.safetensors",)
    assert {path.name: reason.split(",")[0] for path, reason in found.set_aside} == {
        "pytorch_model.bin": "model.safetensors is read instead",
        "optimizer.pt": "holds no weights by its name",
        "tf_model.h5": "is a Keras file",
    }


@pytest.mark.parametrize("indexed", [True, False], ids=["index", "no-index"])
def test_shards_are_one_checkpoint(tmp_path: Path, indexed: bool) -> None:
    names = [f"model-0000{number}-of-00003.safetensors" for number in (1, 2, 3)]
    plant(tmp_path / "a", *names, "pytorch_model-00001-of-00001.bin")
    if indexed:
        weight_map = {f"t{number}": name for number, name in enumerate(names)}
        (tmp_path / "a/model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    found = only(tmp_path)
    assert [path.name for path in found.files] == names
    assert (found.weight_map is not None) == indexed
    assert found.notices == ()


def test_several_lone_files_are_checkpoints_of_their_own(tmp_path: Path) -> None:
    plant(tmp_path / "loras", "a.safetensors", "b.pt", "a.bin", "c-00001-of-00002.pt", "c-00002-of-00002.pt")
    found = discover([tmp_path])
    assert files_by_name(found) == {
        "loras/a.safetensors": ["a.safetensors"],
        "loras/b.pt": ["b.pt"],
        "loras/c-00001-of-00002.pt": ["c-00001-of-00002.pt", "c-00002-of-00002.pt"],
    }
    assert found[0].set_aside == ((tmp_path / "loras/a.bin", "a.safetensors is read instead"),)


def test_a_refused_file_among_lone_files_is_a_failure_of_its_own(tmp_path: Path) -> None:
    plant(tmp_path, "a.safetensors", "b.pt", "b.gguf", "c.gguf", "d.onnx", "optimizer.pt")
    found = {checkpoint.name: checkpoint for checkpoint in discover([tmp_path])}
    assert {name: [path.name for path, _ in checkpoint.set_aside] for name, checkpoint in found.items()} == {
        "a.safetensors": ["optimizer.pt"],
        "b.pt": ["b.gguf"],
        "c.gguf": ["c.gguf", "d.onnx"],
    }
    assert codes(found["c.gguf"]) == ["E_FORMAT_REFUSED", "E_FORMAT_REFUSED"]


def test_names_stay_unique_when_an_index_bears_the_name_of_a_file(tmp_path: Path) -> None:
    plant(tmp_path, "a.safetensors", "b.safetensors", "a.safetensors.bin.index.json")
    found = discover([tmp_path])
    assert len({checkpoint.name for checkpoint in found}) == len({checkpoint.path for checkpoint in found}) == 3


def test_side_files_alone_are_no_checkpoint(tmp_path: Path) -> None:
    plant(tmp_path, "a/optimizer.pt", "a/training_args.bin", "a/README.md")
    assert discover([tmp_path]) == ()


@pytest.mark.parametrize("name", ["model.gguf", "tf_model.h5", "flax_model.msgpack", "model.onnx", "model.npz"])
def test_refused_format_alone_fails_with_the_reason(tmp_path: Path, name: str) -> None:
    plant(tmp_path, f"a/{name}")
    for root in (tmp_path, tmp_path / "a" / name):
        found = only(root)
        assert (found.files, codes(found)) == ((), ["E_FORMAT_REFUSED"])
        assert found.notices[0].path == str(tmp_path / "a" / name)
        assert [path.name for path, _ in found.set_aside] == [name]


def test_side_files_beside_refused_ones_are_accounted_for(tmp_path: Path) -> None:
    plant(tmp_path, "model.gguf", "optimizer.pt")
    assert [path.name for path, _ in only(tmp_path).set_aside] == ["optimizer.pt", "model.gguf"]


def test_an_export_below_a_readable_checkpoint_belongs_to_it(tmp_path: Path) -> None:
    plant(tmp_path, "a/model.safetensors", "a/onnx/model.onnx", "a/onnx/deep/model.tflite", "b/model.onnx")
    first, second = discover([tmp_path])
    assert {path.name for path, _ in first.set_aside} == {"model.onnx", "model.tflite"}
    assert (second.name, codes(second)) == ("b", ["E_FORMAT_REFUSED"])


def test_a_checkpoint_below_a_checkpoint_is_its_own(tmp_path: Path) -> None:
    plant(tmp_path, "run/model.safetensors", "run/checkpoint-10/model.safetensors", "run/checkpoint-10/optimizer.pt")
    assert set(files_by_name(discover([tmp_path]))) == {"run", "run/checkpoint-10"}


@pytest.fixture
def hub_cache(tmp_path: Path) -> Path:
    """Two revisions of one model as the hub's cache keeps them, one file in common."""
    model = tmp_path / "hub/models--org--name"
    plant(model, "blobs/aaa", "blobs/bbb", "blobs/ccc", "refs/main")
    (model / "blobs/ddd").write_text('{"hidden_size": 64}')
    for revision, blob in (("rev1", "bbb"), ("rev2", "ccc")):
        snapshot = model / "snapshots" / revision
        snapshot.mkdir(parents=True)
        (snapshot / "model-00001-of-00002.safetensors").symlink_to("../../blobs/aaa")
        (snapshot / "model-00002-of-00002.safetensors").symlink_to(f"../../blobs/{blob}")
        (snapshot / "config.json").symlink_to("../../blobs/ddd")
    return tmp_path / "hub"


def test_hub_cache(hub_cache: Path) -> None:
    shards = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    found = discover([hub_cache])
    assert files_by_name(found) == {f"models--org--name/snapshots/rev{number}": shards for number in (1, 2)}
    assert all(checkpoint.config == {"hidden_size": 64} for checkpoint in found)
    assert all(path.is_symlink() for checkpoint in found for path in checkpoint.files)
    assert not any(checkpoint.notices or checkpoint.set_aside for checkpoint in found)


def test_evicted_blob_of_the_hub_cache_is_a_link_that_leads_nowhere(hub_cache: Path) -> None:
    (hub_cache / "models--org--name/blobs/bbb").unlink()
    first, second = discover([hub_cache])
    assert (codes(first), codes(second)) == (["E_DANGLING_LINK"], [])
    assert first.notices[0].path == str(first.path / "model-00002-of-00002.safetensors")
    assert len(first.files) == 1


def test_link_to_a_directory_is_followed_once(tmp_path: Path) -> None:
    plant(tmp_path, "outside/model.safetensors")
    for name in ("one", "two"):
        (tmp_path / "tree" / name).mkdir(parents=True)
        (tmp_path / "tree" / name / "link").symlink_to(tmp_path / "outside")
    assert set(files_by_name(discover([tmp_path / "tree"]))) == {"one/link"}


def test_a_directory_goes_by_its_real_name_where_it_has_one(tmp_path: Path) -> None:
    plant(tmp_path, "z-real/model.safetensors")
    (tmp_path / "a-link").symlink_to("z-real")
    assert set(files_by_name(discover([tmp_path]))) == {"z-real"}


@pytest.mark.parametrize("target", [".", "..", "../..", "/", "loop/loop", "deep/back"])
def test_loops_of_links_end(tmp_path: Path, target: str) -> None:
    plant(tmp_path, "tree/a/model.safetensors")
    (tmp_path / "tree/a/loop").symlink_to(target)
    (tmp_path / "tree/a/deep").mkdir()
    (tmp_path / "tree/a/deep/back").symlink_to("../loop")
    assert set(files_by_name(discover([tmp_path / "tree"]))) == {"a"}


def test_a_weight_file_in_a_ring_of_links_is_named(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").symlink_to("other")
    (tmp_path / "other").symlink_to("model.safetensors")
    assert codes(only(tmp_path)) == ["E_DANGLING_LINK"]


@pytest.mark.parametrize("whole", [True, False], ids=["alone", "by-path"])
def test_a_pipe_is_named_and_blocks_nothing(tmp_path: Path, whole: bool) -> None:
    pipe = tmp_path / "model.safetensors"
    os.mkfifo(pipe)
    os.mkfifo(tmp_path / "config.json")
    found = only(tmp_path if whole else pipe)
    assert (found.files, codes(found)) == ((), ["E_NOT_REGULAR", "E_CONFIG_INVALID"])
    assert found.notices[0].path == str(pipe)
    assert read_headers(found).tensors == ()


def test_an_empty_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").touch()
    found = only(tmp_path)
    assert (found.files, codes(found)) == ((), ["E_EMPTY_FILE"])


def test_a_directory_where_the_index_names_a_file(tmp_path: Path) -> None:
    (tmp_path / "one.safetensors").mkdir()
    (tmp_path / "model.safetensors.index.json").write_text('{"weight_map": {"a": "one.safetensors"}}')
    found = only(tmp_path)
    assert (found.files, codes(found), found.weight_map) == ((), ["E_NOT_REGULAR"], {})


def test_a_directory_that_cannot_be_listed_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plant(tmp_path, "a/model.safetensors", "secret/model.safetensors", "z/model.safetensors")
    scandir = os.scandir

    def refuse(path: Path) -> object:
        if path == tmp_path / "secret":
            raise PermissionError(13, "Permission denied")
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    assert {found.name: codes(found) for found in discover([tmp_path])} == {
        "a": [],
        "secret": ["E_UNREADABLE"],
        "z": [],
    }


@pytest.mark.skipif(os.geteuid() == 0, reason="root can read everything")
def test_an_unreadable_directory_is_named(tmp_path: Path) -> None:
    plant(tmp_path, "secret/model.safetensors")
    (tmp_path / "secret").chmod(0)
    try:
        assert codes(only(tmp_path)) == ["E_UNREADABLE"]
    finally:
        (tmp_path / "secret").chmod(0o700)


@pytest.mark.parametrize("name", ["new\nline", "esc\x1b[31m", "\udcff", "a" * 255, "* [?]", " "], ids=ascii)
def test_strange_names_are_kept(tmp_path: Path, name: str) -> None:
    plant(tmp_path / name, "model.safetensors")
    assert only(tmp_path).name == name


def test_a_path_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no such file") as caught:
        discover([tmp_path, tmp_path / "missing"])
    assert (caught.value.code, caught.value.path) == ("E_NOT_FOUND", str(tmp_path / "missing"))


def test_a_link_that_leads_nowhere_is_a_failed_checkpoint(tmp_path: Path) -> None:
    (tmp_path / "model.bin").symlink_to("missing")
    assert codes(only(tmp_path / "model.bin")) == ["E_DANGLING_LINK"]


@pytest.mark.parametrize(
    "paths",
    [
        ["m", "m"],
        ["m", "m/a"],
        ["m/a", "m"],
        ["m/a/model.bin", "m"],
        ["m", "m/../m"],
        ["m", "l"],
        ["l", "m"],
        ["m/", "m/."],
    ],
    ids=" ".join,
)
def test_overlapping_paths_give_each_checkpoint_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, paths: Sequence[str]
) -> None:
    plant(tmp_path, "m/a/model.bin", "m/b/model.bin")
    (tmp_path / "l").symlink_to("m")
    monkeypatch.chdir(tmp_path)
    found = discover([Path(path) for path in paths])
    assert sorted(checkpoint.files[0].resolve().parent.name for checkpoint in found) == ["a", "b"]


def test_names_of_several_paths_are_unique(tmp_path: Path) -> None:
    roots = ["x/models", "y/models", "z/models/a"]
    for root in roots[:2]:
        plant(tmp_path / root, "a/model.bin", "models/a/model.bin")
    plant(tmp_path / roots[2], "model.bin")
    found = discover([tmp_path / root for root in roots])
    names = {checkpoint.name: checkpoint.path.relative_to(tmp_path).as_posix() for checkpoint in found}
    assert len(names) == len(found) == 5
    assert all(path.endswith(name) or name.endswith(path) for name, path in names.items())


def test_lone_files_of_one_name_are_told_apart_by_their_directories(tmp_path: Path) -> None:
    plant(tmp_path, "a/model.bin", "b/model.bin")
    found = discover([tmp_path / "a/model.bin", tmp_path / "b/model.bin"])
    assert [checkpoint.name for checkpoint in found] == ["a/model.bin", "b/model.bin"]


def test_a_name_that_stands_once_stays_short(tmp_path: Path) -> None:
    plant(tmp_path, "x/a/model.bin", "x/b/model.bin", "y/a/model.bin")
    found = discover([tmp_path / "x", tmp_path / "y"])
    assert [checkpoint.name for checkpoint in found] == ["b", "x/a", "y/a"]


@pytest.mark.parametrize(
    ("include", "exclude", "expected"),
    [
        ([], [], ["a/one", "a/two", "b/one"]),
        (["a/*"], [], ["a/one", "a/two"]),
        (["*/one", "a/t*"], ["b/*"], ["a/one", "a/two"]),
        ([], ["*one"], ["a/two"]),
        (["A/*"], [], []),
        (["one"], [], []),
        (["[ab]/one"], [], ["a/one", "b/one"]),
    ],
)
def test_globs_on_names(tmp_path: Path, include: list[str], exclude: list[str], expected: list[str]) -> None:
    plant(tmp_path, "a/one/model.bin", "a/two/model.bin", "b/one/model.bin")
    assert [found.name for found in discover([tmp_path], include, exclude)] == expected


def test_absent_config_is_no_fault(tmp_path: Path) -> None:
    plant(tmp_path, "model.safetensors")
    found = only(tmp_path)
    assert (found.config, found.notices) == ({}, ())


def test_config_of_a_lone_file_lies_beside_it(tmp_path: Path) -> None:
    plant(tmp_path, "model.safetensors")
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    assert only(tmp_path / "model.safetensors").config == {"model_type": "llama"}


@pytest.mark.parametrize(
    "content",
    [b"", b"{not json", b"[]", b"1", b"\xff\xfe", b"[" * 100_000],
    ids=lambda content: repr(content[:20])[2:-1],
)
def test_unusable_config_is_named_and_left_out(tmp_path: Path, content: bytes) -> None:
    plant(tmp_path, "model.safetensors")
    (tmp_path / "config.json").write_bytes(content)
    found = only(tmp_path)
    assert (found.config, codes(found)) == ({}, ["E_CONFIG_INVALID"])
    assert found.notices[0].path == str(tmp_path / "config.json")
    assert len(found.files) == 1


def test_huge_config_is_not_read(tmp_path: Path) -> None:
    plant(tmp_path, "model.safetensors")
    with (tmp_path / "config.json").open("wb") as file:
        file.write(b"{}".ljust(MAX_CONFIG + 1))
    found = only(tmp_path)
    assert codes(found) == ["E_CONFIG_INVALID"]
    assert "limit" in found.notices[0].reason


NAMES = [
    *(
        "model.safetensors",
        "model.fp16.safetensors",
        "pytorch_model.bin",
        "adapter_model.bin",
        "a.safetensors",
        "a.bin",
    ),
    *("b.pt", "c.pth", "d.ckpt", "optimizer.pt", "a.optim.bin", "consolidated.00.pth", "consolidated.01.pth"),
    *("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors", "model_00001_of_00002.safetensors"),
    *("b-00001-of-00001.bin", "b-01-of-02.bin", "model.gguf", "model.onnx", "tf_model.h5", "openvino_model.xml"),
    *("openvino_model.bin", "config.json", "README.md"),
]
INDICES = ["model.safetensors.index.json", "a.bin.index.json", "model.fp16.safetensors.index.json"]
KINDS = ["file", "file", "file", "empty", "pipe", "dangling", "link"]

entries = st.dictionaries(st.sampled_from(NAMES), st.sampled_from(KINDS), max_size=6)
indices = st.dictionaries(
    st.sampled_from(INDICES), st.none() | st.lists(st.sampled_from([*NAMES, "missing.bin"]), max_size=3), max_size=2
)
trees = st.dictionaries(st.sampled_from([".", "a", "a/b", "c", "c/model.safetensors"]), st.tuples(entries, indices))


def make_tree(root: Path, tree: dict[str, tuple[dict[str, str], dict[str, list[str] | None]]]) -> None:
    (root / "blob").write_bytes(b"x")
    for place in (".", *tree):
        (root / "tree" / place).mkdir(parents=True, exist_ok=True)
    for place, (files, index) in tree.items():
        directory = root / "tree" / place
        for name, kind in files.items():
            path = directory / name
            if path.is_dir():
                continue
            if kind == "pipe":
                os.mkfifo(path)
            elif kind in ("dangling", "link"):
                path.symlink_to(root / "blob" if kind == "link" else "nowhere")
            else:
                path.write_bytes(b"" if kind == "empty" else b"x")
        for name, named in index.items():
            weight_map = None if named is None else {f"t{number}": file for number, file in enumerate(named)}
            (directory / name).write_text(json.dumps({"weight_map": weight_map}))


@settings(max_examples=150, suppress_health_check=[HealthCheck.too_slow], deadline=None)
@given(tree=trees)
def test_every_weight_file_is_accounted_for(
    tree: dict[str, tuple[dict[str, str], dict[str, list[str] | None]]],
) -> None:
    folder = Path(tempfile.mkdtemp())
    try:
        make_tree(folder, tree)
        root = folder / "tree"
        found = discover([root])
        weights = {
            path
            for path in root.rglob("*")
            if (path.suffix in SUFFIXES or refusal(path) is not None) and not path.is_dir()
        }
        read = Counter(path for checkpoint in found for path in checkpoint.files)
        aside = Counter(path for checkpoint in found for path, _ in checkpoint.set_aside)
        complaints = {Path(notice.path) for checkpoint in found for notice in checkpoint.notices if notice.path}
        assert not [path for path, times in (read + aside).items() if times > 1]
        # Only what a trainer leaves, where there is no checkpoint, belongs to nothing.
        owned = {entry.path if entry.path.is_dir() else entry.path.parent for entry in found}
        unsaid = weights - set(read) - set(aside) - complaints
        assert all(SIDE_FILES.fullmatch(path.name) and path.parent not in owned for path in unsaid), unsaid
        assert len({checkpoint.name for checkpoint in found}) == len(found)
        assert discover([root]) == found
    finally:
        shutil.rmtree(folder)
