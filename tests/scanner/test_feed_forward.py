"""--read all from files to fingerprints: energies and moments of every layout against float64, bytes, freshness."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
from engine_cases import Reads
from fingerprints import same, small_fingerprint
from taken import take_fingerprint

import tiny
import tolerances
from weightprint import index, index_file
from weightprint import store as stores
from weightprint.attention_part import attention_part
from weightprint.data import Coverage, Fingerprint
from weightprint.discover import discover
from weightprint.engine.cpu import reduce_plan
from weightprint.errors import Notice
from weightprint.fingerprint import read_structure
from weightprint.fingerprint_file import from_bytes, to_bytes, to_document
from weightprint.reading import Read
from weightprint.scan import Report, ScanOptions, scan
from weightprint_kernels.reference import ReferenceBackend

H, D, E, LAYERS = 32, 24, 3, 2
CONFIG: dict[str, object] = {"hidden_size": H, "num_attention_heads": 4, "num_key_value_heads": 4, "head_dim": 8}
Call = Callable[..., tuple[int, str, str]]
Array = npt.NDArray[np.float32]
Truth = dict[tuple[int, str], list[Array]]
"""(layer, role) -> W (out, in) of every expert."""

Writer = Callable[[str, dict[str, list[Array]]], tiny.Weights]


def truth(seed: int, experts: int, gated: bool = True) -> Truth:
    generator = np.random.default_rng(seed)
    sizes = {"gate": (D, H), "up": (D, H), "down": (H, D)}
    return {
        (layer, role): [generator.normal(size=size).astype(np.float32) for _ in range(experts)]
        for layer in range(LAYERS)
        for role, size in sizes.items()
        if gated or role != "gate"
    }


def attention(seed: int) -> tiny.Weights:
    generator = np.random.default_rng(seed)
    return {
        f"model.layers.{layer}.self_attn.{role}_proj.weight": generator.normal(size=(H, H)).astype(np.float32)
        for layer in range(LAYERS)
        for role in "qkvo"
    }


def dense(place: str, own: dict[str, list[Array]]) -> tiny.Weights:
    return {f"{place}.mlp.{role}_proj.weight": value for role, (value,) in own.items()}


def fused(place: str, own: dict[str, list[Array]]) -> tiny.Weights:
    both = np.concatenate([own["gate"][0], own["up"][0]])
    return {f"{place}.mlp.gate_up_proj.weight": both, f"{place}.mlp.down_proj.weight": own["down"][0]}


def conv1d(place: str, own: dict[str, list[Array]]) -> tiny.Weights:
    return {f"{place}.mlp.c_fc.weight": own["up"][0].T, f"{place}.mlp.c_proj.weight": own["down"][0].T}


def numbered(place: str, own: dict[str, list[Array]]) -> tiny.Weights:
    return {
        f"{place}.block_sparse_moe.experts.{number}.{name}.weight": own[role][number]
        for role, name in (("gate", "w1"), ("up", "w3"), ("down", "w2"))
        for number in range(E)
    }


def stacked(place: str, own: dict[str, list[Array]]) -> tiny.Weights:
    both = [np.concatenate(pair) for pair in zip(own["gate"], own["up"], strict=True)]
    return {
        f"{place}.mlp.experts.gate_up_proj": np.stack(both),
        f"{place}.mlp.experts.down_proj": np.stack(own["down"]),
    }


def stacked_in_out(place: str, own: dict[str, list[Array]]) -> tiny.Weights:
    return {name: value.swapaxes(1, 2) for name, value in stacked(place, own).items()}


LAYOUTS: dict[str, tuple[Writer, int, bool]] = {
    "dense": (dense, 1, True),
    "fused": (fused, 1, True),
    "conv1d": (conv1d, 1, False),
    "numbered-experts": (numbered, E, True),
    "stacked-experts": (stacked, E, True),
    "stacked-experts-in-out": (stacked_in_out, E, True),
}


def write(directory: Path, layout: str, seed: int = 0, attention_seed: int = 0) -> Truth:
    writer, experts, gated = LAYOUTS[layout]
    whole = truth(seed, experts, gated)
    weights = attention(attention_seed)
    for layer in range(LAYERS):
        own = {role: value for (number, role), value in whole.items() if number == layer}
        weights |= writer(f"model.layers.{layer}", own)
    tiny.save(directory, {name: np.ascontiguousarray(value) for name, value in weights.items()}, CONFIG)
    return whole


def taken(directory: Path, read: Read = Read.all) -> Fingerprint:
    (checkpoint,) = discover([directory])
    return take_fingerprint(checkpoint, read_structure(checkpoint, read), ReferenceBackend())


@pytest.mark.parametrize("layout", LAYOUTS)
def test_energies_and_moments_of_every_layout(layout: str, tmp_path: Path) -> None:
    whole = write(tmp_path / "m", layout)
    found = taken(tmp_path / "m")
    assert (found.status, found.notices) == ("complete", ())
    assert found.feed_forward == Coverage(LAYERS, LAYERS)
    stats = {(m.layer, m.role): m for m in found.matrices if m.role not in "qkvo"}
    assert set(stats) == set(whole)
    for (layer, role), experts in whole.items():
        axis = 0 if role == "down" else 1
        expected = np.concatenate([(value.astype(np.float64) ** 2).sum(axis=axis) for value in experts])
        energies = found.energies["model.layers", layer, role]
        np.testing.assert_allclose(energies, expected, rtol=tolerances.ENERGY_RELATIVE + 2.0**-23)
        own, values = stats[layer, role], np.concatenate([value.ravel() for value in experts]).astype(np.float64)
        assert (own.count, own.head_width, len(energies)) == (values.size, D, D * len(experts))
        assert own.shape == ((H, D * len(experts)) if role == "down" else (D * len(experts), H))
        np.testing.assert_allclose([own.mean, own.std], [values.mean(), values.std()], rtol=1e-6, atol=1e-9)


def test_a_pytorch_file_of_views(tmp_path: Path) -> None:
    """Transposed views are saved as they are: their bytes are column-major."""
    whole = write(tmp_path / "m", "dense")
    expected = taken(tmp_path / "m")
    weights = {name: torch.from_numpy(value) for name, value in attention(0).items()}
    for (layer, role), (value,) in whole.items():
        weights[f"model.layers.{layer}.mlp.{role}_proj.weight"] = torch.from_numpy(value.T.copy()).T
    (tmp_path / "p").mkdir()
    torch.save(weights, tmp_path / "p" / "pytorch_model.bin")
    (tmp_path / "p" / "config.json").write_text(json.dumps(CONFIG))
    found = taken(tmp_path / "p")
    assert set(found.energies) == set(expected.energies)
    for key, energies in expected.energies.items():
        np.testing.assert_allclose(found.energies[key], energies, rtol=1e-6)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_only_what_is_asked_for_is_read(layout: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = write(tmp_path / "m", layout)
    of_attention = 4 * LAYERS * 4 * H * H
    of_blocks = 4 * sum(value.size for experts in whole.values() for value in experts)
    (checkpoint,) = discover([tmp_path / "m"])
    for read, expected in ((Read.attention, of_attention), (Read.all, of_attention + of_blocks)):
        plan = read_structure(checkpoint, read).plan
        reads = Reads(monkeypatch)
        reduction = reduce_plan(plan, ReferenceBackend())
        assert plan.selected == plan.read == reduction.bytes_read == reads.total == expected
        monkeypatch.undo()


def test_attention_is_the_same_either_way(tmp_path: Path) -> None:
    write(tmp_path / "m", "numbered-experts")
    alone, whole = taken(tmp_path / "m", Read.attention), taken(tmp_path / "m")
    assert alone.feed_forward is None
    part = attention_part(whole)
    assert same(replace(part, bytes=alone.bytes), alone)
    assert same(attention_part(alone), alone)
    assert to_bytes(replace(part, bytes=alone.bytes)) == to_bytes(alone)


def test_what_is_said_of_blocks_goes_with_them(tmp_path: Path) -> None:
    write(tmp_path / "m", "dense")
    weights = dict(attention(0))
    weights |= dense(
        "model.layers.0", {"gate": [np.full((D, H), np.nan, np.float32)], "up": [np.ones((D, H), np.float32)]}
    )
    weights["model.layers.0.mlp.down_proj.weight"] = np.ones((H, D), np.float32)
    weights["model.layers.1.mlp.gate_proj.weight"] = np.ones((D, H), np.float32)
    tiny.save(tmp_path / "m", weights, CONFIG)
    whole = taken(tmp_path / "m")
    assert whole.status == "partial"
    assert sorted(notice.code for notice in whole.notices) == ["E_NON_FINITE", "E_NOT_UNDERSTOOD"]
    assert whole.coverage == Coverage(LAYERS, LAYERS)
    part = attention_part(whole)
    assert (part.status, part.code, part.reason, part.notices) == ("complete", None, None, ())


def test_without_attention_the_blocks_are_read(tmp_path: Path) -> None:
    whole = truth(0, 1)
    weights = {f"model.layers.{layer}.mlp.{role}_proj.weight": value for (layer, role), (value,) in whole.items()}
    tiny.save(tmp_path / "m", weights, {})
    assert taken(tmp_path / "m").status == "complete"
    alone = taken(tmp_path / "m", Read.attention)
    assert (alone.status, alone.code) == ("failed", "E_NO_ATTENTION")


def with_blocks() -> Fingerprint:
    small = small_fingerprint()
    said = Notice("E_DTYPE", "codes", None, "model.layers.0.mlp.up_proj.weight")
    hole = Notice("E_LAYER_HOLE", "layer 1 of model.layers has no gate", "/models/m")
    return replace(
        small,
        energies={**small.energies, ("model.layers", 0, "gate"): np.arange(16, dtype=np.float32)},
        notices=(*small.notices, said, hole),
        feed_forward=Coverage(2, 1, (said, hole)),
    )


def test_the_file_keeps_what_was_read() -> None:
    whole = with_blocks()
    assert same(from_bytes(to_bytes(whole), Path("x")), whole)
    document = to_document(whole)
    assert (document["schema"], document["read"]) == ("weightprint.fingerprint/1", "all")
    assert document["feed_forward"]["found"] == 2
    assert not {"read", "feed_forward"} & set(to_document(small_fingerprint()))


def test_the_index_keeps_what_was_read(tmp_path: Path) -> None:
    """What a report says of a reference, and of experts that are left out."""
    write(tmp_path / "m", "numbered-experts")
    whole = taken(tmp_path / "m")
    energies = dict(whole.energies)
    energies["model.layers", 0, "gate"] = np.tile(energies["model.layers", 0, "gate"][:D], E)
    files = [tmp_path / "a.weightprint", tmp_path / "b.weightprint"]
    for file, own in zip(files, (replace(whole, energies=energies), with_blocks()), strict=True):
        stores.write_fingerprint(file, own)
    segment, _ = index.build({file.name: (file, (0, 0, 0, 0)) for file in files})
    index_file.write(tmp_path / "s.segment", segment)
    read = index_file.read(tmp_path / "s.segment")
    assert read.entries == segment.entries
    assert [entry.light.feed_forward for entry in read.entries] == [whole.feed_forward, with_blocks().feed_forward]
    assert [left.channel for left in read.entries[0].unused] == ["gate"]


def run(tmp_path: Path, read: Read, **changes: object) -> Report:
    options = ScanOptions((tmp_path / "models",), tmp_path / "store", (), read=read)
    return scan(replace(options, **changes))  # type: ignore[arg-type]


def test_all_is_fresh_for_attention_and_not_the_other_way_round(tmp_path: Path) -> None:
    write(tmp_path / "models/a", "dense")
    write(tmp_path / "models/b", "dense", seed=1, attention_seed=1)
    expected = run(tmp_path, Read.attention, store=tmp_path / "other")
    assert [o.fresh for o in run(tmp_path, Read.attention).outcomes] == [False, False]
    whole = run(tmp_path, Read.all)
    assert [(o.fresh, o.fingerprint.feed_forward) for o in whole.outcomes] == [(False, Coverage(2, 2))] * 2
    assert [o.fresh for o in run(tmp_path, Read.all).outcomes] == [True, True]
    again = run(tmp_path, Read.attention)
    assert [o.fresh for o in again.outcomes] == [True, True]
    assert list(again.comparisons) == list(expected.comparisons)
    for now, then in zip(again.outcomes, expected.outcomes, strict=True):
        assert same(now.fingerprint, then.fingerprint)
    kept, _ = stores.load_all(tmp_path / "store")
    assert all(fingerprint.feed_forward is not None for fingerprint in kept)


def test_command_line(tmp_path: Path, call: Call) -> None:
    write(tmp_path / "models/a", "stacked-experts")
    write(tmp_path / "models/b", "stacked-experts", attention_seed=1)
    models = tmp_path / "models"
    code, out, _ = call("inspect", models / "a", "--read", "all", "--json")
    seen = json.loads(out)
    assert (code, seen["feed_forward"]) == (0, {"found": LAYERS, "understood": LAYERS})
    assert {role["role"] for stack in seen["stacks"] for role in stack["roles"]} == {*"qkvo", "gate", "up", "down"}
    code, out, _ = call("inspect", models / "a", "--json")
    assert (code, json.loads(out)["feed_forward"]) == (0, None)
    assert "2 of 2 feed-forward blocks" in call("inspect", models / "a", "--read", "all")[1]
    code, out, _ = call("scan", models, "--store", tmp_path / "store", "--read", "all", "--json", "--device", "cpu")
    report = json.loads(out)
    assert (code, [c["feed_forward"]["found"] for c in report["checkpoints"]]) == (0, [LAYERS, LAYERS])
    names = {test["name"].split()[0] for test in report["pairs"][0]["tests"]}
    assert names == {"v", "o", "gate", "up", "down"}
    code, out, _ = call("compare", models / "a", models / "b", "--read", "all", "--json", "--device", "cpu")
    assert json.loads(out)["tests"] == report["pairs"][0]["tests"]
    written = tmp_path / "a.weightprint"
    assert call("fingerprint", models / "a", "-o", written, "--read", "all", "--device", "cpu")[0] == 0
    assert json.loads(call("show", written, "--json")[1])["read"] == "all"
    code, out, _ = call("compare", written, models / "a", "--json", "--device", "cpu")
    pair = json.loads(out)
    assert (code, pair["verdict"]) == (0, "identical")
    assert any("feed-forward blocks of" in reason for reason in pair["reasons"])
    assert call("refs", "add", models, "--refs", tmp_path / "refs", "--read", "all", "--device", "cpu")[0] == 0
    assert all(own.feed_forward is not None for own in stores.load_all(tmp_path / "refs")[0])
