"""From one feed-forward block to its matrices, or to the reason why there are none.

Laws, whatever the family: gate and up are equal, down takes what they give and gives back what they take, which is the
width of the layer where attention says it. Whether bytes are (out, in) or (in, out) follows from these laws; where both
would do, from biases and the family, and a stack of experts that could be read either way is not understood. Encoded
tensors are named and their siblings still read. Nothing is guessed.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import prod

from weightprint.data import FEED_FORWARD_ROLES, Matrix, Part, TensorSpec
from weightprint.errors import Notice
from weightprint.roles.config import Hints
from weightprint.roles.ffn_leaves import ALTERNATING, CONV1D_LEAVES, FUSED_FAMILIES, GATE_UP, MAX_EXPERTS, NAMINGS
from weightprint.roles.leaves import CONV1D_FAMILIES, ENCODINGS, PAYLOADS
from weightprint_kernels.layout import ITEMSIZE


@dataclass
class Block:
    """The tensors of one feed-forward block while they are being gathered, by leaf.

    ``weights`` of a leaf are by the number of the expert, None without one. ``twice`` is a leaf that two tensors claim.
    """

    weights: dict[str, dict[int | None, TensorSpec]] = field(default_factory=dict)
    biases: dict[str, TensorSpec] = field(default_factory=dict)
    encodings: dict[str, list[tuple[str, TensorSpec]]] = field(default_factory=dict)
    adapters: dict[str, list[TensorSpec]] = field(default_factory=dict)
    leaves: set[str] = field(default_factory=set)
    twice: str = ""

    @property
    def roles(self) -> frozenset[str]:
        """The roles that its leaves name, read or not; none where they are no known naming."""
        named = frozenset(NAMINGS.get(frozenset(self.leaves), {}).values())
        return (named - {GATE_UP}) | {"gate", "up"} if GATE_UP in named else named

    @property
    def tensors(self) -> list[TensorSpec]:
        """Its weights, encoded ones included."""
        own = [spec for by_expert in self.weights.values() for spec in by_expert.values()]
        return own + [spec for found in self.encodings.values() for _, spec in found]


@dataclass(frozen=True)
class Width:
    """How wide a layer is; ``sure`` if attention says it, not if the config alone does."""

    value: int | None
    sure: bool


class Widths:
    """The widths of layers, as their attention says them."""

    def __init__(self, attention: Iterable[Matrix]) -> None:
        self._layers: dict[tuple[str, int], int] = {}
        prefixes: dict[str, set[int]] = {}
        for matrix in attention:
            prefix = matrix.stack.partition(" ")[0].removesuffix("(mtp)")
            # o gives back the width of the layer; of the others two streams may be joined.
            width = matrix.shape[0] if matrix.role in ("o", "o_b") else None
            if width is None and matrix.role in ("q", "q_a", "kv_a", "v"):
                width = self._layers.get((prefix, matrix.layer), matrix.shape[1])
            if width is not None:
                self._layers[prefix, matrix.layer] = width
        for (prefix, _), width in self._layers.items():
            prefixes.setdefault(prefix, set()).add(width)
        self._prefixes = {prefix: own.pop() for prefix, own in prefixes.items() if len(own) == 1}

    def of(self, prefix: str, layer: int) -> Width | None:
        """The width of a layer, or of all layers of its stack where it has no attention itself."""
        width = self._layers.get((prefix, layer), self._prefixes.get(prefix))
        return None if width is None else Width(width, True)


@dataclass(frozen=True)
class ResolvedBlock:
    """What one block gives: matrices, and what was not understood."""

    matrices: tuple[Matrix, ...]
    not_understood: tuple[Notice, ...]


class _Misfit(Exception):
    """The block's tensors do not fit together; the text is the reason."""


@dataclass(frozen=True)
class _Weight:
    """One leaf: a tensor of the same 2-D shape for every expert, in their order."""

    leaf: str
    experts: tuple[TensorSpec, ...]
    stacked: bool

    @property
    def stored(self) -> tuple[int, int]:
        shape = self.experts[0].shape
        return shape[0], shape[1]

    def shape(self, transposed: bool) -> tuple[int, int]:
        """(out, in) of one expert."""
        return self.stored[::-1] if transposed else self.stored


