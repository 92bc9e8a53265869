"""The members of the zoo: what each is made of, and which seeds its weights go back to.

Two members are related if they go back to a common seed. Numbers of seeds say which initialisation, not what the
generator was given: two of different sizes have different numbers. ``expected`` speaks of the pair with the first
origin, compared by itself with all that can be read (``--read all`` and, for "laundering", a closer look at the
weights); where training went so far that the test may or may not see it, "no-evidence" is right as well.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial

from zoo_parts import derivations, laundering, merges, trained
from zoo_parts.gpt2 import GptConfig
from zoo_parts.lineage import Member
from zoo_parts.llama import Config
from zoo_parts.models import Model, Sizes
from zoo_parts.stored import Claim
from zoo_parts.training import Recipe

NOTHING = ("no-evidence", "similar-profile")
LIMIT = ("shared-origin", "no-evidence", "similar-profile")
SAME = ("identical", "re-encoded")
LAUNDERED = ("laundering",)


@dataclass(frozen=True)
class Extent:
    """How much is made: steps of a model from scratch, sizes and seeds of each family."""

    steps: int
    seeds: int
    grouped_seeds: int
    gpt_seeds: int
    size: Config
    grouped: Config
    """More and narrower heads, so that there are enough of them to match."""
    gpt: GptConfig
    long: bool
    """Whether with the members that cost most: four times as long trained on, and distilled."""


FULL = Extent(
    steps=500,
    seeds=8,
    grouped_seeds=2,
    gpt_seeds=4,
    size=Config(layers=6),
    grouped=Config(layers=6, heads=8, key_value_heads=4, head_width=16),
    gpt=GptConfig(layers=6),
    long=True,
)
QUICK = Extent(
    steps=150,
    seeds=4,
    grouped_seeds=1,
    gpt_seeds=2,
    size=Config(layers=4),
    grouped=Config(layers=4, heads=8, key_value_heads=4, head_width=16),
    gpt=GptConfig(layers=4),
    long=False,
)


def _steps(share: float, extent: Extent) -> int:
    return max(1, round(share * extent.steps))


def members(extent: Extent) -> list[Member]:
    """All members, parents before children."""
    return [
        *_seeds(extent),
        *_trained(extent),
        *_grouped(extent),
        *_gpt(extent),
        *_cut_and_moved(extent),
        *_experts(extent),
        *_merged(),
        *_encoded(),
        *_laundered(),
    ]


def _seeds(extent: Extent) -> list[Member]:
    """One recipe and one text, other initialisations: the hard negatives. And one initialisation twice."""
    false_claim = {"seed-2": Claim(("zoo/seed-0",), true=False)}
    size, recipe = extent.size, Recipe(steps=extent.steps)
    found = [_seed(f"seed-{n}", n, size, recipe, false_claim.get(f"seed-{n}")) for n in range(extent.seeds)]
    again = partial(trained.from_scratch, size, 0, replace(recipe, seed=58))
    twin = Member("same-seed", "same-seed", again, (), frozenset({0}), ("seed-0",), expected=LIMIT)
    return [*found, twin]


def _seed(name: str, number: int, size: Sizes, recipe: Recipe, claim: Claim | None = None) -> Member:
    """A model of its own initialisation; compared with the first of its family it is unrelated."""
    # The order of the data follows the seed, as it does where somebody trains again from scratch.
    make = partial(trained.from_scratch, size, number, replace(recipe, seed=number))
    first = name.endswith("-0")
    family = name.rsplit("-", 1)[0]
    return Member(
        name,
        family,
        make,
        seeds=frozenset({number}),
        origins=(f"{family}-0",),
        expected=("identical",) if first else NOTHING,
        attention="same order" if first else "other",
        claim=claim,
    )


def _trained(extent: Extent) -> list[Member]:
    """What training makes out of seed 0."""
    steps = extent.steps

    def more(name: str, share: float, rate: float, part: int, seed: int, claim: Claim | None = None) -> Member:
        recipe = Recipe(steps=_steps(share, extent), rate=rate, part=part, seed=seed)
        kind = name.removesuffix("-a").removesuffix("-b")
        found = _of(name, partial(trained.further, recipe=recipe), "seed-0", claim=claim)
        return replace(found, kind=kind, expected=LIMIT if share >= 2 else found.expected)

    new_attention = Recipe(steps=steps, part=1, seed=17)
    pupil = partial(trained.distilled, seed=77, recipe=Recipe(steps=steps, seed=77))
    found = [
        # First, since each is the start of the longest chain after it.
        *([more("continued-4x", 4, 4e-3, 3, 16)] if extent.long else []),
        more("continued-2x", 2, 4e-3, 2, 15, Claim(("zoo/seed-3",), true=False)),
        more("continued-1x", 1, 2e-3, 2, 14),
        more("fine-tuned-light-a", 0.1, 2e-4, 1, 11, Claim(("zoo/seed-0",), true=True)),
        more("fine-tuned-light-b", 0.1, 2e-4, 2, 12),
        more("fine-tuned-heavy", 0.5, 1e-3, 1, 13, Claim(("zoo/seed-0",), true=True, place="config.json")),
        _of(
            "adapter-merged",
            partial(trained.with_adapter, rank=8, seed=31, recipe=Recipe(steps=_steps(0.3, extent), part=1, seed=31)),
            "seed-0",
            claim=Claim(("zoo/seed-0",), true=True),
        ),
        replace(
            _of("attention-retrained", partial(trained.with_new_attention, seed=91, recipe=new_attention), "seed-0"),
            seeds=frozenset({0, 91}),
            same_units=False,
            attention="retrained",
        ),
    ]
    if extent.long:
        distilled = _of("distilled", pupil, "seed-0", claim=Claim(("zoo/seed-0",), true=False))
        found.append(replace(distilled, seeds=frozenset({77}), same_units=False, attention="other", expected=NOTHING))
    return found


def _of(name: str, make: partial[Model], *parents: str, claim: Claim | None = None) -> Member:
    """A member of seed 0."""
    return Member(name, name, make, parents, frozenset({0}), ("seed-0",), claim=claim)


def _grouped(extent: Extent) -> list[Member]:
    """The same with more and narrower heads."""
    size, recipe = extent.grouped, Recipe(steps=extent.steps)
    seeds = [
        replace(_seed(f"grouped-seed-{n}", 100 + n, size, recipe), kind="seed") for n in range(extent.grouped_seeds)
    ]
    tuned = Member(
        "grouped-fine-tuned",
        "fine-tuned-heavy",
        partial(trained.further, recipe=Recipe(steps=_steps(0.3, extent), rate=1e-3, part=1, seed=111)),
        ("grouped-seed-0",),
        frozenset({100}),
        ("grouped-seed-0",),
    )
    moved = replace(
        tuned,
        name="grouped-heads-permuted",
        kind="heads-permuted",
        make=partial(derivations.with_value_heads, taken=(2, 0, 3, 1)),
        parents=("grouped-fine-tuned",),
        same_units=False,
        attention="heads moved",
    )
    pruned = replace(
        moved,
        name="grouped-heads-pruned",
        kind="head-pruned",
        make=partial(derivations.with_value_heads, taken=(0, 3)),
    )
    return [*seeds, tuned, moved, pruned]


def _gpt(extent: Extent) -> list[Member]:
    """GPT-2's layout: seeds, and what is made of the first."""
    size, recipe = extent.gpt, Recipe(steps=extent.steps)
    seeds = [replace(_seed(f"gpt-seed-{n}", 200 + n, size, recipe), kind="seed") for n in range(extent.gpt_seeds)]

    def of(name: str, kind: str, make: partial[Model], parent: str = "gpt-seed-0") -> Member:
        return Member(name, kind, make, (parent,), frozenset({200}), ("gpt-seed-0",))

    def more(share: float, rate: float, part: int, seed: int) -> partial[Model]:
        steps = _steps(share, extent)
        return partial(trained.further, recipe=Recipe(steps=steps, rate=rate, part=part, seed=seed))

    tuned = of("gpt-fine-tuned", "fine-tuned-light", more(0.1, 2e-4, 1, 211))
    moved = of("gpt-heads-permuted", "heads-permuted", partial(derivations.with_gpt_heads, taken=(2, 0, 3, 1)))
    return [
        *seeds,
        replace(tuned, claim=Claim(("zoo/gpt-seed-0",), true=True)),
        of("gpt-continued-1x", "continued-1x", more(1, 2e-3, 2, 214)),
        of("gpt-layers-dropped", "layers-dropped", _dropped(extent.gpt.layers), "gpt-fine-tuned"),
        replace(moved, same_units=False, attention="heads moved"),
        replace(of("gpt-cast-f16", "cast-f16", partial(derivations.unchanged)), encoding="f16", expected=SAME),
    ]


