"""Training of small models on text that every Python brings along: the sources of its standard library.

Bytes are the tokens. The sources are read in order of their names and cut into parts, so that what a model is trained
on first and what it is trained on later are different texts. On one machine and one version of torch the same seed
gives the same weights.
"""

from __future__ import annotations

import sysconfig
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional
from zoo_parts.models import Network

PARTS = 4


@cache
def text(part: int) -> Tensor:
    """One of PARTS parts of the standard library's sources, uint8 [bytes]."""
    library = Path(sysconfig.get_path("stdlib"))
    files = [path for path in sorted(library.glob("*.py")) if path.is_file()]
    whole = b"\n".join(path.read_bytes() for path in files[part::PARTS])
    return torch.frombuffer(bytearray(whole), dtype=torch.uint8)


@dataclass(frozen=True)
class Recipe:
    """How long, how fast and on which part; the rate rises over the first twentieth and falls to a tenth."""

    steps: int
    rate: float = 2e-3
    part: int = 0
    seed: int = 0
    batch: int = 12
    decay: float = 0.1


Loss = Callable[[Tensor, Tensor], Tensor]
"""(logits [batch, length, vocabulary], tokens [batch, length + 1]) -> loss."""


def next_token_loss(logits: Tensor, tokens: Tensor) -> Tensor:
    """Cross-entropy of the byte that follows."""
    return functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())


def train(model: Network, recipe: Recipe, loss_of: Loss = next_token_loss) -> float:
    """Train in place with AdamW; gives the mean loss of the last tenth."""
    data, length = text(recipe.part), model.config.context
    generator = torch.Generator().manual_seed(recipe.seed)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimiser = torch.optim.AdamW(trained, lr=recipe.rate, weight_decay=recipe.decay, betas=(0.9, 0.95))
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: rate_at(step, recipe.steps))
    losses: list[float] = []
    for _ in range(recipe.steps):
        starts = torch.randint(0, len(data) - length - 1, (recipe.batch,), generator=generator)
        tokens = torch.stack([data[start : start + length + 1] for start in starts.tolist()]).long()
        loss = loss_of(model(tokens[:, :-1]), tokens)
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimiser.step()
        schedule.step()
        losses.append(loss.item())
    last = losses[-max(1, recipe.steps // 10) :]
    return sum(last) / len(last)


def rate_at(step: int, steps: int) -> float:
    """The share of the rate at a step."""
    warm = max(1, steps // 20)
    return min((step + 1) / warm, 1 - 0.9 * max(0, step - warm) / max(1, steps - warm))
