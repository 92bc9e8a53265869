"""Weights that are not what their names and shapes promise: left out with the reason, without a crash."""

from pathlib import Path

import pytest
import torch
from confirm.networks import CONFIG, network, save

from weightprint.confirm.anatomy import anatomy_of
from weightprint.confirm.outcome import confirm_pair
from weightprint.confirm.reduction import Reduced, reduce_checkpoint
from weightprint.data import Confirmation
from weightprint.fingerprint import read_structure
from weightprint.gather import one_checkpoint

LAYER = "model.layers.2"


def reduced(folder: Path) -> Reduced:
    anatomy = anatomy_of(read_structure(one_checkpoint(folder)))
    assert anatomy is not None
    return reduce_checkpoint(anatomy, "llama", "cpu")


def confirmed(a: Path, b: Path) -> Confirmation:
    return confirm_pair(one_checkpoint(a), one_checkpoint(b), "cpu")


@pytest.mark.parametrize("role", ["k", "v"])
@pytest.mark.parametrize("change", ["copied", "rounded"])
def test_repeated_key_value_heads_are_seen(role: str, change: str, tmp_path: Path) -> None:
    weights = network(1)
    rows = weights[f"{LAYER}.self_attn.{role}_proj.weight"]
    rows[48:] = rows[:16] * (1 if change == "copied" else 1 + 1e-4)
    folder = save(tmp_path / "a", weights, dtype=torch.float32)
    assert reduced(folder).repeated == "key-value heads of layer 2 are repeated"
    found = confirmed(folder, folder)
    assert "heads" not in {test.name for test in found.tests}
    assert "heads test not made: key-value heads of layer 2 are repeated" in found.reasons


def test_ordinary_key_value_heads_are_not_repeated(tmp_path: Path) -> None:
    assert reduced(save(tmp_path / "a", network(1))).repeated is None


def test_gate_and_up_in_one_are_no_hidden_units(tmp_path: Path) -> None:
    """ChatGLM calls [gate | up] dense_h_to_4h."""
    weights = {}
    for name, tensor in network(1).items():
        if "gate_proj" in name:
            both = torch.cat([tensor, 2 * tensor])
            weights[name.replace("gate_proj", "dense_h_to_4h")] = both
        elif "up_proj" not in name:
            weights[name.replace("down_proj", "dense_4h_to_h")] = tensor
    found = reduced(save(tmp_path / "a", weights))
    assert not found.hidden
    assert "layer 0: feed-forward left out, up has 192 outputs and down takes 96" in found.missing


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"gate_proj": None, "up_proj": None, "gate_up_proj": 191}, "gate_up has 191 outputs"),
        ({"gate_proj": 95}, "gate has 95 outputs"),
        ({"up_proj": 95}, "up has 95 outputs"),
        ({"down_proj": None}, "no down that gate, up"),
    ],
    ids=str,
)
def test_feed_forwards_of_odd_shapes_are_left_out(changes: dict[str, int | None], said: str, tmp_path: Path) -> None:
    weights = network(1)
    for leaf, rows in changes.items():
        weights.pop(f"{LAYER}.mlp.{leaf}.weight", None)
        if rows:
            weights[f"{LAYER}.mlp.{leaf}.weight"] = torch.randn(rows, 64)
    found = confirmed(save(tmp_path / "a", weights), save(tmp_path / "b", network(1)))
    assert any(f"layer 2: feed-forward left out, {said}" in reason for reason in found.reasons)
    assert found.unit_matching is not None
    assert found.unit_matching.layers == 5


def test_an_output_that_is_not_as_wide_as_the_stream_is_left_out(tmp_path: Path) -> None:
    weights = network(1)
    name = f"{LAYER}.self_attn.o_proj.weight"
    weights[name] = torch.randn(80, 128)
    folder = save(tmp_path / "a", weights)
    found = confirmed(folder, save(tmp_path / "b", network(1)))
    assert found.tests
    own = reduced(folder)
    assert {len(vector) for vector in own.residual.values()} == {CONFIG["hidden_size"]}


def test_weights_near_the_largest_float_do_not_overflow(tmp_path: Path) -> None:
    weights = network(1)
    for name in (f"{LAYER}.self_attn.q_proj.weight", f"{LAYER}.self_attn.v_proj.weight", f"{LAYER}.mlp.up_proj.weight"):
        weights[name] = weights[name] / weights[name].abs().max() * 3e38
    for norm in ("input_layernorm", "post_attention_layernorm"):
        weights[f"{LAYER}.{norm}.weight"] *= 1e4
    folder = save(tmp_path / "a", weights, dtype=torch.float32)
    found = reduced(folder)
    assert [own.layer for own in found.spectra] == list(range(6))
    assert "layer 2: up holds weights too large to add up" in found.missing
    assert confirmed(folder, folder).outcome == "confirmed"
