"""Feed-forward blocks: from tensor names and shapes to gate, up and down, or to a reason why not.

Like attention, with tables of its own (ffn_leaves.py). A block is all that stands under one (stack prefix, layer,
module name); numbered experts are one block, and so is a stack of experts in one tensor. Stack names are those of
attention: the part before the layer number. Shared experts are a stack of their own ("model.layers shared_expert"); of
several blocks in one layer all but the one that most layers have add their module's name ("model.layers residual_mlp").

A block of which anything is not understood is named once, by the first tensor concerned, with how many more there are:
a layer may hold hundreds of experts. Never raises for anything that a file may hold.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from weightprint.data import FEED_FORWARD_ROLES, Coverage, Matrix, TensorSpec
from weightprint.errors import Notice
from weightprint.roles.config import hints_for
from weightprint.roles.ffn_leaves import BARE, ELSEWHERE, EXPERTS, LEAVES, PAIRS, PLACE_WORDS, PLACES, QUIET, SHARED
from weightprint.roles.ffn_resolve import Block, Width, Widths, resolve_block
from weightprint.roles.holes import MTP
from weightprint.roles.leaves import ENCODINGS, INFIXES, SUBLAYERS, WRAPPERS, Leaf
from weightprint.roles.names import Site, blanked, is_number, kind_of, layer_positions, possible_layers

BlockKey = tuple[str, int, str]
FirstMtp = Callable[[str, set[int]], int | None]
"""(prefix, its layers) -> the first layer of multi-token prediction, if there is one."""

_NO_LEAF = Leaf("")
_PLAIN = frozenset(leaf for leaf in LEAVES if "." not in leaf) - WRAPPERS - PAIRS - frozenset(BARE)


def feed_forward(
    tensors: Iterable[TensorSpec], config: Mapping[str, Any], attention: Sequence[Matrix], first_mtp: FirstMtp
) -> tuple[list[Matrix], Coverage]:
    """Feed-forward matrices among ``tensors``, and what was not understood. ``attention`` are the matrices that say how
    wide a layer is."""
    blocks = _gather(tensors)
    hints = {prefix: hints_for(config, prefix) for prefix in {key[0] for key in blocks}}
    stacks = _stacks(blocks, first_mtp)
    widths = Widths(attention)
    matrices: list[Matrix] = []
    refused: list[Notice] = []
    understood = 0
    for key, block in blocks.items():
        own = hints[key[0]]
        width = widths.of(key[0], key[1]) or Width(own.hidden, False)
        resolved = resolve_block(block, (stacks[key], key[1]), own, width)
        matrices += resolved.matrices
        refused += resolved.not_understood
        understood += bool(resolved.matrices) and not resolved.not_understood
    refused.sort(key=lambda notice: notice.tensor or "")
    return matrices, Coverage(len(blocks), understood, (*refused, *_holes(blocks, stacks)))


@dataclass(frozen=True)
class Place:
    """Where a tensor stands: the parts of its name before the leaf, without the number of an expert; positions of
    those that may be its layer number; and whether a part after them says that it is a feed-forward block."""

    parents: tuple[str, ...]
    numbers: tuple[int, ...]
    says: bool


Named = tuple[Place, str, str, int | None]
"""What a tensor's name says: where it stands, its leaf, its kind ("weight", "bias", "adapter" or a key of ENCODINGS),
and the number of its expert. A tuple, because there may be 200,000."""

Places = dict[str, tuple[Place | None, int | None]]
"""What the parts above a leaf say, by these parts: where it is, and the number of an expert."""


def _gather(tensors: Iterable[TensorSpec]) -> dict[BlockKey, Block]:
    """Tensors joined into blocks, by key: the order of files is no evidence."""
    places: Places = {}
    blocks: dict[tuple[str, ...], Block] = {}
    sites: list[Site] = []
    for spec in tensors:
        named = parse(spec.name, places)
        if named is None:
            continue
        place, leaf, kind, expert = named
        block = blocks.get(place.parents)
        if block is None:
            block = blocks[place.parents] = Block()
            sites.append(Site(place.parents, "", _NO_LEAF, "", place.numbers))
        _add(block, leaf, kind, expert, spec)
    positions = layer_positions(sites)
    keyed: dict[BlockKey, Block] = {}
    for parents in sorted(blocks):
        block, key = blocks[parents], _key(parents, positions[blanked(parents)])
        # A bias alone is no matrix.
        block.leaves = {*block.weights, *block.encodings, *block.adapters}
        if block.leaves:
            keyed[key if key not in keyed else (key[0], key[1], ".".join(parents))] = block
    return dict(sorted(keyed.items(), key=lambda item: item[0]))


def _add(block: Block, leaf: str, kind: str, expert: int | None, spec: TensorSpec) -> None:
    if kind == "weight":
        if len(spec.shape) != 1 or spec.shape[0] <= 0:
            own = block.weights.get(leaf)
            if own is None:
                own = block.weights[leaf] = {}
            if expert in own:
                block.twice = leaf
            own[expert] = spec
    elif kind == "bias":
        block.biases[leaf] = spec
    elif kind == "adapter":
        block.adapters.setdefault(leaf, []).append(spec)
    elif kind in ENCODINGS:
        block.encodings.setdefault(leaf, []).append((kind, spec))


def parse(name: str, places: Places) -> Named | None:
    """What ``name`` says of a feed-forward block; None where it says nothing. ``places`` is filled as names are parsed:
    the tensors of a block share what stands above their leaves."""
    head, _, kind = name.rpartition(".")
    above, _, leaf = head.rpartition(".")
    if kind != "weight" or leaf not in _PLAIN or "_orig_mod" in above or "_wrapped_module" in above:
        parts = _parts(name)
        if parts is None:
            return None
        above, leaf, kind = parts
    found = places.get(above)
    if found is None:
        found = places[above] = _place(above, places)
    place, expert = found
    return None if place is None or (leaf in QUIET and not place.says) else (place, leaf, kind, expert)


def _parts(name: str) -> tuple[str, str, str] | None:
    """What stands above the leaf, the leaf and the kind; None where the leaf is none of a feed-forward block."""
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
    leaf = parts.pop()
    if leaf in BARE:
        leaf, kind = BARE[leaf]
    elif leaf in PAIRS and parts and f"{parts[-1]}.{leaf}" in LEAVES:
        leaf = f"{parts.pop()}.{leaf}"
    return (".".join(parts), leaf, kind) if leaf in LEAVES else None


def _place(above: str, places: Places) -> tuple[Place | None, int | None]:
    """What the parts above a leaf say; no place where there is no layer, or where it is something else."""
    for word in EXPERTS:
        before, found, after = above.partition(f".{word}.")
        number, dot, rest = after.partition(".")
        if found and is_number(number):
            whole = f"{before}.{word}{dot}{rest}"
            if whole not in places:
                places[whole] = _standing(whole), None
            return places[whole][0], int(number)
    return _standing(above), None


def _standing(above: str) -> Place | None:
    parents = tuple(above.split("."))
    numbers = possible_layers(parents) if all(parents) else ()
    if not numbers:
        return None
    after = [part.lower() for part in parents[numbers[0] + 1 :]]
    if any(stem in part for part in after for stem in ELSEWHERE):
        return None
    says = any(part in PLACE_WORDS or any(stem in part for stem in PLACES) for part in after)
    return Place(parents, numbers, says)


def _key(parents: tuple[str, ...], position: int) -> BlockKey:
    after = parents[position + 1 :]
    if position and (parents[position - 1], *after[:1]) in SUBLAYERS:
        after = after[2:]
    return ".".join(parents[:position]), int(parents[position]), ".".join(after)


def _stacks(blocks: Mapping[BlockKey, Block], first_mtp: FirstMtp) -> dict[BlockKey, str]:
    """The stack name of every block."""
    layers: dict[str, set[int]] = defaultdict(set)
    frequency: Counter[tuple[str, str]] = Counter()
    rivals: dict[tuple[str, int], list[str]] = defaultdict(list)
    for prefix, layer, name in blocks:
        layers[prefix].add(layer)
        if not _shared(name):
            frequency[prefix, name] += 1
            rivals[prefix, layer].append(name)
    main = {
        place: min(names, key=lambda name, prefix=place[0]: (-frequency[prefix, name], name))  # type: ignore[misc]
        for place, names in rivals.items()
    }
    first = {prefix: first_mtp(prefix, own) for prefix, own in layers.items()}
    stacks: dict[BlockKey, str] = {}
    taken: set[tuple[str, int]] = set()
    for key in blocks:
        prefix, layer, name = key
        start = first[prefix]
        stack = f"{prefix}{MTP}" if start is not None and layer >= start else prefix
        if _shared(name):
            stack = f"{stack} shared_expert"
        elif main[prefix, layer] != name:
            stack = f"{stack} {name}"
        while (stack, layer) in taken:  # hostile names; a matrix must have a place of its own
            stack = f"{stack} {name or 'ffn'}"
        taken.add((stack, layer))
        stacks[key] = stack
    return stacks


def _shared(name: str) -> bool:
    return any(stem in name for stem in SHARED)


def _holes(blocks: Mapping[BlockKey, Block], stacks: Mapping[BlockKey, str]) -> list[Notice]:
    """Roles that a layer lacks and its neighbours have."""
    of_stack: dict[str, dict[int, frozenset[str]]] = defaultdict(dict)
    for key, block in blocks.items():
        if block.roles:
            of_stack[stacks[key]][key[1]] = block.roles
    notices = []
    for stack, layers in of_stack.items():
        usual, count = max(Counter(layers.values()).items(), key=lambda item: (item[1], len(item[0])))
        for layer, roles in sorted(layers.items()):
            missing = ", ".join(role for role in FEED_FORWARD_ROLES if role in usual - roles)
            if count > 1 and missing:
                reason = (
                    f"layer {layer} of {stack} has no {missing}, which its neighbours have; the checkpoint is "
                    f"incomplete or the name of a tensor is damaged"
                )
                notices.append(Notice("E_LAYER_HOLE", reason))
    return notices
