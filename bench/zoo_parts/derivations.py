"""What people make out of a model without training it: weights in, weights out.

Each of these keeps, moves or mixes units; which of them a test should find is said by the member that uses it
(:mod:`zoo_parts.members`).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor
from zoo_parts.llama import Config, Weights

LAYER = re.compile(r"(model\.layers\.)(\d+)(\..+)")


def with_layers(config: Config, weights: Weights, order: Sequence[int]) -> tuple[Config, Weights]:
    """The layers in ``order``: left out, repeated (depth up-scaling) or exchanged."""
    taken: Weights = {name: tensor for name, tensor in weights.items() if not LAYER.match(name)}
    for new, old in enumerate(order):
        for name, tensor in weights.items():
            if (match := LAYER.match(name)) and int(match[2]) == old:
                taken[f"{match[1]}{new}{match[3]}"] = tensor.clone()
    return replace(config, layers=len(order)), taken


def with_value_heads(config: Config, weights: Weights, kept: Sequence[int]) -> tuple[Config, Weights]:
    """The key and value heads in ``kept``, each with the query heads that share it."""
    shared, width = config.heads // config.key_value_heads, config.head_width
    queries = [head * shared + own for head in kept for own in range(shared)]
    taken = dict(weights)
    for name, tensor in weights.items():
        if name.endswith("q_proj.weight"):
            taken[name] = _heads(tensor, queries, width)
        elif name.endswith(("k_proj.weight", "v_proj.weight")):
            taken[name] = _heads(tensor, kept, width)
        elif name.endswith("o_proj.weight"):
            taken[name] = _heads(tensor.T, queries, width).T.contiguous()
    return replace(config, heads=len(queries), key_value_heads=len(kept)), taken


def _heads(tensor: Tensor, heads: Sequence[int], width: int) -> Tensor:
    """Rows of the chosen heads, one after the other."""
    return torch.cat([tensor[head * width : (head + 1) * width] for head in heads])


def merged(parts: Sequence[Weights], shares: Sequence[float]) -> Weights:
    """A linear merge."""
    return {name: sum_of([share * part[name] for share, part in zip(shares, parts, strict=True)]) for name in parts[0]}


def sum_of(tensors: Sequence[Tensor]) -> Tensor:
    """Of tensors of one shape."""
    return torch.stack(list(tensors)).sum(dim=0)


def slerp(first: Weights, second: Weights, share: float) -> Weights:
    """Along the arc between two tensors, each taken as a vector."""
    found: Weights = {}
    for name, a in first.items():
        b = second[name]
        cosine = torch.nn.functional.cosine_similarity(a.flatten(), b.flatten(), dim=0).clamp(-1, 1)
        angle = torch.arccos(cosine)
        if angle < 1e-4:
            found[name] = (1 - share) * a + share * b
        else:
            found[name] = (torch.sin((1 - share) * angle) * a + torch.sin(share * angle) * b) / torch.sin(angle)
    return found


def task_merged(base: Weights, parts: Sequence[Weights], trim: Callable[[Tensor], Tensor]) -> Weights:
    """The base and the trimmed differences of its fine-tunes, averaged over where they agree in sign (TIES, Yadav et
    al. 2023)."""
    found: Weights = {}
    for name, origin in base.items():
        deltas = torch.stack([trim(part[name] - origin) for part in parts])
        sign = torch.sign(deltas.sum(dim=0))
        agreeing = torch.where(torch.sign(deltas) == sign, deltas, 0)
        count = (agreeing != 0).sum(dim=0).clamp(min=1)
        found[name] = origin + agreeing.sum(dim=0) / count
    return found


def largest_fifth(delta: Tensor) -> Tensor:
    """A difference without the four fifths of smallest magnitude."""
    if delta.numel() < 5:
        return delta
    limit = delta.abs().flatten().kthvalue(int(0.8 * delta.numel())).values
    return torch.where(delta.abs() > limit, delta, 0)


def dropped(delta: Tensor, seed: int = 0) -> Tensor:
    """A difference of which half is left out at random and the rest doubled (DARE, Yu et al. 2023)."""
    generator = torch.Generator().manual_seed(seed + delta.numel())
    return 2 * delta * (torch.rand(delta.shape, generator=generator) < 0.5)


def adapted(weights: Weights, rank: int, scale: float, seed: int) -> Weights:
    """Random low-rank differences in q and v, as a merged adapter leaves them, ``scale`` of the weights' norm."""
    generator = torch.Generator().manual_seed(seed)
    found = dict(weights)
    for name, tensor in weights.items():
        if name.endswith(("q_proj.weight", "v_proj.weight")):
            left, right = (torch.randn(size, rank, generator=generator) for size in tensor.shape)
            change = left @ right.T
            found[name] = tensor + scale * tensor.norm() / change.norm() * change
    return found


def rescaled(weights: Weights, factor: float) -> Weights:
    """The same function: q by a factor and k by its inverse, v and o likewise (laundering that keeps the order)."""
    found = dict(weights)
    for name, tensor in weights.items():
        for ending, own in (("q_proj", factor), ("k_proj", 1 / factor), ("v_proj", factor), ("o_proj", 1 / factor)):
            if name.endswith(f"{ending}.weight"):
                found[name] = own * tensor
    return found


def permuted(config: Config, weights: Weights, seed: int) -> Weights:
    """The same function: the channels of each value head in another order, and hidden units too (laundering that
    breaks the order)."""
    generator = torch.Generator().manual_seed(seed)
    shared, width = config.heads // config.key_value_heads, config.head_width
    found = dict(weights)
    for layer in range(config.layers):
        attention, mlp = (f"model.layers.{layer}.{part}" for part in ("self_attn", "mlp"))
        orders = [head * width + torch.randperm(width, generator=generator) for head in range(config.key_value_heads)]
        found[f"{attention}.v_proj.weight"] = weights[f"{attention}.v_proj.weight"][torch.cat(orders)]
        columns = [head * width + orders[head // shared] % width for head in range(config.heads)]
        found[f"{attention}.o_proj.weight"] = weights[f"{attention}.o_proj.weight"][:, torch.cat(columns)]
        hidden = torch.randperm(config.hidden, generator=generator)
        for name in ("gate_proj", "up_proj"):
            found[f"{mlp}.{name}.weight"] = weights[f"{mlp}.{name}.weight"][hidden]
        found[f"{mlp}.down_proj.weight"] = weights[f"{mlp}.down_proj.weight"][:, hidden]
    return found
