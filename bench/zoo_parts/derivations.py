"""What people make out of a model by cutting, repeating and moving its parts: weights in, weights out, no training.

Which of these a test should find is said by the member that uses it (:mod:`zoo_parts.members`). Llama models
throughout; :func:`with_layers` and :func:`with_gpt_heads` know GPT-2's names.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor
from zoo_parts.gpt2 import GptConfig
from zoo_parts.llama import Config
from zoo_parts.models import Model, Weights

LAYER = re.compile(r"((?:model\.layers|h)\.)(\d+)(\..+)")


def unchanged(start: Model) -> Model:
    """The same weights, to be stored in another way."""
    return start


def with_layers(start: Model, order: Sequence[int]) -> Model:
    """The layers in ``order``: left out, repeated (depth up-scaling) or exchanged."""
    config, weights = start
    taken: Weights = {name: tensor for name, tensor in weights.items() if not LAYER.match(name)}
    for new, old in enumerate(order):
        for name, tensor in weights.items():
            if (match := LAYER.match(name)) and int(match[2]) == old:
                taken[f"{match[1]}{new}{match[3]}"] = tensor.clone()
    return replace(config, layers=len(order)), taken


def with_value_heads(start: Model, taken: Sequence[int]) -> Model:
    """The key and value heads in ``taken``, each with the query heads that share it: pruned or in another order."""
    config, weights = llama(start)
    shared, width = config.heads // config.key_value_heads, config.head_width
    queries = [head * shared + own for head in taken for own in range(shared)]
    found = dict(weights)
    for name, tensor in weights.items():
        if name.endswith("q_proj.weight"):
            found[name] = heads_of(tensor, queries, width)
        elif name.endswith(("k_proj.weight", "v_proj.weight")):
            found[name] = heads_of(tensor, taken, width)
        elif name.endswith("o_proj.weight"):
            found[name] = heads_of(tensor.T, queries, width).T
    return replace(config, heads=len(queries), key_value_heads=len(taken)), found


def ungrouped(start: Model) -> Model:
    """Every query head with a key and value head of its own, copied from the one that it shared; the same function."""
    config, weights = llama(start)
    shared = config.heads // config.key_value_heads
    copies = [head // shared for head in range(config.heads)]
    return replace(config, key_value_heads=config.heads), _with_keys_and_values(
        weights, lambda tensor: heads_of(tensor, copies, config.head_width)
    )


def pooled(start: Model) -> Model:
    """One key and value head for all query heads, the mean of what there was (Ainslie et al. 2023)."""
    config, weights = llama(start)
    return replace(config, key_value_heads=1), _with_keys_and_values(
        weights, lambda tensor: tensor.view(config.key_value_heads, config.head_width, -1).mean(dim=0)
    )


def _with_keys_and_values(weights: Weights, change: Callable[[Tensor], Tensor]) -> Weights:
    ends = ("k_proj.weight", "v_proj.weight")
    return {name: change(tensor) if name.endswith(ends) else tensor.clone() for name, tensor in weights.items()}


def with_gpt_heads(start: Model, taken: Sequence[int]) -> Model:
    """The heads of a GPT-2 model in another order; all of them, since its width is theirs together."""
    config, weights = start
    assert isinstance(config, GptConfig)
    assert sorted(taken) == list(range(config.heads))
    columns = torch.cat([head * config.head_width + torch.arange(config.head_width) for head in taken])
    fused = torch.cat([part * config.width + columns for part in range(3)])
    found = dict(weights)
    for name, tensor in weights.items():
        if ".attn.c_attn." in name:
            found[name] = tensor[..., fused]
        elif name.endswith(".attn.c_proj.weight"):
            found[name] = tensor[columns]
    return config, found


def narrower(start: Model, width: int) -> Model:
    """The first ``width`` residual dimensions; heads and hidden units are all kept."""
    config, weights = llama(start)
    found: Weights = {}
    for name, tensor in weights.items():
        if name.endswith(("o_proj.weight", "down_proj.weight")) or tensor.dim() == 1:
            found[name] = tensor[:width]
        else:
            found[name] = tensor[:, :width]
    return replace(config, width=width), found


def with_narrower_heads(start: Model, width: int) -> Model:
    """The channels of each head that turn slowest, ``width`` of them, in the pairs that rotary positions make."""
    config, weights = llama(start)
    half = torch.arange(config.head_width // 2 - width // 2, config.head_width // 2)
    pair = torch.cat((half, half + config.head_width // 2))
    queries, keys = (
        torch.cat([head * config.head_width + pair for head in range(heads)])
        for heads in (config.heads, config.key_value_heads)
    )
    found = dict(weights)
    for name, tensor in weights.items():
        if name.endswith("q_proj.weight"):
            found[name] = tensor[queries]
        elif name.endswith(("k_proj.weight", "v_proj.weight")):
            found[name] = tensor[keys]
        elif name.endswith("o_proj.weight"):
            found[name] = tensor[:, queries]
    return replace(config, head_width=width), found


def with_hidden(start: Model, hidden: int) -> Model:
    """The ``hidden`` units of each feed-forward block whose down columns are largest, in their order."""
    config, weights = llama(start)
    found = dict(weights)
    for layer in range(config.layers):
        block = f"model.layers.{layer}.mlp"
        down = weights[f"{block}.down_proj.weight"]
        units = down.square().sum(dim=0).argsort(descending=True)[:hidden].sort().values
        found[f"{block}.down_proj.weight"] = down[:, units]
        for name in ("gate_proj", "up_proj"):
            found[f"{block}.{name}.weight"] = weights[f"{block}.{name}.weight"][units]
    return replace(config, hidden=hidden), found


def with_vocabulary(start: Model, size: int, seed: int) -> Model:
    """More tokens, whose embeddings are the mean of those there were and a little noise."""
    config, weights = llama(start)
    generator = torch.Generator().manual_seed(seed)
    table = weights["model.embed_tokens.weight"]
    new = table.mean(dim=0) + 0.02 * torch.randn(size - len(table), table.shape[1], generator=generator)
    return replace(config, vocabulary=size), {**weights, "model.embed_tokens.weight": torch.cat((table, new))}


def upcycled(start: Model, experts: int, noise: float, seed: int) -> Model:
    """Every feed-forward block copied into experts, ``noise`` of its norm added to each, and a new router (Komatsuzaki
    et al. 2023)."""
    config, weights = llama(start)
    generator = torch.Generator().manual_seed(seed)
    found = {name: tensor for name, tensor in weights.items() if ".mlp." not in name}
    for layer in range(config.layers):
        block, mixture = f"model.layers.{layer}.mlp", f"model.layers.{layer}.block_sparse_moe"
        found[f"{mixture}.gate.weight"] = 0.02 * torch.randn(experts, config.width, generator=generator)
        for expert in range(experts):
            for own, name in (("w1", "gate_proj"), ("w2", "down_proj"), ("w3", "up_proj")):
                tensor = weights[f"{block}.{name}.weight"]
                shaken = tensor + noise * tensor.std() * torch.randn(tensor.shape, generator=generator)
                found[f"{mixture}.experts.{expert}.{own}.weight"] = shaken
    return replace(config, experts=experts), found


def llama(model: Model) -> tuple[Config, Weights]:
    """The same, known to be a Llama model."""
    config, weights = model
    assert isinstance(config, Config)
    return config, weights


def heads_of(tensor: Tensor, heads: Sequence[int], width: int) -> Tensor:
    """Rows of the chosen heads, one after the other."""
    return torch.cat([tensor[head * width : (head + 1) * width] for head in heads])
