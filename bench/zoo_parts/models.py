"""What the members of the zoo are made of: sizes and float32 weights, whichever family they are of.

Exact weights are kept in one safetensors file each, with the family and the sizes in its header.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor
from zoo_parts.gpt2 import Gpt2, GptConfig
from zoo_parts.llama import Config, Llama

Weights = dict[str, Tensor]
"""Tensors by the names of transformers."""
Sizes = Config | GptConfig
Model = tuple[Sizes, Weights]
Network = Llama | Gpt2

_SIZES: Mapping[str, Callable[..., Sizes]] = {"llama": Config, "gpt2": GptConfig}


def built(config: Sizes, seed: int) -> Network:
    """An untrained network."""
    return Gpt2(config, seed) if isinstance(config, GptConfig) else Llama(config, seed)


def loaded(config: Sizes, weights: Mapping[str, Tensor]) -> Network:
    """A network with these weights, copied."""
    network = built(config, seed=0)
    network.load_state_dict({name: tensor.float() for name, tensor in weights.items()})
    return network


def weights_of(network: Network) -> Weights:
    """A copy of its weights."""
    return {name: tensor.detach().clone() for name, tensor in network.state_dict().items()}


def keep(path: Path, model: Model) -> None:
    """As it was made, not as it is stored: others are derived from it."""
    config, weights = model
    family = "gpt2" if isinstance(config, GptConfig) else "llama"
    write_tensors(path, weights, {"family": family, "config": json.dumps(asdict(config))})


def kept(path: Path) -> Model:
    """What :func:`keep` wrote."""
    with safe_open(path, framework="pt") as file:
        header: dict[str, Any] = file.metadata()
    return _SIZES[header["family"]](**json.loads(header["config"])), load_file(path)


def write_tensors(path: Path, tensors: Mapping[str, Tensor], header: Mapping[str, str]) -> None:
    """One safetensors file, there as a whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    save_file({name: tensor.clone().contiguous() for name, tensor in tensors.items()}, temporary, metadata=dict(header))
    temporary.replace(path)
