"""What breaks the exchangeability that confirm rests on, told from the config: only families that are known to keep it
are tested.

Dimensions of the residual stream are not exchangeable where fixed sinusoids of the position are added to it: they give
every dimension a frequency of its own. Heads are not where each has a fixed slope or decay by its number (ALiBi,
retention). Every family that a config names, in whatever section, must be in the table; one that is not may do either,
and is refused. So is a config whose keys or values speak of sinusoids or ALiBi, and one that names no family.

Source: the position embeddings in the forward passes of the public model families.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

EXCHANGEABLE = frozenset(
    (
        *("llama", "mistral", "mixtral", "ministral", "qwen2", "qwen2_moe", "qwen3", "qwen3_moe"),
        *("gemma", "gemma2", "gemma3", "gemma3_text", "phi", "phi3", "phimoe"),
        *("gpt2", "gpt_neo", "gpt_neox", "gptj", "gpt_bigcode", "codegen", "opt", "bloom", "falcon"),
        *("bert", "roberta", "xlm-roberta", "camembert", "electra", "albert", "distilbert", "deberta-v2"),
        *("t5", "mt5", "umt5", "olmo", "olmo2", "olmoe", "deepseek_v2", "deepseek_v3", "cohere", "cohere2"),
        *("starcoder2", "stablelm", "internlm2", "persimmon", "granite", "smollm3", "nemotron", "glm", "glm4"),
        *("vit", "deit", "dinov2", "clip", "clip_text_model", "clip_vision_model"),
        *("siglip", "siglip_text_model", "siglip_vision_model"),
    )
)
"""Families with rotary, learned or relative positions, or slopes of heads; none adds a fixed sinusoid to the stream,
unless its config says so (DistilBERT)."""

SLOPED = frozenset(("bloom",))
"""Those of them whose heads have fixed slopes by their number, whatever the config says."""

SINUSOIDAL_WORDS = ("sinus", "sincos", "sin_cos")
SLOPED_WORDS = ("alibi",)


def fixed_positions(config: Mapping[str, Any]) -> str | None:
    """Why dimensions of the residual stream may not be exchangeable, or None."""
    what = "adds fixed sinusoids of the position to the residual stream"
    return _refusal(config, EXCHANGEABLE, SINUSOIDAL_WORDS, "fixed positions", what)


def fixed_slopes(config: Mapping[str, Any]) -> str | None:
    """Why heads may not be exchangeable, or None."""
    return _refusal(config, EXCHANGEABLE - SLOPED, SLOPED_WORDS, "fixed slopes", "gives heads fixed slopes")


def _refusal(
    config: Mapping[str, Any], families: frozenset[str], words: tuple[str, ...], fixed: str, what: str
) -> str | None:
    named = {value.lower() for key, value in _entries(config) if key == "model_type" and isinstance(value, str)}
    if not named:
        return f"no config names the model's family, so it is not known to be free of {fixed}"
    if others := sorted(named - families):
        return f"the family {others[0]} is not known to be free of {fixed}"
    for key, value in _entries(config):
        said = f"{key} {value}".lower() if isinstance(value, str) else key.lower()
        if any(word in said for word in words) and value not in (False, None, 0):
            return f"the config's {key} says that the model {what}"
    return None


def _entries(config: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Every key and plain value of a config, sections included, without recursion: a config may be nested at will."""
    open_sections: list[Any] = [config]
    while open_sections:
        section = open_sections.pop()
        for key, value in section.items() if isinstance(section, Mapping) else enumerate(section):
            if isinstance(value, Mapping | list):
                open_sections.append(value)
            else:
                yield str(key), value
