"""One checkpoint read layer by layer and reduced to what the tests look at; no more than a layer is held at a time.

Kept of it, all blind to scale:

* ``residual``: by part of the network one vector over the dimensions of the residual stream, float64 [width]: column
  energies of what reads the stream (times the squared gain of the norm before it), row energies of what writes to it,
  each matrix divided by its own total and summed over the layers. One vector, since all layers share one order.
* ``hidden``: energies of the feed-forward's hidden units by channel, float32 [layers, units]: rows of gate and of up,
  columns of down. Each layer has an order of its own. Given up where layers differ in size.
* ``spectra``: of every query head the logarithms of the singular values of W_O W_V and of W_Q^T W_K, each about its
  mean, float64 [heads, figures] per layer. They stay what they are under V A and O A^-1 with any invertible A, scales,
  and rotations of the residual stream: W_O W_V itself is then only turned (METHOD: eigenvalues of (V V^T)(O^T O), which
  is as small as a head is wide). Where key-value heads repeat each other (grouped attention written out in full), heads
  are exchangeable only in nests that no shape tells: ``repeated`` says so, and the heads test is not made.

Sums and products are float64: no weight that float32 can hold overflows them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from weightprint.compare.blocks import FLOAT64
from weightprint.confirm.anatomy import Anatomy, LayerParts
from weightprint.confirm.weights import matrix_weights, tensor_weights
from weightprint.data import FLOAT32, TensorSpec

if TYPE_CHECKING:
    from torch import Tensor

OFFSET_GAINS = ("gemma", "nemotron", "qwen3_next", "recurrent_gemma")
"""Families whose norms multiply by 1 + weight: beginnings of model_type."""

LEAST_SINGULAR = math.log(1e-3)
"""Below this share of the largest, singular values are rounding; logarithms are held at it."""

REPEATED = 1e-3
"""Two key-value heads of a layer are one, repeated, if their rows or Gram matrices differ by at most this share."""

_ROWS = 2**12  # of a matrix, squared at once


@dataclass(frozen=True)
class HeadSpectra:
    """Heads of one layer: key-value heads, query heads that share one, figures float64 [heads, figures]."""

    layer: int
    groups: int
    shared: int
    figures: FLOAT64


@dataclass(frozen=True)
class Reduced:
    """What is kept of one checkpoint's largest stack; ``missing`` says what was left out, and why."""

    width: int
    residual: Mapping[str, FLOAT64]
    hidden: Mapping[str, FLOAT32]
    spectra: tuple[HeadSpectra, ...]
    layers: tuple[int, ...]
    missing: tuple[str, ...] = ()
    repeated: str | None = None


@dataclass
class _Sums:
    """Figures of the layers so far."""

    residual: dict[str, FLOAT64] = field(default_factory=dict)
    hidden: dict[str, list[FLOAT32]] = field(default_factory=dict)
    spectra: list[HeadSpectra] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    repeated: list[int] = field(default_factory=list)

    def add(self, part: str, energies: FLOAT64, width: int, place: str) -> None:
        """Energies over the residual stream, one matrix's, float64 [width]."""
        if len(energies) != width:
            self.missing.append(f"{place}: {part} is {len(energies)} wide, not {width} as the residual stream")
            return
        total = float(energies.sum())
        if not math.isfinite(total):
            self.missing.append(f"{place}: {part} holds weights too large to add up")
        elif total > 0:
            self.residual[part] = self.residual.get(part, 0) + energies / total


def reduce_checkpoint(anatomy: Anatomy, model_type: str, device: str) -> Reduced:
    """Read a checkpoint; raises CheckpointError if its bytes cannot be read."""
    offset = 1.0 if model_type.startswith(OFFSET_GAINS) else 0.0
    sums = _Sums()
    for parts in anatomy.layers:
        _attention(parts, anatomy.width, offset, device, sums)
        _feed_forward(parts, anatomy.width, offset, device, sums)
    embedding = None if anatomy.embedding is None else tensor_weights(anatomy.embedding, device)
    if embedding is not None:
        sums.add("embedding", _energies(embedding, None)[1], anatomy.width, "embedding")
    number = len(anatomy.layers)
    hidden = {
        channel: np.stack(rows)
        for channel, rows in sums.hidden.items()
        if len(rows) == number and len({len(row) for row in rows}) == 1
    }
    layers = tuple(parts.layer for parts in anatomy.layers)
    said = f"key-value heads of layer {sums.repeated[0]} are repeated" if sums.repeated else None
    missing = tuple(dict.fromkeys(sums.missing))
    return Reduced(anatomy.width, sums.residual, hidden, tuple(sums.spectra), layers, missing, said)


