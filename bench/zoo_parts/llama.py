"""A small model of the Llama layout: RMSNorm, rotary positions, grouped-query attention, SwiGLU, tied embeddings.

Modules bear the names that transformers gives them, so that a state dict of this model is a checkpoint like any other.
With experts its feed-forward is Mixtral's. Activations are [batch, length, width].
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

ACTIVE = 2  # experts that see a token


@dataclass(frozen=True)
class Config:
    """Sizes of a model; ``head_width`` is even, 0 experts is a dense model."""

    layers: int = 6
    width: int = 128
    heads: int = 4
    key_value_heads: int = 2
    head_width: int = 32
    hidden: int = 344
    vocabulary: int = 256
    context: int = 96
    experts: int = 0
    tied: bool = True


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


class Expert(nn.Module):
    """SwiGLU by Mixtral's names: w1 is the gate, w3 goes up, w2 comes down."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.w1 = nn.Linear(config.width, config.hidden, bias=False)
        self.w2 = nn.Linear(config.hidden, config.width, bias=False)
        self.w3 = nn.Linear(config.width, config.hidden, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        projected: Tensor = self.w2(functional.silu(self.w1(x)) * self.w3(x))
        return projected


class Mixture(nn.Module):
    """The ACTIVE likeliest experts of each token, weighted by the router (Jiang et al. 2024); every expert computes
    every token, which costs little at this size."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.gate = nn.Linear(config.width, config.experts, bias=False)
        self.experts = nn.ModuleList(Expert(config) for _ in range(config.experts))

    def forward(self, x: Tensor) -> Tensor:
        scores, chosen = self.gate(x).topk(ACTIVE, dim=-1)
        shares = torch.zeros(*x.shape[:-1], len(self.experts)).scatter(-1, chosen, scores.softmax(dim=-1))
        outputs = torch.stack([expert(x) for expert in self.experts], dim=-1)
        return (outputs * shares.unsqueeze(-2)).sum(dim=-1)


class Layer(nn.Module):
    """Attention and feed-forward, each behind a norm and beside the residual stream."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.input_layernorm = Norm(config.width)
        self.self_attn = Attention(config)
        self.post_attention_layernorm = Norm(config.width)
        if config.experts:
            self.block_sparse_moe = Mixture(config)
        else:
            self.mlp = FeedForward(config)

    def forward(self, x: Tensor, turn: Tensor) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x), turn)
        forward = self.block_sparse_moe if hasattr(self, "block_sparse_moe") else self.mlp
        added: Tensor = x + forward(self.post_attention_layernorm(x))
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
        if not config.tied:
            self.lm_head = nn.Linear(config.width, config.vocabulary, bias=False)
        generator = torch.Generator().manual_seed(seed)
        for parameter in self.parameters():
            if parameter.dim() > 1:
                nn.init.normal_(parameter, std=0.02, generator=generator)

    def forward(self, tokens: Tensor) -> Tensor:
        turn = angles(tokens.shape[1], self.config.head_width)
        x = self.model.embed_tokens(tokens)
        for layer in self.model.layers:
            x = layer(x, turn)
        head = self.model.embed_tokens if self.config.tied else self.lm_head
        return functional.linear(self.model.norm(x), head.weight)


def angles(length: int, head_width: int) -> Tensor:
    """Of each position and pair of channels, [length, head_width / 2] (Su et al. 2021)."""
    frequencies = 10000.0 ** (-torch.arange(0, head_width, 2) / head_width)
    return torch.outer(torch.arange(length), frequencies)


def rotated(x: Tensor, turn: Tensor) -> Tensor:
    """Channels i and i + head_width / 2 turned by their angle, as transformers pairs them."""
    first, second = x.chunk(2, dim=-1)
    cosine, sine = turn.cos(), turn.sin()
    return torch.cat((first * cosine - second * sine, second * cosine + first * sine), dim=-1)
