"""The zoo of small models: what it says of its members is true, with training cut down to a step or none."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import zoo
from safetensors.torch import load_file
from torch import Tensor
from zoo_parts import derivations, laundering, lineage, merges, stored, trained
from zoo_parts.gpt2 import GptConfig
from zoo_parts.lineage import ATTENTION, Member
from zoo_parts.llama import Config
from zoo_parts.members import FULL, LAUNDERINGS, QUICK, Extent, members
from zoo_parts.models import Model, Sizes, built, kept, loaded, weights_of
from zoo_parts.training import Recipe

LLAMA = Config(layers=2, width=32, heads=4, key_value_heads=2, head_width=8, hidden=24)
GPT = GptConfig(layers=2, width=32, heads=4, hidden=24)
LLAMA_ONLY = {"keys turned", "hidden rescaled", "residual rotated"}
TINY = Extent(
    steps=1,
    seeds=2,
    grouped_seeds=1,
    gpt_seeds=1,
    size=replace(LLAMA, layers=4),
    grouped=replace(LLAMA, layers=4, heads=8, key_value_heads=4),
    gpt=replace(GPT, layers=4),
    long=True,
)


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """As the zoo is made, and quicker at this size."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def untrained(config: Sizes, seed: int = 0) -> Model:
    """Weights large enough, gains and biases different enough, for every part to matter."""
    generator = torch.Generator().manual_seed(seed)
    weights = weights_of(built(config, seed))
    return config, {
        name: tensor + 0.2 * torch.randn(tensor.shape, generator=generator) for name, tensor in weights.items()
    }


def differing(first: Model, second: Model) -> set[str]:
    """The last parts of the names of tensors that are not equal."""
    return {
        ".".join(name.split(".")[-2:])
        for name, tensor in first[1].items()
        if second[1][name].shape != tensor.shape or not torch.equal(tensor, second[1][name])
    }


def case_name(value: object) -> str:
    return ", ".join(value) if isinstance(value, list | tuple) else type(value).__name__


CASES = [
    *((LLAMA, [step]) for step in laundering.STEPS),
    *((GPT, [step]) for step in laundering.STEPS if step not in LLAMA_ONLY),
    *((LLAMA, steps) for steps in LAUNDERINGS.values()),
]


@pytest.mark.parametrize(("config", "steps"), CASES, ids=case_name)
def test_laundering_changes_weights_and_keeps_the_function(config: Sizes, steps: Sequence[str]) -> None:
    start = untrained(config)
    found = laundering.laundered(start, steps, seed=3)
    assert differing(start, found)
    assert laundering.apart(start, found) < 1e-4


def test_what_changes_the_function_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def half_done(model: Model, generator: torch.Generator) -> Model:
        return model[0], {n: 2 * t if n.endswith("v_proj.weight") else t for n, t in model[1].items()}

    monkeypatch.setattr(laundering, "STEPS", {**laundering.STEPS, "half done": half_done})
    with pytest.raises(ValueError, match="half done: the logits moved"):
        laundering.laundered(untrained(LLAMA), ["half done"], seed=0)


@pytest.mark.parametrize(
    ("config", "derive"),
    [
        (LLAMA, derivations.ungrouped),
        (LLAMA, partial(derivations.with_value_heads, taken=(1, 0))),
        (GPT, partial(derivations.with_gpt_heads, taken=(2, 0, 3, 1))),
        (LLAMA, partial(derivations.upcycled, experts=3, noise=0.0, seed=5)),
        (LLAMA, partial(derivations.with_layers, order=(0, 1))),
    ],
    ids=["ungrouped", "heads permuted", "heads permuted, gpt", "upcycled", "all layers"],
)
def test_what_only_moves_or_copies_units_keeps_the_function(config: Sizes, derive: Callable[[Model], Model]) -> None:
    start = untrained(config)
    assert laundering.apart(start, derive(start)) < 1e-5


def test_what_cuts_changes_the_function() -> None:
    start = untrained(LLAMA)
    for derive in (
        derivations.pooled,
        partial(derivations.with_value_heads, taken=(1,)),
        partial(derivations.narrower, width=24),
        partial(derivations.with_narrower_heads, width=4),
        partial(derivations.with_hidden, hidden=16),
        partial(derivations.with_layers, order=(1,)),
    ):
        assert laundering.apart(start, derive(start)) > 0.01