def _gain(spec: TensorSpec | None, width: int, offset: float, device: str) -> Tensor | None:
    """The gain of a norm, None where it is not known."""
    if spec is None or spec.shape != (width,):
        return None
    gain = tensor_weights(spec, device)
    return None if gain is None else gain.double() + offset


def _energies(own: Tensor, gain: Tensor | None) -> tuple[FLOAT64, FLOAT64]:
    """Sums of squares of rows and of columns, columns times the gain first, float64 [out] and [in]."""
    import torch

    rows, columns = [], own.new_zeros(own.shape[1], dtype=torch.float64)
    for first in range(0, len(own), _ROWS):
        tile = own[first : first + _ROWS].double()
        squares = (tile if gain is None else tile * gain).square()
        rows.append(squares.sum(1))
        columns += squares.sum(0)
    return torch.cat(rows).cpu().numpy(), columns.cpu().numpy()


def _attention(parts: LayerParts, width: int, offset: float, device: str, sums: _Sums) -> None:
    gain = _gain(parts.attention_norm, width, offset, device)
    weights = {}
    place = f"layer {parts.layer}"
    for role in "qkvo":
        own = matrix_weights(parts.attention[role], device)
        if own is None:
            sums.missing.append(f"{place} {role} holds weights that are not finite")
            continue
        scaled = role != "o" and gain is not None and own.shape[1] == width
        weights[role] = own.double() * gain if scaled and gain is not None else own
        if role == "o":
            sums.add("output of attention", _energies(own, None)[0], width, place)
        elif own.shape[1] == width:
            part = "input of values" if role == "v" else "input of queries and keys"
            sums.add(part, _energies(weights[role], None)[1], width, place)
    head_width = parts.attention["o"].head_width or parts.attention["v"].head_width
    if len(weights) == len("qkvo") and head_width:
        _heads_of_layer(parts.layer, weights, head_width, sums)


