"""What is missing in a stack is said; what a family leaves out on purpose is not called missing."""

import string
from collections.abc import Iterator

import pytest
from roles.role_headers import HIDDEN, SHAPES, Found, Shape, complete, found, headers, read, stacks, tensor

from weightprint.data import TensorSpec, Understanding
from weightprint.roles.leaves import OTHER_STEMS, OTHER_WORDS

PRINTABLE = "".join(map(chr, range(32, 127)))
NAMING = string.ascii_lowercase + "QKVOW" + string.digits + "._"


def attention(stack: str, module: str = "self_attn", roles: str = "qkvo") -> dict[str, Shape]:
    return {f"{stack}.#.{module}.{role}_proj.weight": SHAPES[role] for role in roles}


def without(tensors: list[TensorSpec], *pieces: str) -> list[TensorSpec]:
    """The tensors whose name holds none of ``pieces``; each piece must hold back at least one."""
    for piece in pieces:
        assert any(piece in spec.name for spec in tensors), piece
    return [spec for spec in tensors if not any(piece in spec.name for piece in pieces)]


def holes(understanding: Understanding) -> list[str]:
    """The reasons of all holes; a hole always bears its code."""
    assert {notice.code for notice in understanding.notices} <= {"E_LAYER_HOLE"}
    return [notice.reason for notice in understanding.notices]


def silent(understanding: Understanding) -> bool:
    return not understanding.coverage.not_understood and not understanding.notices


LLAMA = attention("model.layers")
# id: (shapes, layers, config, characters tried in every place)
DAMAGED: dict[str, tuple[dict[str, Shape], int, dict[str, object], str]] = {
    "llama": (LLAMA, 2, {}, PRINTABLE),
    "llama-with-depth": (LLAMA, 2, {"num_hidden_layers": 2}, NAMING),
    "meta": ({f"layers.#.attention.w{role}.weight": SHAPES[role] for role in "qkvo"}, 2, {}, NAMING),
    "gpt2": (
        {"h.#.attn.c_attn.weight": (64, 192), "h.#.attn.c_proj.weight": (64, 64)},
        4,
        {"model_type": "gpt2"},
        NAMING,
    ),
    "internlm2": (
        {"model.layers.#.attention.wqkv.weight": (96, 48), "model.layers.#.attention.wo.weight": (48, 64)},
        4,
        {"model_type": "internlm2", "num_attention_heads": 8, "num_key_value_heads": 2},
        NAMING,
    ),
    "fused-kv": (
        {"b.#.attn.q.weight": (64, 48), "b.#.attn.kv.weight": (32, 48), "b.#.attn.proj.weight": (48, 64)},
        3,
        {},
        NAMING,
    ),
    "shared-key-value": (
        {
            **{"layers.#.attn.wq_a.weight": (20, 48), "layers.#.attn.wq_b.weight": (64, 20)},
            **{"layers.#.attn.wkv.weight": (16, 48), "layers.#.attn.wo_a.weight": (32, 32)},
            "layers.#.attn.wo_b.weight": (48, 32),
        },
        2,
        {},
        NAMING,
    ),
    "latent": (
        {
            "layers.#.self_attn.q_a_proj.weight": (20, 48),
            "layers.#.self_attn.q_b_proj.weight": (96, 20),
            "layers.#.self_attn.kv_a_proj_with_mqa.weight": (20, 48),
            "layers.#.self_attn.kv_b_proj.weight": (112, 16),
        },
        2,
        {"qk_nope_head_dim": 8, "qk_rope_head_dim": 4, "v_head_dim": 6},
        string.ascii_lowercase + "._",
    ),
    "bert": (
        {
            f"encoder.layer.#.attention.{name}.weight": SHAPES[role]
            for role, name in zip("qkvo", ("self.query", "self.key", "self.value", "output.dense"), strict=True)
        },
        2,
        {},
        NAMING,
    ),
}


def damaged(name: str, characters: str) -> Iterator[str]:
    for place, own in enumerate(name):
        for character in characters:
            if character != own:
                yield name[:place] + character + name[place + 1 :]


