"""Where the parts of a checkpoint's largest stack lie: attention, norms before it, feed-forwards, token embedding.

Attention comes from :mod:`weightprint.roles`. Everything else is found by the names of two small tables, below the same
layer as the attention; what they do not know is left out, and costs power, never validity: every test compares figures
that a network gives by itself. Which axis of a feed-forward is the residual stream follows from its width; where both
are equally wide nothing says, and it is left out.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from weightprint.confirm.weights import readable
from weightprint.data import Matrix, TensorSpec
from weightprint.fingerprint import Structure

FEED_FORWARD: Mapping[str, str] = {
    "mlp.gate_proj": "gate",
    "mlp.up_proj": "up",
    "mlp.down_proj": "down",
    "mlp.gate_up_proj": "gate_up",
    "feed_forward.w1": "gate",
    "feed_forward.w3": "up",
    "feed_forward.w2": "down",
    "mlp.c_fc": "up",
    "mlp.c_proj": "down",
    "mlp.fc1": "up",
    "mlp.fc2": "down",
    "mlp.fc_in": "up",
    "mlp.fc_out": "down",
    "fc1": "up",
    "fc2": "down",
    "mlp.dense_h_to_4h": "up",
    "mlp.dense_4h_to_h": "down",
    "intermediate.dense": "up",
    "output.dense": "down",
    "ffn.lin1": "up",
    "ffn.lin2": "down",
    "layer.1.DenseReluDense.wi_0": "gate",
    "layer.1.DenseReluDense.wi_1": "up",
    "layer.1.DenseReluDense.wi": "up",
    "layer.1.DenseReluDense.wo": "down",
}
"""Names below a layer of a dense feed-forward. Experts are not in it: their order is not that of hidden units."""

ATTENTION_NORMS = (
    "input_layernorm",
    "ln_1",
    "ln1",
    "norm1",
    "attention_norm",
    "self_attn_layer_norm",
    "input_norm",
    "layernorm_before",
    "layer.0.layer_norm",
)
FEED_FORWARD_NORMS = (
    "pre_feedforward_layernorm",  # before post_attention_layernorm, which is another norm where both are
    "post_attention_layernorm",
    "ln_2",
    "ln2",
    "norm2",
    "ffn_norm",
    "final_layer_norm",
    "layernorm_after",
    "layer.1.layer_norm",
)
EMBEDDINGS = (
    "model.embed_tokens",
    "embed_tokens",
    "wte",
    "transformer.wte",
    "word_embeddings",
    "embeddings.word_embeddings",
    "embed_in",
    "gpt_neox.embed_in",
    "tok_embeddings",
    "shared",
)
"""Endings of the names of token embeddings, [tokens, width]."""


@dataclass(frozen=True)
class LayerParts:
    """One layer: attention matrices by role, feed-forward tensors by role, norm gains; None where there is none."""

    layer: int
    attention: Mapping[str, Matrix]
    feed_forward: Mapping[str, TensorSpec]
    attention_norm: TensorSpec | None
    feed_forward_norm: TensorSpec | None


@dataclass(frozen=True)
class Anatomy:
    """The largest stack of a checkpoint. ``width`` is that of the residual stream."""

    stack: str
    width: int
    layers: tuple[LayerParts, ...]
    embedding: TensorSpec | None


def anatomy_of(structure: Structure) -> Anatomy | None:
    """The parts of the largest stack that has q, k, v and o as matrices of their own; None if there is none."""
    stacks: dict[str, dict[int, dict[str, Matrix]]] = {}
    for matrix in structure.understanding.matrices:
        stacks.setdefault(matrix.stack, {}).setdefault(matrix.layer, {})[matrix.role] = matrix
    full = {
        name: {layer: own for layer, own in layers.items() if own.keys() >= set("qkvo")}
        for name, layers in stacks.items()
    }
    if not any(full.values()):
        return None
    stack = max(full, key=lambda name: (len(full[name]), name))
    layers = full[stack]
    width = next(iter(layers.values()))["q"].shape[1]
    specs = {spec.name: spec for spec in structure.headers.tensors if readable(spec)}
    return Anatomy(
        stack=stack,
        width=width,
        layers=tuple(_layer(stack, number, layers[number], specs) for number in sorted(layers)),
        embedding=_embedding(specs, width),
    )


def _layer(stack: str, number: int, attention: Mapping[str, Matrix], specs: Mapping[str, TensorSpec]) -> LayerParts:
    prefix = f"{stack}.{number}." if stack else f"{number}."
    feed_forward = {
        role: spec
        for name, role in FEED_FORWARD.items()
        if (spec := specs.get(f"{prefix}{name}.weight")) is not None and len(spec.shape) == 2
    }
    norms = [
        next((specs[key] for name in names if (key := f"{prefix}{name}.weight") in specs), None)
        for names in (ATTENTION_NORMS, FEED_FORWARD_NORMS)
    ]
    return LayerParts(number, attention, feed_forward, norms[0], norms[1])


def _embedding(specs: Mapping[str, TensorSpec], width: int) -> TensorSpec | None:
    for name, spec in specs.items():
        stem = name.removesuffix(".weight")
        fits = len(spec.shape) == 2 and spec.shape[1] == width and spec.shape[0] != width
        if fits and any(stem == ending or stem.endswith(f".{ending}") for ending in EMBEDDINGS):
            return spec
    return None
