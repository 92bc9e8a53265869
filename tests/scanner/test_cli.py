"""The command line as a user meets it: streams, exit codes, summaries, interruption."""

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import tiny
from command_line import run, run_json


@pytest.fixture
def models(tmp_path: Path) -> Path:
    """A family of two, one sharded, and a stranger."""
    base = tiny.llama(0)
    tiny.save(tmp_path / "models" / "family" / "base", base)
    tiny.save_sharded(tmp_path / "models" / "family" / "tuned", tiny.tuned(base, 1))
    tiny.save(tmp_path / "models" / "stranger", tiny.llama(2))
    return tmp_path / "models"


@pytest.fixture
def store(tmp_path: Path) -> str:
    return str(tmp_path / "store")


@pytest.fixture(autouse=True)
def own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No default store or reference set of the machine takes part."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "home" / "data"))


def verdicts(report: dict) -> dict[tuple[str, str], str]:  # type: ignore[type-arg]
    return {(pair["a"], pair["b"]): pair["verdict"] for pair in report["pairs"]}


def test_scan_finds_the_family_and_accuses_nobody_else(models: Path, store: str) -> None:
    report = run_json("scan", str(models), "--store", store, "--json")
    assert report["schema"] == "weightprint.report/1"
    assert verdicts(report) == {
        ("family/base", "family/tuned"): "shared-origin",
        ("family/base", "stranger"): "no-evidence",
        ("family/tuned", "stranger"): "no-evidence",
    }
    assert [family["members"] for family in report["families"]] == [["family/base", "family/tuned"]]
    summary = report["summary"]
    assert summary["found"] == 3
    assert summary["complete"] + summary["partial"] + summary["failed"] + summary["skipped_fresh"] == 3


def test_sharded_checkpoint_reads_attention_only(models: Path, store: str) -> None:
    report = run_json("scan", str(models), "--store", store, "--json")
    for checkpoint in report["checkpoints"]:
        assert checkpoint["bytes"]["selected"] == 6 * (2 * 64 * 64 + 2 * 32 * 64) * 4
        assert checkpoint["bytes"]["read"] <= 1.02 * checkpoint["bytes"]["selected"]


def test_results_on_stdout_everything_else_on_stderr(models: Path, store: str) -> None:
    done = run("scan", str(models), "--store", store)
    assert "shared-origin" in done.stdout
    assert "3 checkpoints found: 3 complete, 0 partial, 0 failed, 0 already fingerprinted" in done.stdout
    assert "[3/3]" in done.stderr
    assert "\x1b" not in done.stdout + done.stderr


