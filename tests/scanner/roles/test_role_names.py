"""Names of separate q, k, v, o in every family, with all that lies beside them and must not be taken."""

import random

import pytest
from roles.role_headers import HIDDEN, KV, SHAPES, Q, complete, found, headers, read, stacks, tensor

# id: (stack, attention names "q k v o" below one layer, names that lie beside them)
FAMILIES = {
    "llama": ("model.layers", "self_attn.{q,k,v,o}_proj", "mlp.gate_proj mlp.up_proj mlp.down_proj"),
    "qwen3-norms": ("model.layers", "self_attn.{q,k,v,o}_proj", "self_attn.q_norm self_attn.k_norm"),
    "meta": ("layers", "attention.w{q,k,v,o}", "feed_forward.w1 feed_forward.w2 feed_forward.w3"),
    "bert": (
        "bert.encoder.layer",
        "attention.self.query attention.self.key attention.self.value attention.output.dense",
        "intermediate.dense output.dense",
    ),
    "albert": (
        "albert.encoder.albert_layer_groups.0.albert_layers",
        "attention.query attention.key attention.value attention.dense",
        "ffn ffn_output",
    ),
    "distilbert": (
        "distilbert.transformer.layer",
        "attention.q_lin attention.k_lin attention.v_lin attention.out_lin",
        "ffn.lin1 ffn.lin2",
    ),
    "bart-encoder": ("model.encoder.layers", "self_attn.{q,k,v,out}_proj", "fc1 fc2"),
    "opt": ("model.decoder.layers", "self_attn.{q,k,v,out}_proj", "fc1 fc2"),
    "clip-vision": ("vision_model.encoder.layers", "self_attn.{q,k,v,out}_proj", "mlp.fc1 mlp.fc2"),
    "gpt-neo": ("transformer.h", "attn.attention.{q,k,v,out}_proj", "mlp.c_fc mlp.c_proj"),
    "gpt-j": ("transformer.h", "attn.{q,k,v,out}_proj", "mlp.fc_in mlp.fc_out"),
    "phi-2": (
        "model.layers",
        "self_attn.q_proj self_attn.k_proj self_attn.v_proj self_attn.dense",
        "mlp.fc1 mlp.fc2",
    ),
    "vit": (
        "vit.encoder.layer",
        "attention.attention.query attention.attention.key attention.attention.value attention.output.dense",
        "intermediate.dense output.dense",
    ),
    "mpnet": ("mpnet.encoder.layer", "attention.attn.{q,k,v,o}", "intermediate.dense output.dense"),
    "diffusers": (
        "transformer.transformer_blocks",
        "attn1.to_q attn1.to_k attn1.to_v attn1.to_out.0",
        "ff.net.0.proj ff.net.2",
    ),
    "conformer": (
        "encoder.layers",
        "self_attn.linear_q self_attn.linear_k self_attn.linear_v self_attn.linear_out",
        "self_attn.linear_pos ffn1.intermediate_dense conv_module.pointwise_conv1",
    ),
    "prophetnet": (
        "prophetnet.encoder.layers",
        "self_attn.query_proj self_attn.key_proj self_attn.value_proj self_attn.out_proj",
        "feed_forward.intermediate feed_forward.output",
    ),
    "ctrl": (
        "transformer.h",
        "multi_head_attention.Wq multi_head_attention.Wk multi_head_attention.Wv multi_head_attention.dense",
        "ffn.0 ffn.2",
    ),
    "funnel": (
        "funnel.encoder.blocks.0",
        "attention.q_head attention.k_head attention.v_head attention.post_proj",
        "ffn.linear_1 ffn.linear_2",
    ),
    "xlm": ("transformer.attentions", "{q,k,v,out}_lin", ""),
    "cpm-ant": (
        "cpmant.encoder.layers",
        "self_att.self_attention.project_q self_att.self_attention.project_k self_att.self_attention.project_v "
        "self_att.self_attention.attention_out",
        "ffn.ffn.w_in.w_0 ffn.ffn.w_out",
    ),
    "moshi-wrapped": (
        "decoder.model.layers",
        "self_attn.q_proj.linear self_attn.k_proj.linear self_attn.v_proj.linear self_attn.o_proj.linear",
        "mlp.fc1 mlp.fc2",
    ),
    "gguf": ("blk", "attn_q attn_k attn_v attn_output", "ffn_gate ffn_up ffn_down"),
    "recurrentgemma": ("model.layers", "temporal_block.{q,k,v,o}_proj", "mlp_block.gate_proj mlp_block.down_proj"),
    "nemotron-h": ("backbone.layers", "mixer.{q,k,v,o}_proj", "norm"),
    "base-layer": (
        "model.layers",
        "self_attn.q_proj.base_layer self_attn.k_proj.base_layer self_attn.v_proj.base_layer "
        "self_attn.o_proj.base_layer",
        "",
    ),
    "experts-beside": ("model.layers", "self_attn.{q,k,v,o}_proj", "mlp.experts.0.down_proj mlp.gate"),
    "indexer": ("model.layers", "self_attn.{q,k,v,o}_proj", "self_attn.indexer.wq_b self_attn.indexer.wk"),
}