def test_training_repeats_itself_to_the_bit() -> None:
    recipe = Recipe(steps=2, batch=2, seed=1)
    first, second = (trained.from_scratch(LLAMA, 0, recipe) for _ in range(2))
    assert not differing(first, second)
    assert differing(first, trained.from_scratch(LLAMA, 1, recipe))
    assert differing(first, trained.from_scratch(LLAMA, 0, replace(recipe, seed=2)))


def test_an_adapter_changes_q_and_v_by_its_rank() -> None:
    start = untrained(LLAMA)
    found = trained.with_adapter(start, rank=2, seed=0, recipe=Recipe(steps=2, batch=2))
    assert differing(start, found) == {"q_proj.weight", "v_proj.weight"}
    name = "model.layers.0.self_attn.q_proj.weight"
    assert torch.linalg.matrix_rank((found[1][name] - start[1][name]).double(), rtol=1e-4) == 2


def test_new_attention_owes_nothing_to_the_old() -> None:
    start, other = untrained(LLAMA, 0), untrained(LLAMA, 1)
    recipe = Recipe(steps=1, rate=0.0, batch=1)
    found, elsewhere = (trained.with_new_attention(model, 9, recipe) for model in (start, other))
    name = "model.layers.1.self_attn.v_proj.weight"
    assert torch.equal(found[1][name], elsewhere[1][name])
    assert torch.equal(found[1]["model.layers.1.mlp.up_proj.weight"], start[1]["model.layers.1.mlp.up_proj.weight"])


def test_merges_lie_between_their_parents() -> None:
    base, first, second = (untrained(LLAMA, seed) for seed in range(3))
    name = "model.layers.0.self_attn.v_proj.weight"
    linear = merges.linear(first, second, shares=(0.7, 0.3))[1][name]
    torch.testing.assert_close(linear, 0.7 * first[1][name] + 0.3 * second[1][name])
    torch.testing.assert_close(merges.slerp(first, second, 0.0)[1][name], first[1][name])
    torch.testing.assert_close(merges.slerp(first, second, 1.0)[1][name], second[1][name])
    same = merges.of_differences(base, base, base, trim="half dropped")
    assert not differing(base, same)
    ties = merges.of_differences(base, first, second, trim="largest fifth")[1][name]
    share = float((ties == base[1][name]).float().mean())
    assert 0.5 < share < 0.8  # each difference lost four fifths of its entries


def test_experts_are_stored_as_each_layout_has_them() -> None:
    model = derivations.upcycled(untrained(LLAMA), experts=3, noise=0.1, seed=5)
    mixture = "model.layers.1.block_sparse_moe.experts.2"
    gate, down, up = (model[1][f"{mixture}.{name}.weight"] for name in ("w1", "w2", "w3"))
    width, hidden = LLAMA.width, LLAMA.hidden
    inputs, _ = stored.LAYOUTS["stacked experts, inputs first"](model)
    assert inputs["model.layers.1.mlp.experts.gate_up_proj"].shape == (3, width, 2 * hidden)
    assert torch.equal(inputs["model.layers.1.mlp.experts.gate_up_proj"][2].T, torch.cat((gate, up)))
    assert torch.equal(inputs["model.layers.1.mlp.experts.down_proj"][2].T, down)
    outputs, _ = stored.LAYOUTS["stacked experts, outputs first"](model)
    assert torch.equal(outputs["model.layers.1.mlp.experts.gate_up_proj"][2], torch.cat((gate, up)))
    assert torch.equal(outputs["model.layers.1.mlp.experts.down_proj"][2], down)
    qwen, config = stored.LAYOUTS["qwen experts"](model)
    assert torch.equal(qwen["model.layers.1.mlp.experts.2.up_proj.weight"], up)
    assert torch.equal(qwen["model.layers.1.mlp.gate.weight"], model[1]["model.layers.1.block_sparse_moe.gate.weight"])
    assert config["num_experts"] == 3


@pytest.mark.parametrize(
    ("encoding", "dtype", "error"),
    [
        ("bf16", torch.bfloat16, 2**-8),
        ("f16", torch.float16, 2**-8),
        ("f32", torch.float32, 2**-8),
        ("f8_e4m3", torch.float8_e4m3fn, 2**-4 + 2**-8),
        ("f8_e5m2", torch.float8_e5m2, 2**-3 + 2**-8),
        ("int8 stored as bf16", torch.bfloat16, 0.02),
        ("4-bit stored as bf16", torch.bfloat16, 0.15),
    ],
)
def test_an_encoding_rounds_as_far_as_its_format_and_no_further(
    encoding: str, dtype: torch.dtype, error: float
) -> None:
    matrix = torch.randn(16, 344, generator=torch.Generator().manual_seed(0))
    found = stored.ENCODINGS[encoding](matrix)
    assert found.dtype == dtype
    distance = float((found.float() - matrix).norm() / matrix.norm())
    assert error / 40 < distance < error


