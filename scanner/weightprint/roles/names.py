"""From one tensor name to what it says: leaf, kind, place, and where its layer number may stand.

Pure string work on names of any content: nothing here raises, whatever a file calls its tensors. Names that say
nothing about attention give None after one or two dictionary look-ups, so 200,000 names cost well under a second.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache

from weightprint.roles.leaves import (
    ADAPTER_PARTS,
    ATTENTION_WORDS,
    BARE,
    CROSS_STEMS,
    ENCODINGS,
    INFIXES,
    LEAVES,
    OTHER_STEMS,
    OTHER_WORDS,
    SUBLAYERS,
    WRAPPERS,
    Leaf,
)

MAX_DIGITS = 6  # a longer run of digits is no layer number
ANY_NUMBER = "."  # stands for a number in a pattern; no part of a name can hold it


@dataclass(frozen=True)
class Site:
    """A tensor that may belong to attention: ``parents`` are the parts of its name before the leaf.

    ``kind`` is "weight", "bias", "adapter" or a key of ENCODINGS. ``numbers`` are the positions in ``parents`` that
    may be its layer number, outermost first.
    """

    parents: tuple[str, ...]
    leaf_name: str
    leaf: Leaf
    kind: str
    numbers: tuple[int, ...]


def parse(name: str) -> Site | None:
    """What ``name`` says about attention; None where it says nothing."""
    if ".." in name:
        return None  # no module has an empty name: a damaged byte, after which "wqkv" would pass for "qkv"
    parts = name.split(".")
    if "_orig_mod" in name or "_wrapped_module" in name:
        parts = [part for part in parts if part not in INFIXES]
    if not parts:
        return None
    parts, kind = kind_of(name, parts)
    while parts and parts[-1] in WRAPPERS:
        parts.pop()
    if not parts:
        return None
    leaf_name, length = parts[-1], 1
    pair = ".".join(parts[-2:]) if len(parts) > 1 else ""
    leaf = LEAVES.get(pair)
    if leaf is not None:
        # "self.in_proj": the first word is a place and stays a parent; "to_out.0" and "experts.x" are names whole.
        leaf_name, length = pair, 1 if parts[-2] in ("self", "attn") else 2
    else:
        leaf = LEAVES.get(leaf_name)
    if leaf is None:
        return None
    parents = tuple(parts[: len(parts) - length])
    numbers = possible_layers(parents)
    # A word before the first number names a part of the model ("net.blocks.0"), not a part of a layer.
    if any(says_other(part) for part in parents[numbers[0] if numbers else 0 :]):
        return None
    if leaf.quiet and not any(says_attention(part) for part in parents[(numbers[-1] + 1 if numbers else 0) :]):
        # Quiet names may still stand beside loud ones of the same parent, as in blocks.0.{wqkv,wo}.
        return Site(parents, leaf_name, leaf, kind, numbers) if leaf.role == "o" else None
    return Site(parents, leaf_name, leaf, kind, numbers)


def kind_of(name: str, parts: list[str]) -> tuple[list[str], str]:
    """Split the kind off the end of the name: (parts before it, kind)."""
    last = parts[-1]
    if "lora_" in name:
        for position, part in enumerate(parts):
            if part in ADAPTER_PARTS:
                return parts[:position], "adapter"
    if last in ("weight", "bias"):
        return parts[:-1], last
    if last in BARE:
        leaf, kind = BARE[last]
        return [*parts[:-1], leaf], kind
    if "parametrizations" in parts:
        return parts[: parts.index("parametrizations")], "parametrizations"
    if last in ENCODINGS or "quant_state" in parts:
        kind = last if last in ENCODINGS else "quant_state"
        rest = parts[:-1] if last in ENCODINGS else parts[: parts.index("quant_state")]
        return (rest[:-1] if rest and rest[-1] == "weight" else rest), kind
    return parts, "weight"


@lru_cache(maxsize=4096)
def says_attention(part: str) -> bool:
    """Whether this part of a name says attention."""
    word = part.lower()
    return "attn" in word or "attention" in word or word in ATTENTION_WORDS


@lru_cache(maxsize=4096)
def says_other(part: str) -> bool:
    """Whether this part of a name says that what stands below is no softmax attention."""
    word = part.lower()
    return word in OTHER_WORDS or any(stem in word for stem in OTHER_STEMS)


def says_cross(module: str) -> bool:
    """Whether an attention module's name says that its keys and values come from another sequence."""
    word = module.lower()
    return any(stem in word for stem in CROSS_STEMS)


def is_number(part: str) -> bool:
    """Whether a part of a name is a layer or sublayer number."""
    return part.isdigit() and part.isascii() and len(part) <= MAX_DIGITS


@lru_cache(maxsize=4096)
def possible_layers(parents: tuple[str, ...]) -> tuple[int, ...]:
    """Positions of numbers that may count layers: not those that count the sublayers of a layer."""
    numbers = [position for position, part in enumerate(parents) if is_number(part)]
    attention = max((position for position, part in enumerate(parents) if says_attention(part)), default=-1)
    before = [position for position in numbers if position < attention]
    # Two attentions of one layer are numbered below the word (self_attn.0); "attentions.0" alone is a layer.
    candidates = before if before else numbers
    outer: list[int] = []
    for position in candidates:
        word = parents[position - 1] if position else ""
        if any(word == inner and any(parents[p - 1] == out for p in outer if p) for out, inner in SUBLAYERS):
            continue
        outer.append(position)
    return tuple(outer)


def layer_positions(sites: Iterable[Site]) -> dict[tuple[str, ...], int]:
    """Which number of each ``parents`` is the layer: the innermost one that takes several values, else the innermost.

    Keys are ``parents`` with every number blanked. Looking at all names tells ``layers.0.blocks.1.attn``
    (stages of blocks) from ``layers.0.1.attn`` (sublayer 1 of every layer).
    """
    values: dict[tuple[str, ...], set[str]] = {}
    patterns: dict[tuple[str, ...], tuple[int, ...]] = {}
    for parents, numbers in dict.fromkeys((site.parents, site.numbers) for site in sites):
        pattern = blanked(parents)
        patterns[pattern] = numbers
        for position in numbers:
            values.setdefault(pattern[:position], set()).add(parents[position])
    return {
        pattern: next((p for p in reversed(numbers) if len(values[pattern[:p]]) > 1), numbers[-1]) if numbers else -1
        for pattern, numbers in patterns.items()
    }


def blanked(parents: tuple[str, ...]) -> tuple[str, ...]:
    """``parents`` with ANY_NUMBER for every number."""
    return tuple(ANY_NUMBER if is_number(part) else part for part in parents)


def module_name(after: tuple[str, ...]) -> str:
    """Name of the attention module from the parts after the layer number.

    It ends with the first part that says attention and a number right behind it, so that the siblings
    ``attention.self`` and ``attention.output``, or ``attention.attention`` and ``attention.output``, join.
    """
    for position, part in enumerate(after):
        if says_attention(part):
            end = position + 1
            while end < len(after) and is_number(after[end]):
                end += 1
            return ".".join(after[:end])
    return ".".join(after)