def resolve_block(block: Block, place: tuple[str, int], hints: Hints, width: Width) -> ResolvedBlock:
    """The matrices of one block, whose stack and layer are its ``place``, or why there are none."""
    factors = [spec for found in block.adapters.values() for spec in found]
    refused = _named([(spec, "an adapter's factor, to be merged into its base weight") for spec in factors])
    try:
        readable, encoded = _readable(block)
        refused += encoded
        if not readable:
            return ResolvedBlock((), tuple(refused))
        naming = NAMINGS.get(frozenset(block.leaves))
        if naming is None:
            raise _Misfit(f"no known feed-forward block has just {', '.join(sorted(block.leaves))}")
        if block.twice:
            raise _Misfit(f"two tensors claim to be {block.twice} of one block")
        weights = {naming[leaf]: _weight(leaf, own) for leaf, own in readable.items()}
        matrices = _matrices(place, *_oriented(block, weights, hints, width))
    except _Misfit as misfit:
        tensors = block.tensors
        reason = f"{misfit}{_more(len(tensors) - 1)}"
        notice = Notice("E_NOT_UNDERSTOOD", reason, tensor=min(spec.name for spec in tensors))
        return ResolvedBlock((), (*refused, notice))
    return ResolvedBlock(matrices, tuple(refused))


def _readable(block: Block) -> tuple[dict[str, dict[int | None, TensorSpec]], list[Notice]]:
    """Leaves whose bytes are the numbers, and a notice for each other one. An expert that is encoded takes the leaf
    with it: the units of a role are those of all experts."""
    refused: list[Notice] = []
    readable = {}
    for leaf in sorted({*block.weights, *block.encodings}):
        weights, marks = block.weights.get(leaf, {}), block.encodings.get(leaf, [])
        own = list(weights.values())
        dtypes, shapes = {spec.dtype for spec in own}, {spec.shape for spec in own}
        empty = [spec for spec in own if prod(spec.shape) <= 0] if any(prod(shape) <= 0 for shape in shapes) else []
        if marks:
            kinds = ", ".join(sorted({ENCODINGS[kind] for kind, _ in marks}))
            codes = own or [spec for kind, spec in marks if kind in PAYLOADS] or [marks[0][1]]
            refused += _named([(spec, kinds) for spec in codes])
        elif empty:
            reason = f"holds no element (shape {list(empty[0].shape)}){_more(len(empty) - 1)}"
            refused.append(Notice("E_ZERO_SIZE", reason, tensor=empty[0].name))
        elif dtypes - set(ITEMSIZE):
            foreign = [spec for spec in own if spec.dtype not in ITEMSIZE]
            refused += _named([(spec, "codes of a quantisation, or of a type that is not read") for spec in foreign])
        else:
            readable[leaf] = weights
    return readable, refused


def _named(encoded: Sequence[tuple[TensorSpec, str]]) -> list[Notice]:
    """One notice for tensors that are encoded alike."""
    if not encoded:
        return []
    spec, what = min(encoded, key=lambda entry: entry[0].name)
    reason = (
        f"stored as {spec.dtype}: {what}{_more(len(encoded) - 1)}; convert the checkpoint to bf16, f16 or f32 to have "
        f"it read"
    )
    return [Notice("E_DTYPE", reason, tensor=spec.name)]


def _more(number: int) -> str:
    return f" (it and {number} more tensors of the block)" if number else ""


def _weight(leaf: str, by_expert: Mapping[int | None, TensorSpec]) -> _Weight:
    """One 2-D tensor for each expert: one by one, or cut out of a stack [experts, rows, columns]."""
    numbers = [number for number in by_expert if number is not None]
    if numbers:
        lacking = next((number for number in range(max(numbers) + 1) if number not in by_expert), None)
        if lacking is not None or len(numbers) < len(by_expert):
            raise _Misfit(f"{leaf} of expert {lacking} is missing, though there are others up to {max(numbers)}")
        experts = tuple(_matrix(leaf, by_expert[number]) for number in range(len(numbers)))
        if len({spec.shape for spec in experts}) > 1:
            raise _Misfit(f"{leaf} has different shapes in different experts")
        return _Weight(leaf, experts, False)
    (spec,) = by_expert.values()
    if len(spec.shape) == 3 and spec.shape[2] != 1:
        return _Weight(leaf, _slabs(leaf, spec), True)
    return _Weight(leaf, (_matrix(leaf, spec),), False)


def _matrix(leaf: str, spec: TensorSpec) -> TensorSpec:
    """The tensor with its two sizes; convolutions of size 1 are matrices."""
    if len(spec.shape) == 2:
        return spec
    if len(spec.shape) > 2 and all(size == 1 for size in spec.shape[2:]):
        return replace(spec, shape=spec.shape[:2])
    raise _Misfit(f"{leaf} has shape {list(spec.shape)}, not a matrix's")


def _slabs(leaf: str, spec: TensorSpec) -> tuple[TensorSpec, ...]:
    """The experts of a stack, each with its own bytes."""
    count, rows, columns = spec.shape
    if count > MAX_EXPERTS:
        raise _Misfit(f"{leaf} has shape {list(spec.shape)}: more experts than any model has")
    size = rows * columns * ITEMSIZE[spec.dtype]
    if count * size != spec.nbytes or spec.column_major:
        raise _Misfit(f"{leaf} has shape {list(spec.shape)} and is not stored expert by expert")
    return tuple(
        replace(spec, shape=(rows, columns), offset=spec.offset + number * size, nbytes=size) for number in range(count)
    )


