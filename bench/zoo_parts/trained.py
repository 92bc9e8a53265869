"""What training makes: models of their own initialisation, models trained on, adapters, new attention, pupils."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn import functional
from zoo_parts.llama import Llama
from zoo_parts.models import Model, Sizes, built, loaded, weights_of
from zoo_parts.training import Recipe, next_token_loss, train


def from_scratch(config: Sizes, seed: int, recipe: Recipe) -> Model:
    """A model of its own initialisation."""
    network = built(config, seed)
    train(network, recipe)
    return config, weights_of(network)


def further(start: Model, recipe: Recipe) -> Model:
    """A model, trained on."""
    network = loaded(*start)
    train(network, recipe)
    return start[0], weights_of(network)


def distilled(teacher: Model, seed: int, recipe: Recipe) -> Model:
    """A model of its own initialisation that learns what another would say."""
    network, master = built(teacher[0], seed), loaded(*teacher)

    def loss(logits: Tensor, tokens: Tensor) -> Tensor:
        with torch.no_grad():
            wanted = functional.log_softmax(master(tokens[:, :-1]), dim=-1)
        said = functional.log_softmax(logits, dim=-1)
        apart = functional.kl_div(said, wanted, log_target=True, reduction="batchmean") / said.shape[1]
        return apart + 0.1 * next_token_loss(logits, tokens)

    train(network, recipe, loss)
    return teacher[0], weights_of(network)


def with_new_attention(start: Model, seed: int, recipe: Recipe) -> Model:
    """All attention of a Llama model drawn anew, then everything trained on."""
    network = loaded(*start)
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in network.named_parameters():
        if ".self_attn." in name:
            nn.init.normal_(parameter, std=0.02, generator=generator)
    train(network, recipe)
    return start[0], weights_of(network)


class Adapter(nn.Module):
    """A frozen projection and a trained low-rank difference beside it (LoRA, Hu et al. 2021)."""

    def __init__(self, own: nn.Linear, rank: int, generator: torch.Generator) -> None:
        super().__init__()
        self.own = own
        self.down = nn.Parameter(torch.randn(rank, own.in_features, generator=generator) / own.in_features**0.5)
        self.up = nn.Parameter(torch.zeros(own.out_features, rank))

    def forward(self, x: Tensor) -> Tensor:
        adapted: Tensor = self.own(x) + functional.linear(functional.linear(x, self.down), self.up)
        return adapted


def with_adapter(start: Model, rank: int, seed: int, recipe: Recipe) -> Model:
    """An adapter of q and v trained on a frozen Llama model, and merged into it."""
    network = loaded(*start)
    assert isinstance(network, Llama)
    network.requires_grad_(False)
    generator = torch.Generator().manual_seed(seed)
    adapters: dict[str, Adapter] = {}
    for number, layer in enumerate(network.model.layers):
        for name in ("q_proj", "v_proj"):
            adapter = Adapter(getattr(layer.self_attn, name), rank, generator)
            setattr(layer.self_attn, name, adapter)
            adapters[f"model.layers.{number}.self_attn.{name}.weight"] = adapter
    train(network, replace(recipe, decay=0.0))
    changes = {name: (adapter.up @ adapter.down).detach() for name, adapter in adapters.items()}
    return start[0], {n: tensor + changes[n] if n in changes else tensor.clone() for n, tensor in start[1].items()}
