"""Checkpoints of the Llama layout with random weights, written to measure with."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

SHARD_BYTES = 500_000_000


@dataclass(frozen=True)
class Shape:
    """Widths of one layer: hidden, key and value, feed-forward."""

    hidden: int = 4096
    key_value: int = 1024
    feed_forward: int = 14336

    def layer(self) -> dict[str, tuple[int, int]]:
        """The matrices of one layer by the last part of their names."""
        return {
            "self_attn.q_proj": (self.hidden, self.hidden),
            "self_attn.k_proj": (self.key_value, self.hidden),
            "self_attn.v_proj": (self.key_value, self.hidden),
            "self_attn.o_proj": (self.hidden, self.hidden),
            "mlp.gate_proj": (self.feed_forward, self.hidden),
            "mlp.up_proj": (self.feed_forward, self.hidden),
            "mlp.down_proj": (self.hidden, self.feed_forward),
        }

    def attention_bytes(self) -> int:
        """Of one layer in bf16."""
        return 2 * sum(rows * columns for name, (rows, columns) in self.layer().items() if "self_attn" in name)


def write_llama(directory: Path, shape: Shape, layers: int, sparse: bool = False, seed: int = 0) -> int:
    """Write a sharded bf16 checkpoint; returns how many of its bytes are attention.

    ``sparse`` leaves the weights out: files of the full size that take no room on disk and hold zeros.
    """
    per_layer = 2 * sum(rows * columns for rows, columns in shape.layer().values())
    per_shard = max(1, SHARD_BYTES // per_layer) if not sparse else max(1, 5_000_000_000 // per_layer)
    shards = [range(start, min(start + per_shard, layers)) for start in range(0, layers, per_shard)]
    generator = np.random.default_rng(seed)
    weight_map: dict[str, str] = {}
    for number, owned in enumerate(shards, 1):
        file = f"model-{number:05}-of-{len(shards):05}.safetensors"
        shapes = {
            f"model.layers.{layer}.{name}.weight": size for layer in owned for name, size in shape.layer().items()
        }
        write_safetensors(directory / file, shapes, None if sparse else generator)
        weight_map.update(dict.fromkeys(shapes, file))
    (directory / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return layers * shape.attention_bytes()


def write_safetensors(path: Path, shapes: Mapping[str, tuple[int, int]], generator: np.random.Generator | None) -> None:
    """Write random bf16 tensors one by one, so that writing 2 GB needs no 2 GB; without a generator none is written."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, (rows, columns) in shapes.items():
        header[name] = {"dtype": "BF16", "shape": [rows, columns], "data_offsets": [end, end + rows * columns * 2]}
        end += rows * columns * 2
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        if generator is None:
            file.truncate(8 + len(text) + end)
            return
        for rows, columns in shapes.values():
            for block in _blocks(rows * columns, generator):
                file.write(block)


def _blocks(elements: int, generator: np.random.Generator) -> Iterator[bytes]:
    """Normal bf16 weights, 4 million at a time."""
    for start in range(0, elements, 2**22):
        values = generator.standard_normal(min(2**22, elements - start), dtype=np.float32) * np.float32(0.02)
        yield (values.view(np.uint32) >> 16).astype(np.uint16).tobytes()