def _oriented(
    block: Block, weights: Mapping[str, _Weight], hints: Hints, width: Width
) -> tuple[Mapping[str, _Weight], bool]:
    """The weights by role, "up" renamed where it turns out to be gate and up; and whether they are stored (in, out)."""
    if len({len(weight.experts) for weight in weights.values()}) > 1:
        counts = ", ".join(f"{weight.leaf} {len(weight.experts)}" for weight in weights.values())
        raise _Misfit(f"its matrices are of different numbers of experts: {counts}")
    fused = GATE_UP in weights
    if fused and hints.model_type in ALTERNATING:
        raise _Misfit(f"{weights[GATE_UP].leaf} is fused: {ALTERNATING[hints.model_type]}, which is not read")
    single = weights.get("up")
    if single is not None and "gate" not in weights and (single.leaf, hints.model_type) in FUSED_FAMILIES:
        halves = {**{role: own for role, own in weights.items() if role != "up"}, GATE_UP: single}
        if any(_misfit(halves, transposed, width.value) is None for transposed in (False, True)):
            weights = halves
    misfits = [_misfit(weights, transposed, width.value) for transposed in (False, True)]
    if not width.sure and None not in misfits:
        misfits = [_misfit(weights, transposed, None) for transposed in (False, True)]
    fitting = [transposed for transposed in (False, True) if misfits[transposed] is None]
    if not fitting:
        raise _Misfit(f"{misfits[False]}")
    says = {said for weight in weights.values() if (said := _bias_says(block, weight)) is not None}
    if len(says) > 1 or (says and not says & set(fitting)):
        raise _Misfit("the biases do not fit the shapes")
    if len(fitting) == 1:
        return weights, fitting[0]
    if any(weight.stacked for weight in weights.values()):
        raise _Misfit(f"it may be stored (out, in) or (in, out), and no size tells which: {_sizes(weights)}")
    conv1d = hints.model_type in CONV1D_FAMILIES and {w.leaf for w in weights.values()} <= CONV1D_LEAVES
    return weights, says.pop() if says else conv1d


def _misfit(weights: Mapping[str, _Weight], transposed: bool, width: int | None) -> str | None:
    """The law that the shapes break if they are stored so, or None."""
    shapes = {role: weight.shape(transposed) for role, weight in weights.items()}
    hidden = {role: out // 2 if role == GATE_UP else out for role, (out, _) in shapes.items() if role != "down"}
    if "down" in shapes:
        hidden["down"] = shapes["down"][1]
    if GATE_UP in shapes and shapes[GATE_UP][0] % 2:
        return f"the outputs of {weights[GATE_UP].leaf} do not halve into gate and up: {_sizes(weights)}"
    if len(set(hidden.values())) > 1:
        return f"gate, up and down do not have the same hidden units: {_sizes(weights)}"
    outer = {shape[0] if role == "down" else shape[1] for role, shape in shapes.items()}
    if len(outer) > 1:
        return f"down does not give back the width that gate and up take: {_sizes(weights)}"
    if width is not None and outer != {width}:
        return f"the layer is {width} wide, which does not fit: {_sizes(weights)}"
    return None


def _bias_says(block: Block, weight: _Weight) -> bool | None:
    """Whether the bias says that a matrix is stored (in, out); None if it says nothing."""
    bias = block.biases.get(weight.leaf)
    rows, columns = weight.stored
    if bias is None or weight.stacked or rows == columns:
        return None
    size = prod(bias.shape)
    if size not in (rows, columns):
        raise _Misfit(f"{weight.leaf} is {[rows, columns]} but its bias has {size} elements")
    return size == columns


def _sizes(weights: Mapping[str, _Weight]) -> str:
    return ", ".join(f"{weight.leaf} {list(weight.stored)}" for weight in weights.values())


def _matrices(place: tuple[str, int], weights: Mapping[str, _Weight], transposed: bool) -> tuple[Matrix, ...]:
    matrices = []
    for role in FEED_FORWARD_ROLES:
        weight = weights.get(role, weights.get(GATE_UP) if role != "down" else None)
        if weight is None:
            continue
        out, taken = weight.shape(transposed)
        start, stop = 0, out
        if role not in weights:
            start, stop = (0, out // 2) if role == "gate" else (out // 2, out)
        number, own = len(weight.experts), stop - start
        matrices.append(
            Matrix(
                stack=place[0],
                layer=place[1],
                role=role,
                shape=(own, taken * number) if role == "down" else (own * number, taken),
                parts=tuple(Part(spec, weight.stored, ((start, stop),)) for spec in weight.experts),
                transposed=transposed,
                head_width=taken if role == "down" else own,
            )
        )
    return tuple(matrices)
