"""Every law of checks.py, broken once: the module is not understood, named tensor by tensor, and its like are read."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
from roles.role_headers import SHAPES, Shape, complete, found, headers, read, reasons

from weightprint.data import Understanding
from weightprint.roles import checks

LAYERS, BROKEN = 4, 2
PLAIN = {f"model.layers.#.self_attn.{role}_proj.weight": SHAPES[role] for role in "qkvo"}
POOL = {f"model.layers.#.self_attn.{role}_proj.weight": SHAPES[role] for role in "qkv"}
CROSS = {name.replace("self_attn", "cross_attn"): shape for name, shape in PLAIN.items()}
LATENT = {
    "model.layers.#.self_attn.q_a_proj.weight": (20, 48),
    "model.layers.#.self_attn.q_b_proj.weight": (8 * 12, 20),
    "model.layers.#.self_attn.kv_a_proj_with_mqa.weight": (20, 48),
    "model.layers.#.self_attn.kv_b_proj.weight": (8 * 14, 16),
    "model.layers.#.self_attn.o_proj.weight": (48, 8 * 6),
}
DENSE_QUERY = {
    "model.layers.#.self_attn.q_proj.weight": (8 * 12, 48),
    **{name: shape for name, shape in LATENT.items() if "q_a" not in name and "q_b" not in name},
}
FACTORED = {
    "model.layers.#.attn.wq_a.weight": (20, 48),
    "model.layers.#.attn.wq_b.weight": (64, 20),
    "model.layers.#.attn.wkv.weight": (16, 48),
    "model.layers.#.attn.wo_a.weight": (32, 32),
    "model.layers.#.attn.wo_b.weight": (48, 32),
}

# id: (shapes of every layer, leaf whose shape changes in one layer, its new shape, what the reason says)
CASES: dict[str, tuple[dict[str, Shape], str, Shape, str]] = {
    "k-input": (PLAIN, "k_proj", (16, 40), "k and v take inputs of different width: k [16, 40], v [16, 48]"),
    "q-input": (PLAIN, "q_proj", (64, 40), "q, k and v take inputs of different width: q [64, 40], k [16, 48]"),
    "q-rows": (PLAIN, "q_proj", (56, 48), "o does not take as many inputs as q has rows: q [56, 48], o [48, 64]"),
    "o-input": (PLAIN, "o_proj", (48, 72), "o does not take as many inputs as q has rows: q [64, 48], o [48, 72]"),
    "v-rows": (PLAIN, "v_proj", (24, 48), "o does not take a multiple of v's rows: v [24, 48], o [48, 64]"),
    "o-rows": (PLAIN, "o_proj", (40, 64), "o does not give back the width that q takes: q [64, 48], o [40, 64]"),
    "k-rows": (PLAIN, "k_proj", (32, 48), "k and v have different numbers of rows: k [32, 48], v [16, 48]"),
    "groups": (POOL, "q_proj", (40, 48), "q's rows are no multiple of k's: q [40, 48], k [16, 48]"),
    "cross-k-input": (CROSS, "k_proj", (16, 96), "k and v take inputs of different width: k [16, 96], v [16, 48]"),
    "q-factors": (LATENT, "q_b_proj", (8 * 12, 18), "q_b does not take what q_a gives: q_a [20, 48], q_b [96, 18]"),
    "o-factors": (FACTORED, "wo_b", (48, 30), "o_b does not take what o_a gives: o_a [32, 32], o_b [48, 30]"),
    "latent": (LATENT, "kv_b_proj", (8 * 14, 21), "kv_b takes more than kv_a gives: kv_a [20, 48], kv_b [112, 21]"),
    "latent-input": (
        LATENT,
        "kv_a_proj_with_mqa",
        (20, 40),
        "kv_a and q take inputs of different width: q_a [20, 48], kv_a [20, 40]",
    ),
    "latent-input-dense": (
        DENSE_QUERY,
        "kv_a_proj_with_mqa",
        (20, 40),
        "kv_a and q take inputs of different width: q [96, 48], kv_a [20, 40]",
    ),
}


def broken(case: str, config: Mapping[str, Any] | None = None) -> Understanding:
    shapes, leaf, shape, _ = CASES[case]
    (name,) = (name for name in shapes if name.endswith(f".{leaf}.weight"))
    damaged = name.replace("#", str(BROKEN))
    tensors = headers(shapes, LAYERS)
    assert damaged in {spec.name for spec in tensors}
    return read([replace(spec, shape=shape) if spec.name == damaged else spec for spec in tensors], config)


@pytest.mark.parametrize("case", CASES)
def test_one_wrong_shape_is_not_understood(case: str) -> None:
    shapes, _, _, reason = CASES[case]
    whole = read(headers(shapes, LAYERS))
    assert complete(whole, LAYERS)
    understanding = broken(case)
    assert reasons(understanding) == {name.replace("#", str(BROKEN)): "E_NOT_UNDERSTOOD" for name in shapes}
    for notice in understanding.coverage.not_understood:
        assert reason in notice.reason
    assert (understanding.coverage.found, understanding.coverage.understood) == (LAYERS, LAYERS - 1)
    assert not understanding.notices
    assert found(understanding) == {key: value for key, value in found(whole).items() if key[1] != BROKEN}


@pytest.mark.parametrize("number", range(len(checks.CHECKS)))
def test_no_law_is_idle(number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without any one law some broken module would pass, or be refused for a reason that is not its own."""
    monkeypatch.setattr(checks, "CHECKS", checks.CHECKS[:number] + checks.CHECKS[number + 1 :])
    missed = [
        case
        for case, (_, _, _, reason) in CASES.items()
        if not any(reason in notice.reason for notice in broken(case).coverage.not_understood)
    ]
    assert missed


