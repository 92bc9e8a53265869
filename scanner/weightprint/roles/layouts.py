"""Fused projections: which rows of a qkv tensor are q, k and v. A new layout is one function and one row.

Sizes come from shapes: ``total`` output units of the fused tensor, of which ``q`` (the input width of the output
projection) are queries; k and v share the rest. Only layouts that go head by head or group by group ask the config
for the number of heads, and what it says must fit the shapes.

Every function returns half-open ranges in the order of units, or says why the sizes do not fit.
Source: the reshape and split of each family's own forward pass (GPT-NeoX, BLOOM, Falcon, CodeGen, InternLM2, ...).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from weightprint.roles.config import Hints

Ranges = tuple[tuple[int, int], ...]
Split = Mapping[str, Ranges]
MAX_HEADS = 8192  # a bound on the work that a lying config can cause


@dataclass(frozen=True)
class Fused:
    """Sizes of a fused tensor; ``q`` is None where no output projection says it."""

    total: int
    q: int | None
    hints: Hints


def split_fused(leaf: str, fused: Fused) -> Split | str:
    """Ranges of q, k, v in a fused tensor called ``leaf``, or why they are not known."""
    layout = _LAYOUTS_BY_FAMILY.get((leaf, fused.hints.model_type), _LAYOUTS_BY_LEAF.get(leaf, _unknown))
    return layout(fused)


def split_key_value(total: int) -> Split | str:
    """Ranges of a fused [k | v] tensor."""
    if total % 2:
        return f"{total} rows of a fused key-value projection do not halve"
    return {"k": ((0, total // 2),), "v": ((total // 2, total),)}


def split_gated(total: int, q: int, hints: Hints) -> Ranges | str:
    """Ranges of q where each head holds its query rows and then as many gate rows."""
    width = hints.head_width
    if width is None:
        return f"{total} rows are queries and gates head by head, and no config says how wide a head is"
    if q % width or q // width > MAX_HEADS:
        return f"{total} rows are queries and gates head by head, and heads of {width} do not divide {q}"
    return tuple((start, start + width) for start in range(0, total, 2 * width))


def _sizes(fused: Fused) -> tuple[int, int] | str:
    """Rows of q and of k (as many as v), checked."""
    q = fused.q
    if q is None:
        width, heads = fused.hints.head_width, fused.hints.heads
        if width is None or heads is None:
            return f"{fused.total} fused rows without an output projection or config that says how many are q"
        q = width * heads
    rest = fused.total - q
    if rest <= 0 or rest % 2 or q % (rest // 2):
        return f"{fused.total} fused rows are no {q} of q and equal k and v that divide q"
    return q, rest // 2


def _concatenated(fused: Fused) -> Split | str:
    """[q | k | v]."""
    sizes = _sizes(fused)
    if isinstance(sizes, str):
        return sizes
    q, k = sizes
    return {"q": ((0, q),), "k": ((q, q + k),), "v": ((q + k, q + 2 * k),)}


def _gate_first(fused: Fused) -> Split | str:
    """[gate | q | k | v] with a gate as long as q."""
    if fused.q is None or fused.total <= fused.q:
        return f"{fused.total} fused rows without an output projection that says how many are q and gate"
    split = _concatenated(Fused(fused.total - fused.q, fused.q, fused.hints))
    if isinstance(split, str):
        return split
    return {role: tuple((start + fused.q, stop + fused.q) for start, stop in own) for role, own in split.items()}


def _grouped(fused: Fused) -> Split | str:
    """Per key-value head: the queries that share it, then its k, then its v."""
    sizes = _sizes(fused)
    if isinstance(sizes, str):
        return sizes
    q, k = sizes
    heads = fused.hints.heads
    if heads is None:
        return f"{fused.total} fused rows go head by head, and no config says how many heads there are"
    if heads > MAX_HEADS or q % heads or k % (q // heads):
        return f"{heads} heads of the config do not fit {q} rows of q and {k} of k"
    width = q // heads
    groups = k // width
    for name, hint, found in (("groups", fused.hints.kv_heads, groups), ("head width", fused.hints.head_dim, width)):
        if hint is not None and hint != found and not (name == "groups" and groups == heads):
            return f"the config says {hint} as {name}, the shapes say {found}"
    shared = heads // groups * width
    starts = [group * (shared + 2 * width) for group in range(groups)]
    return {
        "q": tuple((start, start + shared) for start in starts),
        "k": tuple((start + shared, start + shared + width) for start in starts),
        "v": tuple((start + shared + width, start + shared + 2 * width) for start in starts),
    }


def _per_head(fused: Fused) -> Split | str:
    """Per head: q, k, v."""
    sizes = _sizes(fused)
    if not isinstance(sizes, str) and sizes[0] != sizes[1]:
        return f"{fused.total} fused rows are no three times {sizes[0]} of q, which a layout head by head needs"
    return _grouped(fused)


def _four_blocks(fused: Fused) -> Split | str:
    """Four blocks, each [q | v | k] (CodeGen: written for four-way model parallelism)."""
    sizes = _sizes(fused)
    if isinstance(sizes, str):
        return sizes
    q, k = sizes
    if q != k or q % 4:
        return f"{fused.total} fused rows are no four blocks of equal q, v and k"
    width = q // 4
    starts = [block * 3 * width for block in range(4)]
    return {
        role: tuple((start + place * width, start + (place + 1) * width) for start in starts)
        for place, role in enumerate("qvk")
    }


def _falcon(fused: Fused) -> Split | str:
    """Falcon's three layouts: groups (40B, 180B, 11B), one shared k and v (7B), head by head (rw)."""
    flags, unset = fused.hints.flags, fused.hints.unset
    if "new_decoder_architecture" in flags:
        return _grouped(fused)
    if "multi_query" in flags or "multi_query" in unset:
        return _one_group(fused)
    return _per_head(fused)


