"""The tables that say what a tensor's name means: leaves, wrappers, places, stored encodings.

A new naming is one row here. A leaf is the last part of a tensor's name once the kind (``weight``, ``bias``, ...)
and wrappers are dropped. Gives up: names that say nothing about their place (``h.0.linear_3``).

Source: the parameter names of the public model families, as their own modules spell them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Leaf:
    """What a leaf name says.

    ``role`` is one of the roles of a matrix, or ``qkv``, ``kv`` (fused), ``shared_kv`` (one matrix used as key and
    value), ``odd_q`` (an attention input that is not one matrix), ``odd`` (a sibling after which q, k, v are more
    than matrices); the last two carry the ``reason``. A ``quiet`` leaf names attention only if its parent does.
    ``variant`` tells a second set of projections in one module from the first.
    """

    role: str
    quiet: bool = False
    variant: str = ""
    reason: str = ""


_SPELLINGS: Mapping[str, str] = {
    "q": "q_proj to_q wq Wq q_lin q_net q_head linear_q query_proj query_layer q_attn attn_q project_q q_proj_weight "
    "att_query",
    "k": "k_proj to_k wk Wk k_lin k_net k_head linear_k key_proj key_layer attn_k project_k k_proj_weight att_key",
    "v": "v_proj to_v wv Wv v_lin v_net v_head linear_v value_proj value_layer attn_v project_v v_proj_weight "
    "att_value",
    "o": "o_proj to_out.0 to_out attn_output attn_out post_proj out_lin o_net linear_out attention_out",
    "qkv": "qkv qkv_proj Wqkv wqkv W_pack query_key_value c_attn in_proj_weight self.in_proj attn.in_proj att_proj "
    "gqkv_proj to_qkv qkv_net attn_qkv linear_qkv",
    "kv": "kv_proj to_kv kv_net linear_kv Wkv",
    "shared_kv": "wkv",
    "q_a": "q_a_proj wq_a attn_q_a q_down_proj",
    "q_b": "q_b_proj wq_b attn_q_b q_up_proj",
    "kv_a": "kv_a_proj_with_mqa kv_a_proj wkv_a attn_kv_a_mqa",
    "kv_b": "kv_b_proj wkv_b attn_kv_b",
    "o_a": "o_a_proj wo_a attn_out_a",
    "o_b": "o_b_proj wo_b attn_out_b",
}
_QUIET_SPELLINGS: Mapping[str, str] = {
    "q": "q query",
    "k": "k key",
    "v": "v value",
    "o": "o wo Wo out_proj dense c_proj proj projection proj_out linear_proj",
    "kv": "kv",
}
_ODD: Mapping[str, str] = {
    "A_log dt_bias time_decay time_maa_x receptance output_gate": "the module is a linear recurrence, not softmax "
    "attention ({leaf} lies beside it)",
    "conv_qk conv_qk.0 conv_qk_depthwise q_conv q_conv1d k_conv k_conv1d v_conv1d key_conv_attn_layer": "q and k pass "
    "through a convolution ({leaf} lies beside them)",
    "val_proj1 val_proj2 v_proj_current v_proj_delayed": "v is made of several matrices ({leaf} is one of them)",
}
_ODD_Q: Mapping[str, str] = {
    "experts.input_linear experts.output_linear": "q and o are spread over experts",
    "query_key": "q and k are one shared matrix",
}

LEAVES: Mapping[str, Leaf] = {
    **{name: Leaf(role) for role, names in _SPELLINGS.items() for name in names.split()},
    **{name: Leaf(role, quiet=True) for role, names in _QUIET_SPELLINGS.items() for name in names.split()},
    **{name: Leaf("odd", reason=why.format(leaf=name)) for names, why in _ODD.items() for name in names.split()},
    **{name: Leaf("odd_q", reason=why) for names, why in _ODD_Q.items() for name in names.split()},
    # Joint attention over two token streams: the second stream's projections.
    "add_q_proj": Leaf("q", variant="added"),
    "add_k_proj": Leaf("k", variant="added"),
    "add_v_proj": Leaf("v", variant="added"),
    "to_add_out": Leaf("o", variant="added"),
}

BARE: Mapping[str, tuple[str, str]] = {
    "in_proj_weight": ("in_proj_weight", "weight"),
    "in_proj_bias": ("in_proj_weight", "bias"),
    "q_proj_weight": ("q_proj", "weight"),
    "k_proj_weight": ("k_proj", "weight"),
    "v_proj_weight": ("v_proj", "weight"),
}
"""Parameters whose own name holds the kind: (leaf, kind)."""

WRAPPERS = frozenset({"linear", "base_layer", "conv1d", "conv", "original_module", "module", "inner_layer"})
"""Parts between the leaf and the kind that say nothing."""

INFIXES = frozenset({"_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"})
"""Parts anywhere in a name that compiling and sharding put there."""

ENCODINGS: Mapping[str, str] = {
    "qweight": "GPTQ or AWQ codes",
    "qzeros": "GPTQ or AWQ codes",
    "g_idx": "GPTQ codes",
    "scales": "GPTQ, AWQ or MLX codes",
    "biases": "MLX codes",
    "weight_scale_inv": "FP8 codes with a scale per block",
    "weight_scale": "FP8 or integer codes with scales",
    "scale_weight": "FP8 codes with a scale",
    "scale": "FP8 codes with scales",
    "weight_scale_2": "NVFP4 codes",
    "weight_global_scale": "NVFP4 codes",
    "weight_packed": "compressed-tensors codes",
    "weight_shape": "compressed-tensors codes",
    "weight_zero_point": "compressed-tensors codes",
    "SCB": "bitsandbytes int8 codes",
    "weight_format": "bitsandbytes int8 codes",
    "absmax": "bitsandbytes 4-bit codes",
    "quant_map": "bitsandbytes 4-bit codes",
    "nested_absmax": "bitsandbytes 4-bit codes",
    "nested_quant_map": "bitsandbytes 4-bit codes",
    "quant_state": "bitsandbytes 4-bit codes",
    "weight_g": "a weight-norm gain and direction",
    "weight_v": "a weight-norm gain and direction",
    "parametrizations": "a parametrised weight",
    "weight_blocks": "MXFP4 codes",
    "weight_scales": "MXFP4 codes",
}
"""Kinds beside or instead of ``weight`` after which the stored numbers are not the weights, and what they are."""

PAYLOADS = frozenset({"weight", "qweight", "weight_packed", "weight_v", "weight_blocks"})
"""Kinds that hold a matrix; the other encoding kinds only describe one."""

ADAPTER_PARTS = frozenset({"lora_A", "lora_B", "lora_magnitude_vector", "lora_embedding_A", "lora_embedding_B"})

ATTENTION_WORDS = frozenset({"att", "mixer", "mha", "temporal_block", "self_att", "atten"})
"""Parts that say attention; every part that holds "attn" or "attention" does too."""

OTHER_WORDS = frozenset(
    (
        *("ff", "fc", "net", "intermediate", "densereludense", "experts", "shared_expert", "router", "moe", "ssm"),
        *("rwkv", "adapter", "adapters", "time_mix", "channel_mix", "time_mixing", "channel_mixing"),
    )
)
OTHER_STEMS = (
    *("mlp", "ffn", "feed_forward", "feedforward", "indexer", "compressor", "mamba", "linear_attn", "block_sparse_moe"),
    *("delta_net", "deltanet", "mlstm", "slstm"),
)
"""Parts, or pieces of parts, that say: whatever stands below is no softmax attention (linear attention included)."""

CROSS_STEMS = ("cross", "encdec", "encoder_attn", "enc_dec", "encoder_attention", "attn2", "multihead_attn")
"""Pieces of an attention module's name that say: its keys and values come from another sequence."""

SUBLAYERS = frozenset({("block", "layer")})
"""(outer, inner) words whose inner number counts parts of one layer, not layers (T5)."""

MTP_LEAVES = ("eh_proj", "enorm", "hnorm")
"""Modules that only a multi-token-prediction layer has."""

CONV1D_FAMILIES = frozenset({"gpt2", "openai-gpt", "imagegpt", "decision_transformer", "openai_gpt"})
"""Families that store c_attn and c_proj as (in, out)."""