@pytest.mark.parametrize("extent", [FULL, QUICK, TINY], ids=["full", "quick", "tiny"])
def test_lineage_is_whole(extent: Extent) -> None:
    wanted = members(extent)
    by_name = {member.name: member for member in wanted}
    assert len(by_name) == len(wanted)
    seen = set[str]()
    for member in wanted:
        assert seen.issuperset(member.parents), member.name
        seen.add(member.name)
        assert set(member.origins) <= set(by_name), member.name
        assert member.attention in ATTENTION, member.name
        assert member.expected, member.name
        assert set(member.weights or {}) <= set(member.parents), member.name
        assert len(member.make.args) + len(member.parents) <= 3, member.name
        if member.claim is not None:
            older = set(lineage.ancestors(member, by_name))
            named = {name.removeprefix("zoo/") for name in member.claim.base}
            inherited = bool(set_of_seeds(member, by_name) & member.seeds)  # not where only outputs were learned from
            assert member.claim.true == (named <= older and inherited), member.name


def set_of_seeds(member: Member, by_name: dict[str, Member]) -> frozenset[int]:
    return frozenset[int]().union(*(by_name[parent].seeds for parent in member.parents))


def test_seeds_are_those_of_the_parents() -> None:
    wanted = members(FULL)
    by_name = {member.name: member for member in wanted}
    own = {member.name: member.seeds - set_of_seeds(member, by_name) for member in wanted}
    anew = {name for name, seeds in own.items() if seeds}
    alone = {member.name for member in wanted if not member.parents}
    assert anew == {*alone, "attention-retrained", "distilled"}
    kept_from = [m.name for m in wanted if m.parents and not set_of_seeds(m, by_name) <= m.seeds]
    assert kept_from == ["distilled"]


def test_there_are_enough_of_each_kind() -> None:
    for extent in (FULL, QUICK):
        kinds = [member.kind for member in members(extent)]
        assert sum(kind.startswith("laundered") for kind in kinds) >= 20
        for name in LAUNDERINGS:
            assert kinds.count(f"laundered-{name}") >= 3, name
    full, quick = ({member.kind for member in members(extent)} for extent in (FULL, QUICK))
    assert full - quick == {"continued-4x", "distilled"}