@pytest.mark.parametrize(
    ("family", "number"), [(f, n) for f, (shapes, layers, _, _) in DAMAGED.items() for n in range(layers * len(shapes))]
)
def test_one_damaged_character_is_noticed_or_harmless(family: str, number: int) -> None:
    """Every character of the name of matrix ``number`` of eight, replaced by every other one.

    Either something is said, or every matrix is still read from its own bytes as what it is.
    """
    shapes, layers, config, characters = DAMAGED[family]
    tensors = headers(shapes, layers)
    whole = found(read(tensors, config))
    spec = tensors[number]
    harmless = set()
    for name in damaged(spec.name, characters):
        understanding = read([*tensors[:number], tensor(name, spec.shape), *tensors[number + 1 :]], config)
        if silent(understanding):
            assert renamed(found(understanding), name, spec.name) == whole, name
            harmless.add(name)
    if family == "llama":
        assert len(harmless) <= 2, harmless


def renamed(matrices: Found, name: str, to: str) -> Found:
    return {key: (to if own == name else own, *rest) for key, (own, *rest) in matrices.items()}  # type: ignore[misc]


@pytest.mark.parametrize("number", [0, 5, 11])
@pytest.mark.parametrize("role", "qkvo")
def test_a_missing_role_names_layer_and_role(role: str, number: int) -> None:
    understanding = read(without(headers(LLAMA, 12), f"layers.{number}.self_attn.{role}_proj"))
    (reason,) = holes(understanding)
    assert reason.startswith(f"layer {number} of model.layers has no {role}, which its neighbours have")
    assert (understanding.coverage.found, len(understanding.matrices)) == (12, 47)


def test_damage_in_several_layers_is_said_layer_by_layer() -> None:
    tensors = without(
        headers(LLAMA, 12), "layers.3.self_attn.q_proj", "layers.7.self_attn.q_proj", "layers.7.self_attn.o"
    )
    assert [reason.split(",")[0] for reason in holes(read(tensors))] == [
        "layer 3 of model.layers has no q",
        "layer 7 of model.layers has no o",
    ]


@pytest.mark.parametrize("missing", [(1,), (2, 3), (5, 9)], ids=str)
def test_missing_layers_are_named(missing: tuple[int, ...]) -> None:
    tensors = without(headers(LLAMA, 12), *(f"layers.{layer}." for layer in missing))
    assert [reason.split(":")[0] for reason in holes(read(tensors))] == [
        f"layer {layer} of model.layers is missing" for layer in missing
    ]


def test_missing_layer_of_a_model_without_prefix() -> None:
    tensors = without(headers({"#.attn.qkv.weight": (192, 64), "#.attn.proj.weight": (64, 64)}, 4), "2.")
    assert [reason.split(":")[0] for reason in holes(read(tensors))] == ["layer 2 of the model is missing"]


@pytest.mark.parametrize(
    ("cut", "says"),
    [
        ("model.decoder.layers.1.encoder_attn.k_proj", "layer 1 of model.decoder.layers encoder_attn has no k"),
        ("model.decoder.layers.1.self_attn.k_proj", "layer 1 of model.decoder.layers has no k"),
        ("model.encoder.layers.1.self_attn.k_proj", "layer 1 of model.encoder.layers has no k"),
    ],
    ids=["cross", "decoder", "encoder"],
)
def test_a_hole_is_said_of_its_own_stack(cut: str, says: str) -> None:
    shapes = attention("model.encoder.layers") | attention("model.decoder.layers")
    shapes |= attention("model.decoder.layers", "encoder_attn")
    (reason,) = holes(read(without(headers(shapes, 4), cut)))
    assert reason.startswith(says)


