"""Laundering: other weights for the same function, in exact arithmetic.

Each step takes a model and gives one whose logits agree with its own to rounding (:func:`apart` measures it on real
input, and the builder of the zoo refuses a copy that is further off than AGREES):

* values: per key and value head an invertible A, V -> A V and O -> O A^-1. A is a permutation, a scale or a random
  matrix of limited condition;
* queries and keys: per head a scale and its inverse; under rotary positions also a turn inside each pair of channels;
* feed-forward: hidden units in another order; SwiGLU's up and down scaled against each other;
* residual: one rotation of the stream for all that writes to it or reads from it, once the gains of the norms stand in
  the weights that follow them (Ashkboos et al. 2024). LayerNorm centres, so that GPT-2 is not rotated here.

A step is a name in STEPS, so that what was done can be written down; a laundering is a list of them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor
from zoo_parts.derivations import llama, with_gpt_heads, with_value_heads
from zoo_parts.gpt2 import GptConfig
from zoo_parts.models import Model, Weights, loaded

AGREES = 1e-3
"""Largest relative distance of logits that counts as the same function in float32."""

Step = Callable[[Model, torch.Generator], Model]
Pair = tuple[Tensor, Tensor]
"""A matrix and its inverse."""


def laundered(start: Model, steps: Sequence[str], seed: int) -> Model:
    """All steps one after the other; raises ValueError if the function is not the same."""
    generator = torch.Generator().manual_seed(seed)
    model = start
    for step in steps:
        model = STEPS[step](model, generator)
    distance = apart(start, model)
    if not distance <= AGREES:
        raise ValueError(f"{', '.join(steps)}: the logits moved by {distance:.1e} of their norm")
    return model


def apart(first: Model, second: Model) -> float:
    """Distance of the logits of two models on random tokens, over the norm of the first's."""
    tokens = torch.randint(0, 256, (4, 64), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        one, other = loaded(*first)(tokens), loaded(*second)(tokens)
    return float((one - other).norm() / one.norm())


def values_permuted(model: Model, generator: torch.Generator) -> Model:
    """The units of each value head in another order."""

    def drawn(width: int) -> Pair:
        order = torch.eye(width)[torch.randperm(width, generator=generator)]
        return order, order.T

    return _with_values(model, drawn)


def values_rescaled(model: Model, generator: torch.Generator) -> Model:
    """Each value head by a factor of its own between 1/4 and 4."""

    def drawn(width: int) -> Pair:
        factor = _factor(generator)
        return factor * torch.eye(width), torch.eye(width) / factor

    return _with_values(model, drawn)


def values_mixed(model: Model, generator: torch.Generator) -> Model:
    """The units of each value head mixed by a random matrix of condition 4 or less."""

    def drawn(width: int) -> Pair:
        left, right = (orthogonal(width, generator) for _ in range(2))
        sizes = 4 ** torch.rand(width, generator=generator) / 2
        return left @ torch.diag(sizes) @ right, right.T @ torch.diag(1 / sizes) @ left.T

    return _with_values(model, drawn)


def _with_values(model: Model, drawn: Callable[[int], Pair]) -> Model:
    config, weights = model
    found = dict(weights)
    width = config.head_width
    for layer in range(config.layers):
        heads = config.heads if isinstance(config, GptConfig) else config.key_value_heads
        pairs = [drawn(width) for _ in range(heads)]
        if isinstance(config, GptConfig):
            _gpt_values(found, f"h.{layer}.attn", [p[0] for p in pairs], [p[1] for p in pairs])
            continue
        shared = config.heads // heads
        v, o = (f"model.layers.{layer}.self_attn.{name}.weight" for name in ("v_proj", "o_proj"))
        found[v] = on_diagonal(p[0] for p in pairs) @ found[v]
        found[o] = found[o] @ on_diagonal(pairs[head // shared][1] for head in range(config.heads))
    return config, found


def _gpt_values(found: Weights, attention: str, left: Sequence[Tensor], right: Sequence[Tensor]) -> None:
    """The same where q, k and v are fused and stored as (in, out), with a bias."""
    mix, inverse = on_diagonal(left), on_diagonal(right)
    for name in ("weight", "bias"):
        q, k, v = found[f"{attention}.c_attn.{name}"].chunk(3, dim=-1)
        found[f"{attention}.c_attn.{name}"] = torch.cat((q, k, v @ mix.T), dim=-1)
    found[f"{attention}.c_proj.weight"] = inverse.T @ found[f"{attention}.c_proj.weight"]


def keys_rescaled(model: Model, generator: torch.Generator) -> Model:
    """Each key head by a factor of its own between 1/4 and 4, the query heads that share it by its inverse."""
    return _with_keys(model, lambda width: _factor(generator) * torch.eye(width))


def keys_turned(model: Model, generator: torch.Generator) -> Model:
    """Each pair of channels that rotary positions turn together turned by one angle more, in q and k alike."""

    def drawn(width: int) -> Tensor:
        angle = 2 * math.pi * torch.rand(width // 2, generator=generator)
        cosine, sine = torch.diag(angle.cos()), torch.diag(angle.sin())
        return torch.cat((torch.cat((cosine, -sine), dim=1), torch.cat((sine, cosine), dim=1)))

    return _with_keys(model, drawn)


def _with_keys(model: Model, drawn: Callable[[int], Tensor]) -> Model:
    """K -> B K and Q -> B^-T Q per key head; B has to go with the turning of positions."""
    config, weights = model
    found, width = dict(weights), config.head_width
    for layer in range(config.layers):
        heads = config.heads if isinstance(config, GptConfig) else config.key_value_heads
        keys = [drawn(width) for _ in range(heads)]
        shared = config.heads // heads
        mix = on_diagonal(keys)
        against = on_diagonal(torch.linalg.inv(keys[head // shared]).T for head in range(config.heads))
        if isinstance(config, GptConfig):
            for name in ("weight", "bias"):
                q, k, v = found[f"h.{layer}.attn.c_attn.{name}"].chunk(3, dim=-1)
                found[f"h.{layer}.attn.c_attn.{name}"] = torch.cat((q @ against.T, k @ mix.T, v), dim=-1)
            continue
        q_name, k_name = (f"model.layers.{layer}.self_attn.{name}.weight" for name in ("q_proj", "k_proj"))
        found[q_name], found[k_name] = against @ found[q_name], mix @ found[k_name]
    return config, found


def hidden_permuted(model: Model, generator: torch.Generator) -> Model:
    """The hidden units of each feed-forward block in another order."""
    config, weights = model
    found = dict(weights)
    for layer in range(config.layers):
        order = torch.randperm(config.hidden, generator=generator)
        if isinstance(config, GptConfig):
            block = f"h.{layer}.mlp"
            for name in ("c_fc.weight", "c_fc.bias"):
                found[f"{block}.{name}"] = found[f"{block}.{name}"][..., order]
            found[f"{block}.c_proj.weight"] = found[f"{block}.c_proj.weight"][order]
            continue
        block = f"model.layers.{layer}.mlp"
        for name in ("gate_proj", "up_proj"):
            found[f"{block}.{name}.weight"] = found[f"{block}.{name}.weight"][order]
        found[f"{block}.down_proj.weight"] = found[f"{block}.down_proj.weight"][:, order]
    return config, found


def hidden_rescaled(model: Model, generator: torch.Generator) -> Model:
    """Each hidden unit of SwiGLU scaled up by a factor between 1/4 and 4 and down again."""
    config, weights = llama(model)
    found = dict(weights)
    for layer in range(config.layers):
        factors = 4 ** (2 * torch.rand(config.hidden, generator=generator) - 1)
        up, down = (f"model.layers.{layer}.mlp.{name}.weight" for name in ("up_proj", "down_proj"))
        found[up], found[down] = factors[:, None] * found[up], found[down] / factors
    return config, found


def heads_moved(model: Model, generator: torch.Generator) -> Model:
    """Heads in another order, the same one in every layer."""
    config = model[0]
    heads = config.heads if isinstance(config, GptConfig) else config.key_value_heads
    order = torch.randperm(heads, generator=generator)
    if torch.equal(order, torch.arange(heads)):
        order = order.roll(1)  # of two heads, every other order is the one they had
    move = with_gpt_heads if isinstance(config, GptConfig) else with_value_heads
    return move(model, order.tolist())


def residual_rotated(model: Model, generator: torch.Generator) -> Model:
    """The residual stream turned by one random rotation; the head is no longer the embeddings."""
    config, weights = llama(with_folded_gains(model))
    turn = orthogonal(config.width, generator)
    found: Weights = {}
    for name, tensor in weights.items():
        if name.endswith(("o_proj.weight", "down_proj.weight")):
            found[name] = turn.T @ tensor
        elif tensor.dim() == 1:
            found[name] = tensor
        else:
            found[name] = tensor @ turn
    return config, found


def with_folded_gains(model: Model) -> Model:
    """The gains of the norms multiplied into the weights that follow them, and ones in their place."""
    config, weights = llama(model)
    found = dict(weights)
    follow = {"input_layernorm": ("q_proj", "k_proj", "v_proj"), "post_attention_layernorm": ("gate_proj", "up_proj")}
    for name, gain in weights.items():
        norm = name.removesuffix(".weight").split(".")[-1]
        if norm not in follow:
            continue
        layer = name.removesuffix(f".{norm}.weight")
        for other in weights:
            if other.startswith(f"{layer}.") and other.endswith(tuple(f"{after}.weight" for after in follow[norm])):
                found[other] = weights[other] * gain
        found[name] = torch.ones_like(gain)
    head = weights["model.embed_tokens.weight" if config.tied else "lm_head.weight"]
    found["lm_head.weight"] = head * weights["model.norm.weight"]
    found["model.norm.weight"] = torch.ones_like(weights["model.norm.weight"])
    return replace(config, tied=False), found


def orthogonal(width: int, generator: torch.Generator) -> Tensor:
    """A random rotation or reflection, [width, width]."""
    turn: Tensor = torch.linalg.qr(torch.randn(width, width, generator=generator)).Q
    return turn


def on_diagonal(blocks: Iterable[Tensor]) -> Tensor:
    """A matrix with these along its diagonal."""
    matrix: Tensor = torch.block_diag(*blocks)  # type: ignore[no-untyped-call]
    return matrix


def _factor(generator: torch.Generator) -> float:
    return float(4 ** (2 * torch.rand(1, generator=generator) - 1))


STEPS: Mapping[str, Step] = {
    "values permuted": values_permuted,
    "values rescaled": values_rescaled,
    "values mixed": values_mixed,
    "keys rescaled": keys_rescaled,
    "keys turned": keys_turned,
    "hidden permuted": hidden_permuted,
    "hidden rescaled": hidden_rescaled,
    "heads moved": heads_moved,
    "residual rotated": residual_rotated,
}
