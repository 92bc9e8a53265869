"""The members of the zoo: what each is made of, and which seeds its weights go back to.

Two members are related if they go back to a common seed. A member that lost the order of its units, or never had
anybody's, says so: the order code is not expected to find it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional
from zoo_parts.derivations import (
    adapted,
    dropped,
    largest_fifth,
    merged,
    permuted,
    rescaled,
    slerp,
    task_merged,
    with_layers,
    with_value_heads,
)
from zoo_parts.llama import Config, Llama, Weights, loaded, weights_of
from zoo_parts.training import Recipe, next_token_loss, train

Model = tuple[Config, Weights]
Make = Callable[[Mapping[str, Model]], Model]
"""Out of the members made before, by name."""


@dataclass(frozen=True)
class Member:
    """``parents`` are what it was made of, ``seeds`` the initialisations that its weights go back to."""

    name: str
    kind: str
    make: Make
    parents: tuple[str, ...] = ()
    seeds: frozenset[int] = frozenset()
    dtype: torch.dtype = torch.bfloat16
    same_units: bool = True
    """Whether its attention units are those of its parents, in their order."""


BASE = Recipe(steps=500)
QUICK_BASE = Recipe(steps=120)


def members(quick: bool) -> list[Member]:
    """All members, parents before children; ``quick`` trains a quarter as long, fewer seeds and fewer kinds."""
    base, seeds = (QUICK_BASE, 3) if quick else (BASE, 8)
    unrelated = [
        Member(f"seed-{seed}", "seed", trained_from_scratch(replace(base, seed=seed), seed), (), frozenset({seed}))
        for seed in range(seeds)
    ]
    return [*unrelated, *_trained(base, quick), *_derived(base)]


def _trained(base: Recipe, quick: bool) -> list[Member]:
    """What training makes out of seed 0."""
    own = frozenset({0})

    def more(name: str, steps: float, rate: float, part: int, seed: int) -> Member:
        recipe = Recipe(steps=max(1, round(steps * base.steps)), rate=rate, part=part, seed=seed)
        return Member(name, name.removesuffix("-a").removesuffix("-b"), trained_on("seed-0", recipe), ("seed-0",), own)

    found = [
        more("fine-tuned-light-a", 0.1, 2e-4, 1, 11),
        more("fine-tuned-light-b", 0.1, 2e-4, 2, 12),
        more("fine-tuned-heavy", 0.5, 1e-3, 1, 13),
        more("continued-1x", 1, 2e-3, 2, 14),
        more("continued-2x", 2, 4e-3, 2, 15),
    ]
    if not quick:
        found.append(more("continued-4x", 4, 4e-3, 3, 16))
        found.append(
            Member(
                "distilled",
                "distilled",
                distilled("seed-0", replace(base, seed=77), 77),
                ("seed-0",),
                frozenset({77}),
                same_units=False,
            )
        )
    return found


def _derived(base: Recipe) -> list[Member]:
    """What is made of seed 0 and its fine-tunes without training, or with little."""
    own, tuned = frozenset({0}), ("fine-tuned-light-a", "fine-tuned-light-b")
    short = Recipe(steps=max(1, base.steps // 5), rate=1e-3, part=1, seed=21)

    def of(name: str, make: Make, parents: tuple[str, ...] = ("seed-0",), **more: object) -> Member:
        return Member(name, name, make, parents, own, **more)  # type: ignore[arg-type]

    def alone(change: Callable[[Config, Weights], Model]) -> Make:
        return lambda made: change(*made["seed-0"])

    def kept_config(change: Callable[[Config, Weights], Weights]) -> Make:
        return lambda made: (made["seed-0"][0], change(*made["seed-0"]))

    def both(change: Callable[[Weights, Weights, Weights], Weights]) -> Make:
        return lambda made: (
            made["seed-0"][0],
            change(made["seed-0"][1], made[tuned[0]][1], made[tuned[1]][1]),
        )

    return [
        of("cast-f16", lambda made: made["seed-0"], dtype=torch.float16),
        of(
            "cast-f32-of-bf16",
            kept_config(lambda _, own: {n: t.bfloat16() for n, t in own.items()}),
            dtype=torch.float32,
        ),
        of("adapter-merged", kept_config(lambda _, own: adapted(own, 8, 0.1, seed=31))),
        of("layers-dropped", alone(lambda config, own: with_layers(config, own, (0, 1, 3, 5)))),
        of("layers-repeated", alone(lambda config, own: with_layers(config, own, (0, 1, 2, 3, 2, 3, 4, 5)))),
        of(
            "layers-repeated-and-trained",
            lambda made: continued(with_layers(*made["seed-0"], (0, 1, 2, 3, 2, 3, 4, 5)), short),
        ),
        of("layers-exchanged", alone(lambda config, own: with_layers(config, own, (0, 2, 1, 3, 5, 4)))),
        of("head-pruned", alone(lambda config, own: with_value_heads(config, own, (1,))), same_units=False),
        of("rescaled", kept_config(lambda _, own: rescaled(own, 3.0))),
        of("permuted", kept_config(lambda config, own: permuted(config, own, seed=41)), same_units=False),
        of("merged-linear", both(lambda _, a, b: merged((a, b), (0.5, 0.5))), tuned),
        of("merged-slerp", both(lambda _, a, b: slerp(a, b, 0.5)), tuned),
        of("merged-ties", both(lambda base, a, b: task_merged(base, (a, b), largest_fifth)), tuned),
        of("merged-dare", both(lambda base, a, b: task_merged(base, (a, b), dropped)), tuned),
        Member(
            "merged-unrelated",
            "merged-unrelated",
            lambda made: (made["seed-0"][0], merged((made["seed-0"][1], made["seed-1"][1]), (0.5, 0.5))),
            ("seed-0", "seed-1"),
            frozenset({0, 1}),
        ),
    ]


def trained_from_scratch(recipe: Recipe, seed: int) -> Make:
    """A model of its own initialisation."""

    def make(made: Mapping[str, Model]) -> Model:
        model = Llama(Config(), seed)
        train(model, recipe)
        return model.config, weights_of(model)

    return make


def trained_on(parent: str, recipe: Recipe) -> Make:
    """A member, trained on."""
    return lambda made: continued(made[parent], recipe)


def continued(start: Model, recipe: Recipe) -> Model:
    """A model, trained on."""
    model = loaded(*start)
    train(model, recipe)
    return model.config, weights_of(model)


def distilled(teacher: str, recipe: Recipe, seed: int) -> Make:
    """A model of its own initialisation that learns what another would say."""

    def make(made: Mapping[str, Model]) -> Model:
        model, master = Llama(Config(), seed), loaded(*made[teacher])

        def loss(logits: Tensor, tokens: Tensor) -> Tensor:
            with torch.no_grad():
                wanted = functional.log_softmax(master(tokens[:, :-1]), dim=-1)
            said = functional.log_softmax(logits, dim=-1)
            apart = functional.kl_div(said, wanted, log_target=True, reduction="batchmean") / said.shape[1]
            return apart + 0.1 * next_token_loss(logits, tokens)

        train(model, recipe, loss)
        return model.config, weights_of(model)

    return make
