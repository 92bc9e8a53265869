"""The config gives hints, never orders: what it may hold, where numbers are looked for, and what counts as none."""

import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from roles.role_headers import SHAPES, complete, found, headers, read

from weightprint.roles.config import MAX_COUNT, Hints, hints_for

TEXT, VISION, AUDIO = "model.layers", "vision_tower.encoder.layers", "audio_tower.layers"
LLAMA = {f"model.layers.#.self_attn.{role}_proj.weight": SHAPES[role] for role in "qkvo"}
COUNTS = ("heads", "kv_heads", "head_dim", "v_head_dim", "nope_dim", "rope_dim", "hidden", "layers")

NOT_COUNTS = {
    "null": None,
    "text": "32",
    "empty": "",
    "list": [32, 32],
    "object": {"value": 32},
    "true": True,
    "zero": 0,
    "negative": -32,
    "fraction": 32.5,
    "nan": math.nan,
    "infinite": math.inf,
    "huge": 10**30,
    "huge-float": 1e300,
    "limit": MAX_COUNT,
}


@pytest.mark.parametrize("value", NOT_COUNTS.values(), ids=NOT_COUNTS)
def test_what_is_no_count_counts_as_absent(value: object) -> None:
    keys = ("num_attention_heads", "num_key_value_heads", "head_dim", "v_head_dim", "qk_nope_head_dim", "hidden_size")
    config = dict.fromkeys((*keys, "qk_rope_head_dim", "num_hidden_layers"), value)
    assert hints_for(config, TEXT) == Hints(
        unset=frozenset({"new_decoder_architecture", "multi_query", "multi_query_attention"})
    )
    assert found(read(headers(LLAMA), config)) == found(read(headers(LLAMA)))


@pytest.mark.parametrize(("value", "count"), [(32, 32), (32.0, 32), (1, 1), (MAX_COUNT - 1, MAX_COUNT - 1)])
def test_what_is_a_count(value: float, count: int) -> None:
    assert hints_for({"num_attention_heads": value}, TEXT).heads == count


@pytest.mark.parametrize("value", [None, 7, ["llama"], {"a": 1}, True], ids=str)
def test_a_model_type_that_is_no_text_is_none(value: object) -> None:
    assert hints_for({"model_type": value}, TEXT).model_type == ""
    assert hints_for({"model_type": "LLaMA"}, TEXT).model_type == "llama"


@pytest.mark.parametrize("value", [None, "true", 1, 0, [], {}], ids=str)
def test_a_flag_that_is_no_boolean_is_unset(value: object) -> None:
    hints = hints_for({"multi_query": value}, TEXT)
    assert (hints.flags, "multi_query" in hints.unset) == (frozenset(), True)
    assert hints_for({"multi_query": True}, TEXT).flags == {"multi_query"}
    assert "multi_query" not in hints_for({"multi_query": False}, TEXT).unset


SPELLINGS = {
    "heads": "num_attention_heads n_head n_heads num_heads attention_heads heads num_heads_q",
    "kv_heads": "num_key_value_heads num_kv_heads n_head_kv multi_query_group_num num_query_groups kv_n_heads "
    "n_kv_heads",
    "head_dim": "head_dim d_kv kv_channels d_head attention_head_size",
    "v_head_dim": "v_head_dim",
    "nope_dim": "qk_nope_head_dim",
    "rope_dim": "qk_rope_head_dim",
    "hidden": "hidden_size n_embd d_model dim n_embed embed_dim width",
    "layers": "num_hidden_layers n_layer n_layers num_layers",
}


@pytest.mark.parametrize(("field", "key"), [(f, key) for f, keys in SPELLINGS.items() for key in keys.split()])
def test_every_spelling_of_a_number(field: str, key: str) -> None:
    hints = hints_for({key: 24, "unrelated": 5}, TEXT)
    assert {name: getattr(hints, name) for name in COUNTS} == {**dict.fromkeys(COUNTS), field: 24}


def test_an_unusable_spelling_gives_way_to_the_next() -> None:
    assert hints_for({"num_attention_heads": None, "n_head": "12", "n_heads": 8}, TEXT).heads == 8


