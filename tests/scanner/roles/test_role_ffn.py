"""Feed-forward blocks: every naming, layout and orientation, and what does not fit is never read."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
from roles.role_headers import Shape, headers, tensor

from weightprint.data import Matrix, TensorSpec, Understanding
from weightprint.reading import Read
from weightprint.roles import understand

H, D, E = 48, 80, 3
ATTENTION: dict[str, Shape] = {f"L.#.self_attn.{role}_proj.weight": (H, H) for role in "qkvo"}
UNGATED = {"up": (D, H), "down": (H, D)}
GATED = {"gate": (D, H), **UNGATED}


def look(shapes: Mapping[str, Shape], config: Mapping[str, Any] | None = None, layers: int = 2) -> Understanding:
    return understand(headers({**ATTENTION, **shapes}, layers), config or {}, Read.all)


def blocks(found: Understanding, stack: str = "L", layer: int = 0) -> dict[str, Matrix]:
    own = [m for m in found.matrices if (m.stack, m.layer) == (stack, layer) and m.role in GATED]
    assert len({matrix.role for matrix in own}) == len(own)
    return {matrix.role: matrix for matrix in own}


def refusals(found: Understanding) -> list[tuple[str, str | None]]:
    assert found.feed_forward is not None
    return [(notice.code, notice.tensor) for notice in found.feed_forward.not_understood]


def clean(found: Understanding, number: int) -> bool:
    assert found.feed_forward is not None
    counted = (found.feed_forward.found, found.feed_forward.understood) == (number, number)
    return counted and not refusals(found) and not found.notices and not found.coverage.not_understood


NAMES = {
    "llama": "mlp.gate_proj mlp.up_proj mlp.down_proj",
    "llama-as-published": "feed_forward.w1 feed_forward.w3 feed_forward.w2",
    "qwen-1": "mlp.w2 mlp.w1 mlp.c_proj",
    "exaone": "mlp.c_fc_0 mlp.c_fc_1 mlp.c_proj",
    "t5-gated": "layer.1.DenseReluDense.wi_0 layer.1.DenseReluDense.wi_1 layer.1.DenseReluDense.wo",
    "nomic": "mlp.fc12 mlp.fc11 mlp.fc2",
    "mpt": "ffn.up_proj ffn.down_proj",
    "neox": "mlp.dense_h_to_4h mlp.dense_4h_to_h",
    "bert": "intermediate.dense output.dense",
    "opt": "fc1 fc2",
    "vit": "mlp.fc1 mlp.fc2",
    "gpt-j": "mlp.fc_in mlp.fc_out",
    "distilbert": "ffn.lin1 ffn.lin2",
    "torch": "linear1 linear2",
    "whisper": "mlp.0 mlp.2",
    "t5": "layer.1.DenseReluDense.wi layer.1.DenseReluDense.wo",
}


@pytest.mark.parametrize("family", NAMES)
def test_namings(family: str) -> None:
    names = NAMES[family].split()
    sizes = GATED if len(names) == 3 else UNGATED
    shapes = {f"L.#.{name}.weight": size for name, size in zip(names, sizes.values(), strict=True)}
    found = look(shapes)
    assert clean(found, 2)
    own = blocks(found, layer=1)
    assert {role: matrix.shape for role, matrix in own.items()} == sizes
    assert {matrix.head_width for matrix in own.values()} == {D}
    for name, role in zip(names, sizes, strict=True):
        (part,) = own[role].parts
        assert (part.tensor.name, own[role].transposed) == (f"L.1.{name}.weight", False)


def test_attention_alone_looks_for_no_block() -> None:
    tensors = headers({**ATTENTION, "L.#.mlp.up_proj.weight": (D, H), "L.#.mlp.down_proj.weight": (H, D)}, 2)
    found = understand(tensors, {})
    assert found.feed_forward is None
    assert {matrix.role for matrix in found.matrices} == set("qkvo")
    both = understand(tensors, {}, Read.all)
    assert replace(both, feed_forward=None, matrices=found.matrices) == found
    assert [matrix for matrix in both.matrices if matrix.role in "qkvo"] == list(found.matrices)


def test_the_order_of_files_is_no_evidence() -> None:
    tensors = headers({**ATTENTION, **expert_shapes("mlp.experts"), "L.#.mlp.gate_proj.weight": (D, H)}, 2)
    assert understand(tensors, {}, Read.all) == understand(tensors[::-1], {}, Read.all)


@pytest.mark.parametrize(
    ("names", "config", "transposed"),
    [("mlp.c_fc mlp.c_proj", {}, True), ("mlp.c_fc mlp.c_proj", {}, False), ("mlp.fc1 mlp.fc2", {}, True)],
)
def test_the_width_of_attention_says_how_bytes_are_stored(names: str, config: dict[str, Any], transposed: bool) -> None:
    up, down = names.split()
    shapes = {f"L.#.{up}.weight": (D, H), f"L.#.{down}.weight": (H, D)}
    found = look({name: size[::-1] if transposed else size for name, size in shapes.items()}, config)
    own = blocks(found)
    assert {role: (matrix.shape, matrix.transposed) for role, matrix in own.items()} == {
        role: (size, transposed) for role, size in UNGATED.items()
    }


def test_square_blocks_go_by_family() -> None:
    square: dict[str, Shape] = {"L.#.mlp.c_fc.weight": (H, H), "L.#.mlp.c_proj.weight": (H, H)}
    assert blocks(look(square, {"model_type": "gpt2"}))["up"].transposed
    assert not blocks(look(square, {"model_type": "starcoder2"}))["up"].transposed


def test_without_attention_the_biases_say_how_bytes_are_stored() -> None:
    shapes: dict[str, Shape] = {"L.#.mlp.c_fc.weight": (H, D), "L.#.mlp.c_proj.weight": (D, H)}
    read_as = [
        {role: matrix.shape for role, matrix in blocks(understand(headers(own, 2), {}, Read.all)).items()}
        for own in (shapes, {**shapes, "L.#.mlp.c_fc.bias": (D,), "L.#.mlp.c_proj.bias": (H,)})
    ]
    assert read_as == [{"up": (H, D), "down": (D, H)}, {"up": (D, H), "down": (H, D)}]


def test_fused_gate_and_up() -> None:
    found = look({"L.#.mlp.gate_up_proj.weight": (2 * D, H), "L.#.mlp.down_proj.weight": (H, D)})
    assert clean(found, 2)
    own = blocks(found)
    assert {role: matrix.shape for role, matrix in own.items()} == GATED
    assert own["gate"].parts[0].ranges == ((0, D),)
    assert own["up"].parts[0].ranges == ((D, 2 * D),)


@pytest.mark.parametrize(("family", "roles"), [("chatglm", {"gate", "up", "down"}), ("bloom", set())])
def test_a_name_that_is_fused_in_some_families(family: str, roles: set[str]) -> None:
    found = look(
        {"L.#.mlp.dense_h_to_4h.weight": (2 * D, H), "L.#.mlp.dense_4h_to_h.weight": (H, D)}, {"model_type": family}
    )
    assert set(blocks(found)) == roles


def expert_shapes(place: str, names: str = "gate_proj up_proj down_proj", experts: int = E) -> dict[str, Shape]:
    return {
        f"L.#.{place}.{number}.{name}.weight": size
        for number in range(experts)
        for name, size in zip(names.split(), GATED.values(), strict=True)
    }


@pytest.mark.parametrize(
    ("place", "names"),
    [("mlp.experts", "gate_proj up_proj down_proj"), ("block_sparse_moe.experts", "w1 w3 w2")],
)
def test_experts_are_one_matrix(place: str, names: str) -> None:
    found = look({**expert_shapes(place, names, 12), f"L.#.{place.split('.', maxsplit=1)[0]}.gate.weight": (12, H)})
    assert clean(found, 2)
    own = blocks(found)
    assert {role: matrix.shape for role, matrix in own.items()} == {
        **{"gate": (12 * D, H), "up": (12 * D, H)},
        "down": (H, 12 * D),
    }
    gate = names.split(maxsplit=1)[0]
    assert [part.tensor.name for part in own["gate"].parts] == [
        f"L.0.{place}.{number}.{gate}.weight" for number in range(12)
    ]
    assert own["down"].parts[3].ranges == ((0, H),)
    assert {matrix.head_width for matrix in own.values()} == {D}


@pytest.mark.parametrize("transposed", [False, True])
def test_stacks_of_experts_are_cut_into_slabs(transposed: bool) -> None:
    shapes: dict[str, Shape] = {
        "L.#.mlp.experts.gate_up_proj": (E, H, 2 * D) if transposed else (E, 2 * D, H),
        "L.#.mlp.experts.down_proj": (E, D, H) if transposed else (E, H, D),
    }
    found = look(shapes)
    assert clean(found, 2)
    own = blocks(found)
    assert {role: (m.shape, m.transposed, m.head_width) for role, m in own.items()} == {
        "gate": ((E * D, H), transposed, D),
        "up": ((E * D, H), transposed, D),
        "down": ((H, E * D), transposed, D),
    }
    slabs = [part.tensor for part in own["down"].parts]
    assert [(slab.offset, slab.nbytes) for slab in slabs] == [(2 * H * D * n, 2 * H * D) for n in range(E)]
    assert {part.ranges for part in own["up"].parts} == {((D, 2 * D),)}


def test_a_stack_that_could_be_stored_either_way_is_not_understood() -> None:
    shapes: dict[str, Shape] = {"L.#.mlp.experts.gate_up_proj": (E, 2 * H, H), "L.#.mlp.experts.down_proj": (E, H, H)}
    assert not blocks(look(shapes))["gate"].transposed  # twice as many outputs as inputs tell
    split: dict[str, Shape] = {f"L.#.mlp.experts.{role}_proj": (E, H, H) for role in GATED}
    found = look(split)
    assert not blocks(found)
    assert [code for code, _ in refusals(found)] == ["E_NOT_UNDERSTOOD"] * 2
    narrow: dict[str, Shape] = {f"L.#.mlp.experts.{role}_proj": (E, *size) for role, size in GATED.items()}
    assert not understand(headers(narrow, 2), {}, Read.all).matrices  # nothing says how wide the layer is


def test_shared_experts_have_a_stack_of_their_own() -> None:
    shared: dict[str, Shape] = {
        "L.#.mlp.shared_experts.gate_proj.weight": (16, H),
        "L.#.mlp.shared_experts.up_proj.weight": (16, H),
        "L.#.mlp.shared_experts.down_proj.weight": (H, 16),
    }
    found = look({**expert_shapes("mlp.experts"), **shared})
    assert clean(found, 4)
    assert blocks(found)["gate"].shape == (E * D, H)
    assert blocks(found, "L shared_expert")["down"].shape == (H, 16)


def test_a_dense_block_beside_experts_adds_its_name() -> None:
    dense = {f"L.#.residual_mlp.{role}_proj.weight": size for role, size in GATED.items()}
    found = look({**expert_shapes("block_sparse_moe.experts"), **dense})
    assert clean(found, 4)
    assert set(blocks(found, "L residual_mlp")) == set(blocks(found)) == set(GATED)


def test_dense_and_sparse_layers_are_one_stack() -> None:
    tensors = headers({**ATTENTION, **expert_shapes("mlp.experts")}, 3)
    tensors = [spec for spec in tensors if not spec.name.startswith("L.0.mlp")]
    tensors += [tensor(f"L.0.mlp.{role}_proj.weight", size) for role, size in GATED.items()]
    found = understand(tensors, {}, Read.all)
    assert clean(found, 3)
    assert [blocks(found, "L", layer)["gate"].shape for layer in range(3)] == [(D, H), (E * D, H), (E * D, H)]


WRONG: dict[str, dict[str, Shape]] = {
    "gate-and-up-differ": {"gate_proj": (D, H), "up_proj": (D + 8, H), "down_proj": (H, D)},
    "down-takes-less": {"gate_proj": (D, H), "up_proj": (D, H), "down_proj": (H, D - 8)},
    "down-gives-another-width": {"gate_proj": (D, H), "up_proj": (D, H), "down_proj": (H + 8, D)},
    "another-width-than-attention": {"gate_proj": (D, 64), "up_proj": (D, 64), "down_proj": (64, D)},
    "gate-without-up": {"gate_proj": (D, H), "down_proj": (H, D)},
    "down-alone": {"down_proj": (H, D)},
    "fused-and-separate": {"gate_up_proj": (2 * D, H), "up_proj": (D, H), "down_proj": (H, D)},
    "fused-that-does-not-halve": {"gate_up_proj": (2 * D + 1, H), "down_proj": (H, D)},
    "four-dimensions": {"up_proj": (D, H, 3, 3), "down_proj": (H, D)},
}


@pytest.mark.parametrize("what", WRONG)
def test_what_does_not_fit_is_not_understood(what: str) -> None:
    found = look({f"L.#.mlp.{name}.weight": size for name, size in WRONG[what].items()})
    assert not blocks(found)
    first = min(WRONG[what])
    assert refusals(found) == [("E_NOT_UNDERSTOOD", f"L.{layer}.mlp.{first}.weight") for layer in range(2)]
    assert found.coverage.not_understood == ()


@pytest.mark.parametrize("change", ["gone", "other-shape", "twice"])
def test_experts_that_do_not_fit_together(change: str) -> None:
    tensors = headers({**ATTENTION, **expert_shapes("mlp.experts")}, 1)
    name = "L.0.mlp.experts.1.up_proj.weight"
    if change == "twice":
        tensors.append(tensor(name, (D, H)))
    else:
        tensors = [spec for spec in tensors if spec.name != name]
        tensors += [tensor(name, (D + 8, H))] if change == "other-shape" else []
    found = understand(tensors, {}, Read.all)
    assert not blocks(found)
    assert [code for code, _ in refusals(found)] == ["E_NOT_UNDERSTOOD"]


def test_gates_that_alternate_are_not_understood() -> None:
    shapes: dict[str, Shape] = {"L.#.mlp.experts.gate_up_proj": (E, H, 2 * D), "L.#.mlp.experts.down_proj": (E, D, H)}
    found = look(shapes, {"model_type": "gpt_oss"})
    assert not blocks(found)
    assert len(refusals(found)) == 2


def test_encoded_tensors_are_named_once_and_their_siblings_read() -> None:
    encoded = {f"L.#.mlp.experts.{number}.down_proj.weight_scale_inv": (1, 1) for number in range(E)}
    found = look({**expert_shapes("mlp.experts"), **encoded}, layers=1)
    assert set(blocks(found)) == {"gate", "up"}
    assert refusals(found) == [("E_DTYPE", "L.0.mlp.experts.0.down_proj.weight")]
    assert found.feed_forward is not None
    assert (found.feed_forward.found, found.feed_forward.understood) == (1, 0)


@pytest.mark.parametrize(
    "shapes",
    [
        {"L.#.mlp.up_proj.qweight": (6, D), "L.#.mlp.up_proj.qzeros": (1, D), "L.#.mlp.down_proj.weight": (H, D)},
        {
            "L.#.mlp.experts.gate_up_proj_blocks": (E, 2 * D, 3, 16),
            "L.#.mlp.experts.gate_up_proj_scales": (E, 2 * D, 3),
        },
    ],
)
def test_codes_are_never_read(shapes: dict[str, Shape]) -> None:
    found = look(shapes, layers=1)
    assert not {"gate", "up"} & set(blocks(found))
    ((code, name),) = refusals(found)
    assert code == "E_DTYPE"
    assert name in {"L.0.mlp.up_proj.qweight", "L.0.mlp.experts.gate_up_proj_blocks"}


def test_a_role_that_its_neighbours_have_is_a_hole() -> None:
    tensors = headers({**ATTENTION, **{f"L.#.mlp.{r}_proj.weight": s for r, s in GATED.items()}}, 4)
    found = understand([spec for spec in tensors if spec.name != "L.2.mlp.gate_proj.weight"], {}, Read.all)
    assert set(blocks(found, layer=2)) == {"up", "down"}
    assert found.feed_forward is not None
    (hole,) = found.feed_forward.not_understood
    assert (hole.code, "layer 2 of L has no gate" in hole.reason) == ("E_LAYER_HOLE", True)


ELSEWHERE = (
    "L.#.self_attn.c_proj.weight L.#.attention.output.dense.weight L.#.adapter.up_proj.weight "
    "L.#.adapter.down_proj.weight mm_projector.up_proj.weight L.#.mamba.up_proj.weight L..mlp.up_proj.weight "
    "L.#.mlp.gate.weight L.#.mlp.shared_expert_gate.weight L.#.wo.weight L.#.c_proj.weight"
)


def test_what_stands_elsewhere_is_no_block() -> None:
    found = look(dict.fromkeys(ELSEWHERE.split(), (H, H)))
    assert found.feed_forward is not None
    assert (found.feed_forward.found, refusals(found)) == (0, [])


def test_layers_of_multi_token_prediction_have_a_stack_of_their_own() -> None:
    shapes = {f"L.#.mlp.{role}_proj.weight": size for role, size in GATED.items()}
    found = look(shapes, {"num_hidden_layers": 3}, layers=4)
    assert {matrix.stack for matrix in found.matrices if matrix.layer == 3} == {"L(mtp)"}
    assert blocks(found, "L(mtp)", 3)


@pytest.mark.parametrize(
    "name",
    [
        *(
            "experts." * 3000 + "1.up_proj.weight",
            ".",
            "up_proj",
            "experts.1.up_proj.weight",
            "L.1.mlp.0",
            "mlp.0.weight",
        ),
        *("L.999999999.mlp.up_proj.weight", "L.1.experts.experts.1.2.up_proj.weight", "L.1.up_proj_bias"),
    ],
)
def test_hostile_names_do_no_harm(name: str) -> None:
    specs: list[TensorSpec] = [tensor(name, (D, H)), tensor(name, (0, H)), tensor(name, ()), tensor(name, (D,))]
    understand(specs, {}, Read.all)


def test_a_stack_of_more_experts_than_any_model_has_costs_nothing() -> None:
    found = look({"L.#.mlp.experts.gate_up_proj": (10**7, 2, H), "L.#.mlp.experts.down_proj": (10**7, H, 1)})
    assert not blocks(found)
