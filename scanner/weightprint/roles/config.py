"""Numbers of config.json that shapes alone do not give: heads, groups, widths, family. Hints, never orders.

A config may hold anything: every value is taken only if it is a plausible count or flag, else it counts as absent.
Nothing is evaluated or imported. Whoever uses a hint checks it against the shapes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

MAX_COUNT = 2**24  # above any width, head count or depth of a real model

_KEYS: Mapping[str, Sequence[str]] = {
    "heads": ("num_attention_heads", "n_head", "n_heads", "num_heads", "attention_heads", "heads", "num_heads_q"),
    "kv_heads": (
        *("num_key_value_heads", "num_kv_heads", "n_head_kv", "multi_query_group_num", "num_query_groups"),
        *("kv_n_heads", "n_kv_heads"),
    ),
    "head_dim": ("head_dim", "d_kv", "kv_channels", "d_head", "attention_head_size"),
    "v_head_dim": ("v_head_dim",),
    "nope_dim": ("qk_nope_head_dim",),
    "rope_dim": ("qk_rope_head_dim",),
    "hidden": ("hidden_size", "n_embd", "d_model", "dim", "n_embed", "embed_dim", "width"),
    "layers": ("num_hidden_layers", "n_layer", "n_layers", "num_layers"),
}
_SIDES: Mapping[str, Mapping[str, Sequence[str]]] = {
    "encoder": {"heads": ("encoder_attention_heads", "encoder_num_heads"), "layers": ("encoder_layers",)},
    "decoder": {
        "heads": ("decoder_attention_heads",),
        "layers": ("decoder_layers", "num_decoder_layers"),
    },
}
_FLAGS = ("new_decoder_architecture", "multi_query", "multi_query_attention")
_TOWERS: Mapping[str, Sequence[str]] = {
    "vision": ("vision_config", "vision_cfg", "visual", "vision", "vision_tower_config", "vit_config"),
    "audio": ("audio_config", "audio_encoder_config", "speech_config", "audio"),
    "text": ("text_config", "llm_config", "language_config", "text_cfg", "thinker_config", "language_model_config"),
}
_TOWER_WORDS: Mapping[str, Sequence[str]] = {
    "vision": ("vision", "visual", "vit", "image"),
    "audio": ("audio", "speech"),
}
_TOP_ONLY_SIDES = ("encoder", "decoder")


@dataclass(frozen=True)
class Hints:
    """What the config says of one stack; None where it says nothing usable."""

    model_type: str = ""
    heads: int | None = None
    kv_heads: int | None = None
    head_dim: int | None = None
    v_head_dim: int | None = None
    nope_dim: int | None = None
    rope_dim: int | None = None
    hidden: int | None = None
    layers: int | None = None
    flags: frozenset[str] = frozenset()
    unset: frozenset[str] = frozenset()
    encoder_decoder: bool = False

    @property
    def head_width(self) -> int | None:
        """Units of one head: given, or the hidden size shared out evenly."""
        if self.head_dim is not None:
            return self.head_dim
        if self.hidden is not None and self.heads is not None and self.hidden % self.heads == 0:
            return self.hidden // self.heads
        return None


def hints_for(config: Mapping[str, Any], stack: str) -> Hints:
    """The hints for the stack of layers whose tensors start with ``stack``: its tower's section, then the top."""
    if not isinstance(config, Mapping):
        return Hints()
    words = [part.lower() for part in stack.split(".")]
    tower = next((t for t, stems in _TOWER_WORDS.items() if any(s in w for s in stems for w in words)), "text")
    sections: list[Mapping[str, Any]] = []
    side = next((word for word in reversed(words) if word in _SIDES), "")
    section = _section(config, tower)
    towers = any(isinstance(config.get(key), Mapping) for keys in _TOWERS.values() for key in keys)
    if section is not None:
        nested = _section(section, "text") if tower == "text" else None
        sections += [nested] if nested is not None else []
        sections.append(section)
    if tower == "text" or not towers:
        sections.append(config)
    if side and isinstance(config.get(side), Mapping):
        sections = [config[side]]
    found = {name: _first(sections, (*_SIDES.get(side, {}).get(name, ()), *keys)) for name, keys in _KEYS.items()}
    flags = {flag: _flag(sections, flag) for flag in _FLAGS}
    return Hints(
        model_type=_model_type(sections),
        flags=frozenset(flag for flag, value in flags.items() if value is True),
        unset=frozenset(flag for flag, value in flags.items() if value is None),
        encoder_decoder=config.get("is_encoder_decoder") is True or any(key in config for key in _TOP_ONLY_SIDES),
        **found,
    )


def _section(config: Mapping[str, Any], tower: str) -> Mapping[str, Any] | None:
    return next((config[key] for key in _TOWERS[tower] if isinstance(config.get(key), Mapping)), None)


def _first(sections: Sequence[Mapping[str, Any]], keys: Sequence[str]) -> int | None:
    """The first plausible count under any of ``keys``, a section and its attention sub-section at a time."""
    for section in sections:
        inner = section.get("attn_config")
        for place in (section, inner):
            if isinstance(place, Mapping):
                for key in keys:
                    count = _count(place.get(key))
                    if count is not None:
                        return count
    return None


def _count(value: object) -> int | None:
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, int) and not isinstance(value, bool) and 0 < value < MAX_COUNT:
        return value
    return None


def _flag(sections: Sequence[Mapping[str, Any]], key: str) -> bool | None:
    return next((section[key] for section in sections if isinstance(section.get(key), bool)), None)


def _model_type(sections: Sequence[Mapping[str, Any]]) -> str:
    for section in sections:
        value = section.get("model_type")
        if isinstance(value, str):
            return value.lower()
    return ""
