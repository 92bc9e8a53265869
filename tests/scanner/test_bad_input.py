"""Bad input is normal input: one clear line that names the file, a status, exit code 3, and the others unaffected."""

import contextlib
import json
import os
import pickle
import shutil
import socket
import struct
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

import tiny
from command_line import run, run_json

Damage = Callable[[Path], object]
SHARD = "model-00002-of-00003.safetensors"


def truncate_shard(bad: Path) -> None:
    shard = bad / SHARD
    os.truncate(shard, shard.stat().st_size - 1000)


def drop_shard(bad: Path) -> None:
    (bad / SHARD).unlink()


def weights_of(bad: Path) -> tiny.Weights:
    """All tensors of the shards as they were saved."""
    return {name: value for file in sorted(bad.glob("*.safetensors")) for name, value in load_file(file).items()}


def rewrite_index(bad: Path, change: Callable[[dict[str, str]], object]) -> None:
    path = bad / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    change(index["weight_map"])
    path.write_text(json.dumps(index))


def escape_directory(bad: Path) -> None:
    outside = bad.parent / "outside.safetensors.hidden"
    outside.write_bytes((bad / "model-00001-of-00003.safetensors").read_bytes())
    rewrite_index(bad, lambda m: m.update({"model.layers.0.self_attn.q_proj.weight": f"../{outside.name}"}))


def misplace_tensor(bad: Path) -> None:
    rewrite_index(
        bad, lambda m: m.update({"model.layers.0.self_attn.q_proj.weight": "model-00003-of-00003.safetensors"})
    )


def empty_config(bad: Path) -> None:
    (bad / "config.json").write_text("")


def broken_config(bad: Path) -> None:
    (bad / "config.json").write_text("{not json")


def large_header(bad: Path) -> None:
    (bad / SHARD).write_bytes(struct.pack("<Q", 10**6) + b"{}")


def zero_size_tensor(bad: Path) -> None:
    weights = weights_of(bad)
    weights["model.layers.0.self_attn.q_proj.weight"] = np.zeros((0, 64), np.float32)
    replace_by(bad, weights)


def not_a_number(bad: Path) -> None:
    weights = weights_of(bad)
    weights["model.layers.1.self_attn.v_proj.weight"][3, 5] = np.nan
    weights["model.layers.1.self_attn.o_proj.weight"][0, 0] = np.inf
    replace_by(bad, weights)


def replace_by(bad: Path, weights: tiny.Weights) -> None:
    for file in bad.iterdir():
        file.unlink()
    tiny.save(bad, weights)


def lone_pickle(bad: Path, value: object) -> None:
    for file in bad.iterdir():
        file.unlink()
    torch.save(value, bad / "pytorch_model.bin")


def not_a_state_dict(bad: Path) -> None:
    lone_pickle(bad, [1, 2, 3])


