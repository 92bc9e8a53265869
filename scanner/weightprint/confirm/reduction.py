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
  is as small as a head is wide).
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

_ROWS = 2**14  # of an embedding, squared at once


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


@dataclass
class _Sums:
    """Figures of the layers so far."""

    residual: dict[str, FLOAT64] = field(default_factory=dict)
    hidden: dict[str, list[FLOAT32]] = field(default_factory=dict)
    spectra: list[HeadSpectra] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)

    def add(self, part: str, energies: Tensor) -> None:
        """Energies over the residual stream, one matrix's."""
        total = float(energies.sum())
        if total > 0:
            share = (energies / total).double().cpu().numpy()
            self.residual[part] = self.residual.get(part, 0) + share


def reduce_checkpoint(anatomy: Anatomy, model_type: str, device: str) -> Reduced:
    """Read a checkpoint; raises CheckpointError if its bytes cannot be read."""
    offset = 1.0 if model_type.startswith(OFFSET_GAINS) else 0.0
    sums = _Sums()
    for parts in anatomy.layers:
        _attention(parts, anatomy.width, offset, device, sums)
        _feed_forward(parts, anatomy.width, offset, device, sums)
    embedding = None if anatomy.embedding is None else tensor_weights(anatomy.embedding, device)
    if embedding is not None:
        energies = embedding.new_zeros(embedding.shape[1])
        for first in range(0, len(embedding), _ROWS):
            energies += embedding[first : first + _ROWS].square().sum(0)
        sums.add("embedding", energies)
    number = len(anatomy.layers)
    hidden = {
        channel: np.stack(rows)
        for channel, rows in sums.hidden.items()
        if len(rows) == number and len({len(row) for row in rows}) == 1
    }
    layers = tuple(parts.layer for parts in anatomy.layers)
    return Reduced(
        anatomy.width, sums.residual, hidden, tuple(sums.spectra), layers, tuple(dict.fromkeys(sums.missing))
    )


def _gain(spec: TensorSpec | None, width: int, offset: float, device: str) -> Tensor | None:
    """The gain of a norm, None where it is not known."""
    if spec is None or spec.shape != (width,):
        return None
    gain = tensor_weights(spec, device)
    return None if gain is None else gain + offset


def _attention(parts: LayerParts, width: int, offset: float, device: str, sums: _Sums) -> None:
    gain = _gain(parts.attention_norm, width, offset, device)
    weights = {}
    for role in "qkvo":
        own = matrix_weights(parts.attention[role], device)
        if own is None:
            sums.missing.append(f"layer {parts.layer} {role} holds weights that are not finite")
            continue
        weights[role] = own if role == "o" or gain is None or own.shape[1] != width else own * gain
        if role == "o":
            sums.add("output of attention", own.square().sum(1))
        elif own.shape[1] == width:
            sums.add("input of values" if role == "v" else "input of queries and keys", weights[role].square().sum(0))
    head_width = parts.attention["o"].head_width or parts.attention["v"].head_width
    if len(weights) == len("qkvo") and head_width:
        spectra = head_spectra(weights, head_width)
        if spectra is not None:
            groups, figures = spectra
            sums.spectra.append(HeadSpectra(parts.layer, groups, len(figures) // groups, figures))


def _feed_forward(parts: LayerParts, width: int, offset: float, device: str, sums: _Sums) -> None:
    gain = _gain(parts.feed_forward_norm, width, offset, device)
    for role, own in feed_forward_weights(parts, width, device).items():
        if role == "down":
            sums.add("output of feed-forward", own.square().sum(1))
            energies = own.square().sum(0)
        else:
            read = own if gain is None else own * gain
            sums.add("input of feed-forward", read.square().sum(0))
            energies = read.square().sum(1)
        sums.hidden.setdefault(role, []).append(energies.float().cpu().numpy())


def feed_forward_weights(
    parts: LayerParts, width: int, device: str, roles: Sequence[str] = ("gate", "up", "gate_up", "down")
) -> dict[str, Tensor]:
    """The matrices of a layer's feed-forward as float32 [out, in], by role: gate, up, down. Only tensors of ``roles``
    are read."""
    found: dict[str, Tensor] = {}
    for role, spec in parts.feed_forward.items():
        if role not in roles or (spec.shape[0] == width) == (spec.shape[1] == width):
            continue  # either axis could be the residual stream, or none
        own = tensor_weights(spec, device)
        if own is None:
            continue
        stream = 0 if role == "down" else 1
        own = own if spec.shape[stream] == width else own.T
        if role == "gate_up":
            found["gate"], found["up"] = own.chunk(2)
        else:
            found[role] = own
    return found


def head_spectra(weights: Mapping[str, Tensor], head_width: int) -> tuple[int, FLOAT64] | None:
    """Key-value heads, and figures float64 [query heads, figures]; None where heads do not divide the matrices."""
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
    return groups, np.concatenate(figures, axis=1)


def _grams(rows: Tensor, heads: int) -> Tensor:
    """W W^T of every head, float64 [heads, width, width]."""
    own = rows.reshape(heads, -1, rows.shape[1]).double()
    return own @ own.transpose(1, 2)


def _log_spectrum(first: Tensor, second: Tensor) -> FLOAT64:
    """Logarithms of the singular values of products whose Gram matrices these are, about their mean, [heads, width]."""
    import torch

    values, vectors = torch.linalg.eigh(first)
    root = vectors * values.clamp(min=0).sqrt().unsqueeze(1)
    squares = torch.linalg.eigvalsh(root.transpose(1, 2) @ second @ root).clamp(min=0)
    largest = squares.amax(dim=1, keepdim=True).clamp(min=torch.finfo(squares.dtype).tiny)
    logs = ((squares / largest).clamp(min=0).log() / 2).clamp(min=LEAST_SINGULAR)
    centred: FLOAT64 = (logs - logs.mean(dim=1, keepdim=True)).cpu().numpy()
    return centred
