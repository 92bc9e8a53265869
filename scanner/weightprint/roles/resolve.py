"""From one attention module to its matrices, or to the reasons why there are none.

Order: what is stored as plain numbers, orientation, fused layouts, laws of checks.py. A module that breaks a law is
named tensor by tensor as not understood, never guessed at; encoded tensors are named and their siblings still read.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod

from weightprint.data import ROLES, Matrix, Part, TensorSpec
from weightprint.errors import Notice
from weightprint.roles.checks import Facts, first_misfit
from weightprint.roles.config import Hints
from weightprint.roles.layouts import MAX_HEADS, Fused, Ranges, Split, split_fused, split_gated, split_key_value
from weightprint.roles.leaves import CONV1D_FAMILIES, ENCODINGS, PAYLOADS
from weightprint.roles.modules import Module
from weightprint.roles.names import Site
from weightprint_kernels.layout import ITEMSIZE

Weights = Mapping[str, list[tuple[Site, TensorSpec]]]


@dataclass(frozen=True)
class Resolved:
    """What one module gives: matrices, and what was not understood."""

    matrices: tuple[Matrix, ...]
    not_understood: tuple[Notice, ...]


@dataclass(frozen=True)
class _View:
    """A weight seen as a matrix: ``stored`` its row-major 2-D shape, ``transposed`` if that is (in, out)."""

    spec: TensorSpec
    leaf: str
    stored: tuple[int, int]
    transposed: bool

    @property
    def shape(self) -> tuple[int, int]:
        return self.stored[::-1] if self.transposed else self.stored


def resolve(module: Module, stack: str, hints: Hints) -> Resolved:
    """The matrices of one module of ``stack``, or why there are none."""
    weights, refused = _readable(module)
    refused += [_encoded(spec, "an adapter's factor, to be merged into its base weight") for _, spec in module.adapters]
    if not weights:
        return Resolved((), tuple(refused))
    try:
        views, splits = _interpret(module, weights, hints)
    except _Misfit as misfit:
        tensors = {spec.name: spec for found in weights.values() for _, spec in found}
        reason = str(misfit)
        return Resolved((), (*refused, *(Notice("E_NOT_UNDERSTOOD", reason, tensor=name) for name in tensors)))
    return Resolved(_matrices((stack, module.layer), views, splits.ranges, hints), (*refused, *splits.refused))


class _Misfit(Exception):
    """The module's tensors do not fit together; the text is the reason."""


@dataclass(frozen=True)
class _Splits:
    ranges: Mapping[str, tuple[str, Ranges]]  # role -> (role whose tensor holds it, ranges)
    refused: tuple[Notice, ...] = ()


def _readable(module: Module) -> tuple[dict[str, list[tuple[Site, TensorSpec]]], list[Notice]]:
    """Weights whose bytes are the numbers, and a notice for each other one."""
    refused: list[Notice] = []
    for found in module.encodings.values():
        if not any(kind in PAYLOADS for kind, _ in found):
            continue
        kinds = ", ".join(sorted({ENCODINGS[kind] for kind, _ in found}))
        refused += [_encoded(spec, kinds) for kind, spec in found if kind in PAYLOADS]
    readable: dict[str, list[tuple[Site, TensorSpec]]] = {}
    for role, weights in module.weights.items():
        marks = module.encodings.get(role, [])
        for site, spec in weights:
            if marks:
                kinds = ", ".join(sorted({ENCODINGS[kind] for kind, _ in marks}))
                beside = ", ".join(sorted({kind for kind, _ in marks}))
                refused.append(_encoded(spec, f"{kinds} ({beside} beside it)"))
            elif prod(spec.shape) <= 0:
                refused.append(Notice("E_ZERO_SIZE", f"holds no element (shape {list(spec.shape)})", tensor=spec.name))
            elif spec.dtype not in ITEMSIZE:
                refused.append(_encoded(spec, "codes of a quantisation, or of a type that is not read"))
            else:
                readable.setdefault(role, []).append((site, spec))
    for role, found in module.encodings.items():
        # Scales alone, without the codes that they scale: name one of them, or nothing would be said.
        if role not in module.weights and not any(kind in PAYLOADS for kind, _ in found):
            refused.append(_encoded(found[0][1], ENCODINGS[found[0][0]]))
    return readable, refused