def test_second_scan_reads_no_weight_and_imports_no_torch(models: Path, store: str) -> None:
    run("scan", str(models), "--store", store, "--quiet")
    probe = (
        "import sys; from weightprint.cli.main import main; sys.argv = sys.argv[1:]\n"
        "try: main()\n"
        "finally: sys.stderr.write('torch' if 'torch' in sys.modules else 'light')"
    )
    command = [sys.executable, "-c", probe, "weightprint", "scan", str(models), "--store", store, "--json", "--quiet"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    summary = json.loads(done.stdout)["summary"]
    assert (summary["skipped_fresh"], summary["bytes_read"], done.stderr) == (3, 0, "light")


def test_changed_checkpoint_is_read_again(models: Path, store: str) -> None:
    run("scan", str(models), "--store", store)
    tiny.save(models / "stranger", tiny.llama(3))
    summary = run_json("scan", str(models), "--store", store, "--json")["summary"]
    assert (summary["complete"], summary["skipped_fresh"]) == (1, 2)


def test_references(models: Path, store: str, tmp_path: Path) -> None:
    references = str(tmp_path / "references")
    run("refs", "add", str(models / "family" / "base"), "--refs", references)
    listed = run_json("refs", "list", "--refs", references, "--json")["references"]
    assert [reference["name"] for reference in listed] == ["base"]
    report = run_json("scan", str(models / "family" / "tuned"), "--refs", references, "--store", store, "--json")
    assert verdicts(report) == {("tuned", "base"): "shared-origin"}
    removed = run_json("refs", "remove", "base", "--refs", references, "--json")
    assert (removed["schema"], removed["removed"]) == ("weightprint.references/1", ["base"])
    assert [Path(file).exists() for file in removed["files"]] == [False]
    assert run_json("refs", "list", "--refs", references, "--json")["references"] == []
    run("refs", "remove", "base", "--refs", references, expect=2)


def test_default_reference_set_takes_part(models: Path, store: str) -> None:
    run("refs", "add", str(models / "family" / "base"))
    report = run_json("scan", str(models / "family" / "tuned"), "--store", store, "--json")
    assert verdicts(report) == {("tuned", "base"): "shared-origin"}


def test_compare_fingerprint_with_checkpoint(models: Path, tmp_path: Path) -> None:
    file = tmp_path / "base.weightprint"
    run("fingerprint", str(models / "family" / "base"), "-o", str(file))
    document = run_json("compare", str(file), str(models / "family" / "tuned"), "--json")
    assert document["verdict"] == "shared-origin"
    assert document["log10_p"] < -6
    assert 0 < document["p_value"] <= 1e-6
    assert {"name", "statistic", "blocks", "z", "log10_p"} <= set(document["tests"][0])
    assert (
        "independent initialisation is rejected" in run("compare", str(file), str(models / "family" / "tuned")).stdout
    )


def test_compare_with_itself_is_identical(models: Path) -> None:
    base = str(models / "family" / "base")
    assert run_json("compare", base, base, "--json")["verdict"] == "identical"


def test_show_and_inspect(models: Path) -> None:
    base = str(models / "family" / "base")
    shown = run_json("show", base, "--json")
    assert len(shown["matrices"]) == 24
    assert {"stack", "layer", "role", "tensors", "shape", "count", "mean", "std"} <= set(shown["matrices"][0])
    inspected = run_json("inspect", base, "--json")
    assert inspected["bytes"]["selected"] == shown["bytes"]["selected"]
    assert [role["role"] for role in inspected["stacks"][0]["roles"]] == ["q", "k", "v", "o"]


@pytest.mark.parametrize("command", [["--help"], ["--version"], ["inspect"], ["scan", "--dry-run"]], ids=" ".join)
def test_light_commands_import_neither_torch_nor_triton(command: list[str], models: Path) -> None:
    target = [] if command[0].startswith("-") else [str(models / "stranger")]
    probe = (
        "import sys; from weightprint.cli.main import main; sys.argv = sys.argv[1:]\n"
        "try: main()\n"
        "finally: sys.stderr.write(' '.join({'torch', 'triton', 'numba', 'accelerate'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", probe, "weightprint", *command, *target], capture_output=True, text=True, check=True
    )
    assert done.stderr == ""


@pytest.mark.parametrize(
    ("threshold", "code"),
    [("similar-profile", 10), ("shared-origin", 10), ("re-encoded", 0), ("identical", 0)],
)
def test_fail_on(models: Path, store: str, threshold: str, code: int) -> None:
    run("scan", str(models), "--store", store, "--fail-on", threshold, expect=code)


def test_outputs_by_suffix(models: Path, store: str, tmp_path: Path) -> None:
    files = [tmp_path / f"report{suffix}" for suffix in (".json", ".jsonl", ".csv")]
    run("scan", str(models), "--store", store, *(f"--out={file}" for file in files))
    document = json.loads(files[0].read_text())
    lines = [json.loads(line) for line in files[1].read_text().splitlines()]
    rows = list(csv.DictReader(files[2].read_text().splitlines()))
    assert len(document["pairs"]) == len(rows) == sum(line["type"] == "pair" for line in lines) == 3
    assert lines[-1]["type"] == "summary"
    assert {row["verdict"] for row in rows} == {"shared-origin", "no-evidence"}


@pytest.mark.parametrize("out", ["report.xlsx", "missing/report.json", "."])
def test_unusable_output_is_refused_before_work(models: Path, store: str, tmp_path: Path, out: str) -> None:
    done = run("scan", str(models), "--store", store, "--out", str(tmp_path / out), expect=2)
    assert "E_OUTPUT" in done.stderr
    assert not Path(store).exists()