# id: (shapes, config) that look odd and are right
ODD_BUT_RIGHT: dict[str, tuple[dict[str, Shape], dict[str, Any]]] = {
    "grouped": (PLAIN, {}),
    "one-kv-head": (PLAIN | {f"model.layers.#.self_attn.{role}_proj.weight": (8, 48) for role in "kv"}, {}),
    "cross-other-width": (CROSS | {f"model.layers.#.cross_attn.{role}_proj.weight": (16, 96) for role in "kv"}, {}),
    "two-streams-joined": (
        PLAIN | {f"model.layers.#.self_attn.{r}_proj.weight": (SHAPES[r][0], 96) for r in "qkv"},
        {},
    ),
    "narrow-values": (
        {
            "model.layers.#.self_attn.q_proj.weight": (8 * 12, 48),
            "model.layers.#.self_attn.k_proj.weight": (8 * 12, 48),
            "model.layers.#.self_attn.v_proj.weight": (8 * 6, 48),
            "model.layers.#.self_attn.o_proj.weight": (48, 8 * 6),
        },
        {"head_dim": 12, "v_head_dim": 6},
    ),
    "latent-without-rotary-key": (LATENT | {"model.layers.#.self_attn.kv_b_proj.weight": (8 * 14, 20)}, {}),
}


@pytest.mark.parametrize("case", ODD_BUT_RIGHT)
def test_laws_allow_what_families_do(case: str) -> None:
    shapes, config = ODD_BUT_RIGHT[case]
    assert complete(read(headers(shapes, LAYERS), config), LAYERS)


@pytest.mark.parametrize(
    "config", [{}, {"head_dim": 12, "v_head_dim": 5}, {"head_dim": 12}], ids=["no config", "other ratio", "half"]
)
def test_asymmetric_heads_need_a_config_in_just_their_ratio(config: dict[str, Any]) -> None:
    shapes, _ = ODD_BUT_RIGHT["narrow-values"]
    assert read(headers(shapes | {"model.layers.#.self_attn.q_proj.weight": (90, 48)}), config).coverage.understood == 0
    understanding = read(headers(shapes), config)
    assert {matrix.role for matrix in understanding.matrices}.isdisjoint({"q"})


