"""A small model of the Llama layout: RMSNorm, rotary positions, grouped-query attention, SwiGLU, tied embeddings.

Modules bear the names that transformers gives them, so that a state dict of this model is a checkpoint like any other.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional

Weights = dict[str, Tensor]
"""Tensors by the names of transformers."""


@dataclass(frozen=True)
class Config:
    """Sizes of a model; ``head_width`` is even."""

    layers: int = 6
    width: int = 128
    heads: int = 4
    key_value_heads: int = 2
    head_width: int = 32
    hidden: int = 344
    vocabulary: int = 256
    context: int = 128


class Norm(nn.Module):
    """RMSNorm with a gain."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return functional.rms_norm(x, (x.shape[-1],), self.weight, 1e-5)


class Attention(nn.Module):
    """Causal attention with rotary positions."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.q_proj = nn.Linear(config.width, config.heads * config.head_width, bias=False)
        self.k_proj = nn.Linear(config.width, config.key_value_heads * config.head_width, bias=False)
        self.v_proj = nn.Linear(config.width, config.key_value_heads * config.head_width, bias=False)
        self.o_proj = nn.Linear(config.heads * config.head_width, config.width, bias=False)

    def forward(self, x: Tensor, turn: Tensor) -> Tensor:
        batch, length, _ = x.shape
        q, k, v = (
            projection(x).view(batch, length, -1, self.config.head_width).transpose(1, 2)
            for projection in (self.q_proj, self.k_proj, self.v_proj)
        )
        mixed = functional.scaled_dot_product_attention(
            rotated(q, turn), rotated(k, turn), v, is_causal=True, enable_gqa=True
        )
        projected: Tensor = self.o_proj(mixed.transpose(1, 2).reshape(batch, length, -1))
        return projected


class FeedForward(nn.Module):
    """SwiGLU."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(config.width, config.hidden, bias=False)
        self.up_proj = nn.Linear(config.width, config.hidden, bias=False)
        self.down_proj = nn.Linear(config.hidden, config.width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        projected: Tensor = self.down_proj(functional.silu(self.gate_proj(x)) * self.up_proj(x))
        return projected


class Layer(nn.Module):
    """Attention and feed-forward, each behind a norm and beside the residual stream."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.input_layernorm = Norm(config.width)
        self.self_attn = Attention(config)
        self.post_attention_layernorm = Norm(config.width)
        self.mlp = FeedForward(config)

    def forward(self, x: Tensor, turn: Tensor) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x), turn)
        added: Tensor = x + self.mlp(self.post_attention_layernorm(x))
        return added


class Trunk(nn.Module):
    """Embeddings, layers, last norm."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(config.vocabulary, config.width)
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.layers))
        self.norm = Norm(config.width)


class Llama(nn.Module):
    """The whole; ``forward`` gives logits [batch, length, vocabulary] of token numbers [batch, length]."""

    def __init__(self, config: Config, seed: int) -> None:
        super().__init__()
        self.config = config
        self.model = Trunk(config)
        generator = torch.Generator().manual_seed(seed)
        for parameter in self.parameters():
            if parameter.dim() > 1:
                nn.init.normal_(parameter, std=0.02, generator=generator)

    def forward(self, tokens: Tensor) -> Tensor:
        turn = angles(tokens.shape[1], self.config.head_width)
        x = self.model.embed_tokens(tokens)
        for layer in self.model.layers:
            x = layer(x, turn)
        return functional.linear(self.model.norm(x), self.model.embed_tokens.weight)


def angles(length: int, head_width: int) -> Tensor:
    """Of each position and pair of channels, [length, head_width / 2] (Su et al. 2021)."""
    frequencies = 10000.0 ** (-torch.arange(0, head_width, 2) / head_width)
    return torch.outer(torch.arange(length), frequencies)


def rotated(x: Tensor, turn: Tensor) -> Tensor:
    """Channels i and i + head_width / 2 turned by their angle, as transformers pairs them."""
    first, second = x.chunk(2, dim=-1)
    cosine, sine = turn.cos(), turn.sin()
    return torch.cat((first * cosine - second * sine, second * cosine + first * sine), dim=-1)


def loaded(config: Config, weights: Mapping[str, Tensor]) -> Llama:
    """A model with these weights, copied."""
    model = Llama(config, seed=0)
    model.load_state_dict({name: tensor.float() for name, tensor in weights.items()})
    return model


def weights_of(model: Llama) -> Weights:
    """A copy of its weights."""
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def save(folder: Path, config: Config, weights: Weights, dtype: torch.dtype = torch.bfloat16) -> None:
    """A checkpoint as a hub holds it: one safetensors file and a config."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {name: tensor.to(dtype).contiguous() for name, tensor in weights.items()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    described = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "num_hidden_layers": config.layers,
        "hidden_size": config.width,
        "num_attention_heads": config.heads,
        "num_key_value_heads": config.key_value_heads,
        "head_dim": config.head_width,
        "intermediate_size": config.hidden,
        "vocab_size": config.vocabulary,
        "max_position_embeddings": config.context,
        "tie_word_embeddings": True,
    }
    (folder / "config.json").write_text(json.dumps(described, indent=1))