def spell(pattern: str) -> list[str]:
    """ "a.{q,k}_proj" -> ["a.q_proj", "a.k_proj"]; words otherwise."""
    if "{" not in pattern:
        return pattern.split()
    before, _, rest = pattern.partition("{")
    inside, _, after = rest.partition("}")
    return [before + choice + after for choice in inside.split(",")]


def family_shapes(stack: str, attention: str, beside: str) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {}
    for role, name in zip("qkvo", spell(attention), strict=True):
        shapes[f"{stack}.#.{name}.weight"] = SHAPES[role]
        shapes[f"{stack}.#.{name}.bias"] = SHAPES[role][:1]
    shapes |= {f"{stack}.#.{name}.weight": (HIDDEN, HIDDEN) for name in beside.split() if "norm" not in name}
    shapes |= {f"{stack}.#.{name}.weight": (8,) for name in beside.split() if "norm" in name}
    return shapes | {"embed_tokens.weight": (100, HIDDEN), "norm.weight": (HIDDEN,), "lm_head.weight": (100, HIDDEN)}


@pytest.mark.parametrize("family", FAMILIES)
def test_family(family: str) -> None:
    stack, attention, beside = FAMILIES[family]
    understanding = read(headers(family_shapes(stack, attention, beside)))
    assert complete(understanding, 3), (understanding.coverage, understanding.notices)
    assert found(understanding) == {
        (stack, layer, role): (f"{stack}.{layer}.{name}.weight", SHAPES[role], ((0, SHAPES[role][0]),), False)
        for layer in range(3)
        for role, name in zip("qkvo", spell(attention), strict=True)
    }


@pytest.mark.parametrize("prefix", ["", "model.", "language_model.model.", "transformer.", "module.", "0.auto_model."])
def test_prefix_only_names_the_stack(prefix: str) -> None:
    shapes = family_shapes("layers", "self_attn.{q,k,v,o}_proj", "mlp.up_proj")
    plain = found(read(headers(shapes)))
    renamed = found(read(headers({prefix + name: shape for name, shape in shapes.items()})))
    assert renamed == {
        (prefix + stack, layer, role): (prefix + name, *rest) for (stack, layer, role), (name, *rest) in plain.items()
    }


def test_order_of_tensors_is_no_evidence() -> None:
    tensors = headers(family_shapes(*FAMILIES["bert"])) + headers(family_shapes(*FAMILIES["llama"]))
    first = read(tensors)
    for seed in range(5):
        random.Random(seed).shuffle(tensors)
        assert read(tensors) == first


def test_layers_sort_as_numbers() -> None:
    understanding = read(headers(family_shapes(*FAMILIES["llama"]), layers=12))
    assert [matrix.layer for matrix in understanding.matrices[::4]] == list(range(12))
    assert [matrix.role for matrix in understanding.matrices[:4]] == ["q", "k", "v", "o"]


@pytest.mark.parametrize("infix", ["_orig_mod.", "_fsdp_wrapped_module."])
def test_compiled_and_sharded_names(infix: str) -> None:
    shapes = family_shapes("layers", "self_attn.{q,k,v,o}_proj", "")
    understanding = read(headers({infix + n.replace("self_attn.", "self_attn." + infix): s for n, s in shapes.items()}))
    assert complete(understanding, 3)
    assert stacks(understanding) == {"layers": "k o q v"}