# id: (shapes of one module, what the reason says)
MISFITS: dict[str, tuple[dict[str, Shape], str]] = {
    "bias-of-neither-length": (
        PLAIN | {"model.layers.#.self_attn.q_proj.bias": (50,)},
        "q is [64, 48] but its bias has 50 elements",
    ),
    "biases-that-disagree": (
        {
            "h.#.attn.c_attn.weight": (64, 96),
            "h.#.attn.c_attn.bias": (96,),
            "h.#.attn.c_proj.weight": (48, 64),
            "h.#.attn.c_proj.bias": (48,),
        },
        "the biases say that qkv is stored (in, out) and o is not",
    ),
    "cube": (PLAIN | {"model.layers.#.self_attn.q_proj.weight": (8, 8, 48)}, "has shape [8, 8, 48], not a matrix's"),
    "wide-convolution": (
        PLAIN | {"model.layers.#.self_attn.q_proj.weight": (64, 48, 3)},
        "has shape [64, 48, 3], not a matrix's",
    ),
    "scalar": (PLAIN | {"model.layers.#.self_attn.q_proj.weight": ()}, "has shape [], not a matrix's"),
    "fused-too-small": (
        {"b.#.attn.qkv.weight": (64, 48), "b.#.attn.proj.weight": (48, 64)},
        "64 fused rows are no 64 of q and equal k and v",
    ),
    "fused-odd": (
        {"b.#.attn.qkv.weight": (97, 48), "b.#.attn.proj.weight": (48, 64)},
        "97 fused rows are no 64 of q and equal k and v",
    ),
    "fused-without-output": ({"b.#.attn.qkv.weight": (192, 48)}, "192 fused rows without an output projection"),
    "gated-fused-too-small": (
        {"b.#.attn.gqkv_proj.weight": (64, 48), "b.#.attn.o_proj.weight": (48, 64)},
        "64 fused rows without an output projection that says how many are q and gate",
    ),
    "kv-odd": (
        {"b.#.attn.q.weight": (64, 48), "b.#.attn.kv.weight": (33, 48), "b.#.attn.proj.weight": (48, 64)},
        "33 rows of a fused key-value projection do not halve",
    ),
    "fused-and-separate": (
        PLAIN | {"model.layers.#.self_attn.qkv_proj.weight": (96, 48)},
        "fused and separate projections in one module: k, o, q, qkv, v",
    ),
    "fused-kv-and-k": (
        PLAIN | {"model.layers.#.self_attn.kv_proj.weight": (32, 48)},
        "fused and separate projections in one module: k, kv, o, q, v",
    ),
    "two-of-a-role": (
        PLAIN | {"model.layers.#.self_attn.wq.weight": (64, 48)},
        "2 tensors claim to be q of one attention module",
    ),
    "shared-kv-and-k": (
        FACTORED | {"model.layers.#.attn.wk.weight": (16, 48)},
        "wkv and wk both claim to be k of one attention module",
    ),
    "shared-kv-and-kv": (
        {f"b.#.attn.{leaf}.weight": (32, 48) for leaf in ("wq", "wkv", "kv")},
        "wkv and kv both claim to be kv of one attention module",
    ),
    "cross-c-attn-and-kv": (
        {f"h.#.crossattention.{leaf}.weight": (64, 64) for leaf in ("q_attn", "c_attn", "kv_proj", "c_proj")},
        "c_attn and kv_proj both claim to be kv of one attention module",
    ),
    "query-alone": (
        {"model.layers.#.self_attn.q_proj.weight": (64, 48)},
        "q stands alone: no k, v or o bears the name of its module",
    ),
    "experts": (
        {
            "model.layers.#.self_attention.experts.input_linear.weight": (4, 64, 48),
            "model.layers.#.self_attention.experts.output_linear.weight": (4, 48, 64),
            "model.layers.#.self_attention.kv_proj.weight": (32, 48),
        },
        "q and o are spread over experts",
    ),
    "convolution-over-q-and-k": (
        PLAIN | {"model.layers.#.self_attn.conv_qk.0.weight": (80, 1, 2)},
        "q and k pass through a convolution (conv_qk.0 lies beside them)",
    ),
    "convolution-over-k": (
        PLAIN | {"model.layers.#.self_attn.k_conv1d.weight": (16, 1, 4)},
        "q and k pass through a convolution (k_conv1d lies beside them)",
    ),
    "shared-query-and-key": (
        {f"model.layers.#.self_attention.{leaf}.weight": (48, 48) for leaf in ("query_key", "value", "dense")},
        "q and k are one shared matrix",
    ),
    "two-value-matrices": (
        PLAIN | {"model.layers.#.self_attn.val_proj1.weight": (16, 48)},
        "v is made of several matrices (val_proj1 is one of them)",
    ),
    "recurrence": (
        PLAIN | {"model.layers.#.self_attn.A_log": (8,)},
        "the module is a linear recurrence, not softmax attention (A_log lies beside it)",
    ),
}


@pytest.mark.parametrize("case", MISFITS)
def test_modules_that_do_not_fit_are_named_with_the_reason(case: str) -> None:
    shapes, reason = MISFITS[case]
    understanding = read(headers(shapes))
    assert not understanding.matrices
    assert (understanding.coverage.found, understanding.coverage.understood) == (3, 0)
    matrices = {name for name in shapes if not name.endswith((".bias", "A_log")) and "conv" not in name}
    named = {notice.tensor for notice in understanding.coverage.not_understood}
    assert named >= {name.replace("#", str(layer)) for name in matrices - {PLAIN_VALUE} for layer in range(3)}
    for notice in understanding.coverage.not_understood:
        assert notice.code == "E_NOT_UNDERSTOOD"
        assert reason in notice.reason


