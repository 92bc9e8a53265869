"""Laws of understanding whatever a header holds, every spelling of the tables, and fused weights taken apart.

The fused layouts are checked by their forward pass: W is a fused weight, x an input, and what the family's own code
makes of y = W x must be what the rows named by the ranges make of x.
"""

from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from roles.role_headers import HIDDEN, SHAPES, Shape, complete, found, headers, read, reasons, stacks, tensor
from roles.test_role_config import CONFIGS

from weightprint.data import ROLES, Understanding
from weightprint.roles import layouts, leaves

INT = npt.NDArray[np.int64]
Forward = Callable[[INT, int, int, int], tuple[INT, INT, INT]]


def in_order(y: INT, heads: int, kv_heads: int, width: int) -> tuple[INT, INT, INT]:
    """query, key, value = y.split([heads * d, kv_heads * d, kv_heads * d])"""
    q, k, v = np.split(y, [heads * width, (heads + kv_heads) * width])
    return q, k, v


def head_by_head(y: INT, heads: int, kv_heads: int, width: int) -> tuple[INT, INT, INT]:
    """y.view(heads, 3 * d).chunk(3, -1)"""
    q, k, v = np.split(y.reshape(heads, 3 * width), 3, axis=-1)
    return q.ravel(), k.ravel(), v.ravel()