class Evil:
    """Unpickling this would run a command."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, ("touch evil-was-run",)


def evil_pickle(bad: Path) -> None:
    lone_pickle(bad, {"model.layers.0.self_attn.q_proj.weight": Evil()})


def bare_pickle(bad: Path) -> None:
    for file in bad.iterdir():
        file.unlink()
    (bad / "pytorch_model.bin").write_bytes(pickle.dumps({"a": 1}))


def view_larger_than_storage(bad: Path) -> None:
    weights = {name: torch.from_numpy(value) for name, value in weights_of(bad).items()}
    name = "model.layers.0.self_attn.q_proj.weight"
    weights[name] = torch.zeros(1).as_strided((10**6, 10**6), (0, 0))
    lone_pickle(bad, weights)


def pipe(bad: Path) -> None:
    for file in bad.iterdir():
        file.unlink()
    os.mkfifo(bad / "model.safetensors")


def dangling_link(bad: Path) -> None:
    drop_shard(bad)
    (bad / SHARD).symlink_to("nowhere")


def empty_file(bad: Path) -> None:
    (bad / SHARD).write_bytes(b"")


def drop_layer(bad: Path) -> None:
    replace_by(bad, {name: value for name, value in weights_of(bad).items() if ".layers.2." not in name})


def no_attention(bad: Path) -> None:
    replace_by(bad, {name: value for name, value in weights_of(bad).items() if "self_attn" not in name})


def wide_floats(bad: Path) -> None:
    weights = weights_of(bad)
    name = "model.layers.0.self_attn.q_proj.weight"
    replace_by(bad, {**weights, name: weights[name].astype(np.float64)})  # type: ignore[dict-item]


def trailing_bytes(bad: Path) -> None:
    with (bad / SHARD).open("ab") as file:
        file.write(b"more")


def broken_index(bad: Path) -> None:
    (bad / "model.safetensors.index.json").write_text("{")


def index_of_nothing(bad: Path) -> None:
    (bad / "model.safetensors.index.json").write_text('{"weight_map": {}}')


def index_pipe(bad: Path) -> None:
    (bad / "model.safetensors.index.json").unlink()
    os.mkfifo(bad / "model.safetensors.index.json")


def absolute_path(bad: Path) -> None:
    rewrite_index(bad, lambda m: m.update({"model.layers.0.self_attn.q_proj.weight": "/etc/passwd"}))


def config_pipe(bad: Path) -> None:
    (bad / "config.json").unlink()
    os.mkfifo(bad / "config.json")


def config_list(bad: Path) -> None:
    (bad / "config.json").write_text("[1, 2]")


def shard_socket(bad: Path) -> None:
    drop_shard(bad)
    with socket.socket(socket.AF_UNIX) as opened, contextlib.chdir(bad):
        opened.bind(SHARD)


def shard_directory(bad: Path) -> None:
    drop_shard(bad)
    (bad / SHARD).mkdir()


def ring_of_links(bad: Path) -> None:
    drop_shard(bad)
    (bad / SHARD).symlink_to(SHARD)


def lone_file(bad: Path, name: str, content: bytes) -> None:
    for file in bad.iterdir():
        file.unlink()
    (bad / name).write_bytes(content)


def web_page(bad: Path) -> None:
    lone_file(bad, "model.safetensors", b"<!DOCTYPE html><html>Access denied</html>")


def lfs_pointer(bad: Path) -> None:
    lone_file(bad, "model.safetensors", b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 5\n")


def gguf(bad: Path) -> None:
    lone_file(bad, "model.gguf", b"GGUF" + bytes(100))


def noise(bad: Path) -> None:
    lone_file(bad, "model.safetensors", np.random.default_rng(0).bytes(1000))


def truncated_zip(bad: Path) -> None:
    lone_pickle(bad, {name: torch.from_numpy(value) for name, value in weights_of(bad).items()})
    os.truncate(bad / "pytorch_model.bin", 100_000)


def compressed_zip(bad: Path) -> None:
    lone_pickle(bad, {name: torch.from_numpy(value) for name, value in weights_of(bad).items()})
    with zipfile.ZipFile(bad / "pytorch_model.bin") as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(bad / "pytorch_model.bin", "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in entries.items():
            archive.writestr(name, content)


Q0 = "model.layers.0.self_attn.q_proj.weight"
INDEX, CONFIG, SINGLE, PICKLE = "model.safetensors.index.json", "config.json", "model.safetensors", "pytorch_model.bin"

CASES: dict[str, tuple[Damage, str, str, str]] = {
    # name: (what is done, code, file that is named, status)
    "truncated-shard": (truncate_shard, "E_FILE_TRUNCATED", SHARD, "partial"),
    "missing-shard": (drop_shard, "E_SHARD_MISSING", SHARD, "partial"),
    "index-leaves-the-directory": (escape_directory, "E_INDEX_ESCAPE", INDEX, "partial"),
    "index-names-an-absolute-path": (absolute_path, "E_INDEX_ESCAPE", INDEX, "partial"),
    "index-not-JSON": (broken_index, "E_INDEX_INVALID", INDEX, "partial"),
    "index-of-nothing": (index_of_nothing, "E_INDEX_INVALID", INDEX, "partial"),
    "index-is-a-pipe": (index_pipe, "E_INDEX_INVALID", INDEX, "partial"),
    "tensor-not-in-its-shard": (misplace_tensor, "E_SHARD_TENSOR", "model-00003-of-00003.safetensors", "partial"),
    "config-empty": (empty_config, "E_CONFIG_INVALID", CONFIG, "partial"),
    "config-not-JSON": (broken_config, "E_CONFIG_INVALID", CONFIG, "partial"),
    "config-not-an-object": (config_list, "E_CONFIG_INVALID", CONFIG, "partial"),
    "config-is-a-pipe": (config_pipe, "E_CONFIG_INVALID", CONFIG, "partial"),
    "header-larger-than-the-file": (large_header, "E_HEADER_LARGE", SHARD, "partial"),
    "bytes-after-the-last-tensor": (trailing_bytes, "E_HEADER_INVALID", SHARD, "partial"),
    "zero-size-tensor": (zero_size_tensor, "E_ZERO_SIZE", SINGLE, "partial"),
    "float64-tensor": (wide_floats, "E_DTYPE", SINGLE, "partial"),
    "layer-left-out": (drop_layer, "E_LAYER_HOLE", "layer-left-out", "partial"),
    "no-attention": (no_attention, "E_NO_ATTENTION", "no-attention", "failed"),
    "NaN-and-Inf": (not_a_number, "E_NON_FINITE", SINGLE, "partial"),
    "not-a-state-dict": (not_a_state_dict, "E_NOT_STATE_DICT", PICKLE, "failed"),
    "pickle-that-runs-a-command": (evil_pickle, "E_PICKLE_UNSAFE", PICKLE, "failed"),
    "bare-pickle": (bare_pickle, "E_NOT_STATE_DICT", PICKLE, "failed"),
    "view-larger-than-its-storage": (view_larger_than_storage, "E_VIEW_INVALID", PICKLE, "partial"),
    "zip-cut-short": (truncated_zip, "E_FILE_TRUNCATED", PICKLE, "failed"),
    "zip-compressed": (compressed_zip, "E_ZIP_COMPRESSED", PICKLE, "failed"),
    "pipe": (pipe, "E_NOT_REGULAR", SINGLE, "failed"),
    "socket": (shard_socket, "E_NOT_REGULAR", SHARD, "partial"),
    "directory-for-a-shard": (shard_directory, "E_NOT_REGULAR", SHARD, "partial"),
    "dangling-link": (dangling_link, "E_DANGLING_LINK", SHARD, "partial"),
    "ring-of-links": (ring_of_links, "E_DANGLING_LINK", SHARD, "partial"),
    "empty-file": (empty_file, "E_EMPTY_FILE", SHARD, "partial"),
    "web-page": (web_page, "E_FORMAT_REFUSED", SINGLE, "failed"),
    "LFS-pointer": (lfs_pointer, "E_FORMAT_REFUSED", SINGLE, "failed"),
    "GGUF": (gguf, "E_FORMAT_REFUSED", "model.gguf", "failed"),
    "noise": (noise, "E_FORMAT_UNKNOWN", SINGLE, "failed"),
}
TENSORS = {
    "zero-size-tensor": Q0,
    "float64-tensor": Q0,
    "tensor-not-in-its-shard": Q0,
    "view-larger-than-its-storage": Q0,
}


@dataclass(frozen=True)
class Scanned:
    """One scan of two good checkpoints among all bad ones."""

    report: dict[str, Any]
    printed: str
    logged: list[str]
    working_directory: Path

    @property
    def checkpoints(self) -> dict[str, dict[str, Any]]:
        return {checkpoint["name"]: checkpoint for checkpoint in self.report["checkpoints"]}


@pytest.fixture(scope="module")
def scanned(tmp_path_factory: pytest.TempPathFactory) -> Scanned:
    folder = tmp_path_factory.mktemp("bad-input")
    models = folder / "models"
    tiny.save(models / "good", tiny.llama(1))
    tiny.save(models / "tuned", tiny.tuned(tiny.llama(1), 2))
    for number, (name, (damage, *_)) in enumerate(CASES.items()):
        damage(tiny.save_sharded(models / name, tiny.llama(100 + number)))
    arguments = ("scan", str(models), "--refs", str(models / "good"))
    arguments += ("--store", str(folder / "store"), "--out", str(folder / "report.json"))
    done = run(*arguments, expect=3, cwd=folder)
    report = json.loads((folder / "report.json").read_text())
    return Scanned(report, done.stdout, done.stderr.splitlines(), folder)


@pytest.mark.parametrize("case", CASES)
def test_bad_checkpoint_gets_a_status_and_one_clear_line(case: str, scanned: Scanned) -> None:
    _, code, named, status = CASES[case]
    found = scanned.checkpoints[case]
    assert (found["status"], found["code"]) == (status, code)
    assert str(scanned.working_directory / "models" / case) in found["reason"]
    notice = next(notice for notice in found["notices"] if notice["code"] == code)
    assert Path(notice["path"]).name == named
    assert case not in TENSORS or notice["tensor"] == TENSORS[case]
    assert len(notice["reason"]) > 20
    assert "\n" not in notice["reason"]
    (line,) = [line for line in scanned.logged if f"] {case}: " in line]
    assert line.endswith(f"[{code}]")
    assert named in line
    assert case in scanned.printed


def test_other_checkpoints_are_unaffected(scanned: Scanned) -> None:
    assert {name for name, found in scanned.checkpoints.items() if found["status"] == "complete"} == {"good", "tuned"}
    pairs = {frozenset((pair["a"], pair["b"])): pair["verdict"] for pair in scanned.report["pairs"]}
    assert pairs.pop(frozenset(("good", "tuned"))) == "shared-origin"
    assert len(pairs) == (len(CASES) + 2) * (len(CASES) + 1) // 2 - 1
    assert set(pairs.values()) <= {"no-evidence", "similar-profile", "not-comparable"}


def test_the_summary_accounts_for_every_checkpoint(scanned: Scanned) -> None:
    summary = scanned.report["summary"]
    partial = sum(status == "partial" for *_, status in CASES.values())
    assert (summary["found"], summary["complete"], summary["skipped_fresh"]) == (len(CASES) + 2, 2, 0)
    assert (summary["partial"], summary["failed"]) == (partial, len(CASES) - partial)
    assert f"{len(CASES) + 2} checkpoints found: 2 complete, {partial} partial" in scanned.printed


def test_nothing_was_run(scanned: Scanned) -> None:
    assert not (scanned.working_directory / "evil-was-run").exists()


def test_absent_config_is_no_error(tmp_path: Path) -> None:
    checkpoint = tiny.save(tmp_path / "models", tiny.llama(1))
    (checkpoint / "config.json").unlink()
    report = run_json("scan", str(checkpoint), "--store", str(tmp_path / "store"), "--json")
    assert report["checkpoints"][0]["status"] == "complete"


def test_non_finite_weights_are_counted_and_their_units_left_out(tmp_path: Path) -> None:
    weights = tiny.llama(9)
    tiny.save(tmp_path / "whole", weights)
    weights["model.layers.1.self_attn.v_proj.weight"][3, 5] = np.nan
    tiny.save(tmp_path / "holed", weights)
    shown = run_json("show", str(tmp_path / "holed"), "--json", expect=3)
    counts = {(m["layer"], m["role"]): m["non_finite"] for m in shown["matrices"]}
    assert counts.pop((1, "v")) == 1
    assert set(counts.values()) == {0}
    compared = run_json("compare", str(tmp_path / "whole"), str(tmp_path / "holed"), "--json", expect=3)
    blocks = {test["name"]: test["blocks"] for test in compared["tests"]}
    assert compared["verdict"] == "shared-origin"
    (v_whole,) = [count for name, count in blocks.items() if name.startswith("v whole")]
    (o_whole,) = [count for name, count in blocks.items() if name.startswith("o whole")]
    # Blocks of 8 units; two columns of O share a row of V and are one unit.
    assert (v_whole, o_whole) == (6 * 4 - 1, 6 * 4)


WITHOUT_PRIVILEGE = ["setpriv", "--bounding-set=-dac_override,-dac_read_search"] if os.geteuid() == 0 else []


@pytest.fixture
def locked(tmp_path: Path) -> Iterator[Path]:
    """A checkpoint whose file may not be read, one whose directory may not be, and a good one."""
    for name in ("file", "directory", "good"):
        tiny.save(tmp_path / "models" / name, tiny.llama(1))
    (tmp_path / "models/file/model.safetensors").chmod(0)
    (tmp_path / "models/directory").chmod(0)
    yield tmp_path / "models"
    (tmp_path / "models/directory").chmod(0o700)


@pytest.mark.skipif(bool(WITHOUT_PRIVILEGE) and shutil.which("setpriv") is None, reason="root can read everything")
def test_what_may_not_be_read_is_named(locked: Path) -> None:
    command = [*WITHOUT_PRIVILEGE, sys.executable, "-m", "weightprint", "scan", str(locked), "--json"]
    command += ["--store", str(locked.parent / "store")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, "Traceback" in done.stderr) == (3, False)
    found = {checkpoint["name"]: checkpoint for checkpoint in json.loads(done.stdout)["checkpoints"]}
    assert {name: (entry["status"], entry["code"]) for name, entry in found.items()} == {
        "file": ("failed", "E_UNREADABLE"),
        "directory": ("failed", "E_UNREADABLE"),
        "good": ("complete", None),
    }
    assert str(locked / "file/model.safetensors") in found["file"]["reason"]
    assert str(locked / "directory") in found["directory"]["reason"]


def test_what_is_incomplete_may_be_allowed(tmp_path: Path) -> None:
    truncate_shard(tiny.save_sharded(tmp_path / "bad", tiny.llama(1)))
    arguments = ("scan", str(tmp_path / "bad"), "--store", str(tmp_path / "store"))
    run(*arguments, expect=3)
    assert run_json(*arguments, "--allow-incomplete", "--json")["checkpoints"][0]["status"] == "partial"


def test_a_directory_without_checkpoints_ends_with_a_hint(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("nothing here")
    done = run("scan", str(tmp_path), expect=11)
    assert done.stdout == ""
    assert str(tmp_path) in done.stderr
    assert "E_NO_CHECKPOINT" in done.stderr
    assert ".safetensors" in done.stderr


def test_hostile_names_reach_no_terminal(tmp_path: Path) -> None:
    name = "evil\x1b[31m\n=cmd|name"
    tiny.save(tmp_path / "models" / name, tiny.llama(1))
    tiny.save(tmp_path / "models" / "good", tiny.llama(1))
    out = tmp_path / "report.csv"
    done = run("scan", str(tmp_path / "models"), "--store", str(tmp_path / "store"), "--out", str(out))
    assert "\x1b" not in done.stdout + done.stderr
    assert "\\x1b[31m\\n=cmd|name" in done.stdout
