"""Changes that leave what a Llama-style network computes as it is and move what it is made of: weights in, weights out.

Tensors bear the names of transformers; sizes are those of the config. Each takes a generator, so that tests draw the
same changes in every run.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

Weights = dict[str, Tensor]
Change = Callable[[Mapping[str, Any], Weights, torch.Generator], Weights]

INPUTS = {
    "input_layernorm": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "post_attention_layernorm": ("mlp.gate_proj", "mlp.up_proj"),
}
OUTPUTS = ("self_attn.o_proj", "mlp.down_proj")


def _layers(config: Mapping[str, Any]) -> list[str]:
    return [f"model.layers.{number}." for number in range(config["num_hidden_layers"])]


def _sizes(config: Mapping[str, Any]) -> tuple[int, int, int]:
    """Key-value heads, query heads that share one, width of a head."""
    heads, own = config["num_attention_heads"], config["num_key_value_heads"]
    return own, heads // own, config.get("head_dim") or config["hidden_size"] // heads


def permuted_units(config: Mapping[str, Any], weights: Weights, generator: torch.Generator) -> Weights:
    """The units of every value head and of every feed-forward in another order."""
    own, shared, width = _sizes(config)
    found = dict(weights)
    for layer in _layers(config):
        value, output = f"{layer}self_attn.v_proj.weight", f"{layer}self_attn.o_proj.weight"
        orders = [torch.randperm(width, generator=generator) for _ in range(own)]
        found[value] = weights[value][torch.cat([head * width + order for head, order in enumerate(orders)])]
        columns = [head * width + orders[head // shared] for head in range(own * shared)]
        found[output] = weights[output][:, torch.cat(columns)]
        down = f"{layer}mlp.down_proj.weight"
        if down in weights:
            hidden = torch.randperm(weights[down].shape[1], generator=generator)
            found[down] = weights[down][:, hidden]
            for name in ("gate_proj", "up_proj"):
                if (key := f"{layer}mlp.{name}.weight") in weights:
                    found[key] = weights[key][hidden]
    return found


def mixed_values(config: Mapping[str, Any], weights: Weights, generator: torch.Generator) -> Weights:
    """V of every value head times an invertible matrix, and O times its inverse."""
    own, shared, width = _sizes(config)
    found = dict(weights)
    for layer in _layers(config):
        value, output = f"{layer}self_attn.v_proj.weight", f"{layer}self_attn.o_proj.weight"
        rows, columns = weights[value].double().clone(), weights[output].double().clone()
        for head in range(own):
            left, right = (rotation(width, generator) for _ in range(2))
            mix = left @ torch.diag(torch.exp(torch.randn(width, generator=generator).double() / 2)) @ right
            here = slice(head * width, (head + 1) * width)
            rows[here] = mix @ rows[here]
            for query in range(head * shared, (head + 1) * shared):
                there = slice(query * width, (query + 1) * width)
                columns[:, there] = columns[:, there] @ torch.linalg.inv(mix)
        found[value], found[output] = rows.to(weights[value].dtype), columns.to(weights[output].dtype)
    return found


def permuted_heads(config: Mapping[str, Any], weights: Weights, generator: torch.Generator) -> Weights:
    """Key-value heads, and the query heads that share one, in another order."""
    own, shared, width = _sizes(config)
    found = dict(weights)
    for layer in _layers(config):
        groups = torch.randperm(own, generator=generator)
        queries = torch.cat([group * shared + torch.randperm(shared, generator=generator) for group in groups])
        for role, heads, axis in (("q", queries, 0), ("k", groups, 0), ("v", groups, 0), ("o", queries, 1)):
            key = f"{layer}self_attn.{role}_proj.weight"
            order = torch.cat([head * width + torch.arange(width) for head in heads])
            found[key] = weights[key].index_select(axis, order)
    return found


def permuted_residual(config: Mapping[str, Any], weights: Weights, generator: torch.Generator) -> Weights:
    """The dimensions of the residual stream in another order, the same in all layers."""
    order = torch.randperm(config["hidden_size"], generator=generator)
    found = {}
    for name, tensor in weights.items():
        if "norm" in name or any(part in name for part in OUTPUTS):
            found[name] = tensor[order]
        else:
            found[name] = tensor[:, order]
    return found


def rotated_residual(config: Mapping[str, Any], weights: Weights, generator: torch.Generator) -> Weights:
    """The residual stream in another orthogonal basis, after the gains of the norms went into what they feed."""
    turn = rotation(config["hidden_size"], generator)
    found = {name: tensor.double() for name, tensor in folded(config, weights).items()}
    for name, tensor in found.items():
        if "norm" not in name:
            outputs = any(part in name for part in OUTPUTS)
            found[name] = turn @ tensor if outputs else tensor @ turn.T
    return {name: tensor.to(weights["model.embed_tokens.weight"].dtype) for name, tensor in found.items()}


def folded(config: Mapping[str, Any], weights: Weights) -> Weights:
    """The gains of the norms multiplied into the columns that they feed, and set to one; embeddings untied."""
    found = dict(weights)
    for layer in _layers(config):
        for norm, fed in INPUTS.items():
            gain = weights.get(f"{layer}{norm}.weight")
            for name in fed if gain is not None else ():
                if (key := f"{layer}{name}.weight") in weights:
                    found[key] = weights[key] * gain
            if gain is not None:
                found[f"{layer}{norm}.weight"] = torch.ones_like(gain)
    last = weights.get("model.norm.weight")
    if last is not None:
        head = weights.get("lm_head.weight", weights["model.embed_tokens.weight"])
        found["lm_head.weight"], found["model.norm.weight"] = head * last, torch.ones_like(last)
    return found


def rotation(width: int, generator: torch.Generator) -> Tensor:
    """A random orthogonal matrix, float64 [width, width]."""
    return torch.linalg.qr(torch.randn(width, width, generator=generator, dtype=torch.float64))[0]


def both(first: Change, second: Change) -> Change:
    """One change after the other."""
    return lambda config, weights, generator: second(config, first(config, weights, generator), generator)


KINDS: dict[str, Change] = {
    "units permuted": permuted_units,
    "values mixed": mixed_values,
    "heads permuted": permuted_heads,
    "residual permuted": permuted_residual,
    "residual rotated": rotated_residual,
    "units and heads permuted": both(permuted_units, permuted_heads),
    "values mixed, residual permuted": both(mixed_values, permuted_residual),
    "values mixed, residual rotated": both(mixed_values, rotated_residual),
    "heads permuted, residual rotated": both(permuted_heads, both(permuted_units, rotated_residual)),
}