# id: (config, stack, heads)
PLACES: dict[str, tuple[dict[str, Any], str, int | None]] = {
    "top": ({"num_attention_heads": 8}, TEXT, 8),
    "text": ({"text_config": {"num_attention_heads": 8}, "num_attention_heads": 4}, TEXT, 8),
    "text-lacks-it": ({"text_config": {"hidden_size": 8}, "num_attention_heads": 4}, TEXT, 4),
    "text-is-null": ({"text_config": None, "num_attention_heads": 4}, TEXT, 4),
    "llm": ({"llm_config": {"num_attention_heads": 8}}, TEXT, 8),
    "language": ({"language_config": {"num_attention_heads": 8}}, TEXT, 8),
    "thinker": ({"thinker_config": {"text_config": {"num_attention_heads": 8}, "num_attention_heads": 4}}, TEXT, 8),
    "attn-config": ({"attn_config": {"kv_n_heads": 2}, "n_heads": 8}, TEXT, 8),
    "attn-config-is-text": ({"attn_config": "flash", "n_heads": 8}, TEXT, 8),
    "per-layer": ({"per_layer_config": [{"num_attention_heads": 4}], "num_attention_heads": 8}, TEXT, 8),
    "per-layer-only": ({"per_layer_config": {"0": {"num_attention_heads": 4}}}, TEXT, None),
    "vision": ({"vision_config": {"num_heads": 16}, "num_attention_heads": 8}, VISION, 16),
    "vision-lacks-it": ({"vision_config": {"depth": 16}, "num_attention_heads": 8}, VISION, None),
    "vision-alone": ({"num_attention_heads": 16}, VISION, 16),
    "vision-is-a-list": ({"vision_config": [16], "num_attention_heads": 8}, VISION, 8),
    "visual": ({"visual": {"heads": 16}, "num_attention_heads": 8}, "transformer.visual.transformer.resblocks", 16),
    "audio": ({"audio_config": {"attention_heads": 6}, "num_attention_heads": 8}, AUDIO, 6),
    "encoder-side": ({"encoder_attention_heads": 6, "decoder_attention_heads": 4}, "model.encoder.layers", 6),
    "decoder-side": ({"encoder_attention_heads": 6, "decoder_attention_heads": 4}, "model.decoder.layers", 4),
    "encoder-section": ({"encoder": {"num_attention_heads": 6}, "num_attention_heads": 4}, "encoder.layer", 6),
    "decoder-section": ({"decoder": {"num_attention_heads": 6}, "encoder": {}}, "decoder.model.layers", 6),
}


@pytest.mark.parametrize("case", PLACES)
def test_where_a_number_is_looked_for(case: str) -> None:
    config, stack, heads = PLACES[case]
    assert hints_for(config, stack).heads == heads


def test_numbers_of_attn_config() -> None:
    assert hints_for({"attn_config": {"kv_n_heads": 2}, "n_heads": 8}, TEXT).kv_heads == 2


@pytest.mark.parametrize(
    ("config", "width"),
    [
        ({"head_dim": 128, "hidden_size": 64, "num_attention_heads": 8}, 128),
        ({"hidden_size": 64, "num_attention_heads": 8}, 8),
        ({"hidden_size": 64, "num_attention_heads": 7}, None),
        ({"hidden_size": 64}, None),
        ({"num_attention_heads": 8}, None),
    ],
    ids=["given", "shared out", "does not divide", "no heads", "no width"],
)
def test_width_of_a_head(config: dict[str, Any], width: int | None) -> None:
    assert hints_for(config, TEXT).head_width == width


@pytest.mark.parametrize(
    ("config", "width"),
    [({"head_dim": 8}, 8), ({"head_dim": 16}, 16), ({"head_dim": 3}, None), ({"head_dim": 64}, None), ({}, None)],
    ids=["divides", "divides too", "does not divide", "wider than v", "absent"],
)
def test_head_width_of_a_matrix_divides_v_and_o_or_is_not_said(config: dict[str, Any], width: int | None) -> None:
    understanding = read(headers(LLAMA), config)
    assert complete(understanding, 3)
    for matrix in understanding.matrices:
        assert matrix.head_width == (width if matrix.role in "vo" else None)


@pytest.mark.parametrize("config", [None, [], "config", 7, True], ids=str)
def test_a_config_that_is_no_object_hints_nothing(config: Any) -> None:
    assert hints_for(config, TEXT) == Hints()


KEYS = st.sampled_from(
    [key for keys in SPELLINGS.values() for key in keys.split()]
    + ["text_config", "vision_config", "audio_config", "llm_config", "attn_config", "encoder", "decoder", "model_type"]
    + ["is_encoder_decoder", "multi_query", "new_decoder_architecture", "multi_query_attention", "encoder_layers"]
)
SCALARS = st.none() | st.booleans() | st.integers() | st.integers(1, 64) | st.floats() | st.text(max_size=5)
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS | st.text(max_size=4), inner, max_size=5)
)
CONFIGS = st.dictionaries(KEYS, VALUES, max_size=12)
STACKS = st.sampled_from([TEXT, VISION, AUDIO, "model.encoder.layers", "decoder.block", "", "."]) | st.text(max_size=12)


@settings(max_examples=300, deadline=None)
@given(config=CONFIGS, stack=STACKS)
def test_hints_are_counts_or_absent_whatever_the_config_holds(config: dict[str, Any], stack: str) -> None:
    hints = hints_for(config, stack)
    for name in COUNTS:
        value = getattr(hints, name)
        assert value is None or (type(value) is int and 0 < value < MAX_COUNT)
    assert hints.head_width is None or hints.head_width > 0
    assert hints.model_type == hints.model_type.lower()
    assert not hints.flags & hints.unset


@settings(max_examples=200, deadline=None)
@given(config=CONFIGS)
def test_separate_projections_are_read_whatever_the_config_holds(config: dict[str, Any]) -> None:
    plain = read(headers(LLAMA, 2))
    understanding = read(headers(LLAMA, 2), config)
    assert complete(understanding, 2)
    assert [(m.layer, m.role, m.shape, m.parts) for m in understanding.matrices] == [
        (m.layer, m.role, m.shape, m.parts) for m in plain.matrices
    ]