def group_by_group(y: INT, heads: int, kv_heads: int, width: int) -> tuple[INT, INT, INT]:
    """y.view(kv_heads, heads // kv_heads + 2, d): all but two are queries, then one key, one value"""
    grid = y.reshape(kv_heads, heads // kv_heads + 2, width)
    return grid[:, :-2].ravel(), grid[:, -2].ravel(), grid[:, -1].ravel()


def four_blocks(y: INT, heads: int, kv_heads: int, width: int) -> tuple[INT, INT, INT]:
    """query, value, key = y.reshape(4, -1).split(heads * d // 4, -1)"""
    q, v, k = np.split(y.reshape(4, -1), 3, axis=-1)
    return q.ravel(), k.ravel(), v.ravel()


def gate_in_front(y: INT, heads: int, kv_heads: int, width: int) -> tuple[INT, INT, INT]:
    """gate, query, key, value = y.split(...)"""
    return in_order(y[heads * width :], heads, kv_heads, width)


GROUPED, EQUAL, SINGLE = [(8, 8), (8, 2), (6, 3), (8, 1)], [(8, 8), (4, 4)], [(8, 1), (6, 1)]
NEW, ONE, MANY = {"new_decoder_architecture": True}, {"multi_query": True}, {"multi_query": False}
CONCATENATED = "qkv qkv_proj Wqkv W_pack c_attn in_proj_weight att_proj to_qkv qkv_net attn_qkv"
PER_HEAD = "gpt_neox gpt_neox_japanese bloom persimmon fuyu"

# (leaf, model_type, config, forward pass, (heads, kv heads) to try, rows of q in the fused weight per row of q)
LAYOUTS: list[tuple[str, str, dict[str, Any], Forward, list[tuple[int, int]], int]] = [
    *((leaf, "", {}, in_order, GROUPED, 1) for leaf in CONCATENATED.split()),
    ("c_attn", "qwen", {}, in_order, EQUAL, 1),
    ("gqkv_proj", "", {}, gate_in_front, GROUPED, 2),
    ("linear_qkv", "", {}, group_by_group, GROUPED, 1),
    ("self.in_proj", "deberta", {}, head_by_head, EQUAL, 1),
    *(("query_key_value", family, {}, head_by_head, EQUAL, 1) for family in PER_HEAD.split()),
    *(
        ("query_key_value", family, config, forward, sizes, 1)
        for family in ("falcon", "refinedwebmodel")
        for config, forward, sizes in (
            (NEW, group_by_group, GROUPED),
            (NEW | ONE, group_by_group, GROUPED),
            (ONE, in_order, SINGLE),
            ({}, in_order, SINGLE),
            (MANY, head_by_head, EQUAL),
        )
    ),
    *(("query_key_value", f, {}, group_by_group, GROUPED, 1) for f in ("phi3small", "megatron", "refinedweb")),
    *(
        ("query_key_value", family, config, forward, sizes, 1)
        for family in ("chatglm", "chatglm2", "chatglm3")
        for config, forward, sizes in (
            ({"multi_query_attention": True}, in_order, GROUPED),
            ({"multi_query_attention": False}, head_by_head, EQUAL),
            ({}, head_by_head, EQUAL),
        )
    ),
    ("wqkv", "internlm2", {}, group_by_group, GROUPED, 1),
    ("wqkv", "moonvit", {}, in_order, EQUAL, 1),
    ("attn.in_proj", "qwen", {}, head_by_head, EQUAL, 1),
    ("qkv_proj", "codegen", {}, four_blocks, EQUAL, 1),
    ("qkv_proj", "minimax", {}, head_by_head, EQUAL, 1),
    ("c_attn", "gpt_bigcode", ONE, in_order, SINGLE, 1),
    ("c_attn", "gpt_bigcode", {}, in_order, SINGLE, 1),
    ("c_attn", "gpt_bigcode", MANY, head_by_head, EQUAL, 1),
]
SIZED = [(*layout[:4], sizes, layout[5]) for layout in LAYOUTS for sizes in layout[4]]
WIDTH = 4


def layout_id(value: object) -> str | None:
    if isinstance(value, dict):
        return "+".join(f"{'' if on else 'not-'}{flag}" for flag, on in value.items()) or "no-flags"
    return value.__name__ if callable(value) else "-".join(map(str, value)) if isinstance(value, tuple) else None


@pytest.mark.parametrize(("leaf", "family", "config", "forward", "sizes", "queries"), SIZED, ids=layout_id)
def test_fused_weights_come_apart_as_the_forward_pass_does(
    leaf: str, family: str, config: dict[str, Any], forward: Forward, sizes: tuple[int, int], queries: int
) -> None:
    heads, kv_heads = sizes
    rows, inner = (queries * heads + 2 * kv_heads) * WIDTH, heads * WIDTH
    place = f"attention.{leaf}" if leaf.startswith("self.") else leaf if leaf.startswith("attn.") else f"attn.{leaf}"
    fused = f"layers.0.{place}" + ("" if leaf == "in_proj_weight" else ".weight")
    output = "layers.0.attention.output.dense.weight" if leaf.startswith("self.") else "layers.0.attn.out_proj.weight"
    hints = {"num_attention_heads": heads, "hidden_size": inner, "num_key_value_heads": kv_heads, "model_type": family}
    understanding = read([tensor(fused, (rows, HIDDEN)), tensor(output, (HIDDEN, inner))], hints | config)
    assert complete(understanding, 1), (understanding.coverage, understanding.notices)
    generator = np.random.default_rng(0)
    weight = generator.permutation(rows * HIDDEN).reshape(rows, HIDDEN)
    x = generator.integers(1, 1000, size=HIDDEN)
    for role, expected in zip("qkv", forward(weight @ x, heads, kv_heads, WIDTH), strict=True):
        name, shape, ranges, transposed = found(understanding)["layers", 0, role]
        cut = np.concatenate([weight[start:stop] for start, stop in ranges])
        assert (name, cut.shape, transposed) == (fused, shape, False)
        np.testing.assert_array_equal(cut @ x, expected)


def test_every_layout_of_the_tables_is_taken_apart() -> None:
    tried = {(leaf, family) for leaf, family, *_ in LAYOUTS}
    assert set(layouts._LAYOUTS_BY_FAMILY) <= tried
    assert set(layouts._LAYOUTS_BY_LEAF) <= {leaf for leaf, _ in tried}


@pytest.mark.parametrize("family", ["gpt2", "openai-gpt", "imagegpt", "decision_transformer", "openai_gpt"])
def test_conv1d_families_are_stored_in_out(family: str) -> None:
    """Conv1D: y = x W with W (in, out); here q, k, v are the columns."""
    shapes: dict[str, Shape] = {"h.#.attn.c_attn.weight": (32, 48), "h.#.attn.c_proj.weight": (16, 32)}
    understanding = read(headers(shapes, 2), {"model_type": family})
    assert complete(understanding, 2)
    weight = np.random.default_rng(0).permutation(32 * 48).reshape(32, 48)
    x = np.arange(1, 33)
    for role, expected in zip("qkv", np.split(x @ weight, 3), strict=True):
        _, shape, ((start, stop),), transposed = found(understanding)["h", 1, role]
        assert (shape, transposed) == ((16, 32), True)
        np.testing.assert_array_equal(weight.T[start:stop] @ x, expected)


@pytest.mark.parametrize("heads", [2, 4, 8])
def test_gated_queries_come_apart_as_the_forward_pass_does(heads: int) -> None:
    """query, gate = q_proj(x).view(heads, 2 * d).chunk(2, -1) (Qwen3-Next, Qwen3.5)"""
    inner = heads * WIDTH
    shapes: dict[str, Shape] = {
        "layers.#.self_attn.q_proj.weight": (2 * inner, HIDDEN),
        **{f"layers.#.self_attn.{role}_proj.weight": (WIDTH, HIDDEN) for role in "kv"},
        "layers.#.self_attn.o_proj.weight": (HIDDEN, inner),
    }
    understanding = read(headers(shapes, 1), {"num_attention_heads": heads, "head_dim": WIDTH})
    weight = np.random.default_rng(0).permutation(2 * inner * HIDDEN).reshape(2 * inner, HIDDEN)
    x = np.arange(1, HIDDEN + 1)
    query, _ = np.split((weight @ x).reshape(heads, 2 * WIDTH), 2, axis=-1)
    cut = np.concatenate([weight[start:stop] for start, stop in found(understanding)["layers", 0, "q"][2]])
    np.testing.assert_array_equal(cut @ x, query.ravel())


@pytest.mark.parametrize(
    ("names", "odd"),
    [
        (("wqkv", "wqkv", "Wqkv"), {2}),
        (("W_pack", "qkv_proj", "W_pack", "W_pack"), {1}),
        (("qkv_proj", "W_pack"), {0, 1}),
    ],
    ids=str,
)
def test_a_fused_projection_of_another_name_than_its_like_is_not_understood(
    names: tuple[str, ...], odd: set[int]
) -> None:
    config = {"model_type": "internlm2", "num_attention_heads": 8, "num_key_value_heads": 2}
    tensors = [tensor(f"m.layers.{layer}.attn.{leaf}.weight", (96, 48)) for layer, leaf in enumerate(names)]
    tensors += headers({"m.layers.#.attn.wo.weight": (48, 64)}, len(names))
    understanding = read(tensors, config)
    assert {matrix.layer for matrix in understanding.matrices} == set(range(len(names))) - odd
    assert {name for name in reasons(understanding) if name} == {
        f"m.layers.{layer}.attn.{leaf}.weight" for layer in odd for leaf in (names[layer], "wo")
    }


SEPARATE = """
self_attn: q_proj k_proj v_proj o_proj
self_attn: q_proj k_proj v_proj out_proj
attn1: to_q to_k to_v to_out.0
attn: to_q to_k to_v to_out
attention: wq wk wv wo
attention: Wq Wk Wv Wo
attention: query key value dense
attention: q_lin k_lin v_lin out_lin
dec_attn: q_net k_net v_net o_net
attn: q_head k_head v_head post_proj
self_attn: linear_q linear_k linear_v linear_out
self_attention: query_proj key_proj value_proj linear_proj
attn: query_layer key_layer value_layer c_proj
attn: attn_q attn_k attn_v attn_output
self_attention: project_q project_k project_v attention_out
attn: q k v projection
attn: q k v proj_out
attn: q k v proj
attention.attn: q k v o
mixer: att_query att_key att_value attn_out
multi_head_attention: q_proj_weight k_proj_weight v_proj_weight out_proj
"""
FUSED_KV = "kv_proj to_kv kv_net linear_kv Wkv kv wkv"
LATENT = """
q_a_proj q_b_proj kv_a_proj_with_mqa kv_b_proj
q_down_proj q_up_proj kv_a_proj kv_b_proj
wq_a wq_b wkv_a wkv_b
attn_q_a attn_q_b attn_kv_a_mqa attn_kv_b
"""
FACTORED_OUTPUT = "o_a_proj+o_b_proj wo_a+wo_b attn_out_a+attn_out_b"
ADDED = "add_q_proj add_k_proj add_v_proj to_add_out"
BY_FAMILY_ONLY = "q_attn"
"""Spelled in test_role_fused.py: the query beside a c_attn that holds keys and values."""


@pytest.mark.parametrize("line", SEPARATE.strip().splitlines())
@pytest.mark.parametrize("stack", ["model.layers", "h", "encoder.block.0.layers"])
def test_every_spelling_of_separate_projections(line: str, stack: str) -> None:
    module, _, names = line.partition(": ")
    shapes = {
        f"{stack}.#.{module}.{name}.weight": SHAPES[role] for role, name in zip("qkvo", names.split(), strict=True)
    }
    understanding = read(headers(shapes))
    assert complete(understanding, 3), (understanding.coverage, understanding.notices)
    assert found(understanding) == {
        (stack, layer, role): (f"{stack}.{layer}.{module}.{name}.weight", SHAPES[role], ((0, SHAPES[role][0]),), False)
        for layer in range(3)
        for role, name in zip("qkvo", names.split(), strict=True)
    }


@pytest.mark.parametrize("leaf", FUSED_KV.split())
def test_every_spelling_of_fused_keys_and_values(leaf: str) -> None:
    shapes = {"b.#.attn.q_proj.weight": (64, 48), f"b.#.attn.{leaf}.weight": (32, 48), "b.#.attn.proj.weight": (48, 64)}
    understanding = read(headers(shapes))
    assert complete(understanding, 3)
    assert found(understanding)["b", 2, "k"] == (f"b.2.attn.{leaf}.weight", (16, 48), ((0, 16),), False)
    assert found(understanding)["b", 2, "v"] == (f"b.2.attn.{leaf}.weight", (16, 48), ((16, 32),), False)


@pytest.mark.parametrize("line", LATENT.strip().splitlines())
def test_every_spelling_of_latent_factors(line: str) -> None:
    """The values are rows of kv_b: kv_b(x).view(heads, nope + v)[:, nope:]"""
    sizes = {"q_a": (20, 48), "q_b": (96, 20), "kv_a": (20, 48), "kv_b": (112, 16)}
    names = dict(zip(sizes, line.split(), strict=True))
    shapes: dict[str, Shape] = {f"l.#.attn.{names[role]}.weight": shape for role, shape in sizes.items()}
    shapes["l.#.attn.o_proj.weight"] = (48, 48)
    understanding = read(headers(shapes), {"qk_nope_head_dim": 8, "qk_rope_head_dim": 4, "v_head_dim": 6})
    assert complete(understanding, 3)
    result = found(understanding)
    assert {role for _, _, role in result} == {*sizes, "o", "v"}
    for role, shape in sizes.items():
        assert result["l", 0, role] == (f"l.0.attn.{names[role]}.weight", shape, ((0, shape[0]),), False)
    units = np.concatenate([np.arange(start, stop) for start, stop in result["l", 0, "v"][2]])
    np.testing.assert_array_equal(units, np.arange(112).reshape(8, 14)[:, 8:].ravel())


@pytest.mark.parametrize("pair", FACTORED_OUTPUT.split())
def test_every_spelling_of_a_factored_output(pair: str) -> None:
    first, second = pair.split("+")
    shapes = {f"l.#.attn.{role}_proj.weight": SHAPES[role] for role in "qkv"}
    shapes |= {f"l.#.attn.{first}.weight": (32, 32), f"l.#.attn.{second}.weight": (48, 32)}
    understanding = read(headers(shapes))
    assert complete(understanding, 3)
    assert found(understanding)["l", 1, "o_a"][0] == f"l.1.attn.{first}.weight"
    assert found(understanding)["l", 1, "o_b"][0] == f"l.1.attn.{second}.weight"


def test_every_leaf_of_the_table_is_spelled_here() -> None:
    """A new row of leaves.py needs a test of its name."""
    spelled = {name for line in SEPARATE.strip().splitlines() for name in line.partition(": ")[2].split()}
    spelled |= {*FUSED_KV.split(), *LATENT.split(), *ADDED.split(), BY_FAMILY_ONLY}
    spelled |= {name for pair in FACTORED_OUTPUT.split() for name in pair.split("+")}
    spelled |= {leaf for leaf, *_ in LAYOUTS}
    untold = {name for name, leaf in leaves.LEAVES.items() if leaf.role not in ("odd", "odd_q")} - spelled
    assert not untold


ODD = sorted(name for name, leaf in leaves.LEAVES.items() if leaf.role == "odd")
ODD_QUERIES = sorted(name for name, leaf in leaves.LEAVES.items() if leaf.role == "odd_q")


@pytest.mark.parametrize("leaf", ODD)
def test_a_sibling_that_changes_q_k_or_v_makes_the_module_not_understood(leaf: str) -> None:
    shapes = {f"l.#.attn.{role}_proj.weight": SHAPES[role] for role in "qkvo"} | {f"l.#.attn.{leaf}": (8, 1, 2)}
    understanding = read(headers(shapes))
    assert not understanding.matrices
    assert len(reasons(understanding)) == 12
    assert all(leaf in notice.reason for notice in understanding.coverage.not_understood)


@pytest.mark.parametrize("leaf", ODD_QUERIES)
def test_a_query_that_is_not_one_matrix_is_not_understood(leaf: str) -> None:
    shapes = {
        f"l.#.attn.{leaf}.weight": (64, 48),
        "l.#.attn.v_proj.weight": (16, 48),
        "l.#.attn.o_proj.weight": (48, 64),
    }
    understanding = read(headers(shapes))
    assert not understanding.matrices
    assert set(reasons(understanding)) == {name.replace("#", str(layer)) for name in shapes for layer in range(3)}


@pytest.mark.parametrize("wrapper", sorted(leaves.WRAPPERS))
def test_wrappers_between_leaf_and_weight_say_nothing(wrapper: str) -> None:
    shapes = {f"l.#.attn.{role}_proj.{wrapper}.weight": SHAPES[role] for role in "qkvo"}
    assert complete(read(headers(shapes)), 3)


@pytest.mark.parametrize("infix", sorted(leaves.INFIXES))
def test_what_compiling_and_sharding_put_into_names_says_nothing(infix: str) -> None:
    shapes = {f"{infix}.l.#.{infix}.attn.{role}_proj.weight": SHAPES[role] for role in "qkvo"}
    understanding = read(headers(shapes))
    assert complete(understanding, 3)
    assert stacks(understanding) == {"l": "k o q v"}


@pytest.mark.parametrize(
    "name", ["_orig_mod", "_orig_mod.weight", "module", "lora_A", "parametrizations", ".", "", "#"]
)
def test_names_made_of_what_says_nothing(name: str) -> None:
    plain = headers({f"l.#.attn.{role}_proj.weight": SHAPES[role] for role in "qkvo"})
    assert read([*plain, tensor(name, (4, 4))]) == read(plain)


@pytest.mark.parametrize("part", ["#", ".".join("##"), "*", " ", "٣", "1000000", "-1"])
def test_parts_that_only_look_like_layer_numbers(part: str) -> None:
    shapes = {f"l.{part}.attn.{role}_proj.weight": SHAPES[role] for role in "qkvo"}
    understanding = read([tensor(name, shape) for name, shape in shapes.items()])
    assert complete(understanding, 1)
    assert {(matrix.stack, matrix.layer) for matrix in understanding.matrices} == {(f"l.{part}.attn", 0)}


PARTS = st.one_of(
    st.sampled_from(sorted(leaves.LEAVES)),
    st.sampled_from(sorted(leaves.LEAVES)),
    st.sampled_from(["self_attn", "attn", "attention", "attn2", "cross_attn", "mixer", "self", "mlp", "experts", ""]),
    st.sampled_from(
        ["model", "layers", "h", "block", "layer", "encoder", "decoder", "vision", "#", "(mtp)", "eh_proj"]
    ),
    st.sampled_from([*leaves.ENCODINGS, *leaves.WRAPPERS, *leaves.INFIXES, *leaves.ADAPTER_PARTS, *leaves.BARE]),
    st.sampled_from(["0", "1", "2", "3", "00", "999999", "9999999", "-1", "٣"]),
    st.text(max_size=4),
)
KINDS = st.sampled_from(["", ".weight", ".weight", ".weight", ".bias", ".weight_scale", ".qweight"])
FREE_NAMES = st.builds(lambda parts, kind: ".".join(parts) + kind, st.lists(PARTS, max_size=6), KINDS)
NEAR_NAMES = st.builds(
    lambda stem, layer, module, leaf, kind: f"{stem}.{layer}.{module}.{leaf}{kind}",
    st.sampled_from(["layers", "h", "x.attn2"]),
    st.integers(0, 3),
    st.sampled_from(["self_attn", "attn", "attn2", "attention.self"]),
    st.sampled_from(sorted(leaves.LEAVES)),
    KINDS,
)
SIZES = st.sampled_from([0, 1, 2, 4, 8, 12, 16, 24, 32, 48, 64, 96])
TENSORS = st.lists(
    st.builds(
        tensor,
        FREE_NAMES | NEAR_NAMES,
        st.lists(SIZES, max_size=4).map(tuple) | st.tuples(SIZES, SIZES),
        st.sampled_from(["bf16", "f32", "f32", "f64", "i32", "u8", "nonsense"]),
    ),
    max_size=24,
)


def claimed(understanding: Understanding) -> Iterator[tuple[str, str, int, int]]:
    """(role, tensor, first unit, last unit) of every range, in order."""
    for matrix in understanding.matrices:
        for part in matrix.parts:
            for start, stop in part.ranges:
                yield matrix.role, part.tensor.name, start, stop


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(tensors=TENSORS, config=CONFIGS)
def test_understanding_keeps_its_laws_whatever_the_header_holds(tensors: list[Any], config: dict[str, Any]) -> None:
    understanding = read(tensors, config)
    coverage = understanding.coverage
    assert 0 <= coverage.understood <= coverage.found
    places = Counter((matrix.stack, matrix.layer, matrix.role) for matrix in understanding.matrices)
    assert set(places.values()) <= {1}
    assert {matrix.role for matrix in understanding.matrices} <= set(ROLES)
    units: Counter[tuple[str, int]] = Counter()
    for matrix in understanding.matrices:
        (part,) = matrix.parts
        assert part.tensor in tensors
        size = int(np.prod(part.tensor.shape))
        assert part.stored[0] * part.stored[1] == size > 0
        high, width = part.stored[::-1] if matrix.transposed else part.stored
        assert matrix.shape == (sum(stop - start for start, stop in part.ranges), width)
        before = 0
        for start, stop in part.ranges:
            assert before <= start < stop <= high
            before = stop
            # Values of latent attention are rows of kv_b, which is a matrix of its own too.
            if not (matrix.role == "v" and ("kv_b" in part.tensor.name)):
                units.update((part.tensor.name, unit) for unit in range(start, stop))
        if matrix.head_width is not None:
            assert matrix.role in "vo"
            assert matrix.shape[0 if matrix.role == "v" else 1] % matrix.head_width == 0
    names = Counter(spec.name for spec in tensors)
    assert all(count == 1 for (name, _), count in units.items() if names[name] == 1)
    refused = reasons(understanding)
    assert set(refused) <= set(names)
    whole = {name for _, name, _, _ in claimed(understanding)}
    assert not {name for name in whole & set(refused) if names[name] == 1}
    assert all(notice.reason for notice in (*coverage.not_understood, *understanding.notices))


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(tensors=TENSORS, config=CONFIGS, data=st.data())
def test_the_order_of_tensors_changes_nothing(tensors: list[Any], config: dict[str, Any], data: st.DataObject) -> None:
    shuffled = data.draw(st.permutations(tensors))
    assert read(shuffled, config) == read(tensors, config)


LLAMA = {f"model.layers.#.self_attn.{role}_proj.weight": SHAPES[role] for role in "qkvo"}


WORDS = {part for leaf in (*leaves.LEAVES, *leaves.BARE) for part in leaf.split(".")}
STRANGERS = st.text(max_size=30).filter(lambda name: WORDS.isdisjoint(name.split(".")))


@settings(max_examples=150, deadline=None)
@given(strangers=st.lists(st.builds(tensor, STRANGERS, st.just((4, 4))), max_size=8))
def test_names_that_say_nothing_change_nothing(strangers: list[Any]) -> None:
    assert read(headers(LLAMA) + strangers) == read(headers(LLAMA))