PLAIN_VALUE = "model.layers.#.self_attn.val_proj1.weight"
"""Says what is odd in the reason, and is no weight of the table itself."""


# id: (kinds beside or instead of the weight of q, what the reason says)
ENCODED = {
    "gptq": ({"qweight": (8, 64), "qzeros": (1, 8), "scales": (1, 64), "g_idx": (48,)}, "GPTQ"),
    "awq": ({"qweight": (48, 8), "qzeros": (1, 8), "scales": (1, 64)}, "AWQ"),
    "fp8-blocks": ({"weight": (64, 48), "weight_scale_inv": (1, 1)}, "FP8 codes with a scale per block"),
    "fp8-scaled": ({"weight": (64, 48), "scale_weight": ()}, "FP8 codes with a scale ("),
    "fp8-scale": ({"weight": (64, 48), "scale": (1, 1)}, "FP8 codes with scales"),
    "compressed-tensors": ({"weight_packed": (64, 6), "weight_shape": (2,), "weight_scale": (64, 1)}, "compressed"),
    "bitsandbytes-int8": ({"weight": (64, 48), "SCB": (64,)}, "bitsandbytes int8"),
    "bitsandbytes-nf4": ({"weight": (1536, 1), "weight.absmax": (24,), "weight.quant_map": (16,)}, "4-bit"),
    "nf4-state": ({"weight": (1536, 1), "weight.quant_state.bitsandbytes__nf4": (90,)}, "4-bit"),
    "mlx": ({"weight": (64, 6), "scales": (64, 1), "biases": (64, 1)}, "MLX"),
    "mxfp4": ({"weight_blocks": (64, 3, 8), "weight_scales": (64, 3)}, "MXFP4"),
    "nvfp4": ({"weight": (64, 24), "weight_scale": (64, 3), "weight_scale_2": ()}, "NVFP4"),
    "weight-norm": ({"weight_g": (64, 1), "weight_v": (64, 48)}, "weight-norm"),
    "parametrised": ({"parametrizations.weight.original0": (64, 48)}, "parametrised"),
    "scales-alone": ({"weight_scale": (64, 1)}, "FP8 or integer codes"),
    "lora": ({"lora_A.default.weight": (4, 48), "lora_B.default.weight": (64, 4)}, "adapter"),
}


@pytest.mark.parametrize("case", ENCODED)
def test_encoded_weights_are_named_and_their_siblings_read(case: str) -> None:
    kinds, reason = ENCODED[case]
    stem = "model.layers.#.self_attn.q_proj"
    shapes = {name: shape for name, shape in PLAIN.items() if not name.startswith(stem)}
    understanding = read(headers(shapes | {f"{stem}.{kind}": shape for kind, shape in kinds.items()}))
    assert {matrix.role for matrix in understanding.matrices} == {"k", "v", "o"}
    assert set(reasons(understanding).values()) == {"E_DTYPE"}
    assert any(reason in notice.reason for notice in understanding.coverage.not_understood)
    assert all("convert the checkpoint" in notice.reason for notice in understanding.coverage.not_understood)
    assert (understanding.coverage.found, understanding.coverage.understood) == (3, 0)
    assert not understanding.notices


@pytest.mark.parametrize("dtype", ["f64", "i8", "u8", "i32"])
def test_types_that_are_not_read_are_named(dtype: str) -> None:
    tensors = [replace(spec, dtype=dtype) if "q_proj" in spec.name else spec for spec in headers(PLAIN)]
    understanding = read(tensors)
    assert {matrix.role for matrix in understanding.matrices} == {"k", "v", "o"}
    assert set(reasons(understanding).values()) == {"E_DTYPE"}
    assert all(dtype in notice.reason for notice in understanding.coverage.not_understood)


@pytest.mark.parametrize("shape", [(0,), (0, 48), (64, 0)])
def test_weights_without_elements_are_named(shape: Shape) -> None:
    understanding = read(headers(PLAIN | {"model.layers.#.self_attn.q_proj.weight": shape}))
    assert set(reasons(understanding).values()) == {"E_ZERO_SIZE"}
    assert len(reasons(understanding)) == 3
    assert {matrix.role for matrix in understanding.matrices} == {"k", "v", "o"}
