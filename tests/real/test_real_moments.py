"""Moments and unit energies of every attention matrix of the published checkpoints against float64 numpy.

Triton's interpreter takes a minute for a checkpoint, so it gets the first layer of each; --every-matrix gives it all:
TRITON_INTERPRET=1 pytest tests/real/test_real_moments.py --every-matrix
"""

from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
from kernel_backends import backends
from safetensors.torch import load_file
from taken import take_fingerprint

import tolerances
from weightprint.data import Checkpoint, Matrix
from weightprint.discover import discover
from weightprint.fingerprint import read_structure
from weightprint.plan import plan_reads

pytestmark = pytest.mark.real

NAMES = (
    "rxnfp-bert-pretrained",
    "rxnfp-bert-ft",
    "rxnfp-bert-ft-10k-25s",
    "all-minilm-l6-v2",
    "microformer-mgm",
    "antiberty",
)


def load_weights(directory: Path) -> dict[str, torch.Tensor]:
    """Every tensor by the format's own library."""
    if (directory / "model.safetensors").exists():
        return dict(load_file(directory / "model.safetensors"))
    return dict(torch.load(directory / "pytorch_model.bin", map_location="cpu", weights_only=True))


def logical(matrix: Matrix, weights: dict[str, torch.Tensor]) -> npt.NDArray[np.float64]:
    """W of shape (out, in) in float64."""
    parts = []
    for part in matrix.parts:
        stored = weights[part.tensor.name].double().numpy().reshape(part.stored)
        oriented = stored.T if matrix.transposed else stored
        parts += [oriented[start:stop] for start, stop in part.ranges]
    return np.concatenate(parts)


def checkpoint_at(directory: Path) -> Checkpoint:
    (found,) = discover([directory])
    return found


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("backend", backends())
def test_moments_and_energies(real: dict[str, Path], name: str, backend: str, every_matrix: bool) -> None:
    checkpoint = checkpoint_at(real[name])
    structure = read_structure(checkpoint)
    if backend == "triton-interpreter" and not every_matrix:
        first = [matrix for matrix in structure.plan.matrices if matrix.layer == structure.plan.matrices[0].layer]
        structure = replace(structure, plan=plan_reads(first))
    fingerprint = take_fingerprint(checkpoint, structure, backends()[backend]())
    weights = load_weights(real[name])
    assert len(fingerprint.matrices) == len(structure.plan.matrices) > 0
    for matrix, stats in zip(structure.plan.matrices, fingerprint.matrices, strict=True):
        w = logical(matrix, weights)
        assert w.shape == matrix.shape
        centred = w - w.mean()
        std = centred.std()
        assert stats.count == w.size
        assert stats.std**2 == pytest.approx(std**2, rel=tolerances.VARIANCE_RELATIVE)
        assert abs(stats.mean - w.mean()) <= tolerances.MEAN_IN_STANDARD_DEVIATIONS * std
        assert stats.skewness == pytest.approx((centred**3).mean() / std**3, abs=tolerances.SKEWNESS_ABSOLUTE)
        assert stats.kurtosis == pytest.approx((centred**4).mean() / std**4, rel=tolerances.KURTOSIS_RELATIVE)
        assert stats.abs_max == np.abs(w).max()
        assert (stats.zeros, stats.non_finite) == ((w == 0).sum(), 0)
        if matrix.role in ("v", "o"):
            expected = (w**2).sum(axis=1 if matrix.role == "v" else 0)
            energies = fingerprint.energies[matrix.stack, matrix.layer, matrix.role]
            np.testing.assert_allclose(energies, expected, rtol=tolerances.ENERGY_RELATIVE)