@pytest.mark.parametrize("step", [2, 4, 6])
def test_layers_without_attention_are_no_hole(step: int) -> None:
    """Hybrids: the layers between have a recurrence or nothing but an MLP."""
    tensors = [spec for spec in headers(LLAMA, 12) if int(spec.name.split(".")[2]) % step == step - 1]
    between = headers(
        {"model.layers.#.mamba.out_proj.weight": (HIDDEN, 96), "model.layers.#.mlp.up_proj.weight": (96, HIDDEN)}, 12
    )
    understanding = read(tensors + between)
    assert complete(understanding, 12 // step)
    assert {matrix.layer for matrix in understanding.matrices} == set(range(step - 1, 12, step))
    # The same stack with a number that no tensor bears is incomplete.
    first = step - 1
    (reason,) = holes(read(without(tensors + between, f"layers.{first + 1}.")))
    assert f"layer {first + 1} of model.layers is missing" in reason


def test_layer_numbers_may_start_anywhere() -> None:
    tensors = [spec for spec in headers(LLAMA, 8) if int(spec.name.split(".")[2]) >= 3]
    assert complete(read(tensors), 5)


@pytest.mark.parametrize(
    "recurrence",
    [
        {f"linear_attn.{leaf}.weight": (64, 48) for leaf in ("in_proj_qkvz", "in_proj_ba", "out_proj")},
        {f"mixer.{leaf}.weight": (48, 48) for leaf in ("in_proj", "out_proj", "x_proj")},
        {f"attention.{leaf}.weight": (48, 48) for leaf in ("key", "value", "receptance", "output")},
        {f"time_mixing.{leaf}.weight": (48, 48) for leaf in ("key", "value", "receptance", "output")},
        {f"temporal_block.{leaf}.weight": (48, 48) for leaf in ("linear_x", "linear_y", "linear_out")},
        {f"conv.{leaf}.weight": (48, 48) for leaf in ("in_proj", "out_proj")},
    ],
    ids=["gated-delta-net", "mamba", "rwkv", "rwkv-7", "griffin", "short-convolution"],
)
def test_recurrences_are_no_attention(recurrence: dict[str, Shape]) -> None:
    shapes = {f"model.layers.#.{name}": shape for name, shape in recurrence.items()}
    alone = read(headers(shapes))
    assert not alone.matrices
    assert alone.coverage.found == 0
    assert silent(alone)
    hybrid = read([spec for spec in headers(LLAMA, 6) if "layers.5." in spec.name] + headers(shapes, 5))
    assert complete(hybrid, 1)


@pytest.mark.parametrize("output", ["o_proj", "out_proj"])
def test_a_recurrence_under_the_name_of_attention_is_no_damaged_attention(output: str) -> None:
    """Nemotron-H: attention, Mamba and MLP are all called mixer."""
    attention_shapes = {f"b.layers.#.mixer.{role}_proj.weight": SHAPES[role] for role in "qkv"}
    attention_shapes[f"b.layers.#.mixer.{output}.weight"] = SHAPES["o"]
    mamba: dict[str, Shape] = {"in_proj.weight": (96, 48), f"{output}.weight": (48, 96), "A_log": (8,), "D": (8,)}
    tensors = [spec for spec in headers(attention_shapes, 6) if "layers.3." in spec.name or "layers.5." in spec.name]
    tensors += [
        spec for spec in headers({f"b.layers.#.mixer.{n}": s for n, s in mamba.items()}, 5) if ".3." not in spec.name
    ]
    assert complete(read(tensors), 2)


@pytest.mark.parametrize("lacking", ["v", "kv"], ids=["keys as values", "keys and values of another layer"])
def test_layers_that_share_keys_or_values_are_no_hole(lacking: str) -> None:
    """Gemma: every sixth layer uses its keys as values, or the last layers take those of an earlier one."""
    chosen = (5, 11) if lacking == "v" else (8, 9, 10, 11)
    cut = [f"layers.{layer}.self_attn.{role}_proj" for layer in chosen for role in lacking]
    understanding = read(without(headers(LLAMA, 12), *cut))
    assert complete(understanding, 12)
    for layer in range(12):
        own = {matrix.role for matrix in understanding.matrices if matrix.layer == layer}
        assert own == (set("qkvo") - set(lacking) if layer in chosen else set("qkvo"))
    # Once alone it looks like damage, and is said.
    assert len(holes(read(without(headers(LLAMA, 12), *cut[: len(lacking)])))) == 1


def test_one_fused_kv_less_layer_beside_its_like() -> None:
    shapes = {"b.#.attn.q.weight": (64, 48), "b.#.attn.kv.weight": (32, 48), "b.#.attn.proj.weight": (48, 64)}
    assert complete(read(without(headers(shapes, 6), "b.4.attn.kv", "b.5.attn.kv")), 6)
    assert len(holes(read(without(headers(shapes, 6), "b.5.attn.kv")))) == 1


@pytest.mark.parametrize("role", "qko")
def test_only_keys_and_values_may_be_left_out(role: str) -> None:
    tensors = without(headers(LLAMA, 12), *(f"layers.{layer}.self_attn.{role}_proj" for layer in (8, 9, 10)))
    assert len(holes(read(tensors))) == 3


def test_latent_and_plain_layers_side_by_side_are_no_hole() -> None:
    latent = {
        "model.layers.1.self_attn.q_a_proj.weight": (20, 48),
        "model.layers.1.self_attn.q_b_proj.weight": (96, 20),
        "model.layers.1.self_attn.kv_a_proj_with_mqa.weight": (20, 48),
        "model.layers.1.self_attn.kv_b_proj.weight": (112, 16),
        "model.layers.1.self_attn.o_proj.weight": (48, 48),
    }
    assert complete(read(without(headers(LLAMA, 3), "layers.1.") + headers(latent, 1)), 3)


def test_stack_with_all_layers_lacking_a_role_is_no_hole() -> None:
    assert complete(read(headers(attention("visual.layers", roles="qkv"))), 3)


@pytest.mark.parametrize("cross", ["cross_attn", "crossattention", "encoder_attn", "EncDecAttention", "attn2"])
def test_cross_attention_has_a_stack_of_its_own_even_in_few_layers(cross: str) -> None:
    """Mllama: every fifth layer is cross attention, in the same row of layers."""
    tensors = [spec for spec in headers(attention("m.layers"), 10) if int(spec.name.split(".")[2]) % 5 != 3]
    tensors += [spec for spec in headers(attention("m.layers", cross), 10) if int(spec.name.split(".")[2]) % 5 == 3]
    understanding = read(tensors, {"num_hidden_layers": 10})
    assert complete(understanding, 10)
    assert stacks(understanding) == {"m.layers": "k o q v", f"m.layers {cross}": "k o q v"}
    assert {m.layer for m in understanding.matrices if m.stack.endswith(cross)} == {3, 8}


@pytest.mark.parametrize(
    "prefixes",
    [
        ("language_model.model.layers", "vision_tower.vision_model.encoder.layers"),
        ("model.language_model.layers", "model.vision_tower.transformer.layers", "model.audio_tower.layers"),
        ("text_encoder.encoder.layers", "audio_encoder.encoder.layers", "decoder.model.decoder.layers"),
    ],
    ids=len,
)
def test_towers_are_separate_stacks_with_their_own_holes(prefixes: tuple[str, ...]) -> None:
    tensors = [spec for prefix in prefixes for spec in headers(attention(prefix), 4)]
    understanding = read(tensors)
    assert complete(understanding, 4 * len(prefixes))
    assert set(stacks(understanding)) == set(prefixes)
    for prefix in prefixes:
        (reason,) = holes(read(without(tensors, f"{prefix}.2.")))
        assert reason.startswith(f"layer 2 of {prefix} is missing")


def test_two_attentions_of_one_layer_under_two_names() -> None:
    """The one that most layers have bears the stack's name; the other adds its own."""
    few = attention("m.layers", "sliding_attn")
    tensors = headers(attention("m.layers"), 6) + headers(few, 2)
    understanding = read(tensors)
    assert complete(understanding, 8)
    assert stacks(understanding) == {"m.layers": "k o q v", "m.layers sliding_attn": "k o q v"}


def test_two_modules_never_share_a_place() -> None:
    shapes = {f"x.attn2.#.{name}.to_{role}.weight": SHAPES[role] for name in ("attn1", "attn2") for role in "qkv"}
    understanding = read(headers(shapes))
    assert complete(understanding, 6)
    assert len(found(understanding)) == 18


@pytest.mark.parametrize("layers", [12, 101])
def test_layers_sort_as_numbers(layers: int) -> None:
    understanding = read(headers(LLAMA, layers))
    assert [matrix.layer for matrix in understanding.matrices[::4]] == list(range(layers))


@pytest.mark.parametrize("evidence", ["depth", "modules"])
def test_layers_past_the_depth_are_multi_token_prediction(evidence: str) -> None:
    tensors = headers(LLAMA, 5)
    marks = [tensor(f"model.layers.4.{leaf}.weight", (48, 96)) for leaf in ("eh_proj", "enorm", "hnorm")]
    config = {"num_hidden_layers": 4, "num_nextn_predict_layers": 1}
    understanding = read(tensors, config) if evidence == "depth" else read(tensors + marks)
    assert complete(understanding, 5)
    assert {matrix.layer for matrix in understanding.matrices if matrix.stack == "model.layers(mtp)"} == {4}
    assert stacks(understanding) == {"model.layers": "k o q v", "model.layers(mtp)": "k o q v"}


@pytest.mark.parametrize("role", "qkvo")
def test_a_damaged_layer_of_multi_token_prediction_is_noticed(role: str) -> None:
    tensors = without(headers(LLAMA, 5), f"layers.4.self_attn.{role}_proj")
    (reason,) = holes(read(tensors, {"num_hidden_layers": 4}))
    assert reason.startswith(f"layer 4 of model.layers has no {role}")


@pytest.mark.parametrize(
    ("config", "layers"),
    [
        ({"num_hidden_layers": 4}, 4),
        ({"num_hidden_layers": 2}, 5),
        ({"num_hidden_layers": 4, "is_encoder_decoder": True}, 5),
    ],
    ids=["as deep as said", "more than twice as deep as said", "encoder-decoder"],
)
def test_other_depths_are_no_multi_token_prediction(config: dict[str, object], layers: int) -> None:
    assert set(stacks(read(headers(LLAMA, layers), config))) == {"model.layers"}


def test_multi_token_prediction_under_its_own_prefix() -> None:
    understanding = read(headers(LLAMA, 4) + headers(attention("mtp.layers"), 1), {"num_hidden_layers": 4})
    assert complete(understanding, 5)
    assert set(stacks(understanding)) == {"model.layers", "mtp.layers"}


@pytest.mark.parametrize("groups", [1, 2])
def test_weights_shared_by_all_layers_are_one_layer(groups: int) -> None:
    """ALBERT: twelve layers, one set of weights; nothing is missing."""
    stem = "albert.encoder.albert_layer_groups.#.albert_layers.0.attention"
    shapes = {f"{stem}.{leaf}.weight": (48, 48) for leaf in ("query", "key", "value", "dense")}
    understanding = read(headers(shapes, groups), {"num_hidden_layers": 12, "num_hidden_groups": groups})
    assert complete(understanding, groups)


def test_layers_of_varying_heads_are_one_stack() -> None:
    """OpenELM: the number of heads grows with depth."""
    tensors = [
        tensor(f"transformer.layers.{layer}.attn.{name}.weight", shape)
        for layer in range(3)
        for name, shape in (("qkv_proj", (24 * (layer + 1) * 2, 48)), ("out_proj", (48, 24 * (layer + 1))))
    ]
    understanding = read(tensors)
    assert complete(understanding, 3)
    assert [m.shape[0] for m in understanding.matrices if m.role == "q"] == [24, 48, 72]
    assert [m.shape[0] for m in understanding.matrices if m.role == "k"] == [12, 24, 36]


BUFFERS: dict[str, Shape] = {
    "bias": (1, 1, 64, 64),
    "masked_bias": (),
    "attention.bias": (1, 1, 64, 64),
    "rotary_emb.inv_freq": (4,),
    "rotary_emb.cos_cached": (1, 1, 64, 8),
    "relative_attention_bias.weight": (32, 8),
    "relative_position_bias_table": (169, 8),
    "relative_position_index": (49, 49),
    "q_norm.weight": (8,),
    "k_norm.weight": (8,),
    "sinks": (8,),
    "logit_scale": (8, 1, 1),
    "scale_mul": (1, 8, 1, 1),
    "layer_norm.weight": (48,),
    "dense.LayerNorm.weight": (48,),
    "gate_proj.weight": (8, 48),
    "distance_embedding.weight": (63, 8),
    "q_proj.weight_shape_hint": (2,),
}


@pytest.mark.parametrize("buffer", BUFFERS)
def test_buffers_beside_attention_are_not_taken(buffer: str) -> None:
    plain = read(headers(LLAMA))
    assert read(headers(LLAMA | {f"model.layers.#.self_attn.{buffer}": BUFFERS[buffer]})) == plain


@pytest.mark.parametrize("place", sorted(OTHER_WORDS) + list(OTHER_STEMS))
def test_what_stands_below_another_word_is_not_taken(place: str) -> None:
    """experts.0.o_proj, mlp.c_proj, indexer.wq_b and their like, beside the layer's attention and inside it."""
    plain = read(headers(LLAMA))
    for where in (f"{place}", f"self_attn.{place}"):
        beside = {
            f"model.layers.#.{where}.{leaf}.weight": (48, 48) for leaf in ("q_proj", "k_proj", "v_proj", "o_proj")
        }
        assert read(headers(LLAMA | beside)) == plain


def test_a_model_without_attention_has_nothing_to_say() -> None:
    shapes = {f"model.layers.#.mlp.{leaf}.weight": (48, 48) for leaf in ("gate_proj", "up_proj", "down_proj", "dense")}
    understanding = read(headers(shapes | {"lm_head.weight": (100, 48), "weight": (4, 4), "": (4, 4), ".": (4, 4)}))
    assert not understanding.matrices
    assert (understanding.coverage.found, silent(understanding)) == (0, True)
