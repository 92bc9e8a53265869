"""Headers written by hand: names and shapes, as a checkpoint's header says them."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from weightprint.data import TensorSpec, Understanding
from weightprint.roles import understand

ITEMSIZES = {"bf16": 2, "f16": 2, "f32": 4, "f64": 8, "f8_e4m3": 1, "u8": 1, "i8": 1, "i32": 4, "u32": 4}
HIDDEN, Q, KV = 48, 64, 16
SHAPES = {"q": (Q, HIDDEN), "k": (KV, HIDDEN), "v": (KV, HIDDEN), "o": (HIDDEN, Q)}
"""Eight query heads and two key-value heads of width 8 on a hidden size of 48: no two roles can be mistaken."""

Shape = tuple[int, ...]
Found = dict[tuple[str, int, str], tuple[str, Shape, tuple[tuple[int, int], ...], bool]]


def tensor(name: str, shape: Shape, dtype: str = "bf16") -> TensorSpec:
    count = 1
    for size in shape:
        count *= size
    return TensorSpec(name, shape, dtype, Path("model.safetensors"), 0, count * ITEMSIZES.get(dtype, 1))


def headers(shapes: Mapping[str, Shape], layers: int = 3) -> list[TensorSpec]:
    """Tensors of ``layers`` layers; a ``#`` in a name is the layer number."""
    return [
        tensor(name.replace("#", str(layer)), shape)
        for name, shape in shapes.items()
        for layer in (range(layers) if "#" in name else range(1))
    ]


def read(tensors: Iterable[TensorSpec], config: Mapping[str, Any] | None = None) -> Understanding:
    return understand(list(tensors), {} if config is None else config)


def found(understanding: Understanding) -> Found:
    """(stack, layer, role) -> (tensor, logical shape, ranges, transposed)."""
    result: Found = {}
    for matrix in understanding.matrices:
        (part,) = matrix.parts
        key = (matrix.stack, matrix.layer, matrix.role)
        assert key not in result, f"two matrices are {key}"
        result[key] = (part.tensor.name, matrix.shape, part.ranges, matrix.transposed)
    return result


def stacks(understanding: Understanding) -> dict[str, str]:
    """Stack -> its roles as a sorted text."""
    roles: dict[str, set[str]] = {}
    for matrix in understanding.matrices:
        roles.setdefault(matrix.stack, set()).add(matrix.role)
    return {stack: " ".join(sorted(own)) for stack, own in sorted(roles.items())}


def complete(understanding: Understanding, modules: int) -> bool:
    """Whether ``modules`` attention modules were found and all understood, without a word of complaint."""
    coverage = understanding.coverage
    clean = not coverage.not_understood and not understanding.notices
    return clean and (coverage.found, coverage.understood) == (modules, modules)


def reasons(understanding: Understanding) -> dict[str | None, str]:
    """Tensor -> code of what was not understood."""
    return {notice.tensor: notice.code for notice in understanding.coverage.not_understood}
