"""A small model of GPT-2's layout: LayerNorm, learned positions, fused q, k and v, GELU, tied embeddings.

Modules bear the names of the published GPT-2, and its matrices are stored as (in, out), as transformers' Conv1D does.
Activations are [batch, length, width].
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional


@dataclass(frozen=True)
class GptConfig:
    """Sizes of a model; a head is ``width / heads`` wide."""

    layers: int = 6
    width: int = 128
    heads: int = 4
    hidden: int = 512
    vocabulary: int = 256
    context: int = 96

    @property
    def head_width(self) -> int:
        return self.width // self.heads


class Projection(nn.Module):
    """x W + b with W stored as (in, out)."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(inputs, outputs))
        self.bias = nn.Parameter(torch.zeros(outputs))

    def forward(self, x: Tensor) -> Tensor:
        return torch.matmul(x, self.weight) + self.bias


class GptAttention(nn.Module):
    """Causal attention."""

    def __init__(self, config: GptConfig) -> None:
        super().__init__()
        self.heads = config.heads
        self.c_attn = Projection(config.width, 3 * config.width)
        self.c_proj = Projection(config.width, config.width)

    def forward(self, x: Tensor) -> Tensor:
        batch, length, width = x.shape
        q, k, v = (
            part.view(batch, length, self.heads, -1).transpose(1, 2) for part in self.c_attn(x).split(width, dim=-1)
        )
        mixed = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        projected: Tensor = self.c_proj(mixed.transpose(1, 2).reshape(batch, length, width))
        return projected


class GptFeedForward(nn.Module):
    """Two layers with a GELU between."""

    def __init__(self, config: GptConfig) -> None:
        super().__init__()
        self.c_fc = Projection(config.width, config.hidden)
        self.c_proj = Projection(config.hidden, config.width)

    def forward(self, x: Tensor) -> Tensor:
        projected: Tensor = self.c_proj(functional.gelu(self.c_fc(x), approximate="tanh"))
        return projected


class GptLayer(nn.Module):
    """Attention and feed-forward, each behind a norm and beside the residual stream."""

    def __init__(self, config: GptConfig) -> None:
        super().__init__()
        self.ln_1 = nn.LayerNorm(config.width)
        self.attn = GptAttention(config)
        self.ln_2 = nn.LayerNorm(config.width)
        self.mlp = GptFeedForward(config)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.ln_1(x))
        added: Tensor = x + self.mlp(self.ln_2(x))
        return added


class Gpt2(nn.Module):
    """The whole; ``forward`` gives logits [batch, length, vocabulary] of token numbers [batch, length]."""

    def __init__(self, config: GptConfig, seed: int) -> None:
        super().__init__()
        self.config = config
        self.wte = nn.Embedding(config.vocabulary, config.width)
        self.wpe = nn.Embedding(config.context, config.width)
        self.h = nn.ModuleList(GptLayer(config) for _ in range(config.layers))
        self.ln_f = nn.LayerNorm(config.width)
        generator = torch.Generator().manual_seed(seed)
        for parameter in self.parameters():
            if parameter.dim() > 1:
                nn.init.normal_(parameter, std=0.02, generator=generator)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.wte(tokens) + self.wpe.weight[: tokens.shape[1]]
        for layer in self.h:
            x = layer(x)
        return functional.linear(self.ln_f(x), self.wte.weight)
