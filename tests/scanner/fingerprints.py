"""Small fingerprints with every kind of field filled in, for tests of files, stores and reports."""

import math
from dataclasses import replace

import numpy as np

from weightprint.data import Bytes, Coverage, Fingerprint, MatrixStats, SourceFile
from weightprint.errors import Notice


def small_fingerprint(name: str = "family/model", seed: int = 0) -> Fingerprint:
    """Two layers of q, k, v, o; one not understood tensor, one NaN, a figure that does not exist."""
    generator = np.random.default_rng(seed)
    matrices = tuple(
        MatrixStats(
            stack="model.layers",
            layer=layer,
            role=role,
            tensors=(f"model.layers.{layer}.self_attn.{role}_proj.weight",),
            shape=(16, 16),
            dtype="bf16",
            count=256,
            mean=int(generator.integers(-100, 100)) / 64,
            std=int(generator.integers(1, 100)) / 64,
            skewness=math.nan if role == "k" else 0.1,
            kurtosis=3.0 + 1e-9 * layer,
            abs_max=2.5,
            zeros=1,
            non_finite=int(role == "o" and layer == 1),
            head_width=8 if role in "vo" else None,
        )
        for layer in range(2)
        for role in "qkvo"
    )
    energies = {
        ("model.layers", layer, channel): (generator.integers(1, 1000, size=16) / 64).astype(np.float32)
        for layer in range(2)
        for channel in "vo"
    }
    energies["model.layers", 1, "o"][3] = np.nan
    odd = "model.layers.2.self_attn.k_proj.weight"
    not_understood = Notice("E_NOT_UNDERSTOOD", "k rows 16 but v rows 12", None, odd)
    return Fingerprint(
        name=name,
        path=f"/models/{name}",
        status="partial",
        code="E_NOT_UNDERSTOOD",
        reason=not_understood.line(),
        matrices=matrices,
        energies=energies,
        coverage=Coverage(3, 2, (not_understood,)),
        sources=(SourceFile("model.safetensors", 12345, 1_700_000_000_000_000_000, "safetensors", "ab" * 32),),
        bytes=Bytes(12345, 4096, 4096),
        notices=(not_understood,),
        backend="torch-cpu",
        tool_version="0.1.0",
    )


def same(a: Fingerprint, b: Fingerprint) -> bool:
    """Equality with nan equal to nan, bit by bit."""

    def plain(fingerprint: Fingerprint) -> tuple[str, dict[tuple[str, int, str], bytes]]:
        energies = {key: values.tobytes() for key, values in fingerprint.energies.items()}
        return repr(replace(fingerprint, energies={})), energies

    return plain(a) == plain(b)
