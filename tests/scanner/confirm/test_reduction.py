"""What is kept of a checkpoint: read right from every layout, and left alone by the changes that it should survive."""

from pathlib import Path

import numpy as np
import pytest
import torch
from confirm.networks import CONFIG, network, save

from laundering import KINDS, folded
from weightprint.confirm.anatomy import anatomy_of
from weightprint.confirm.reduction import Reduced, reduce_checkpoint
from weightprint.confirm.weights import matrix_weights
from weightprint.fingerprint import read_structure
from weightprint.gather import one_checkpoint


def reduced(folder: Path) -> Reduced:
    checkpoint = one_checkpoint(folder)
    anatomy = anatomy_of(read_structure(checkpoint))
    assert anatomy is not None
    return reduce_checkpoint(anatomy, str(checkpoint.config.get("model_type", "")), "cpu")


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(5)


@pytest.mark.parametrize("kind", KINDS)
def test_changes_keep_what_they_should(kind: str, tmp_path: Path) -> None:
    """Which of the three figures stay the same within rounding, to be found in the same order."""
    weights = network(1)
    base = reduced(save(tmp_path / "a", folded(CONFIG, weights), dtype=torch.float32))
    changed = KINDS[kind](CONFIG, weights, generator())
    other = reduced(save(tmp_path / "b", folded(CONFIG, changed), dtype=torch.float32))
    stream = "residual" not in kind
    part = "input of feed-forward"
    assert np.allclose(base.residual[part], other.residual[part], rtol=1e-3) == stream
    units = "units" not in kind and "heads permuted, residual" not in kind
    for channel in ("gate", "up", "down"):
        assert np.allclose(base.hidden[channel], other.hidden[channel], rtol=1e-3) == units
    heads = "heads" not in kind
    for one, two in zip(base.spectra, other.spectra, strict=True):
        assert (one.groups, one.shared) == (4, 2)
        assert np.allclose(one.figures, two.figures, atol=1e-2) == heads


def test_spectra_are_those_of_the_circuits(tmp_path: Path) -> None:
    weights = network(2)
    found = reduced(save(tmp_path / "a", weights, dtype=torch.float32)).spectra[3]
    gain = weights["model.layers.3.input_layernorm.weight"].double()
    q, k, v, o = (weights[f"model.layers.3.self_attn.{role}_proj.weight"].double() for role in "qkvo")
    for head in range(8):
        own, shared = slice(16 * head, 16 * head + 16), slice(16 * (head // 2), 16 * (head // 2) + 16)
        expected = []
        for circuit in (o[:, own] @ (v * gain)[shared], (q * gain)[own].T @ (k * gain)[shared]):
            logs = torch.log(torch.linalg.svdvals(circuit)[:16].flip(0))
            logs = torch.maximum(logs, logs.max() + np.log(1e-3))
            expected.append(logs - logs.mean())
        np.testing.assert_allclose(found.figures[head], torch.cat(expected).numpy(), atol=1e-6)


def test_energies_are_sums_of_shares(tmp_path: Path) -> None:
    weights = network(3)
    found = reduced(save(tmp_path / "a", weights, dtype=torch.float32))
    expected = torch.zeros(64, dtype=torch.float64)
    for layer in range(6):
        gain = weights[f"model.layers.{layer}.post_attention_layernorm.weight"].double()
        for role in ("gate", "up"):
            energies = (weights[f"model.layers.{layer}.mlp.{role}_proj.weight"].double() * gain).square().sum(0)
            expected += energies / energies.sum()
    np.testing.assert_allclose(found.residual["input of feed-forward"], expected.numpy(), rtol=1e-5)


def test_scales_do_not_count(tmp_path: Path) -> None:
    weights = network(4)
    scaled = {name: tensor * 3 if tensor.dim() > 1 else tensor for name, tensor in weights.items()}
    one, two = (reduced(save(tmp_path / n, w, dtype=torch.float32)) for n, w in (("a", weights), ("b", scaled)))
    for part, own in one.residual.items():
        np.testing.assert_allclose(own, two.residual[part], rtol=1e-5)
    for first, second in zip(one.spectra, two.spectra, strict=True):
        np.testing.assert_allclose(first.figures, second.figures, atol=1e-5)


def test_gains_may_stand_in_the_norm_or_in_the_weights(tmp_path: Path) -> None:
    weights = network(5)
    one = reduced(save(tmp_path / "a", weights, dtype=torch.float32))
    two = reduced(save(tmp_path / "b", folded(CONFIG, weights), dtype=torch.float32))
    np.testing.assert_allclose(
        one.residual["input of queries and keys"], two.residual["input of queries and keys"], rtol=1e-5
    )
    np.testing.assert_allclose(one.hidden["gate"], two.hidden["gate"], rtol=1e-4)


def test_conv1d_and_fused_layouts_are_read_as_they_are_meant(tmp_path: Path) -> None:
    """GPT-2 stores (in, out) and fuses q, k and v: the same network under other names."""
    generator = torch.Generator().manual_seed(1)
    width, weights = 48, {}
    for layer in range(4):
        for name, shape in (
            ("attn.c_attn", (width, 3 * width)),
            ("attn.c_proj", (width, width)),
            ("mlp.c_fc", (width, 4 * width)),
            ("mlp.c_proj", (4 * width, width)),
        ):
            weights[f"h.{layer}.{name}.weight"] = torch.randn(shape, generator=generator)
    config = {"model_type": "gpt2", "n_embd": width, "n_head": 6, "n_layer": 4}
    found = reduced(save(tmp_path / "a", weights, config, torch.float32))
    down = weights["h.2.mlp.c_proj.weight"]
    np.testing.assert_allclose(found.hidden["down"][2], down.square().sum(1).numpy(), rtol=1e-5)
    up = weights["h.2.mlp.c_fc.weight"]
    np.testing.assert_allclose(found.hidden["up"][2], up.square().sum(0).numpy(), rtol=1e-5)
    checkpoint = one_checkpoint(tmp_path / "a")
    anatomy = anatomy_of(read_structure(checkpoint))
    assert anatomy is not None
    value = matrix_weights(anatomy.layers[1].attention["v"], "cpu")
    assert value is not None
    assert torch.equal(value, weights["h.1.attn.c_attn.weight"].T[2 * width :])


def test_weights_that_are_not_finite_are_left_out(tmp_path: Path) -> None:
    weights = network(6)
    weights["model.layers.2.self_attn.v_proj.weight"][0, 0] = torch.nan
    found = reduced(save(tmp_path / "a", weights))
    assert [own.layer for own in found.spectra] == [0, 1, 3, 4, 5]
    assert found.missing == ("layer 2 v holds weights that are not finite",)