def _encoded(spec: TensorSpec, what: str) -> Notice:
    reason = f"stored as {spec.dtype}: {what}; convert the checkpoint to bf16, f16 or f32 to have it read"
    return Notice("E_DTYPE", reason, tensor=spec.name)


def _interpret(module: Module, weights: Weights, hints: Hints) -> tuple[dict[str, _View], _Splits]:
    """Orient, split and check; raises _Misfit with the reason."""
    if module.odd:
        raise _Misfit(module.odd[0][0])
    if module.roles <= {"q", "q_a", "q_b"}:
        raise _Misfit("q stands alone: no k, v or o bears the name of its module")
    twice = next((role for role, found in weights.items() if len(found) > 1), None)
    if twice is not None:
        raise _Misfit(f"{len(weights[twice])} tensors claim to be {twice} of one attention module")
    views = _views(module, weights, hints)
    if "shared_kv" in views:
        _rename(views, "shared_kv", "k" if "q_a" in module.roles or "o_a" in module.roles else "kv")
    if "qkv" in views and "q" in views and views["qkv"].leaf == "c_attn":
        _rename(views, "qkv", "kv")
    if ("qkv" in views and not {"q", "k", "v", "kv"}.isdisjoint(views)) or (
        "kv" in views and not {"k", "v"}.isdisjoint(views)
    ):
        raise _Misfit(f"fused and separate projections in one module: {', '.join(sorted(views))}")
    splits = _split(views, hints)
    shapes = {
        role: (sum(stop - start for start, stop in ranges), views[source].shape[1])
        for role, (source, ranges) in splits.ranges.items()
        if not (role == "v" and source == "kv_b")
    }
    misfit = first_misfit(Facts(shapes, hints, module.cross))
    if misfit is not None:
        raise _Misfit(misfit)
    return views, splits


def _rename(views: dict[str, _View], role: str, to: str) -> None:
    """Give a weight the role that its siblings show it to have."""
    if to in views:
        raise _Misfit(f"{views[role].leaf} and {views[to].leaf} both claim to be {to} of one attention module")
    views[to] = views.pop(role)


def _views(module: Module, weights: Weights, hints: Hints) -> dict[str, _View]:
    """Every weight as a 2-D array with its orientation.

    (in, out) where the bias is as long as dimension 1 and not dimension 0; square siblings follow. Without biases the
    family, then a fused tensor three times as wide as high, decide.
    """
    stored = {role: _flat(module, site, spec) for role, ((site, spec),) in weights.items()}
    says: dict[bool, str] = {}
    for role, (rows, columns) in stored.items():
        bias = module.biases.get(role)
        if bias is None or _is_cube(weights[role][0][1]):
            continue
        if bias not in (rows, columns):
            raise _Misfit(f"{role} is {[rows, columns]} but its bias has {bias} elements")
        if rows != columns:
            says[bias == columns] = role
    if len(says) == 2:
        raise _Misfit(f"the biases say that {says[True]} is stored (in, out) and {says[False]} is not")
    views: dict[str, _View] = {}
    for role, ((site, spec),) in weights.items():
        rows, columns = stored[role]
        if _is_cube(spec):
            transposed = role != "o"
        elif says:
            transposed = True in says
        else:
            narrow = stored.get("qkv")
            wide = narrow is not None and narrow[1] == 3 * narrow[0]
            transposed = wide or ("c_attn" in module.leaves and hints.model_type in CONV1D_FAMILIES)
        views[role] = _View(spec, site.leaf_name, (rows, columns), transposed)
    return views


def _is_cube(spec: TensorSpec) -> bool:
    """(width, heads, head width), as XLNet keeps q, k, v and o."""
    return len(spec.shape) == 3 and spec.shape[2] != 1 and "rel_attn" in spec.name


