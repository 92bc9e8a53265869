"""Roles: from tensor names and shapes to attention matrices, or to a reason why not. Feed-forward blocks: ffn.py.

Three tables do it (leaves.py, layouts.py) with self-checks (checks.py) that turn a wrong guess into "not understood";
there is no class per architecture. Pure: reads no file, evaluates nothing of the config, never raises for anything
that a file may hold.

Stack names: the part of the tensor names before the layer number ("model.layers"). Cross attention always adds its
module's name ("decoder.block EncDecAttention"); of several self attentions in one layer, all but the one that most
layers have add theirs ("model.layers self_attn.1"; ties go by name). Layers from num_hidden_layers on, where a
decoder has them, are multi-token prediction: "model.layers(mtp)".

Left out by decision: linear attention and recurrences (gated delta nets with in_proj_qkvz, RWKV, Mamba). They are not
softmax attention, their q and k pass through convolutions and decays, and a layer of theirs in a hybrid is no hole.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from weightprint.data import ROLES, Coverage, Matrix, TensorSpec, Understanding
from weightprint.errors import Notice
from weightprint.reading import Read
from weightprint.roles.config import Hints, hints_for
from weightprint.roles.ffn import feed_forward
from weightprint.roles.holes import MTP, attention_modules, find_holes, mark_strangers
from weightprint.roles.leaves import MTP_LEAVES
from weightprint.roles.modules import Key, Module, gather
from weightprint.roles.names import is_number, parse
from weightprint.roles.resolve import resolve

__all__ = ["understand"]

_MTP_LEAF = re.compile("|".join(MTP_LEAVES))


def understand(tensors: Sequence[TensorSpec], config: Mapping[str, Any], read: Read = Read.attention) -> Understanding:
    """Attention matrices among ``tensors``, or all that are known, sorted by stack, layer and role; and what was not
    understood."""
    sites = [(site, spec) for spec in tensors if (site := parse(spec.name)) is not None]
    sites.sort(key=lambda pair: (pair[1].name, pair[1].shape, pair[1].dtype))  # the order of files is no evidence
    modules = attention_modules(gather(sites))
    mark_strangers(modules)
    hints = {prefix: hints_for(config, prefix) for prefix in {key[0] for key in modules}}
    marked = _marked_mtp(tensors)
    stacks = _stacks(modules, hints, marked)
    matrices: list[Matrix] = []
    refused: dict[str, Notice] = {}
    understood = 0
    for key, module in modules.items():
        resolved = resolve(module, stacks[key], hints[module.prefix])
        matrices += resolved.matrices
        for notice in resolved.not_understood:
            refused.setdefault(notice.tensor or "", notice)
        understood += bool(resolved.matrices) and not resolved.not_understood
    blocks = None
    if read is Read.all:
        of_attention: dict[str, set[int]] = defaultdict(set)
        for prefix, layer, _ in modules:
            of_attention[prefix].add(layer)

        def first_mtp(prefix: str, layers: set[int]) -> int | None:
            own = hints.get(prefix) or hints_for(config, prefix)
            return _first_mtp(prefix, of_attention.get(prefix, layers), own, marked)

        own, blocks = feed_forward(tensors, config, matrices, first_mtp)
        matrices += own
    order = {role: number for number, role in enumerate(ROLES)}
    matrices.sort(key=lambda matrix: (matrix.stack, matrix.layer, order[matrix.role]))
    not_understood = tuple(sorted(refused.values(), key=lambda notice: notice.tensor or ""))
    notices = find_holes(modules, stacks, (spec.name for spec in tensors))
    return Understanding(tuple(matrices), Coverage(len(modules), understood, not_understood), notices, blocks)


def _stacks(modules: Mapping[Key, Module], hints: Mapping[str, Hints], marked: set[tuple[str, int]]) -> dict[Key, str]:
    """The stack name of every module."""
    present: dict[str, set[int]] = defaultdict(set)
    frequency: Counter[tuple[str, str]] = Counter()
    selves: dict[tuple[str, int], list[str]] = defaultdict(list)
    for (prefix, layer, name), module in modules.items():
        present[prefix].add(layer)
        if not module.cross:
            frequency[prefix, name] += 1
            selves[prefix, layer].append(name)
    second = {
        (prefix, name)
        for (prefix, _), names in selves.items()
        if len(names) > 1
        for name in sorted(names, key=lambda name: (-frequency[prefix, name], name))[1:]
    }
    first_mtp = {prefix: _first_mtp(prefix, layers, hints[prefix], marked) for prefix, layers in present.items()}
    stacks: dict[Key, str] = {}
    taken: set[tuple[str, int]] = set()
    for key, module in modules.items():
        prefix, layer, name = key
        first = first_mtp[prefix]
        stack = f"{prefix}{MTP}" if first is not None and layer >= first else prefix
        own_name = (module.cross and not prefix.endswith(name)) or (prefix, name) in second
        stack = f"{stack} {name}" if own_name else stack
        while (stack, layer) in taken:  # hostile names; a matrix must have a place of its own
            stack = f"{stack} {name}"
        taken.add((stack, layer))
        stacks[key] = stack
    return stacks


def _first_mtp(prefix: str, layers: set[int], hints: Hints, marked: set[tuple[str, int]]) -> int | None:
    """The first multi-token-prediction layer of a stack: past the config's depth, or marked by its own tensors."""
    own = {layer for layer in layers if (prefix, layer) in marked}
    depth = hints.layers
    if depth is not None and not hints.encoder_decoder and min(layers) < depth <= max(layers) < 2 * depth:
        own.add(depth)
    return min(own, default=None)


def _marked_mtp(tensors: Sequence[TensorSpec]) -> set[tuple[str, int]]:
    """(prefix, layer) of layers that hold a module which only multi-token prediction has."""
    marked: set[tuple[str, int]] = set()
    for spec in tensors:
        if _MTP_LEAF.search(spec.name):
            parts = spec.name.split(".")
            for position, part in enumerate(parts):
                if part in MTP_LEAVES and position and is_number(parts[position - 1]):
                    marked.add((".".join(parts[: position - 1]), int(parts[position - 1])))
    return marked
