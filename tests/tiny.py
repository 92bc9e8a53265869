"""Tiny checkpoints as their own libraries write them: Llama names, grouped heads, safetensors."""

import json
from pathlib import Path

import numpy as np
import numpy.typing as npt
from safetensors.numpy import save_file

Weights = dict[str, npt.NDArray[np.float32]]
CONFIG = {"model_type": "llama", "hidden_size": 64, "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 8}


def llama(seed: int, layers: int = 6, hidden: int = 64, kv: int = 32) -> Weights:
    """Random attention and MLP weights; each layer has its own scale, as trained layers do."""
    generator = np.random.default_rng(seed)
    weights: Weights = {"model.embed_tokens.weight": generator.normal(size=(100, hidden)).astype(np.float32)}
    for layer in range(layers):
        shapes = {"q": (hidden, hidden), "k": (kv, hidden), "v": (kv, hidden), "o": (hidden, hidden)}
        for role, shape in shapes.items():
            values = generator.normal(scale=0.02 * (1 + generator.random()), size=shape)
            weights[f"model.layers.{layer}.self_attn.{role}_proj.weight"] = values.astype(np.float32)
        weights[f"model.layers.{layer}.mlp.down_proj.weight"] = generator.normal(size=(hidden, 128)).astype(np.float32)
    return weights


def tuned(weights: Weights, seed: int, drift: float = 0.001) -> Weights:
    """The same weights a few steps of training later."""
    generator = np.random.default_rng(seed)
    return {
        name: value + np.float32(drift) * generator.normal(size=value.shape).astype(np.float32)
        for name, value in weights.items()
    }


def save(directory: Path, weights: Weights, config: dict[str, object] | None = None) -> Path:
    """One safetensors file and its config."""
    directory.mkdir(parents=True, exist_ok=True)
    save_file(weights, directory / "model.safetensors")
    (directory / "config.json").write_text(json.dumps(CONFIG if config is None else config))
    return directory


def save_sharded(directory: Path, weights: Weights, shards: int = 3) -> Path:
    """Several safetensors files with an index, tensors dealt out in order."""
    directory.mkdir(parents=True, exist_ok=True)
    names = sorted(weights)
    weight_map = {}
    for number in range(shards):
        file = f"model-{number + 1:05}-of-{shards:05}.safetensors"
        own = names[number * len(names) // shards : (number + 1) * len(names) // shards]
        save_file({name: weights[name] for name in own}, directory / file)
        weight_map.update(dict.fromkeys(own, file))
    (directory / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    (directory / "config.json").write_text(json.dumps(CONFIG))
    return directory
