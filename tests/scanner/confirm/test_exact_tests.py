"""The tests of confirm: uniform or larger p between independent networks, whatever these have in common; power."""

import math
from dataclasses import replace

import numpy as np
import pytest

from weightprint.confirm.exact_tests import Made, exact_tests
from weightprint.confirm.reduction import HeadSpectra, Reduced

LEVEL = -6.0
ALLOWED: dict[str, str | None] = {}


def drawn(seed: int, layers: int = 8, heads: tuple[int, int] = (4, 2), width: int = 64) -> Reduced:
    """A network of independent draws with heavy tails. All networks share profiles over depth and parts, and spectra
    of one shape."""
    generator = np.random.default_rng(seed)
    stream = np.exp(generator.standard_t(3, size=width))
    parts = {f"part {n}": stream * np.exp(0.3 * generator.normal(size=width)) for n in range(4)}
    units = {
        channel: np.exp(generator.standard_t(3, size=(layers, 96)) / 2).astype(np.float32) * np.float32(layer)
        for layer, channel in enumerate(("gate", "up"), 1)
    }
    shape = np.linspace(1, -1, 12)
    spectra = tuple(
        HeadSpectra(
            layer,
            *heads,
            shape * (1 + layer / layers) + 0.3 * generator.standard_t(3, size=(heads[0] * heads[1], 1)) * shape
            + 0.8 * generator.normal(size=(heads[0] * heads[1], 12)),
        )
        for layer in range(layers)
    )  # fmt: skip
    return Reduced(width, parts, units, spectra, tuple(range(layers)))


def later(of: Reduced, seed: int, drift: float) -> Reduced:
    """The same network after some training."""
    generator = np.random.default_rng(seed)

    def moved(values: np.ndarray) -> np.ndarray:
        return values * np.exp(drift * generator.normal(size=values.shape))

    return replace(
        of,
        residual={part: moved(own) for part, own in of.residual.items()},
        hidden={channel: moved(own).astype(np.float32) for channel, own in of.hidden.items()},
        spectra=tuple(replace(own, figures=moved(own.figures)) for own in of.spectra),
    )


def by_name(made: Made) -> dict[str, float]:
    return {test.name: test.log10_p for test in made.tests}


def test_p_is_uniform_or_larger_between_independent_networks() -> None:
    found: dict[str, list[float]] = {}
    corrected = []
    for number in range(400):
        made = exact_tests(drawn(2 * number), drawn(2 * number + 1), ALLOWED, LEVEL)
        corrected.append(min(test.log10_p + test.log10_factor for test in made.tests))
        for test in made.tests:
            found.setdefault(test.name, []).append(10**test.log10_p)
    assert len(found) == 4 + 1 + 2 + 1
    for name, values in found.items():
        for level in (0.5, 0.1, 0.02):
            share = np.mean(np.array(values) <= level)
            assert share <= level + 4 * math.sqrt(level * (1 - level) / 400), (name, level)
    assert np.mean(np.array(corrected) <= math.log10(0.05)) <= 0.05 + 4 * math.sqrt(0.05 * 0.95 / 400)


def test_a_network_and_what_training_makes_of_it() -> None:
    base = drawn(1)
    made = exact_tests(base, later(base, 2, 0.2), ALLOWED, LEVEL)
    for name, log10_p in by_name(made).items():
        assert log10_p < -6, name
    assert made.closeness is not None
    assert made.closeness < 0.3


def test_every_test_pays_for_all_and_for_the_first_look() -> None:
    made = exact_tests(drawn(1), drawn(2), ALLOWED, LEVEL)
    assert {test.log10_factor for test in made.tests} == {math.log10(len(made.tests)) + math.log10(2)}


def test_the_same_vector_is_as_unlikely_as_its_permutations() -> None:
    base = drawn(1)
    found = by_name(exact_tests(base, base, ALLOWED, LEVEL))
    blocks = base.width // 8
    assert found["residual: part 0"] == pytest.approx(-blocks * math.log10(math.factorial(8)))
    assert found["hidden: gate"] == pytest.approx(-8 * 12 * math.log10(math.factorial(8)))
    assert found["heads"] == pytest.approx(-8 * math.log10(math.factorial(4) * 2**4))


def test_layers_share_one_order_of_the_stream_and_count_once() -> None:
    """Repeating a network in depth adds nothing to the residual test."""
    base = drawn(1)
    (one,) = {test.blocks for test in exact_tests(base, base, ALLOWED, LEVEL).tests if "residual" in test.name}
    assert one == base.width // 8


def test_copied_layers_count_once() -> None:
    """Both sides hold every layer twice: their tests are those of one half."""

    def doubled(of: Reduced) -> Reduced:
        again = tuple(replace(own, layer=own.layer + 4) for own in of.spectra)
        hidden = {channel: np.concatenate([own, own]) for channel, own in of.hidden.items()}
        return replace(of, spectra=(*of.spectra, *again), layers=tuple(range(8)), hidden=hidden)

    a, b = drawn(1, layers=4), drawn(2, layers=4)
    plain, twice = (
        {(t.name, t.statistic, t.blocks, t.count) for t in exact_tests(x, y, ALLOWED, LEVEL).tests}
        for x, y in ((a, b), (doubled(a), doubled(b)))
    )
    assert plain == twice


def test_near_copies_of_layers_count_once() -> None:
    """Layers repeated and trained apart would have their matching counted twice."""
    base = drawn(1, layers=4)
    generator = np.random.default_rng(3)
    again = tuple(
        replace(own, layer=own.layer + 4, figures=own.figures + 0.1 * generator.normal(size=own.figures.shape))
        for own in base.spectra
    )
    doubled = replace(base, spectra=(*base.spectra, *again), layers=tuple(range(8)))
    assert [t.count for t in exact_tests(doubled, doubled, ALLOWED, LEVEL).tests if t.name == "heads"] == [4 * 8]


def test_repeated_key_value_heads_are_not_tested() -> None:
    base = drawn(1)
    made = exact_tests(base, replace(base, repeated="key-value heads of layer 3 are repeated"), ALLOWED, LEVEL)
    assert "heads" not in by_name(made)
    assert "heads test not made: key-value heads of layer 3 are repeated" in made.reasons


def test_too_few_heads_are_said_to_be_too_few() -> None:
    base = replace(drawn(1, layers=6, heads=(2, 2)), residual={}, hidden={})
    made = exact_tests(base, base, ALLOWED, LEVEL)
    assert [test.name for test in made.tests] == ["heads"]
    assert made.tests[0].log10_p == pytest.approx(-6 * math.log10(8))
    assert "too few heads" in made.weak["heads"]
    assert not exact_tests(drawn(1), drawn(1), ALLOWED, LEVEL).weak


def test_what_is_refused_is_not_tested() -> None:
    made = exact_tests(drawn(1), drawn(1), {"residual": "sinusoids", "heads": "slopes"}, LEVEL)
    assert {test.name.split(":")[0] for test in made.tests} == {"hidden"}
    assert [reason for reason in made.reasons if "sinusoids" in reason or "slopes" in reason] == list(made.reasons)
    assert len(made.reasons) == 2


def test_other_sizes_are_said_to_be_other_sizes() -> None:
    made = exact_tests(drawn(1), drawn(2, layers=6, heads=(8, 1), width=128), ALLOWED, LEVEL)
    assert not made.tests
    text = " ".join(made.reasons)
    assert "64 and 128 wide" in text
    assert "8 and 6 layers" in text
