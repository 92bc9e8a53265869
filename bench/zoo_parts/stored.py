"""How members are stored: the layout of names and tensors, the encoding of numbers, config.json and README.md.

A layout takes a model to (tensors, config); an encoding takes a matrix to what is stored. Vectors (gains of
norms, biases) stay bf16 under encodings of 8 bits and fewer, as quantisers leave them. Both are tables, so that a
member names its own. Loaded into transformers 5.24, members of the layouts plain and fused gave the logits that they
give here, to 2e-7 of their norm; those of the other layouts bear the names and shapes alone of their families.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from zoo_parts.derivations import llama
from zoo_parts.gpt2 import GptConfig
from zoo_parts.llama import ACTIVE, Config
from zoo_parts.models import Model, Weights, write_tensors

Layout = Callable[[Model], tuple[Weights, dict[str, Any]]]
Encoding = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Claim:
    """What a member says of its own base, in README.md (``base_model``) or config.json (``_name_or_path``)."""

    base: tuple[str, ...]
    true: bool
    place: str = "README.md"


def store(folder: Path, model: Model, layout: str, encoding: str, claim: Claim | None) -> None:
    """A checkpoint as a hub holds it: one safetensors file, a config, and a model card where it makes a claim."""
    tensors, config = LAYOUTS[layout](model)
    encode, vectors = ENCODINGS[encoding], ENCODINGS[encoding if encoding in WHOLE else "bf16"]
    held = {name: encode(tensor) if tensor.dim() > 1 else vectors(tensor) for name, tensor in tensors.items()}
    write_tensors(folder / "model.safetensors", held, {"format": "pt"})
    if claim is not None and claim.place == "config.json":
        config = {"_name_or_path": claim.base[0], **config}
    (folder / "config.json").write_text(json.dumps(config, indent=1))
    card = folder / "README.md"
    if claim is not None and claim.place == "README.md":
        card.write_text(_card(claim.base))
    else:
        card.unlink(missing_ok=True)


def _card(base: Sequence[str]) -> str:
    lines = [f"base_model: {base[0]}"] if len(base) == 1 else ["base_model:", *(f"- {name}" for name in base)]
    return "\n".join(["---", "license: apache-2.0", *lines, "---", "", "A small model.", ""])


def _plain(model: Model) -> tuple[Weights, dict[str, Any]]:
    """As the network names its tensors."""
    config, weights = model
    if isinstance(config, GptConfig):
        return weights, _gpt_config(config)
    if config.experts:
        return weights, {
            **_config("mixtral", "MixtralForCausalLM", config),
            "num_local_experts": config.experts,
            "num_experts_per_tok": ACTIVE,
        }
    return weights, _config("llama", "LlamaForCausalLM", config)


def _fused(model: Model) -> tuple[Weights, dict[str, Any]]:
    """q, k and v in one tensor, gate and up in one, as Phi-3 has them."""
    config, weights = llama(model)
    found = dict(weights)
    for layer in range(config.layers):
        for part, names, fused in (
            ("self_attn", ("q_proj", "k_proj", "v_proj"), "qkv_proj"),
            ("mlp", ("gate_proj", "up_proj"), "gate_up_proj"),
        ):
            place = f"model.layers.{layer}.{part}"
            found[f"{place}.{fused}.weight"] = torch.cat([found.pop(f"{place}.{name}.weight") for name in names])
    return found, _config("phi3", "Phi3ForCausalLM", config)


def _qwen_experts(model: Model) -> tuple[Weights, dict[str, Any]]:
    """Experts by the names of Qwen2-MoE, without its shared expert."""
    config, weights = llama(model)
    renamed = {"block_sparse_moe": "mlp", "w1": "gate_proj", "w2": "down_proj", "w3": "up_proj"}
    found = {".".join(renamed.get(part, part) for part in name.split(".")): t for name, t in weights.items()}
    return found, {
        **_config("qwen2_moe", "Qwen2MoeForCausalLM", config),
        "num_experts": config.experts,
        "num_experts_per_tok": ACTIVE,
        "moe_intermediate_size": config.hidden,
    }


def _stacked_inputs_first(model: Model) -> tuple[Weights, dict[str, Any]]:
    """Experts in two tensors, gate_up [experts, width, 2 hidden] and down [experts, hidden, width], as in Llama 4."""
    config, weights = llama(model)
    found = {
        name: tensor.transpose(1, 2) if ".experts." in name else tensor
        for name, tensor in _stacked(config, weights).items()
    }
    return found, {
        **_config("llama4_text", "Llama4ForCausalLM", config),
        "num_local_experts": config.experts,
        "num_experts_per_tok": ACTIVE,
    }


def _stacked_outputs_first(model: Model) -> tuple[Weights, dict[str, Any]]:
    """Experts in two tensors, gate_up [experts, 2 hidden, width] and down [experts, width, hidden], as transformers 5
    holds Mixtral's."""
    config, weights = llama(model)
    return _stacked(config, weights), {
        **_config("mixtral", "MixtralForCausalLM", config),
        "num_local_experts": config.experts,
        "num_experts_per_tok": ACTIVE,
    }