def _flat(module: Module, site: Site, spec: TensorSpec) -> tuple[int, int]:
    """The tensor as rows and columns; convolutions of size 1 are matrices, others are not."""
    shape = spec.shape
    if _is_cube(spec):
        return shape[0], shape[1] * shape[2]
    if len(shape) > 2 and all(size == 1 for size in shape[2:]):
        shape = shape[:2]
    if len(shape) != 2:
        raise _Misfit(f"{site.leaf_name} of {module.name or 'the module'} has shape {list(spec.shape)}, not a matrix's")
    return shape[0], shape[1]


def _split(views: Mapping[str, _View], hints: Hints) -> _Splits:
    """Which ranges of which tensor each role takes."""
    ranges: dict[str, tuple[str, Ranges]] = {}
    refused: list[Notice] = []
    inner = views["o"].shape[1] if "o" in views else None
    for role, view in views.items():
        total = view.shape[0]
        if role == "qkv":
            ranges.update(_named(role, split_fused(view.leaf, Fused(total, inner, hints))))
        elif role == "kv":
            ranges.update(_named(role, split_key_value(total)))
        elif role == "q" and inner is not None and _gated(views, inner):
            gated = split_gated(total, inner, hints)
            if isinstance(gated, str):
                refused.append(Notice("E_NOT_UNDERSTOOD", gated, tensor=view.spec.name))
            else:
                ranges["q"] = (role, gated)
        else:
            ranges[role] = (role, ((0, total),))
    latent = _latent_values(views, hints)
    if latent is not None:
        ranges["v"] = ("kv_b", latent)
    return _Splits(ranges, tuple(refused))


def _named(role: str, split: Split | str) -> dict[str, tuple[str, Ranges]]:
    if isinstance(split, str):
        raise _Misfit(split)
    return {name: (role, ranges) for name, ranges in split.items()}


def _gated(views: Mapping[str, _View], inner: int) -> bool:
    """Twice as many rows of q as o takes: queries and gates, unless heads of q and k are twice as wide as v's."""
    if views["q"].shape[0] != 2 * inner or "kv_a" in views:
        return False
    return not ("k" in views and "v" in views) or views["k"].shape[0] == views["v"].shape[0]


def _latent_values(views: Mapping[str, _View], hints: Hints) -> Ranges | None:
    """Rows of kv_b that are values, head by head behind the keys, where config and shapes agree on them."""
    nope, width = hints.nope_dim, hints.v_head_dim
    if "kv_b" not in views or "o" not in views or "v" in views or nope is None or width is None:
        return None
    inner, rows = views["o"].shape[1], views["kv_b"].shape[0]
    heads = inner // width
    if inner % width or heads > MAX_HEADS or rows != heads * (nope + width):
        return None
    return tuple((start + nope, start + nope + width) for start in range(0, rows, nope + width))


def _matrices(
    place: tuple[str, int], views: Mapping[str, _View], ranges: Mapping[str, tuple[str, Ranges]], hints: Hints
) -> tuple[Matrix, ...]:
    width = _head_width(views, ranges, hints)
    matrices = []
    for role in ROLES:
        if role not in ranges:
            continue
        source, own = ranges[role]
        view = views[source]
        rows = sum(stop - start for start, stop in own)
        matrices.append(
            Matrix(
                stack=place[0],
                layer=place[1],
                role=role,
                shape=(rows, view.shape[1]),
                parts=(Part(view.spec, view.stored, own),),
                transposed=view.transposed,
                head_width=width if role in ("v", "o") else None,
            )
        )
    return tuple(matrices)


def _head_width(views: Mapping[str, _View], ranges: Mapping[str, tuple[str, Ranges]], hints: Hints) -> int | None:
    """Units of a head of V's rows and O's columns: what the config says, if it divides both."""
    given = hints.v_head_dim if hints.v_head_dim is not None else hints.head_width
    sizes = [sum(stop - start for start, stop in ranges["v"][1])] if "v" in ranges else []
    sizes += [views["o"].shape[1]] if "o" in views else []
    return given if given is not None and sizes and all(size % given == 0 for size in sizes) else None
