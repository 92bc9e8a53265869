"""Attention modules: sibling tensors joined under one (stack prefix, layer, module name).

Nothing is judged here: a module holds all that its names say, resolve.py decides whether it fits together.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from math import prod

from weightprint.data import TensorSpec
from weightprint.roles.leaves import ENCODINGS, SUBLAYERS
from weightprint.roles.names import Site, blanked, layer_positions, module_name, says_cross

QUERIES = frozenset({"q", "qkv", "q_a", "q_b", "odd_q"})
"""Roles of which a module must have one to be attention."""

Key = tuple[str, int, str]


@dataclass
class Module:
    """The tensors of one attention module while they are being gathered.

    ``weights`` and ``biases`` by role; ``encodings`` the kinds that stand beside or instead of a role's weight;
    ``payloads`` the tensors that hold such codes. ``odd`` are reasons why q, k, v are more than matrices.
    """

    prefix: str
    layer: int
    name: str
    weights: dict[str, list[tuple[Site, TensorSpec]]] = field(default_factory=dict)
    biases: dict[str, int] = field(default_factory=dict)
    encodings: dict[str, list[tuple[str, TensorSpec]]] = field(default_factory=dict)
    adapters: list[tuple[str, TensorSpec]] = field(default_factory=list)
    odd: list[tuple[str, TensorSpec]] = field(default_factory=list)

    @property
    def roles(self) -> frozenset[str]:
        """Roles that are there in any form."""
        return frozenset(self.weights) | frozenset(self.encodings) | frozenset(role for role, _ in self.adapters)

    @property
    def queries(self) -> bool:
        """Whether the module has a query, and so is attention."""
        return not QUERIES.isdisjoint(self.roles)

    @property
    def leaves(self) -> frozenset[str]:
        """The names of its weights' leaves."""
        return frozenset(site.leaf_name for found in self.weights.values() for site, _ in found)

    @property
    def cross(self) -> bool:
        """Whether keys and values come from another sequence."""
        return says_cross(self.name)


def gather(sites: Iterable[tuple[Site, TensorSpec]]) -> dict[Key, Module]:
    """Join sites into modules. Which number is the layer is decided over all names together."""
    sites = list(sites)
    positions = layer_positions(site for site, _ in sites)
    places: dict[tuple[tuple[str, ...], str], Key] = {}
    modules: dict[Key, Module] = {}
    for site, spec in sites:
        place = (site.parents, site.leaf.variant)
        key = places.get(place)
        if key is None:
            key = places[place] = _key(site, positions[blanked(site.parents)])
        module = modules.get(key)
        if module is None:
            module = modules[key] = Module(*key)
        _add(module, site, spec)
    return modules


def _key(site: Site, position: int) -> Key:
    parents = site.parents
    if position < 0:
        prefix, layer = module_name(parents), 0
        name = prefix.rpartition(".")[2]
    else:
        after = parents[position + 1 :]
        if position and (parents[position - 1], *after[:1]) in SUBLAYERS:
            after = after[2:]
        name = module_name(after)
        prefix, layer = ".".join(parents[:position]), int(parents[position])
    return prefix, layer, f"{name} {site.leaf.variant}".strip()


def _add(module: Module, site: Site, spec: TensorSpec) -> None:
    role = site.leaf.role
    if role == "odd":
        module.odd.append((site.leaf.reason, spec))
        return
    if role == "odd_q":
        module.odd.append((site.leaf.reason, spec))
    if site.kind == "bias":
        module.biases[role] = max(module.biases.get(role, 0), prod(spec.shape))
    elif site.kind == "adapter":
        module.adapters.append((role, spec))
    elif site.kind == "weight":
        # Vectors are scales or buffers; an empty one is a weight that was saved before it was gathered.
        if len(spec.shape) != 1 or spec.shape[0] <= 0:
            module.weights.setdefault(role, []).append((site, spec))
    elif site.kind in ENCODINGS:
        module.encodings.setdefault(role, []).append((site.kind, spec))