def _one_group(fused: Fused) -> Split | str:
    """[q | k | v] with one key-value head."""
    split = _concatenated(fused)
    width = fused.hints.head_width
    if not isinstance(split, str) and width is not None and split["k"][0][1] - split["k"][0][0] != width:
        return f"{fused.total} fused rows do not hold one key-value head of {width}, which multi_query says"
    return split


def _bigcode(fused: Fused) -> Split | str:
    """gpt_bigcode: one shared k and v unless multi_query is false."""
    shared = "multi_query" in fused.hints.flags or "multi_query" in fused.hints.unset
    return _one_group(fused) if shared else _per_head(fused)


def _chatglm(fused: Fused) -> Split | str:
    """ChatGLM: [q | k | v] since version 2's multi_query_attention, head by head before."""
    return _concatenated(fused) if "multi_query_attention" in fused.hints.flags else _per_head(fused)


def _unknown(fused: Fused) -> Split | str:
    """A name that several families use for different layouts."""
    family = fused.hints.model_type or "no family in config"
    return f"the order of its {fused.total} fused rows differs by family, and {family} is none that is known"


Layout = Callable[[Fused], Split | str]

_LAYOUTS_BY_LEAF: Mapping[str, Layout] = {
    "qkv": _concatenated,
    "qkv_proj": _concatenated,
    "Wqkv": _concatenated,
    "W_pack": _concatenated,
    "c_attn": _concatenated,
    "in_proj_weight": _concatenated,
    "att_proj": _concatenated,
    "to_qkv": _concatenated,
    "qkv_net": _concatenated,
    "attn_qkv": _concatenated,
    "gqkv_proj": _gate_first,
    "linear_qkv": _grouped,
    "self.in_proj": _per_head,
}
"""What a leaf means by itself; query_key_value, wqkv and attn.in_proj mean nothing without a family."""

_LAYOUTS_BY_FAMILY: Mapping[tuple[str, str], Layout] = {
    **{
        ("query_key_value", family): layout
        for families, layout in (
            ("gpt_neox gpt_neox_japanese bloom persimmon fuyu", _per_head),
            ("falcon refinedwebmodel", _falcon),
            ("phi3small megatron refinedweb", _grouped),
            ("chatglm chatglm2 chatglm3", _chatglm),
        )
        for family in families.split()
    },
    ("wqkv", "internlm2"): _grouped,
    ("wqkv", "moonvit"): _concatenated,
    ("attn.in_proj", "qwen"): _per_head,
    ("qkv_proj", "codegen"): _four_blocks,
    ("qkv_proj", "minimax"): _per_head,
    ("c_attn", "gpt_bigcode"): _bigcode,
}
"""(leaf, model_type) where the family changes or decides what the leaf means."""