def _dropped(layers: int) -> partial[Model]:
    return partial(derivations.with_layers, order=(0, 1, *range(3, layers, 2)))


def _cut_and_moved(extent: Extent) -> list[Member]:
    """Parts of seed 0 and its fine-tunes, left out, repeated or moved."""
    last = extent.size.layers - 1
    short = Recipe(steps=_steps(0.2, extent), rate=1e-3, part=1, seed=21)
    repeated = (*range(last), *range(last - 2, last), last)
    exchanged = (0, 2, 1, *range(3, extent.size.layers - 2), last, last - 1) if last > 4 else (0, 2, 1, 3)
    heads = replace(_of("", partial(derivations.unchanged), "seed-0"), same_units=False, attention="heads moved")

    def moved(name: str, make: partial[Model], parent: str) -> Member:
        return replace(heads, name=name, kind=name, make=make, parents=(parent,))

    narrow_heads = _of(
        "head-width-changed", partial(derivations.with_narrower_heads, width=extent.size.head_width // 2), "seed-0"
    )
    more_tokens = partial(derivations.with_vocabulary, size=272, seed=51)
    return [
        _of("layers-dropped", _dropped(extent.size.layers), "seed-0"),
        _of("layers-repeated", partial(derivations.with_layers, order=repeated), "seed-0"),
        _of("layers-repeated-and-trained", partial(trained.further, recipe=short), "layers-repeated"),
        _of("layers-exchanged", partial(derivations.with_layers, order=exchanged), "fine-tuned-light-b"),
        moved("head-pruned", partial(derivations.with_value_heads, taken=(1,)), "seed-0"),
        moved("heads-permuted", partial(derivations.with_value_heads, taken=(1, 0)), "fine-tuned-heavy"),
        moved("heads-ungrouped", partial(derivations.ungrouped), "fine-tuned-light-a"),
        replace(moved("heads-pooled", partial(derivations.pooled), "seed-0"), attention="other", expected=LIMIT),
        _of("width-cut", partial(derivations.narrower, width=extent.size.width * 3 // 4), "seed-0"),
        _of("width-cut-and-trained", partial(trained.further, recipe=replace(short, seed=22)), "width-cut"),
        replace(narrow_heads, same_units=False, attention="other", expected=("not-comparable", *NOTHING)),
        _of("hidden-pruned", partial(derivations.with_hidden, hidden=extent.size.hidden * 3 // 4), "fine-tuned-heavy"),
        _of(
            "vocabulary-extended",
            more_tokens,
            "fine-tuned-light-a",
            claim=Claim(("zoo/fine-tuned-light-a",), true=True),
        ),
    ]


def _experts(extent: Extent) -> list[Member]:
    """Feed-forward blocks copied into experts, in the layouts that experts are stored in; and a fused dense copy."""
    made = partial(derivations.upcycled, experts=4, noise=0.02, seed=61)
    short = Recipe(steps=_steps(0.1, extent), rate=1e-3, part=1, seed=62)
    plain = replace(_of("experts", made, "seed-0"), kind="upcycled", expected=("identical", "shared-origin"))
    lightly = replace(_of("experts-trained", partial(trained.further, recipe=short), "experts"), kind="upcycled")
    retrained = replace(
        _of("experts-of-retrained", partial(made, seed=63), "attention-retrained"),
        kind="upcycled",
        seeds=frozenset({0, 91}),
        same_units=False,
        attention="retrained",
    )
    again = partial(derivations.unchanged)
    return [
        plain,
        lightly,
        retrained,
        replace(_of("experts-qwen", again, "experts-trained"), kind="upcycled", layout="qwen experts"),
        replace(
            _of("experts-stacked", again, "experts-trained"), kind="upcycled", layout="stacked experts, inputs first"
        ),
        replace(
            _of("experts-stacked-rows", again, "experts-trained"),
            kind="upcycled",
            layout="stacked experts, outputs first",
        ),
        replace(_of("fused", again, "seed-0"), layout="fused", expected=SAME),
        replace(_of("fused-fine-tuned", again, "fine-tuned-heavy"), kind="fused", layout="fused"),
    ]


def _merged() -> list[Member]:
    """Merges of two fine-tunes of one base, and of two models that have nothing to do with each other."""
    tuned = ("fine-tuned-light-a", "fine-tuned-heavy")

    def shared(name: str, parents: tuple[str, str], shares: tuple[float, float]) -> Member:
        found = _of(name, partial(merges.linear, shares=shares), *parents)
        return replace(found, kind="merged-linear", weights=dict(zip(parents, shares, strict=True)))

    def unrelated(name: str, shares: tuple[float, float]) -> Member:
        found = shared(name, ("seed-0", "seed-1"), shares)
        return replace(
            found, kind="merged-unrelated", seeds=frozenset({0, 1}), origins=("seed-0", "seed-1"), expected=LIMIT
        )

    claim = Claim(("zoo/fine-tuned-light-a", "zoo/fine-tuned-heavy"), true=True)
    ties = partial(merges.of_differences, trim="largest fifth")
    dare = partial(merges.of_differences, trim="half dropped")
    return [
        replace(shared("merged-linear-5-5", tuned, (0.5, 0.5)), claim=claim),
        shared("merged-linear-7-3", tuned, (0.7, 0.3)),
        _of("merged-slerp", partial(merges.slerp, share=0.5), *tuned),
        _of("merged-ties", ties, "seed-0", *tuned),
        _of("merged-dare", dare, "seed-0", *tuned),
        unrelated("merged-unrelated-5-5", (0.5, 0.5)),
        unrelated("merged-unrelated-7-3", (0.7, 0.3)),
    ]


def _encoded() -> list[Member]:
    """Seed 0 in other formats."""
    names = {
        "cast-f16": "f16",
        "cast-f32": "f32",
        "cast-f8_e4m3": "f8_e4m3",
        "cast-f8_e5m2": "f8_e5m2",
        "int8-stored-as-bf16": "int8 stored as bf16",
        "4-bit-stored-as-bf16": "4-bit stored as bf16",
    }
    plain = _of("", partial(derivations.unchanged), "seed-0")
    plain = replace(plain, expected=("re-encoded", "identical", "shared-origin"))
    return [replace(plain, name=name, kind=name, encoding=encoding) for name, encoding in names.items()]


LAUNDERINGS = {
    "rescaled": ("values rescaled", "keys rescaled"),
    "permuted": ("values permuted", "hidden permuted"),
    "mixed": ("values mixed",),
    "permuted-and-rescaled": ("values permuted", "hidden permuted", "values rescaled", "keys rescaled"),
    "rotated": ("residual rotated",),
    "rotated-and-permuted": ("residual rotated", "values permuted", "hidden permuted"),
    "everything": (
        *("residual rotated", "values mixed", "values rescaled", "keys rescaled", "keys turned"),
        *("hidden permuted", "hidden rescaled"),
    ),
    "everything-and-heads-moved": (
        *("heads moved", "residual rotated", "values mixed", "values rescaled", "keys rescaled", "keys turned"),
        *("hidden permuted", "hidden rescaled"),
    ),
}
"""By name: the steps of :mod:`zoo_parts.laundering`. The first and "rotated" leave units where they were."""
FOR_GPT = ("rescaled", "permuted", "mixed", "permuted-and-rescaled")
ORDERED = ("rescaled", "rotated")
FOUND_IN = {**dict.fromkeys(ORDERED, ("shared-origin",)), "mixed": (*LAUNDERED, "shared-origin")}
"""Where the order code finds units in their order: of attention, or of feed-forward alone."""


def _laundered() -> list[Member]:
    """Each laundering of three sources, and some of the other families."""
    sources = {"seed-0": (0, "seed-0"), "fine-tuned-heavy": (0, "seed-0"), "seed-1": (1, "seed-1")}
    grouped = {"grouped-fine-tuned": (100, "grouped-seed-0")}
    gpt = {"gpt-fine-tuned": (200, "gpt-seed-0")}
    wanted = [
        *((name, parent, *whose) for name in LAUNDERINGS for parent, whose in sources.items()),
        *((name, parent, *whose) for name in LAUNDERINGS for parent, whose in grouped.items()),
        *((name, parent, *whose) for name in FOR_GPT for parent, whose in gpt.items()),
    ]
    claims = {("everything", "seed-1"): Claim(("zoo/seed-0",), true=False)}
    found = []
    for number, (name, parent, seed, origin) in enumerate(wanted):
        ordered = name in ORDERED
        found.append(
            Member(
                f"laundered-{name}-{parent}",
                f"laundered-{name}",
                partial(laundering.laundered, steps=LAUNDERINGS[name], seed=1000 + number),
                (parent,),
                frozenset({seed}),
                (origin,),
                same_units=ordered,
                attention="same order" if ordered else "laundered",
                expected=FOUND_IN.get(name, LAUNDERED),
                claim=claims.get((name, parent)),
            )
        )
    return found
