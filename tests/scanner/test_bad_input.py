"""Bad input is normal input: one clear line that names the file, a status, exit code 3, and the others unaffected."""

import json
import os
import pickle
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

import tiny
from command_line import run, run_json

Damage = Callable[[Path], object]


def truncate_shard(bad: Path) -> None:
    shard = bad / "model-00002-of-00003.safetensors"
    os.truncate(shard, shard.stat().st_size - 1000)


def drop_shard(bad: Path) -> None:
    (bad / "model-00002-of-00003.safetensors").unlink()


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
    (bad / "model-00002-of-00003.safetensors").write_bytes(struct.pack("<Q", 10**6) + b"{}")


def zero_size_tensor(bad: Path) -> None:
    weights = tiny.llama(9)
    weights["model.layers.0.self_attn.q_proj.weight"] = np.zeros((0, 64), np.float32)
    replace_by(bad, weights)


def not_a_number(bad: Path) -> None:
    weights = tiny.llama(9)
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
    weights = {name: torch.from_numpy(value) for name, value in tiny.llama(9).items()}
    name = "model.layers.0.self_attn.q_proj.weight"
    weights[name] = torch.zeros(1).as_strided((10**6, 10**6), (0, 0))
    lone_pickle(bad, weights)


def pipe(bad: Path) -> None:
    for file in bad.iterdir():
        file.unlink()
    os.mkfifo(bad / "model.safetensors")


def dangling_link(bad: Path) -> None:
    drop_shard(bad)
    (bad / "model-00002-of-00003.safetensors").symlink_to("nowhere")


def empty_file(bad: Path) -> None:
    (bad / "model-00002-of-00003.safetensors").write_bytes(b"")


CASES: dict[str, tuple[Damage, str, str, str]] = {
    # name: (what is done, code, file that is named, status)
    "truncated shard": (truncate_shard, "E_FILE_TRUNCATED", "model-00002-of-00003.safetensors", "partial"),
    "missing shard": (drop_shard, "E_SHARD_MISSING", "model-00002-of-00003.safetensors", "partial"),
    "index leaves the directory": (escape_directory, "E_INDEX_ESCAPE", "outside.safetensors.hidden", "partial"),
    "tensor not in its shard": (misplace_tensor, "E_SHARD_TENSOR", "model-00003-of-00003.safetensors", "partial"),
    "config empty": (empty_config, "E_CONFIG_INVALID", "config.json", "partial"),
    "config not JSON": (broken_config, "E_CONFIG_INVALID", "config.json", "partial"),
    "header larger than the file": (large_header, "E_HEADER_LARGE", "model-00002-of-00003.safetensors", "partial"),
    "zero-size tensor": (zero_size_tensor, "E_ZERO_SIZE", "model.layers.0.self_attn.q_proj.weight", "partial"),
    "NaN and Inf": (not_a_number, "E_NON_FINITE", "model.layers.1.self_attn.", "partial"),
    "not a state dict": (not_a_state_dict, "E_NOT_STATE_DICT", "pytorch_model.bin", "failed"),
    "pickle that runs a command": (evil_pickle, "E_PICKLE_UNSAFE", "pytorch_model.bin", "failed"),
    "bare pickle": (bare_pickle, "E_NOT_STATE_DICT", "pytorch_model.bin", "failed"),
    "view larger than its storage": (view_larger_than_storage, "E_VIEW_INVALID", "pytorch_model.bin", "partial"),
    "pipe": (pipe, "E_NOT_REGULAR", "model.safetensors", "failed"),
    "dangling link": (dangling_link, "E_DANGLING_LINK", "model-00002-of-00003.safetensors", "partial"),
    "empty file": (empty_file, "E_EMPTY_FILE", "model-00002-of-00003.safetensors", "partial"),
}


@pytest.mark.parametrize("case", CASES, ids=lambda name: name.replace(" ", "-"))
def test_bad_checkpoint_costs_itself_only(case: str, tmp_path: Path) -> None:
    damage, code, named, status = CASES[case]
    models = tmp_path / "models"
    tiny.save(models / "good", tiny.llama(1))
    tiny.save(models / "tuned", tiny.tuned(tiny.llama(1), 2))
    bad = tiny.save_sharded(models / "bad", tiny.llama(9))
    damage(bad)
    arguments = ("scan", str(models), "--store", str(tmp_path / "store"), "--refs", str(models / "good"))
    report = run_json(*arguments, "--json", expect=3, cwd=tmp_path)
    by_name = {checkpoint["name"]: checkpoint for checkpoint in report["checkpoints"]}
    found = by_name["bad"]
    assert found["status"] == status
    notices = [notice for notice in found["notices"] if notice["code"] == code]
    assert notices, found["notices"]
    text = f"{notices[0]['path']} {notices[0]['tensor']} {notices[0]['reason']}"
    assert named in text
    assert "\n" not in text
    assert {by_name[name]["status"] for name in ("good", "tuned")} == {"complete"}
    (pair,) = [pair for pair in report["pairs"] if {pair["a"], pair["b"]} == {"good", "tuned"}]
    assert pair["verdict"] == "shared-origin"
    others = [pair for pair in report["pairs"] if "bad" in (pair["a"], pair["b"])]
    assert {pair["verdict"] for pair in others} <= {"no-evidence", "similar-profile", "not-comparable"}
    summary = report["summary"]
    total = summary["complete"] + summary["partial"] + summary["failed"] + summary["skipped_fresh"]
    assert summary["found"] == total == 3
    assert not (tmp_path / "evil-was-run").exists()
    printed = run(*arguments, expect=3, cwd=tmp_path)
    assert code in printed.stdout + printed.stderr
    run(*arguments, "--allow-incomplete", expect=0, cwd=tmp_path)


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
    assert (v_whole, o_whole) == (6 * 4 - 1, 6 * 8)


@pytest.mark.skipif(os.geteuid() == 0, reason="root can read everything")
def test_unreadable_file(tmp_path: Path) -> None:
    checkpoint = tiny.save(tmp_path / "models", tiny.llama(1))
    (checkpoint / "model.safetensors").chmod(0)
    report = run_json("scan", str(checkpoint), "--store", str(tmp_path / "store"), "--json", expect=3)
    assert report["checkpoints"][0]["code"] == "E_UNREADABLE"


def test_hostile_names_reach_no_terminal(tmp_path: Path) -> None:
    name = "evil\x1b[31m\n=cmd|name"
    tiny.save(tmp_path / "models" / name, tiny.llama(1))
    tiny.save(tmp_path / "models" / "good", tiny.llama(1))
    out = tmp_path / "report.csv"
    done = run("scan", str(tmp_path / "models"), "--store", str(tmp_path / "store"), "--out", str(out))
    assert "\x1b" not in done.stdout + done.stderr
    assert "\\x1b[31m\\n=cmd|name" in done.stdout
