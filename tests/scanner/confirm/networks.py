"""Small Llama-style networks whose dimensions, heads and hidden units differ in strength, as training makes them."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

Weights = dict[str, Tensor]

CONFIG: dict[str, Any] = {
    "model_type": "llama",
    "num_hidden_layers": 6,
    "hidden_size": 64,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 16,
    "intermediate_size": 96,
    "vocab_size": 120,
}


def network(seed: int, config: dict[str, Any] = CONFIG) -> Weights:
    """An independent network. All follow one profile over the depth; what is exchangeable differs by heavy tails."""
    generator = torch.Generator().manual_seed(seed)
    width, hidden, head = config["hidden_size"], config["intermediate_size"], config["head_dim"]
    heads, groups = config["num_attention_heads"], config["num_key_value_heads"]

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    def strength(size: int) -> Tensor:
        return torch.exp(0.5 * normal(size))

    stream = strength(width)
    found = {"model.embed_tokens.weight": 0.02 * normal(config["vocab_size"], width) * stream}
    for layer in range(config["num_hidden_layers"]):
        place = f"model.layers.{layer}"
        depth = 0.02 * (1 + layer / 3)
        of_value, of_query = strength(groups * head), strength(heads).repeat_interleave(head)
        of_output = of_value.reshape(groups, 1, head).expand(-1, heads // groups, -1).reshape(-1)
        units = strength(hidden)
        attention = {
            "q": normal(heads * head, width) * of_query[:, None] * stream,
            "k": normal(groups * head, width) * stream,
            "v": normal(groups * head, width) * of_value[:, None] * stream,
            "o": normal(width, heads * head) * of_output * stream[:, None],
        }
        for role, values in attention.items():
            found[f"{place}.self_attn.{role}_proj.weight"] = depth * values
        found[f"{place}.mlp.gate_proj.weight"] = depth * normal(hidden, width) * units[:, None] * stream
        found[f"{place}.mlp.up_proj.weight"] = depth * normal(hidden, width) * units[:, None] * stream
        found[f"{place}.mlp.down_proj.weight"] = depth * normal(width, hidden) * units * stream[:, None]
        for norm in ("input_layernorm", "post_attention_layernorm"):
            found[f"{place}.{norm}.weight"] = torch.exp(0.1 * normal(width))
    found["model.norm.weight"] = torch.exp(0.1 * normal(width))
    return found


def trained_on(weights: Weights, seed: int, drift: float) -> Weights:
    """The same network after some more steps."""
    generator = torch.Generator().manual_seed(seed)
    return {
        name: tensor + drift * tensor.std() * torch.randn(tensor.shape, generator=generator)
        if tensor.dim() > 1
        else tensor
        for name, tensor in weights.items()
    }


def save(
    folder: Path, weights: Weights, config: dict[str, Any] | None = None, dtype: torch.dtype = torch.bfloat16
) -> Path:
    """A checkpoint of one safetensors file and a config."""
    folder.mkdir(parents=True, exist_ok=True)
    save_file({name: tensor.to(dtype).contiguous() for name, tensor in weights.items()}, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(CONFIG if config is None else config))
    return folder
