"""The tables that say what a tensor's name means in a feed-forward block: namings, places, fused orders.

A block is known by the exact set of its leaves, because the same leaf means different things beside others (w2 is
Llama's down, Qwen's gate). A new naming is one row of NAMINGS. Gives up: blocks whose names say nothing about their
place, and those of which a leaf is missing.

Source: the parameter names and the forward passes of the public model families.
"""

from __future__ import annotations

from collections.abc import Mapping

GATE_UP = "gate_up"
"""Role of a fused tensor: the outputs of gate, then as many of up."""

_ROWS = (
    ("gate", "up", "down", "gate_proj up_proj down_proj"),  # Llama, Qwen, Mistral, Gemma, DeepSeek, OLMoE
    ("gate", "up", "down", "w1 w3 w2"),  # Llama as published, Mixtral, InternLM2
    ("gate", "up", "down", "w2 w1 c_proj"),  # Qwen 1
    ("gate", "up", "down", "c_fc_0 c_fc_1 c_proj"),  # EXAONE
    ("gate", "up", "down", "wi_0 wi_1 wo"),  # T5 1.1
    ("gate", "up", "down", "fc12 fc11 fc2"),  # Nomic
)
_FUSED_ROWS = (
    "gate_up_proj down_proj",  # Phi-3, GLM; stacks of experts: Llama 4, gpt-oss, Qwen 3
    "input_linear output_linear",  # Granite
)
_UNGATED_ROWS = (
    "up_proj down_proj",  # MPT, Nemotron
    "c_fc c_proj",  # GPT-2, StarCoder
    "dense_h_to_4h dense_4h_to_h",  # GPT-NeoX, BLOOM, Falcon
    "intermediate.dense output.dense",  # BERT
    "fc1 fc2",  # OPT, BART, Whisper, Phi, ViT
    "fc_in fc_out",  # GPT-J, CodeGen
    "lin1 lin2",  # DistilBERT
    "linear1 linear2",  # torch.nn.TransformerEncoderLayer
    "linear_fc1 linear_fc2",  # Megatron, towers of Qwen
    "mlp.0 mlp.2",  # Whisper as published
    "ffn.0 ffn.2",  # Wan
    "wi wo",  # T5
    "Wi Wo",  # ModernBERT
)

NAMINGS: Mapping[frozenset[str], Mapping[str, str]] = {
    **{
        frozenset(leaves.split()): dict(zip(leaves.split(), (gate, up, down), strict=True))
        for gate, up, down, leaves in _ROWS
    },
    **{frozenset(leaves.split()): dict(zip(leaves.split(), (GATE_UP, "down"), strict=True)) for leaves in _FUSED_ROWS},
    **{frozenset(leaves.split()): dict(zip(leaves.split(), ("up", "down"), strict=True)) for leaves in _UNGATED_ROWS},
}
"""The leaves of a block -> leaf -> role."""

LEAVES = frozenset(leaf for leaves in NAMINGS for leaf in leaves)

QUIET = frozenset(
    {
        *("w1", "w2", "w3", "c_proj", "wo", "wi", "Wi", "Wo", "lin1", "lin2"),
        *("input_linear", "output_linear"),
    }
)
"""Leaves that name a feed-forward block only below a part that says so."""

PAIRS = frozenset(leaf.partition(".")[2] for leaf in LEAVES if "." in leaf)
"""Last parts of leaves that are two parts of a name."""

PLACES = ("mlp", "ffn", "feed_forward", "feedforward", "densereludense", "moe", "expert")
"""Pieces of a part that says: what stands below is a feed-forward block."""

PLACE_WORDS = frozenset({"ff", "mixer"})
"""Whole parts that say so."""

ELSEWHERE = (
    *("attn", "attention", "adapter", "mamba", "lstm", "rwkv", "ssm", "indexer", "compressor", "router", "delta_net"),
    *("deltanet", "time_mix", "channel_mix", "altup", "laurel", "projector", "merger", "resampler", "pooler"),
)
"""Pieces of a part after the layer number that say: what stands below is no feed-forward block of the layer."""

EXPERTS = ("experts", "expert")
"""Parts behind which a number counts the experts of a layer."""

SHARED = ("shared_expert", "shared_mlp")
"""Pieces of the name of the block that every token takes beside its experts."""

BARE: Mapping[str, tuple[str, str]] = {
    f"{leaf}_{suffix}": (leaf, kind)
    for leaf in ("gate_up_proj", "gate_proj", "up_proj", "down_proj")
    for suffix, kind in (("bias", "bias"), ("blocks", "weight_blocks"), ("scales", "weight_scales"))
}
"""Parameters whose own name holds the kind: (leaf, kind)."""

ALTERNATING: Mapping[str, str] = {"gpt_oss": "its outputs are those of gate and up in turn"}
"""Families whose fused tensor is not [gate | up], and what it is."""

FUSED_FAMILIES = frozenset(
    {
        *(("dense_h_to_4h", family) for family in ("chatglm", "chatglm2", "chatglm3")),
        ("Wi", "modernbert"),
    }
)
"""(leaf, model_type) whose "up", twice as wide as what down takes, is [gate | up]."""

CONV1D_LEAVES = frozenset({"c_fc", "c_proj"})
"""Leaves that CONV1D_FAMILIES store as (in, out)."""

MAX_EXPERTS = 8192  # a bound on the work that a lying header can cause
