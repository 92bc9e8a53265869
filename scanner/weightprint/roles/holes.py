"""Holes in a stack: a role or a layer that its neighbours have and it has not.

One flipped byte in a tensor's name leaves a checkpoint with 7 of 8 matrices that looks complete to everything else.
Not every gap is damage: hybrids have layers without attention, some families share keys and values between layers or
use keys as values. So a layer without any attention is a hole only if no tensor at all bears its number, and a
missing set of roles is by design if two or more layers of the stack lack just that set and it is one of BY_DESIGN.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping

from weightprint.errors import Notice
from weightprint.roles.modules import Key, Module
from weightprint.roles.names import is_number

BY_DESIGN = (frozenset({"v"}), frozenset({"k", "v"}), frozenset({"kv"}))
"""Roles that a layer may lack: keys used as values, keys and values of another layer."""

MTP = "(mtp)"
"""What the stack of multi-token prediction adds to a prefix. Its few layers are made like those of the main stack."""

FUSED_ROLES = ("qkv", "kv", "shared_kv")
"""Roles of weights that hold more than one matrix."""

_FUSED: Mapping[str, frozenset[str]] = {
    "qkv": frozenset("qkv"),
    "kv": frozenset("kv"),
    "odd_q": frozenset(),
}


def attention_modules(modules: Mapping[Key, Module]) -> dict[Key, Module]:
    """Modules that are attention: those with a query, and those that lost it while their like have one.

    A module without a query counts only if the same stack has complete modules of its name, some leaf of its weights
    is among theirs, and nothing says that it is a recurrence. Not all leaves: one damaged character of a query's name
    can make another leaf of it (q_proj, c_proj).
    """
    complete: dict[tuple[str, str], set[str]] = defaultdict(set)
    for (prefix, _, name), module in modules.items():
        if module.queries:
            complete[prefix, name] |= module.leaves
    return {
        key: module
        for key, module in modules.items()
        if module.queries or (not module.odd and not module.leaves.isdisjoint(complete.get((key[0], key[2]), ())))
    }


def mark_strangers(modules: Mapping[Key, Module]) -> None:
    """Mark modules whose fused projection is called otherwise than that of most layers: what a leaf means depends on
    its name, so that one damaged character (wqkv, Wqkv) would have q, k and v cut out at the wrong places."""
    fused = {
        key: [(site.leaf_name, spec) for role in FUSED_ROLES for site, spec in module.weights.get(role, ())]
        for key, module in modules.items()
    }
    names: dict[tuple[str, str], Counter[tuple[str, ...]]] = defaultdict(Counter)
    for key, weights in fused.items():
        if weights:
            names[key[0], key[2]][tuple(leaf for leaf, _ in weights)] += 1
    for key, weights in fused.items():
        usual = names[key[0], key[2]].most_common(2)
        own = tuple(leaf for leaf, _ in weights)
        if len(usual) > 1 and (own != usual[0][0] or usual[0][1] == usual[1][1]):
            modules[key].odd += [
                (f"the fused projection is called {leaf} here and otherwise in other layers", spec)
                for leaf, spec in weights
            ]


def find_holes(modules: Mapping[Key, Module], stacks: Mapping[Key, str], names: Iterable[str]) -> tuple[Notice, ...]:
    """Notices for roles and layers that are missing inside a stack; ``names`` are those of all tensors."""
    of_stack: dict[str, dict[int, Module]] = defaultdict(dict)
    for key, module in modules.items():
        of_stack[stacks[key].replace(MTP, "")][key[1]] = module
    notices = [notice for stack, layers in of_stack.items() for notice in _missing_roles(stack, layers)]
    numbers: dict[str, set[int]] = defaultdict(set)
    for prefix, layer, _ in modules:
        numbers[prefix].add(layer)
    for prefix, layers in _missing_layers(numbers, names).items():
        notices += [
            Notice(
                "E_LAYER_HOLE",
                f"layer {layer} of {prefix or 'the model'} is missing: no tensor bears its number, though layers "
                f"before and after it are there; the checkpoint is incomplete",
            )
            for layer in layers
        ]
    return tuple(notices)


def _missing_roles(stack: str, layers: Mapping[int, Module]) -> list[Notice]:
    roles = {layer: _roles(module) for layer, module in layers.items()}
    usual, count = max(Counter(roles.values()).items(), key=lambda item: (item[1], len(item[0]), sorted(item[0])))
    if count < 2 and len(layers) < 2:
        return []
    lacking = {layer: usual - own for layer, own in roles.items() if usual - own}
    repeated = Counter(lacking.values())
    return [
        Notice(
            "E_LAYER_HOLE",
            f"layer {layer} of {stack} has no {', '.join(sorted(missing))}, which its neighbours have; the checkpoint "
            f"is incomplete or the name of a tensor is damaged",
        )
        for layer, missing in sorted(lacking.items())
        if not (missing in BY_DESIGN and repeated[missing] > 1) and not _other_design(roles[layer], usual)
    ]


def _roles(module: Module) -> frozenset[str]:
    """Roles of a module, fused ones spelled out, so that layers of both kinds compare."""
    return frozenset(role for own in module.roles for role in _FUSED.get(own, frozenset({own})))


def _other_design(own: frozenset[str], usual: frozenset[str]) -> bool:
    """Whether a layer is attention of another make (latent beside plain), not one with a damaged name: that lacks one
    role and may have another one instead."""
    return bool(own - usual) and len(usual - own) > 1


def _missing_layers(numbers: Mapping[str, set[int]], names: Iterable[str]) -> dict[str, list[int]]:
    """Numbers between the first and the last of each prefix that no tensor bears."""
    gaps = {prefix: missing for prefix, layers in numbers.items() if (missing := _between(layers))}
    if not gaps:
        return {}
    for name in names:
        parts = name.split(".")
        for position, part in enumerate(parts):
            if is_number(part):
                gaps.get(".".join(parts[:position]), set()).discard(int(part))
    return {prefix: sorted(missing) for prefix, missing in gaps.items() if missing}


def _between(layers: set[int]) -> set[int]:
    low, high = min(layers), max(layers)
    # A lone huge number is a name, not a deep stack: the gap must be no longer than what a stack may skip.
    return set(range(low, high)) - layers if high - low <= 4096 else set()