def _stacked(config: Config, weights: Weights) -> Weights:
    found = {name: tensor for name, tensor in weights.items() if ".block_sparse_moe." not in name}
    for layer in range(config.layers):
        mixture, place = f"model.layers.{layer}.block_sparse_moe", f"model.layers.{layer}.mlp"
        gate, down, up = (
            torch.stack([weights[f"{mixture}.experts.{expert}.{name}.weight"] for expert in range(config.experts)])
            for name in ("w1", "w2", "w3")
        )
        found[f"{place}.gate.weight"] = weights[f"{mixture}.gate.weight"]
        found[f"{place}.experts.gate_up_proj"] = torch.cat((gate, up), dim=1)
        found[f"{place}.experts.down_proj"] = down
    return found


LAYOUTS: Mapping[str, Layout] = {
    "plain": _plain,
    "fused": _fused,
    "qwen experts": _qwen_experts,
    "stacked experts, inputs first": _stacked_inputs_first,
    "stacked experts, outputs first": _stacked_outputs_first,
}


def _config(model_type: str, architecture: str, config: Config) -> dict[str, Any]:
    return {
        "architectures": [architecture],
        "model_type": model_type,
        "num_hidden_layers": config.layers,
        "hidden_size": config.width,
        "num_attention_heads": config.heads,
        "num_key_value_heads": config.key_value_heads,
        "head_dim": config.head_width,
        "intermediate_size": config.hidden,
        "vocab_size": config.vocabulary,
        "max_position_embeddings": config.context,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "hidden_act": "silu",
        "tie_word_embeddings": config.tied,
        "pad_token_id": None,
    }


def _gpt_config(config: GptConfig) -> dict[str, Any]:
    return {
        "architectures": ["GPT2LMHeadModel"],
        "model_type": "gpt2",
        "n_layer": config.layers,
        "n_embd": config.width,
        "n_head": config.heads,
        "n_inner": config.hidden,
        "n_positions": config.context,
        "vocab_size": config.vocabulary,
        "activation_function": "gelu_new",
        "tie_word_embeddings": True,
    }


def _whole_rows(matrix: Tensor) -> Tensor:
    """To 255 levels a row, symmetric, and back: what int8 weights hold."""
    return _rounded(matrix.bfloat16().float(), 127).bfloat16()


def _groups_of_32(matrix: Tensor) -> Tensor:
    """To 15 levels in each 32 numbers of a row, symmetric, and back: what 4-bit weights hold."""
    rows = matrix.bfloat16().float()
    last = rows.shape[-1]
    padded = torch.nn.functional.pad(rows, (0, -last % 32))
    grouped = padded.reshape(*padded.shape[:-1], -1, 32)
    return _rounded(grouped, 7).flatten(-2)[..., :last].bfloat16()


def _rounded(rows: Tensor, levels: int) -> Tensor:
    scale = rows.abs().amax(dim=-1, keepdim=True).clamp(min=1e-12) / levels
    return (rows / scale).round() * scale


ENCODINGS: Mapping[str, Encoding] = {
    "bf16": lambda tensor: tensor.bfloat16(),
    "f16": lambda tensor: tensor.bfloat16().half(),
    "f32": lambda tensor: tensor.bfloat16().float(),
    "f8_e4m3": lambda tensor: tensor.bfloat16().to(torch.float8_e4m3fn),
    "f8_e5m2": lambda tensor: tensor.bfloat16().to(torch.float8_e5m2),
    "int8 stored as bf16": _whole_rows,
    "4-bit stored as bf16": _groups_of_32,
}
"""Each takes what bf16 held: a cast is made of a stored checkpoint."""
WHOLE = frozenset({"bf16", "f16", "f32"})
"""Encodings of vectors too."""