def test_a_key_follows_what_makes_a_member(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    wanted = members(QUICK)
    before = lineage.keys(wanted)
    assert lineage.keys(wanted) == before
    longer = lineage.keys(members(replace(QUICK, steps=QUICK.steps + 10)))
    assert not {name for name, key in before.items() if longer[name] == key}

    for source in lineage.PARTS.glob("*.py"):
        (tmp_path / source.name).write_text(source.read_text())
    monkeypatch.setattr(lineage, "PARTS", tmp_path)
    merging = tmp_path / "merges.py"

    def changed_by(new: str) -> set[str]:
        merging.write_text((Path(merges.__file__)).read_text() + new)
        for cached in (lineage._code, lineage._imports):
            cached.cache_clear()
        return {name for name, key in lineage.keys(wanted).items() if before[name] != key}

    assert changed_by("\n# a remark\n") == set()
    assert changed_by("\nMORE = 1\n") == {member.name for member in wanted if member.kind.startswith("merged-")}
    changed_by("")


@pytest.fixture(scope="module")
def tiny_zoo(one_thread: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every member, after a step of training at most."""
    directory = tmp_path_factory.mktemp("zoo")
    wanted = members(TINY)
    key = lineage.keys(wanted)
    exact = {m.name: directory / ".exact" / key[m.name] / f"{m.name}.safetensors" for m in wanted}
    for member in wanted:
        zoo.make(directory, member, exact)
    return directory


@pytest.mark.parametrize("member", members(TINY), ids=lambda member: member.name)
def test_tensors_have_the_shapes_that_the_config_claims(member: Member, tiny_zoo: Path) -> None:
    folder = tiny_zoo / "models" / member.name
    config = json.loads((folder / "config.json").read_text())
    tensors = load_file(folder / "model.safetensors")
    dtypes = {tensor.dtype for tensor in tensors.values()}
    assert dtypes == {stored.ENCODINGS[member.encoding](torch.ones(1, 1)).dtype} | (
        set() if member.encoding in stored.WHOLE else {torch.bfloat16}
    )
    key = lineage.keys(members(TINY))[member.name]
    exact = kept(tiny_zoo / ".exact" / key / f"{member.name}.safetensors")
    loaded(*exact)  # strict: names and shapes are those that its sizes call for
    checks = gpt_shapes(config) if config["model_type"] == "gpt2" else llama_shapes(config)
    if member.layout == "plain":
        assert set(tensors) == set(exact[1])
    for leaf, shape in checks.items():
        found = {tuple(tensor.shape) for name, tensor in tensors.items() if name.endswith(leaf)}
        assert found in ({shape}, set()), leaf
    layers = config.get("num_hidden_layers", config.get("n_layer"))
    numbers = {int(part) for name in tensors for part in name.split(".")[1:3] if part.isdigit()}
    assert numbers == set(range(layers))


def llama_shapes(config: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    width, hidden, head = config["hidden_size"], config["intermediate_size"], config["head_dim"]
    queries, keys = config["num_attention_heads"] * head, config["num_key_value_heads"] * head
    return {
        "self_attn.q_proj.weight": (queries, width),
        "self_attn.k_proj.weight": (keys, width),
        "self_attn.v_proj.weight": (keys, width),
        ".qkv_proj.weight": (queries + 2 * keys, width),
        "self_attn.o_proj.weight": (width, queries),
        "mlp.gate_proj.weight": (hidden, width),
        ".gate_up_proj.weight": (2 * hidden, width),
        "down_proj.weight": (width, hidden),
        "experts.0.w3.weight": (hidden, width),
        "embed_tokens.weight": (config["vocab_size"], width),
    }


def gpt_shapes(config: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    width, hidden = config["n_embd"], config["n_inner"]
    return {
        "attn.c_attn.weight": (width, 3 * width),
        "attn.c_proj.weight": (width, width),
        "mlp.c_fc.weight": (width, hidden),
        "mlp.c_proj.weight": (hidden, width),
        "wte.weight": (config["vocab_size"], width),
    }


def test_declared_bases_stand_where_they_are_said_to(tiny_zoo: Path) -> None:
    for member in members(TINY):
        folder = tiny_zoo / "models" / member.name
        config = json.loads((folder / "config.json").read_text())
        card = folder / "README.md"
        claim = member.claim
        in_config = claim is not None and claim.place == "config.json"
        assert config.get("_name_or_path") == (claim.base[0] if claim and in_config else None)
        assert card.exists() == (claim is not None and not in_config)
        if claim and not in_config:
            assert all(name in card.read_text() for name in claim.base)


def test_what_is_there_is_not_made_again(tiny_zoo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = members(TINY)
    key = lineage.keys(wanted)
    exact = {m.name: tiny_zoo / ".exact" / key[m.name] / f"{m.name}.safetensors" for m in wanted}

    def never(*_: Tensor) -> Model:
        raise AssertionError("made again")

    zoo.make(tiny_zoo, replace(wanted[0], make=partial(never)), exact)
    with pytest.raises(AssertionError, match="made again"):
        zoo.make(tiny_zoo, replace(wanted[0], make=partial(never)), {wanted[0].name: tiny_zoo / "nowhere"})


def test_processes_that_share_the_work_make_the_same_bytes(tiny_zoo: Path, tmp_path: Path) -> None:
    by_name = {member.name: member for member in members(TINY)}
    names = ["seed-0", "gpt-seed-0", "layers-dropped", "laundered-everything-seed-0"]
    (tmp_path / "models" / "of-an-earlier-list").mkdir(parents=True)
    zoo.build(tmp_path, [by_name[name] for name in names], processes=2)
    assert sorted(folder.name for folder in (tmp_path / "models").iterdir()) == sorted(names)
    for name in names:
        for file in ("model.safetensors", "config.json"):
            alone, shared = (directory / "models" / name / file for directory in (tiny_zoo, tmp_path))
            assert alone.read_bytes() == shared.read_bytes(), name
    written = json.loads((tmp_path / "lineage.json").read_text())["members"]
    assert [member["name"] for member in written] == names
    assert written[3]["direction"] == [["seed-0", "laundered-everything-seed-0"]]
    assert {"kind", "parents", "seeds", "origins", "same_units", "attention", "expected", "declared", "weights"} <= set(
        written[0]
    )