def test_two_towers() -> None:
    text = family_shapes("text_model.encoder.layers", "self_attn.{q,k,v,out}_proj", "mlp.fc1")
    vision = family_shapes("vision_model.encoder.layers", "self_attn.{q,k,v,out}_proj", "mlp.fc1")
    config = {
        "text_config": {"hidden_size": HIDDEN, "num_attention_heads": 8, "head_dim": 8},
        "vision_config": {"hidden_size": HIDDEN, "num_attention_heads": 4, "head_dim": 16},
    }
    understanding = read(headers(text | vision), config)
    assert complete(understanding, 6)
    widths = {(m.stack, m.role): m.head_width for m in understanding.matrices if m.role in "vo"}
    assert widths == {
        ("text_model.encoder.layers", "v"): 8,
        ("text_model.encoder.layers", "o"): 8,
        ("vision_model.encoder.layers", "v"): 16,
        ("vision_model.encoder.layers", "o"): 16,
    }


def encoder_decoder(self_name: str, cross_name: str, leaves: str, stem: str) -> dict[str, tuple[int, ...]]:
    return {
        **family_shapes(stem.format("encoder"), f"{self_name}.{leaves}", "fc1"),
        **family_shapes(stem.format("decoder"), f"{self_name}.{leaves}", "fc1"),
        **family_shapes(stem.format("decoder"), f"{cross_name}.{leaves}", "fc1"),
    }


def test_cross_attention_has_its_own_stack() -> None:
    shapes = encoder_decoder("self_attn", "encoder_attn", "{q,k,v,out}_proj", "model.{}.layers")
    understanding = read(headers(shapes), {"is_encoder_decoder": True, "num_hidden_layers": 3})
    assert complete(understanding, 9)
    assert stacks(understanding) == {
        "model.decoder.layers": "k o q v",
        "model.decoder.layers encoder_attn": "k o q v",
        "model.encoder.layers": "k o q v",
    }


@pytest.mark.parametrize("layers", [1, 2, 4])
def test_t5_sublayers_are_no_layers(layers: int) -> None:
    shapes = {
        f"{side}.block.#.layer.{sub}.{module}.{role}.weight": SHAPES[role]
        for side, sub, module in (
            ("encoder", 0, "SelfAttention"),
            ("decoder", 0, "SelfAttention"),
            ("decoder", 1, "EncDecAttention"),
        )
        for role in "qkvo"
    }
    shapes["encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight"] = (32, 8)
    shapes |= {f"decoder.block.#.layer.2.DenseReluDense.{leaf}.weight": (HIDDEN, HIDDEN) for leaf in ("wi", "wo")}
    understanding = read(headers(shapes, layers), {"model_type": "t5", "d_kv": 8, "num_layers": layers})
    assert complete(understanding, 3 * layers)
    assert stacks(understanding) == {
        "decoder.block": "k o q v",
        "decoder.block EncDecAttention": "k o q v",
        "encoder.block": "k o q v",
    }
    assert {matrix.layer for matrix in understanding.matrices} == set(range(layers))


def test_cross_attention_may_read_another_width() -> None:
    shapes = {f"transformer_blocks.#.attn{n}.to_{r}.weight": SHAPES[r] for n in (1, 2) for r in "qkv"}
    shapes |= {f"transformer_blocks.#.attn{n}.to_out.0.weight": SHAPES["o"] for n in (1, 2)}
    shapes |= {f"transformer_blocks.#.attn2.to_{r}.weight": (KV, 96) for r in "kv"}
    understanding = read(headers(shapes))
    assert complete(understanding, 6)
    assert stacks(understanding) == {"transformer_blocks": "k o q v", "transformer_blocks attn2": "k o q v"}
    # The same widths in a module that does not say cross are a wrong guess.
    wrong = read(headers({name.replace("attn2", "attn"): shape for name, shape in shapes.items()}))
    assert wrong.coverage.understood == 3


def test_joint_attention_of_two_streams() -> None:
    shapes = {f"blocks.#.attn.to_{role}.weight": SHAPES[role] for role in "qkv"}
    shapes |= {"blocks.#.attn.to_out.0.weight": SHAPES["o"], "blocks.#.attn.to_add_out.weight": SHAPES["o"]}
    shapes |= {f"blocks.#.attn.add_{role}_proj.weight": SHAPES[role] for role in "qkv"}
    understanding = read(headers(shapes))
    assert complete(understanding, 6)
    assert stacks(understanding) == {"blocks": "k o q v", "blocks attn added": "k o q v"}


