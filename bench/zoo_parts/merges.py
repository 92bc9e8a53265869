"""Merges of several models of one shape: linear, along the arc, and of trimmed differences from a base."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor
from zoo_parts.models import Model, Weights


def linear(*parts: Model, shares: Sequence[float]) -> Model:
    """The weighted sum of tensors."""
    names = parts[0][1]
    return parts[0][0], {
        name: torch.stack([share * weights[name] for share, (_, weights) in zip(shares, parts, strict=True)]).sum(dim=0)
        for name in names
    }


def slerp(first: Model, second: Model, share: float) -> Model:
    """Along the arc between two tensors, each taken as a vector."""
    found: Weights = {}
    for name, a in first[1].items():
        b = second[1][name]
        cosine = torch.nn.functional.cosine_similarity(a.flatten(), b.flatten(), dim=0).clamp(-1, 1)
        angle = torch.arccos(cosine)
        if angle < 1e-4:
            found[name] = (1 - share) * a + share * b
        else:
            found[name] = (torch.sin((1 - share) * angle) * a + torch.sin(share * angle) * b) / torch.sin(angle)
    return first[0], found


def of_differences(base: Model, *parts: Model, trim: str) -> Model:
    """The base and the trimmed differences of its fine-tunes, averaged over where they agree in sign (TIES, Yadav et
    al. 2023)."""
    found: Weights = {}
    for name, origin in base[1].items():
        deltas = torch.stack([TRIMS[trim](weights[name] - origin, part) for part, (_, weights) in enumerate(parts)])
        sign = torch.sign(deltas.sum(dim=0))
        agreeing = torch.where(torch.sign(deltas) == sign, deltas, 0)
        count = (agreeing != 0).sum(dim=0).clamp(min=1)
        found[name] = origin + agreeing.sum(dim=0) / count
    return base[0], found


def largest_fifth(delta: Tensor, part: int) -> Tensor:
    """A difference without the four fifths of smallest magnitude."""
    if delta.numel() < 5:
        return delta
    limit = delta.abs().flatten().kthvalue(int(0.8 * delta.numel())).values
    return torch.where(delta.abs() > limit, delta, 0)


def dropped(delta: Tensor, part: int) -> Tensor:
    """A difference of which half is left out at random and the rest doubled (DARE, Yu et al. 2023)."""
    generator = torch.Generator().manual_seed(1000 * part + delta.numel())
    return 2 * delta * (torch.rand(delta.shape, generator=generator) < 0.5)


TRIMS: Mapping[str, Callable[[Tensor, int], Tensor]] = {"largest fifth": largest_fifth, "half dropped": dropped}
"""By name, since what a member was made with is written down."""