def test_nothing_to_scan(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    done = run("scan", str(tmp_path / "empty"), expect=11)
    assert "E_NO_CHECKPOINT" in done.stderr
    assert ".safetensors" in done.stderr


@pytest.mark.parametrize(
    "arguments", [["scan", "/no/such/path"], ["scan"], ["nonsense"], ["compare", "/a", "/b"]], ids=str
)
def test_wrong_usage_is_2(arguments: list[str]) -> None:
    assert run(*arguments, expect=2).stderr


def test_a_value_that_is_no_choice_is_named_plainly(models: Path) -> None:
    said = run("scan", str(models), "--read", "nonsense", expect=2).stderr
    assert "'nonsense' is not one of" in said
    assert "Value error" not in said


def test_several_processes_are_refused(models: Path, store: str) -> None:
    done = run("scan", str(models), "--store", store, expect=2, env={**os.environ, "WORLD_SIZE": "2"})
    assert "E_WORLD" in done.stderr


def test_no_cuda_is_said(models: Path, store: str) -> None:
    hidden = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    done = run("scan", str(models), "--store", store, "--device", "cuda", expect=2, env=hidden)
    assert "E_DEVICE" in done.stderr


def test_store_inside_the_scanned_tree_is_not_scanned(models: Path) -> None:
    store = str(models / "store")
    run("scan", str(models), "--store", store)
    assert run_json("scan", str(models), "--store", store, "--json")["summary"]["found"] == 3


def test_scan_of_a_store(models: Path, store: str) -> None:
    run("scan", str(models), "--store", store)
    report = run_json("scan", store, "--store", store, "--json")
    assert report["summary"]["found"] == 3
    assert "shared-origin" in verdicts(report).values()


def test_dry_run_reads_nothing(models: Path, store: str) -> None:
    document = run_json("scan", str(models), "--store", store, "--dry-run", "--json")
    assert document["summary"]["bytes_to_read"] > 0
    assert not Path(store).exists()


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)], ids=["SIGINT", "SIGTERM"])
def test_interruption_keeps_results_and_resumes(models: Path, store: str, number: signal.Signals, code: int) -> None:
    for seed in range(60):
        tiny.save(models / f"more-{seed}", tiny.llama(100 + seed, layers=2))
    command = [sys.executable, "-m", "weightprint", "scan", str(models), "--store", store]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        assert "[1/63]" in process.stderr.readline()
        process.send_signal(number)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == code, errors
    assert "Traceback" not in errors
    kept = len(list(Path(store).glob("*.weightprint")))
    assert 1 <= kept < 63
    summary = run_json("scan", str(models), "--store", store, "--json")["summary"]
    assert summary["found"] == 63
    assert summary["skipped_fresh"] == kept
    assert summary["complete"] == 63 - kept


def test_kill_leaves_whole_files_only(models: Path, store: str) -> None:
    for seed in range(40):
        tiny.save(models / f"more-{seed}", tiny.llama(100 + seed, layers=2))
    command = [sys.executable, "-m", "weightprint", "scan", str(models), "--store", store, "--quiet"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        deadline = time.monotonic() + 60
        while not any(Path(store).glob("*.weightprint")) and time.monotonic() < deadline:
            time.sleep(0.001)
        process.kill()
        process.communicate()
    kept = {path.name: path.read_bytes() for path in Path(store).glob("*.weightprint")}
    assert 1 <= len(kept) < 43
    whole = run_json("scan", store, "--store", store, "--json")
    assert (whole["summary"]["found"], whole["notices"]) == (len(kept), [])
    resumed = run_json("scan", str(models), "--store", store, "--json")["summary"]
    assert (resumed["found"], resumed["skipped_fresh"], resumed["complete"]) == (43, len(kept), 43 - len(kept))
    after = {path.name: path.read_bytes() for path in Path(store).glob("*.weightprint")}
    assert len(after) == 43
    assert kept.items() <= after.items()