def test_stages_are_separate_stacks() -> None:
    shapes = {
        f"swin.encoder.layers.{stage}.blocks.#.attention.{name}.weight": (16 * 2**stage, 16 * 2**stage)
        for stage in range(2)
        for name in ("self.query", "self.key", "self.value", "output.dense")
    }
    understanding = read(headers(shapes, layers=2))
    assert complete(understanding, 4)
    assert list(stacks(understanding)) == ["swin.encoder.layers.0.blocks", "swin.encoder.layers.1.blocks"]


def test_unet_blocks_of_one_attention_stack_over_the_blocks() -> None:
    stem = "down_blocks.0.attentions.#.transformer_blocks.0"
    shapes = {f"{stem}.attn{n}.to_{role}.weight": SHAPES[role] for n in (1, 2) for role in "qkv"}
    shapes |= {f"{stem}.attn{n}.to_out.0.weight": SHAPES["o"] for n in (1, 2)}
    shapes |= {f"{stem}.ff.net.0.proj.weight": (Q, HIDDEN), "down_blocks.0.attentions.#.proj_out.weight": (Q, Q)}
    understanding = read(headers(shapes, layers=2))
    assert complete(understanding, 4)
    assert list(stacks(understanding)) == [
        "down_blocks.0.attentions",
        "down_blocks.0.attentions transformer_blocks.0.attn2",
    ]


def test_numbered_sublayers() -> None:
    shapes = {f"attn_layers.layers.{{}}.1.to_{role}.weight": SHAPES[role] for role in "qkv"}
    shapes["attn_layers.layers.{}.1.to_out.weight"] = SHAPES["o"]
    tensors = [tensor(name.format(layer), shape) for name, shape in shapes.items() for layer in (0, 2, 4)]
    tensors += [tensor(f"attn_layers.layers.{layer}.1.ff.0.0.proj.weight", (Q, HIDDEN)) for layer in (1, 3, 5)]
    understanding = read(tensors)
    assert complete(understanding, 3)
    assert stacks(understanding) == {"attn_layers.layers": "k o q v"}
    assert sorted({matrix.layer for matrix in understanding.matrices}) == [0, 2, 4]


def test_two_attentions_in_one_layer() -> None:
    """LongCat: a dual block, numbered below the attention word."""
    shapes = {f"model.layers.#.self_attn.{n}.{role}_proj.weight": SHAPES[role] for n in (0, 1) for role in "qkvo"}
    understanding = read(headers(shapes, layers=2))
    assert complete(understanding, 4)
    assert stacks(understanding) == {"model.layers": "k o q v", "model.layers self_attn.1": "k o q v"}


def test_attention_without_a_layer_number() -> None:
    shapes = {f"visual.attnpool.{role}_proj.weight": SHAPES[role] for role in "qkv"}
    shapes |= {
        "head.attention.in_proj_weight": (3 * HIDDEN, HIDDEN),
        "head.attention.out_proj.weight": (HIDDEN, HIDDEN),
    }
    understanding = read(headers(shapes))
    assert complete(understanding, 2)
    assert stacks(understanding) == {"head.attention": "k o q v", "visual.attnpool": "k q v"}


def test_xlnet_cubes() -> None:
    """(hidden, heads, head width): q, k, v are (in, out), o is (out, in)."""
    shapes = {f"transformer.layer.#.rel_attn.{role}": (HIDDEN, 8, 8) for role in "qkvor"}
    shapes |= {
        "transformer.layer.#.rel_attn.r_w_bias": (8, 8),
        "transformer.layer.#.rel_attn.layer_norm.weight": (HIDDEN,),
    }
    understanding = read(headers(shapes, layers=2), {"d_head": 8, "n_head": 8, "d_model": HIDDEN})
    assert complete(understanding, 2)
    for matrix in understanding.matrices:
        assert matrix.shape == ((HIDDEN, Q) if matrix.role == "o" else (Q, HIDDEN))
        assert matrix.transposed == (matrix.role != "o")
        assert matrix.parts[0].stored == (HIDDEN, Q)
        assert matrix.parts[0].ranges == ((0, matrix.shape[0]),)


def test_convolutions_of_size_one_are_matrices() -> None:
    shapes: dict[str, tuple[int, ...]] = {f"mid.attn_1.{role}.weight": (32, 32, 1, 1) for role in "qkv"}
    understanding = read(headers(shapes | {"mid.attn_1.proj_out.weight": (32, 32, 1, 1)}))
    assert complete(understanding, 1)
    assert {matrix.shape for matrix in understanding.matrices} == {(32, 32)}
