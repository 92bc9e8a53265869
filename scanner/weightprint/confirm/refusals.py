"""What breaks the exchangeability that confirm rests on, told from the config; both tables name what they refuse.

Dimensions of the residual stream are not exchangeable where fixed sinusoids of the position are added to it: they give
every dimension a frequency of its own. Heads are not where each has a fixed slope or decay by its number (ALiBi,
retention). A config may name what it likes, so words are looked for in all of its keys and values; without a family
nothing is known and the test is refused.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

SINUSOIDAL = frozenset(
    (
        *("autoformer", "ctrl", "conditional_detr", "dab-detr", "deformable_detr", "detr", "flaubert", "fsmt"),
        *("informer", "m2m_100", "marian", "musicgen", "musicgen_melody", "nllb-moe", "patchtst", "pegasus"),
        *("pegasus_x", "roformer", "seamless_m4t", "seamless_m4t_v2", "speech_to_text", "speech_to_text_2", "speecht5"),
        *("table-transformer", "time_series_transformer", "transfo-xl", "transformer", "trocr", "videomae", "vit_mae"),
        *("whisper", "xglm", "xlm", "xlnet", "yolos"),
    )
)
"""Families that add fixed sinusoids of the position to the residual stream, or may."""

SLOPED = frozenset(("baichuan", "bloom", "jais", "mpt", "retnet"))
"""Families whose heads have fixed slopes or decays by their number, or may."""

SINUSOIDAL_WORDS = ("sinus", "sincos", "sin_cos")
SLOPED_WORDS = ("alibi",)


def fixed_positions(config: Mapping[str, Any]) -> str | None:
    """Why dimensions of the residual stream may not be exchangeable, or None."""
    return _refusal(config, SINUSOIDAL, SINUSOIDAL_WORDS, "adds fixed sinusoids of the position to the residual stream")


def fixed_slopes(config: Mapping[str, Any]) -> str | None:
    """Why heads may not be exchangeable, or None."""
    return _refusal(config, SLOPED, SLOPED_WORDS, "gives heads fixed slopes by their number")


def _refusal(config: Mapping[str, Any], families: frozenset[str], words: tuple[str, ...], what: str) -> str | None:
    known = {value.lower() for key, value in _entries(config) if key == "model_type" and isinstance(value, str)}
    if not known:
        return f"no config names the model's family, so it is not known whether it {what}"
    if found := sorted(known & families):
        return f"the family {found[0]} {what}, or may"
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
