"""Fused layouts against an oracle: the family's own reshape and split, applied to labelled output units.

``units`` are the numbers 0..total-1 in the place of the fused projection's output; what each family's forward pass
calls q, k and v are then the labels of the rows that the ranges must pick, in that order.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from roles.role_headers import Shape, complete, found, headers, read, reasons

INT = npt.NDArray[np.int64]
Oracle = Callable[[INT], tuple[INT, INT, INT]]
HEADS, WIDTH, HIDDEN = 8, 4, 24
Q = HEADS * WIDTH


def concatenated(kv: int) -> Oracle:
    """query, key, value = fused.split([q, kv, kv])"""
    return lambda units: (units[:Q], units[Q : Q + kv], units[Q + kv : Q + 2 * kv])


def per_head(units: INT) -> tuple[INT, INT, INT]:
    """fused.view(heads, 3, head_dim); q, k, v = [:, 0], [:, 1], [:, 2] (BLOOM, Persimmon)"""
    split = units.reshape(HEADS, 3, WIDTH)
    return split[:, 0].ravel(), split[:, 1].ravel(), split[:, 2].ravel()


def per_head_chunks(units: INT) -> tuple[INT, INT, INT]:
    """fused.view(heads, 3 * head_dim).chunk(3, -1) (NeoX, DeBERTa, gpt_bigcode)"""
    q, k, v = np.split(units.reshape(HEADS, 3 * WIDTH), 3, axis=-1)
    return q.ravel(), k.ravel(), v.ravel()


def groups(kv_heads: int) -> Oracle:
    """fused.view(kv_heads, q_per_kv + 2, head_dim); q, k, v = [:, :-2], [:, -2], [:, -1] (Falcon, InternLM2)"""

    def split(units: INT) -> tuple[INT, INT, INT]:
        grid = units.reshape(kv_heads, HEADS // kv_heads + 2, WIDTH)
        return grid[:, :-2].ravel(), grid[:, -2].ravel(), grid[:, -1].ravel()

    return split


def falcon_multi_query(units: INT) -> tuple[INT, INT, INT]:
    """fused.view(heads + 2, head_dim); q, k, v = [:-2], [-2], [-1]"""
    grid = units.reshape(HEADS + 2, WIDTH)
    return grid[:-2].ravel(), grid[-2], grid[-1]


def codegen(units: INT) -> tuple[INT, INT, INT]:
    """fused.reshape(4, -1); query, value, key = split(local_dim, -1)"""
    query, value, key = np.split(units.reshape(4, -1), 3, axis=-1)
    return query.ravel(), key.ravel(), value.ravel()


def gate_first(units: INT) -> tuple[INT, INT, INT]:
    """gate, q, k, v = fused.split([q, q, kv, kv])"""
    _, q, k, v = np.split(units, [Q, 2 * Q, 2 * Q + 8])
    return q, k, v


NEOX = "gpt_neox.layers.#.attention.query_key_value attention.dense"
FALCON = "transformer.h.#.self_attention.query_key_value self_attention.dense"
HEAD_COUNT = {"num_attention_heads": HEADS, "hidden_size": Q}

CASES: dict[str, tuple[str, int, dict[str, Any], Oracle]] = {
    # id: (fused name and output name, fused rows, config, oracle)
    "gpt2-names-linear": ("h.#.attn.c_attn attn.c_proj", 3 * Q, {"model_type": "qwen"}, concatenated(Q)),
    "baichuan": ("model.layers.#.self_attn.W_pack self_attn.o_proj", 3 * Q, {}, concatenated(Q)),
    "phi3": ("model.layers.#.self_attn.qkv_proj self_attn.o_proj", Q + 16, {}, concatenated(8)),
    "mpt": ("transformer.blocks.#.attn.Wqkv attn.out_proj", 3 * Q, {"model_type": "mpt"}, concatenated(Q)),
    "dbrx": ("transformer.blocks.#.norm_attn_norm.attn.Wqkv norm_attn_norm.attn.out_proj", Q + 16, {}, concatenated(8)),
    "phi1-mixer": ("transformer.h.#.mixer.Wqkv mixer.out_proj", 3 * Q, {}, concatenated(Q)),
    "modernbert": ("model.layers.#.attn.Wqkv attn.Wo", 3 * Q, {}, concatenated(Q)),
    "timm": ("blocks.#.attn.qkv attn.proj", 3 * Q, {}, concatenated(Q)),
    "blip-vision": ("vision_model.encoder.layers.#.self_attn.qkv self_attn.projection", 3 * Q, {}, concatenated(Q)),
    "lucidrains": ("transformer.layers.#.0.fn.to_qkv 0.fn.to_out.0", 3 * Q, {}, concatenated(Q)),
    "bark": ("layers.#.attn.att_proj attn.out_proj", 3 * Q, {}, concatenated(Q)),
    "olmo1": ("model.transformer.blocks.#.att_proj attn_out", Q + 16, {}, concatenated(8)),
    "transfo-xl": ("transformer.layers.#.dec_attn.qkv_net dec_attn.o_net", 3 * Q, {}, concatenated(Q)),
    "gguf": ("blk.#.attn_qkv attn_output", Q + 16, {}, concatenated(8)),
    "moonvit": (
        "vision_tower.encoder.blocks.#.wqkv wo",
        3 * Q,
        {"vision_config": {"model_type": "moonvit"}},
        concatenated(Q),
    ),
    "neox": (NEOX, 3 * Q, {"model_type": "gpt_neox", **HEAD_COUNT}, per_head_chunks),
    "bloom": (FALCON, 3 * Q, {"model_type": "bloom", "n_head": HEADS, "n_embed": Q}, per_head),
    "persimmon": (NEOX.replace("attention", "self_attn"), 3 * Q, {"model_type": "persimmon", **HEAD_COUNT}, per_head),
    "fuyu-nested": (
        "language_model.model.layers.#.self_attn.query_key_value self_attn.dense",
        3 * Q,
        {"model_type": "fuyu", "text_config": {"model_type": "persimmon", **HEAD_COUNT}},
        per_head,
    ),
    "deberta-v1": (
        "deberta.encoder.layer.#.attention.self.in_proj attention.output.dense",
        3 * Q,
        {"model_type": "deberta", **HEAD_COUNT},
        per_head_chunks,
    ),
    "falcon-rw": (
        FALCON,
        3 * Q,
        {"model_type": "falcon", "multi_query": False, "new_decoder_architecture": False, **HEAD_COUNT},
        per_head,
    ),
    "falcon-7b": (
        FALCON,
        Q + 2 * WIDTH,
        {"model_type": "falcon", "multi_query": True, **HEAD_COUNT},
        falcon_multi_query,
    ),
    "falcon-7b-defaults": (FALCON, Q + 2 * WIDTH, {"model_type": "falcon", **HEAD_COUNT}, falcon_multi_query),
    "falcon-40b": (
        FALCON,
        Q + 4 * WIDTH,
        {"model_type": "falcon", "new_decoder_architecture": True, "num_kv_heads": 2, **HEAD_COUNT},
        groups(2),
    ),
    "falcon-40b-legacy": (
        FALCON,
        Q + 4 * WIDTH,
        {"model_type": "RefinedWeb", "n_head": HEADS, "n_head_kv": 2},
        groups(2),
    ),
    "internlm2": (
        "model.layers.#.attention.wqkv attention.wo",
        Q + 4 * WIDTH,
        {"model_type": "internlm2", "num_key_value_heads": 2, **HEAD_COUNT},
        groups(2),
    ),
    "internvl-nested": (
        "language_model.model.layers.#.attention.wqkv attention.wo",
        Q + 4 * WIDTH,
        {"model_type": "internvl_chat", "llm_config": {"model_type": "internlm2", **HEAD_COUNT}},
        groups(2),
    ),
    "phi3small": (
        "model.layers.#.self_attn.query_key_value self_attn.dense",
        Q + 4 * WIDTH,
        {"model_type": "phi3small", "num_key_value_heads": 2, **HEAD_COUNT},
        groups(2),
    ),
    "megatron-core": (
        "decoder.layers.#.self_attention.linear_qkv self_attention.linear_proj",
        Q + 8 * WIDTH,
        {"num_query_groups": 4, **HEAD_COUNT},
        groups(4),
    ),
    "codegen": ("transformer.h.#.attn.qkv_proj attn.out_proj", 3 * Q, {"model_type": "codegen"}, codegen),
    "chatglm-1": (
        "transformer.layers.#.attention.query_key_value attention.dense",
        3 * Q,
        {"model_type": "chatglm", "position_encoding_2d": True, **HEAD_COUNT},
        per_head_chunks,
    ),
    "chatglm-2": (
        "transformer.encoder.layers.#.self_attention.query_key_value self_attention.dense",
        Q + 4 * WIDTH,
        {"model_type": "chatglm", "multi_query_attention": True, "multi_query_group_num": 2, **HEAD_COUNT},
        concatenated(2 * WIDTH),
    ),
    "starcoder": (
        "transformer.h.#.attn.c_attn attn.c_proj",
        Q + 2 * WIDTH,
        {"model_type": "gpt_bigcode", "multi_query": True, "n_head": HEADS, "n_embd": Q},
        falcon_multi_query,
    ),
    "bigcode-multi-head": (
        "transformer.h.#.attn.c_attn attn.c_proj",
        3 * Q,
        {"model_type": "gpt_bigcode", "multi_query": False, "n_head": HEADS, "n_embd": Q},
        per_head_chunks,
    ),
    "gate-first": ("model.layers.#.attn.gqkv_proj attn.o_proj", 2 * Q + 16, {}, gate_first),
}


def fused_shapes(names: str, rows: int, hidden: int = HIDDEN) -> tuple[str, dict[str, Shape]]:
    fused, output = names.split()
    stem = fused[: fused.index("#") + 2]
    return fused, {
        f"{fused}.weight": (rows, hidden),
        f"{fused}.bias": (rows,),
        f"{stem}{output}.weight": (hidden, Q),
        f"{stem}{output}.bias": (hidden,),
        f"{stem}mlp.dense_4h_to_h.weight": (hidden, 4 * hidden),
        f"{stem}attention.masked_bias": (),
        f"{stem}attention.rotary_emb.inv_freq": (WIDTH,),
        f"{stem}attn.bias": (1, 1, 16, 16),
    }


def picked(ranges: tuple[tuple[int, int], ...]) -> list[int]:
    return [unit for start, stop in ranges for unit in range(start, stop)]


@pytest.mark.parametrize("case", CASES)
def test_ranges_pick_what_the_forward_pass_splits(case: str) -> None:
    names, rows, config, oracle = CASES[case]
    fused, shapes = fused_shapes(names, rows)
    understanding = read(headers(shapes), config)
    assert complete(understanding, 3), (understanding.coverage, understanding.notices)
    stack = fused[: fused.index(".#")]
    result = found(understanding)
    assert set(result) == {(stack, layer, role) for layer in range(3) for role in "qkvo"}
    for layer in range(3):
        for role, expected in zip("qkv", oracle(np.arange(rows)), strict=True):
            name, shape, ranges, transposed = result[stack, layer, role]
            assert name == f"{fused}.weight".replace("#", str(layer))
            assert picked(ranges) == list(expected)
            assert shape == (len(expected), HIDDEN)
            assert not transposed


@pytest.mark.parametrize("case", [case for case, (_, _, config, _) in CASES.items() if not config])
def test_layouts_that_need_no_config_ignore_a_useless_one(case: str) -> None:
    names, rows, _, _ = CASES[case]
    _, shapes = fused_shapes(names, rows)
    useless = {"num_attention_heads": None, "hidden_size": "big", "model_type": ["x"], "head_dim": {"a": 1}}
    assert found(read(headers(shapes), useless)) == found(read(headers(shapes)))


@pytest.mark.parametrize("case", ["neox", "bloom", "deberta-v1", "falcon-40b", "internlm2", "chatglm-2"])
def test_ambiguous_layouts_are_not_guessed_without_config(case: str) -> None:
    names, rows, _, _ = CASES[case]
    _, shapes = fused_shapes(names, rows)
    understanding = read(headers(shapes, layers=1))
    assert not understanding.matrices
    assert set(reasons(understanding).values()) == {"E_NOT_UNDERSTOOD"}
    assert understanding.coverage.found == 1
    assert understanding.coverage.understood == 0


@pytest.mark.parametrize(
    ("case", "change"),
    [
        ("neox", {"num_attention_heads": 7}),
        ("falcon-40b", {"num_kv_heads": 4}),
        ("falcon-40b", {"new_decoder_architecture": False, "multi_query": False}),
        ("falcon-40b", {"new_decoder_architecture": False, "multi_query": True}),
        ("internlm2", {"num_attention_heads": 24}),
        ("starcoder", {"multi_query": False}),
        ("bloom", {"n_head": 10**9}),
        ("phi3small", {"head_dim": 8}),
    ],
)
def test_a_config_that_does_not_fit_the_shapes_is_not_followed(case: str, change: dict[str, Any]) -> None:
    names, rows, config, _ = CASES[case]
    _, shapes = fused_shapes(names, rows)
    understanding = read(headers(shapes), config | change)
    assert not understanding.matrices
    assert len(understanding.coverage.not_understood) == 6
    for notice in understanding.coverage.not_understood:
        assert notice.code == "E_NOT_UNDERSTOOD"
        assert any(character.isdigit() for character in notice.reason)


GPT2 = {
    "h.#.attn.bias": (1, 1, 64, 64),
    "h.#.attn.masked_bias": (),
    "h.#.attn.c_attn.weight": (Q, 3 * Q),
    "h.#.attn.c_attn.bias": (3 * Q,),
    "h.#.attn.c_proj.weight": (Q, Q),
    "h.#.attn.c_proj.bias": (Q,),
    "h.#.mlp.c_fc.weight": (Q, 4 * Q),
    "h.#.mlp.c_proj.weight": (4 * Q, Q),
    "h.#.mlp.c_proj.bias": (Q,),
}


@pytest.mark.parametrize("evidence", ["bias", "config", "shape"])
def test_gpt2_is_stored_in_out(evidence: str) -> None:
    shapes = {n: s for n, s in GPT2.items() if evidence == "bias" or not n.endswith(".bias")}
    understanding = read(headers(shapes), {"model_type": "gpt2"} if evidence == "config" else {})
    assert complete(understanding, 3)
    for matrix in understanding.matrices:
        assert matrix.transposed
        assert matrix.shape == (Q, Q)
        assert (
            matrix.parts[0].ranges
            == {"q": ((0, Q),), "k": ((Q, 2 * Q),), "v": ((2 * Q, 3 * Q),), "o": ((0, Q),)}[matrix.role]
        )
        assert matrix.parts[0].stored == ((Q, Q) if matrix.role == "o" else (Q, 3 * Q))


def test_gpt2_cross_attention() -> None:
    cross = {
        "h.#.crossattention.c_attn.weight": (Q, 2 * Q),
        "h.#.crossattention.c_attn.bias": (2 * Q,),
        "h.#.crossattention.q_attn.weight": (Q, Q),
        "h.#.crossattention.q_attn.bias": (Q,),
        "h.#.crossattention.c_proj.weight": (Q, Q),
        "h.#.crossattention.c_proj.bias": (Q,),
    }
    understanding = read(headers(GPT2 | cross))
    assert complete(understanding, 6)
    result = found(understanding)
    assert {stack for stack, _, _ in result} == {"h", "h crossattention"}
    assert result["h crossattention", 0, "q"][2:] == (((0, Q),), True)
    assert result["h crossattention", 0, "k"][2:] == (((0, Q),), True)
    assert result["h crossattention", 0, "v"][2:] == (((Q, 2 * Q),), True)


def test_torch_multihead_attention() -> None:
    shapes = {
        "resblocks.#.attn.in_proj_weight": (3 * Q, Q),
        "resblocks.#.attn.in_proj_bias": (3 * Q,),
        "resblocks.#.attn.out_proj.weight": (Q, Q),
        "resblocks.#.mlp.c_proj.weight": (Q, 4 * Q),
    }
    understanding = read(headers(shapes))
    assert complete(understanding, 3)
    assert [found(understanding)["resblocks", 0, role][2] for role in "qkv"] == [
        ((0, Q),),
        ((Q, 2 * Q),),
        ((2 * Q, 3 * Q),),
    ]
    separate = {f"d.layers.#.multihead_attn.{role}_proj_weight": (Q, 16 if role in "kv" else Q) for role in "qkv"}
    separate |= {
        "d.layers.#.multihead_attn.in_proj_bias": (3 * Q,),
        "d.layers.#.multihead_attn.out_proj.weight": (Q, Q),
    }
    understanding = read(headers(separate))
    assert complete(understanding, 3)
    assert {matrix.stack for matrix in understanding.matrices} == {"d.layers multihead_attn"}


def test_fused_keys_and_values() -> None:
    shapes = {"b.#.attn.q.weight": (Q, HIDDEN), "b.#.attn.kv.weight": (16, HIDDEN), "b.#.attn.proj.weight": (HIDDEN, Q)}
    understanding = read(headers(shapes))
    assert complete(understanding, 3)
    assert found(understanding)["b", 0, "k"] == ("b.0.attn.kv.weight", (8, HIDDEN), ((0, 8),), False)
    assert found(understanding)["b", 0, "v"] == ("b.0.attn.kv.weight", (8, HIDDEN), ((8, 16),), False)


def test_gated_queries_go_head_by_head() -> None:
    """q_proj(x).view(heads, 2 * head_dim).chunk(2, -1) is query, gate (Qwen3-Next)"""
    stem = "model.layers.#.self_attn."
    shapes = {f"{stem}q_proj.weight": (2 * Q, HIDDEN), f"{stem}o_proj.weight": (HIDDEN, Q)}
    shapes |= {f"{stem}{role}_proj.weight": (8, HIDDEN) for role in "kv"}
    understanding = read(headers(shapes), {"head_dim": WIDTH, "num_attention_heads": HEADS})
    assert complete(understanding, 3)
    expected = np.arange(2 * Q).reshape(HEADS, 2 * WIDTH)[:, :WIDTH].ravel()
    assert picked(found(understanding)["model.layers", 1, "q"][2]) == list(expected)
    # Without a config the width of a head is not known: q is left out, the rest is read.
    understanding = read(headers(shapes))
    assert {matrix.role for matrix in understanding.matrices} == {"k", "v", "o"}
    assert reasons(understanding) == {
        f"model.layers.{layer}.self_attn.q_proj.weight": "E_NOT_UNDERSTOOD" for layer in range(3)
    }
    assert (understanding.coverage.found, understanding.coverage.understood) == (3, 0)


NOPE, ROPE, VALUE, RANK = 8, 4, 6, 16
LATENT = {
    "model.layers.#.self_attn.q_a_proj.weight": (20, HIDDEN),
    "model.layers.#.self_attn.q_a_layernorm.weight": (20,),
    "model.layers.#.self_attn.q_b_proj.weight": (HEADS * (NOPE + ROPE), 20),
    "model.layers.#.self_attn.kv_a_proj_with_mqa.weight": (RANK + ROPE, HIDDEN),
    "model.layers.#.self_attn.kv_b_proj.weight": (HEADS * (NOPE + VALUE), RANK),
    "model.layers.#.self_attn.o_proj.weight": (HIDDEN, HEADS * VALUE),
}
LATENT_CONFIG = {"qk_nope_head_dim": NOPE, "qk_rope_head_dim": ROPE, "v_head_dim": VALUE, "num_attention_heads": HEADS}


def test_latent_attention_factor_by_factor() -> None:
    """kv_b(x).view(heads, nope + v).split([nope, v], -1) is key, value (DeepSeek)"""
    understanding = read(headers(LATENT), LATENT_CONFIG)
    assert complete(understanding, 3)
    assert [matrix.role for matrix in understanding.matrices[:6]] == ["v", "o", "q_a", "q_b", "kv_a", "kv_b"]
    value = found(understanding)["model.layers", 0, "v"]
    expected = np.arange(HEADS * (NOPE + VALUE)).reshape(HEADS, NOPE + VALUE)[:, NOPE:].ravel()
    assert picked(value[2]) == list(expected)
    assert value[:2] == ("model.layers.0.self_attn.kv_b_proj.weight", (HEADS * VALUE, RANK))
    assert {m.head_width for m in understanding.matrices if m.role in "vo"} == {VALUE}


@pytest.mark.parametrize("config", [{}, LATENT_CONFIG | {"v_head_dim": 7}, LATENT_CONFIG | {"qk_nope_head_dim": 9}])
def test_latent_values_need_a_config_that_fits(config: dict[str, Any]) -> None:
    understanding = read(headers(LATENT), config)
    assert complete(understanding, 3)
    assert {matrix.role for matrix in understanding.matrices} == {"q_a", "q_b", "kv_a", "kv_b", "o"}


def test_latent_attention_with_dense_queries_and_meta_names() -> None:
    shapes = {name: shape for name, shape in LATENT.items() if "q_a" not in name and "q_b" not in name}
    shapes["model.layers.#.self_attn.q_proj.weight"] = (HEADS * (NOPE + ROPE), HIDDEN)
    understanding = read(headers(shapes), LATENT_CONFIG)
    assert complete(understanding, 3)
    assert {matrix.role for matrix in understanding.matrices} == {"q", "v", "o", "kv_a", "kv_b"}
    meta = {
        "self_attn.q_a_proj": "attn.wq_a",
        "self_attn.q_b_proj": "attn.wq_b",
        "self_attn.kv_a_proj_with_mqa": "attn.wkv_a",
        "self_attn.kv_b_proj": "attn.wkv_b",
        "self_attn.o_proj": "attn.wo",
    }
    names = {name: name for name in LATENT}
    for old, new in meta.items():
        names = {name: renamed.replace(old, new) for name, renamed in names.items()}
    renamed = {names[name]: shape for name, shape in LATENT.items()}
    assert {m.role for m in read(headers(renamed)).matrices} == {"q_a", "q_b", "kv_a", "kv_b", "o"}


def test_one_matrix_for_keys_and_values_and_a_factored_output() -> None:
    """DeepSeek-V4: wkv is key and value in one, the output is wo_a then wo_b."""
    shapes = {
        "layers.#.attn.wq_a.weight": (20, HIDDEN),
        "layers.#.attn.wq_b.weight": (Q, 20),
        "layers.#.attn.wkv.weight": (WIDTH, HIDDEN),
        "layers.#.attn.wo_a.weight": (32, Q // 2),
        "layers.#.attn.wo_b.weight": (HIDDEN, 32),
        "layers.#.attn.compressor.wkv.weight": (WIDTH, HIDDEN),
        "layers.#.attn.indexer.wq_b.weight": (Q, 20),
    }
    understanding = read(headers(shapes))
    assert complete(understanding, 3)
    assert {matrix.role for matrix in understanding.matrices} == {"q_a", "q_b", "k", "o_a", "o_b"}