def _heads_of_layer(layer: int, weights: Mapping[str, Tensor], head_width: int, sums: _Sums) -> None:
    from torch.linalg import LinAlgError  # type: ignore[attr-defined]

    try:
        spectra = head_spectra(weights, head_width)
    except LinAlgError:
        sums.missing.append(f"layer {layer}: the singular values of its heads cannot be computed")
        return
    if spectra is None:
        return
    groups, figures = spectra
    sums.spectra.append(HeadSpectra(layer, groups, len(figures) // groups, figures))
    if any(len(weights[role]) % groups == 0 and _are_repeated(weights[role], groups) for role in "kv"):
        sums.repeated.append(layer)


def _are_repeated(rows: Tensor, heads: int) -> bool:
    """Whether two heads of a matrix [heads * head, in] are one within rounding, as they are or in their Gram matrices,
    which a rotation of what they read leaves alone."""
    import torch

    rows = rows / rows.abs().amax().clamp(min=torch.finfo(rows.dtype).tiny)
    for own in (rows.reshape(heads, -1).double(), _grams(rows, heads).flatten(1)):
        products = own @ own.T
        energies = products.diagonal()
        apart = energies[:, None] + energies[None] - 2 * products
        near = apart <= REPEATED**2 * torch.maximum(energies[:, None], energies[None])
        if bool(near.triu(diagonal=1).any()):
            return True
    return False


def _feed_forward(parts: LayerParts, width: int, offset: float, device: str, sums: _Sums) -> None:
    gain = _gain(parts.feed_forward_norm, width, offset, device)
    place = f"layer {parts.layer}"
    if fault := feed_forward_fault(parts, width):
        sums.missing.append(f"{place}: feed-forward left out, {fault}")
        return
    for role, own in feed_forward_weights(parts, width, device).items():
        rows, columns = _energies(own, None if role == "down" else gain)
        stream, units = (rows, columns) if role == "down" else (columns, rows)
        sums.add(f"{'output' if role == 'down' else 'input'} of feed-forward", stream, width, place)
        if float(units.max()) > float(np.finfo(np.float32).max):
            sums.missing.append(f"{place}: {role} holds weights too large to add up")
            continue
        sums.hidden.setdefault(role, []).append(units.astype(np.float32))


def _stream_axes(parts: LayerParts, width: int) -> dict[str, int]:
    """Role -> which axis of its tensor is the residual stream, of those where only one can be."""
    return {
        role: 0 if spec.shape[0] == width else 1
        for role, spec in parts.feed_forward.items()
        if (spec.shape[0] == width) != (spec.shape[1] == width)
    }


def feed_forward_fault(parts: LayerParts, width: int) -> str | None:
    """Why a layer's feed-forward is not what its names say, or None. What is called up may hold gate and up at once
    (ChatGLM), so that its rows are no hidden units: each of gate and up has as many rows as down has columns."""
    units = {role: parts.feed_forward[role].shape[1 - axis] for role, axis in _stream_axes(parts, width).items()}
    if not units:
        return None
    if "down" not in units:
        return f"no down that {', '.join(sorted(units))} can be checked against"
    expected = {"gate": units["down"], "up": units["down"], "gate_up": 2 * units["down"]}
    for role, number in units.items():
        if role != "down" and number != expected[role]:
            return f"{role} has {number} outputs and down takes {units['down']}"
    return None


def feed_forward_weights(
    parts: LayerParts, width: int, device: str, roles: Sequence[str] = ("gate", "up", "gate_up", "down")
) -> dict[str, Tensor]:
    """The matrices of a layer's feed-forward as float32 [out, in], by role: gate, up, down; none where the layer has a
    fault. Only tensors of ``roles`` are read."""
    found: dict[str, Tensor] = {}
    if feed_forward_fault(parts, width):
        return found
    for role, axis in _stream_axes(parts, width).items():
        own = tensor_weights(parts.feed_forward[role], device) if role in roles else None
        if own is None:
            continue
        own = own if axis == (0 if role == "down" else 1) else own.T
        if role == "gate_up":
            found["gate"], found["up"] = own.chunk(2)
        else:
            found[role] = own
    return found


def head_spectra(weights: Mapping[str, Tensor], head_width: int) -> tuple[int, FLOAT64] | None:
    """Key-value heads, and figures float64 [query heads, figures]; None where heads do not divide the matrices. Raises
    torch.linalg.LinAlgError where singular values cannot be computed."""
    from torch.linalg import LinAlgError  # type: ignore[attr-defined]

    q, k, v, o = (weights[role] for role in "qkvo")
    heads, rest = divmod(o.shape[1], head_width)
    groups, left = divmod(v.shape[0], head_width)
    if rest or left or not groups or heads % groups:
        return None
    value_grams = _grams(v, groups).repeat_interleave(heads // groups, 0)
    figures = [_log_spectrum(value_grams, _grams(o.T, heads))]
    if q.shape[0] % heads == 0 and q.shape[0] // heads * groups == k.shape[0] and q.shape[1] == k.shape[1]:
        key_grams = _grams(k, groups).repeat_interleave(heads // groups, 0)
        figures.append(_log_spectrum(key_grams, _grams(q, heads)))
    found = np.concatenate(figures, axis=1)
    if not np.isfinite(found).all():
        raise LinAlgError("singular values are not finite")
    return groups, found


def _grams(rows: Tensor, heads: int) -> Tensor:
    """W W^T of every head, float64 [heads, width, width]."""
    own = rows.reshape(heads, -1, rows.shape[1]).double()
    return own @ own.transpose(1, 2)


def _log_spectrum(first: Tensor, second: Tensor) -> FLOAT64:
    """Logarithms of the singular values of products whose Gram matrices these are, about their mean, [heads, width]."""
    import torch

    first, second = (own / own.abs().amax(dim=(1, 2), keepdim=True).clamp(min=1e-300) for own in (first, second))
    values, vectors = torch.linalg.eigh(first)
    root = vectors * values.clamp(min=0).sqrt().unsqueeze(1)
    squares = torch.linalg.eigvalsh(root.transpose(1, 2) @ second @ root).clamp(min=0)
    largest = squares.amax(dim=1, keepdim=True).clamp(min=torch.finfo(squares.dtype).tiny)
    logs = ((squares / largest).clamp(min=0).log() / 2).clamp(min=LEAST_SINGULAR)
    centred: FLOAT64 = (logs - logs.mean(dim=1, keepdim=True)).cpu().numpy()
    return centred
