"""One checkpoint to its fingerprint: figures against numpy, faults in status and notices, the same bytes each time."""

import json
import math
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file
from taken import take_fingerprint

import tiny
import tolerances
from weightprint.data import Checkpoint, Fingerprint, MatrixStats
from weightprint.discover import discover
from weightprint.errors import Notice
from weightprint.fingerprint import read_structure, source_path, without_weights
from weightprint.fingerprint_file import to_bytes
from weightprint_kernels.backend import Backend
from weightprint_kernels.numba_backend import NumbaBackend
from weightprint_kernels.reference import ReferenceBackend
from weightprint_kernels.torch_backend import TorchBackend


def only(root: Path) -> Checkpoint:
    (found,) = discover([root])
    return found


def take(root: Path) -> Fingerprint:
    checkpoint = only(root)
    return take_fingerprint(checkpoint, read_structure(checkpoint), ReferenceBackend())


def codes(fingerprint: Fingerprint) -> list[str]:
    return [notice.code for notice in fingerprint.notices]


def by_place(fingerprint: Fingerprint) -> Mapping[tuple[int, str], MatrixStats]:
    return {(matrix.layer, matrix.role): matrix for matrix in fingerprint.matrices}


def attention(layer: int, role: str) -> str:
    return f"model.layers.{layer}.self_attn.{role}_proj.weight"


@pytest.mark.parametrize("save", [tiny.save, tiny.save_sharded], ids=["single", "sharded"])
def test_every_figure_is_that_of_its_matrix(save: Callable[..., Path], tmp_path: Path) -> None:
    weights = tiny.llama(0)
    found = take(save(tmp_path / "a", weights))
    assert (found.name, found.path, found.status, found.code, found.reason) == (
        "a",
        str(tmp_path / "a"),
        "complete",
        None,
        None,
    )
    assert len(found.matrices) == 24
    for (layer, role), stats in by_place(found).items():
        values = weights[attention(layer, role)].astype(np.float64)
        assert (stats.shape, stats.count, stats.non_finite) == (values.shape, values.size, 0)
        assert abs(stats.mean - values.mean()) < tolerances.MEAN_IN_STANDARD_DEVIATIONS * values.std()
        assert math.isclose(stats.std**2, values.var(), rel_tol=tolerances.VARIANCE_RELATIVE)
        assert stats.abs_max == np.abs(values).max()
    for layer in range(6):
        v, o = (weights[attention(layer, role)].astype(np.float64) for role in "vo")
        for channel, expected in (("v", (v**2).sum(axis=1)), ("o", (o**2).sum(axis=0))):
            units = found.energies["model.layers", layer, channel]
            assert units.dtype == np.float32
            np.testing.assert_allclose(units, expected, rtol=tolerances.ENERGY_RELATIVE)


def test_bytes_add_up(tmp_path: Path) -> None:
    weights = tiny.llama(0)
    found = take(tiny.save_sharded(tmp_path / "a", weights))
    assert found.bytes.files == sum(path.stat().st_size for path in tmp_path.rglob("*.safetensors"))
    assert found.bytes.selected == sum(value.nbytes for name, value in weights.items() if "self_attn" in name)
    assert found.bytes.selected <= found.bytes.read <= 1.02 * found.bytes.selected


@pytest.mark.parametrize("make", [ReferenceBackend, TorchBackend, NumbaBackend], ids=["reference", "torch", "numba"])
def test_a_second_run_gives_the_same_bytes(make: Callable[[], Backend], tmp_path: Path) -> None:
    """On one thread and on several."""
    tiny.save_sharded(tmp_path, tiny.llama(0))

    def run(threads: int) -> bytes:
        checkpoint = only(tmp_path)
        return to_bytes(take_fingerprint(checkpoint, read_structure(checkpoint), make(), threads))

    assert run(1) == run(1) == run(4)


def test_the_backend_is_named(tmp_path: Path) -> None:
    assert take(tiny.save(tmp_path, tiny.llama(0))).backend == "reference"


def test_sources_are_the_files_and_the_config(tmp_path: Path) -> None:
    tiny.save(tmp_path, tiny.llama(0))
    found = take(tmp_path)
    assert [(source.name, source.format) for source in found.sources] == [
        ("model.safetensors", "safetensors"),
        ("config.json", "config"),
    ]
    assert found.sources[0].size == (tmp_path / "model.safetensors").stat().st_size
    assert take(tmp_path).sources == found.sources


def test_config_is_known_by_its_content_not_its_time(tmp_path: Path) -> None:
    tiny.save(tmp_path, tiny.llama(0))
    before = read_structure(only(tmp_path)).sources
    (tmp_path / "config.json").write_text(json.dumps(dict(reversed(tiny.CONFIG.items())), indent=4))
    assert read_structure(only(tmp_path)).sources == before
    (tmp_path / "config.json").write_text(json.dumps({**tiny.CONFIG, "head_dim": 16}))
    assert read_structure(only(tmp_path)).sources != before


def rewritten(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"\0")


def touched(path: Path) -> None:
    status = path.stat()
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns + 1))


def removed(path: Path) -> None:
    path.unlink()


@pytest.mark.parametrize("change", [rewritten, touched, removed], ids=lambda change: change.__name__)
def test_a_file_that_changes_while_it_is_read_gives_nothing(change: Callable[[Path], None], tmp_path: Path) -> None:
    tiny.save_sharded(tmp_path, tiny.llama(0))
    checkpoint = only(tmp_path)
    structure = read_structure(checkpoint)
    shard = tmp_path / "model-00002-of-00003.safetensors"

    class Meanwhile(ReferenceBackend):
        done = False

        def place(self, data: np.ndarray) -> np.ndarray:  # type: ignore[type-arg]
            if not self.done:
                change(shard)
                self.done = True
            return super().place(data)

    found = take_fingerprint(checkpoint, structure, Meanwhile())
    assert (found.status, found.code, found.matrices, found.energies) == ("failed", "E_CHANGED", (), {})
    assert found.notices[0].path == str(shard)
    assert found.reason is not None
    assert str(shard) in found.reason


def test_shards_that_lie_beside_other_checkpoints_are_known_by_their_own_size(tmp_path: Path) -> None:
    weights = tiny.llama(0)
    names = sorted(weights)
    for number, own in ((1, names[:7]), (2, names[7:])):
        save_file({name: weights[name] for name in own}, tmp_path / f"a-0000{number}-of-00002.safetensors")
    save_file(tiny.llama(1), tmp_path / "b.safetensors")
    for checkpoint in discover([tmp_path]):
        structure = read_structure(checkpoint)
        assert [source_path(checkpoint, source) for source in structure.sources] == list(checkpoint.files)
        found = take_fingerprint(checkpoint, structure, ReferenceBackend())
        assert (found.status, codes(found), len(found.matrices)) == ("complete", [], 24)


def test_files_behind_links_are_known_by_their_targets(tmp_path: Path) -> None:
    tiny.save(tmp_path / "blobs", tiny.llama(0))
    (tmp_path / "snapshot").mkdir()
    (tmp_path / "snapshot/model.safetensors").symlink_to("../blobs/model.safetensors")
    checkpoint = only(tmp_path / "snapshot")
    structure = read_structure(checkpoint)
    assert take_fingerprint(checkpoint, structure, ReferenceBackend()).status == "complete"
    touched(tmp_path / "blobs/model.safetensors")
    assert take_fingerprint(checkpoint, structure, ReferenceBackend()).code == "E_CHANGED"


def test_what_is_not_finite_is_counted_and_its_units_left_out(tmp_path: Path) -> None:
    weights = tiny.llama(0)
    weights[attention(1, "v")][3, 5] = np.nan
    weights[attention(2, "o")][7, 9] = -np.inf
    weights[attention(4, "q")][0, 0] = np.inf
    found = take(tiny.save(tmp_path, weights))
    assert {place: stats.non_finite for place, stats in by_place(found).items() if stats.non_finite} == {
        (1, "v"): 1,
        (2, "o"): 1,
        (4, "q"): 1,
    }
    assert (found.status, codes(found)) == ("partial", ["E_NON_FINITE"] * 3)
    assert [notice.tensor for notice in found.notices] == [attention(1, "v"), attention(2, "o"), attention(4, "q")]
    assert {notice.path for notice in found.notices} == {str(tmp_path / "model.safetensors")}
    holes = {key: np.flatnonzero(np.isnan(units)).tolist() for key, units in found.energies.items()}
    assert {key[1:]: units for key, units in holes.items() if units} == {(1, "v"): [3], (2, "o"): [9]}


def test_what_is_not_understood_is_named_with_its_file(tmp_path: Path) -> None:
    weights = tiny.llama(0)
    weights[attention(5, "q")] = np.zeros((0, 64), np.float32)
    weights[attention(0, "v")] = weights[attention(0, "v")][:5]
    tiny.save_sharded(tmp_path, weights)
    found = take(tmp_path)
    files = json.loads((tmp_path / "model.safetensors.index.json").read_text())["weight_map"]
    assert found.status == "partial"
    named = [notice for notice in found.notices if notice.tensor is not None]
    assert {attention(5, "q"), attention(0, "v")} <= {notice.tensor for notice in named}
    assert [notice.path for notice in named] == [str(tmp_path / files[str(notice.tensor)]) for notice in named]
    assert set(found.coverage.not_understood) <= set(found.notices)


def test_a_checkpoint_without_attention_says_so(tmp_path: Path) -> None:
    save_file({"fc.weight": np.ones((4, 4), np.float32)}, tmp_path / "model.safetensors")
    checkpoint = only(tmp_path)
    found = without_weights(checkpoint, read_structure(checkpoint), ())
    assert (found.status, found.code, found.matrices) == ("failed", "E_NO_ATTENTION", ())
    assert found.reason is not None
    assert str(tmp_path) in found.reason


def test_without_weights_the_reason_comes_first(tmp_path: Path) -> None:
    checkpoint = replace(only(tiny.save(tmp_path, tiny.llama(0))), notices=(Notice("E_CONFIG_INVALID", "odd"),))
    found = without_weights(checkpoint, None, (Notice("E_INTERNAL", "a bug", str(tmp_path)),))
    assert (found.status, found.code, codes(found)) == ("failed", "E_INTERNAL", ["E_INTERNAL", "E_CONFIG_INVALID"])
    assert (found.sources, found.bytes.files, found.bytes.read) == ((), 0, 0)


def test_one_broken_shard_costs_its_matrices(tmp_path: Path) -> None:
    weights = tiny.llama(0)
    whole = take(tiny.save_sharded(tmp_path, weights))
    shard = tmp_path / "model-00002-of-00003.safetensors"
    os.truncate(shard, shard.stat().st_size - 1)
    found = take(tmp_path)
    assert found.status == "partial"
    assert found.code == "E_FILE_TRUNCATED"
    kept = by_place(found)
    assert 0 < len(kept) < 24
    assert all(by_place(whole)[place] == stats for place, stats in kept.items())
    # Whatever of a layer lay in the shard is missing from the energies too, never zero.
    assert {key[1:] for key in found.energies} == {place for place in kept if place[1] in "vo"}
    assert all((units > 0).all() for units in found.energies.values())


def test_headers_are_read_without_torch_or_triton(tmp_path: Path) -> None:
    tiny.save_sharded(tmp_path / "a", tiny.llama(0))
    (tmp_path / "b").mkdir()
    torch.save({name: torch.from_numpy(value) for name, value in tiny.llama(0).items()}, tmp_path / "b/model.bin")
    program = (
        "import sys; from pathlib import Path\n"
        "from weightprint.discover import discover; from weightprint.fingerprint import read_structure\n"
        "found = [read_structure(checkpoint) for checkpoint in discover([Path(sys.argv[1])])]\n"
        "heavy = {'torch', 'triton', 'numba', 'accelerate', 'safetensors'} & set(sys.modules)\n"
        "print([len(structure.understanding.matrices) for structure in found], sorted(heavy))"
    )
    done = subprocess.run([sys.executable, "-c", program, str(tmp_path)], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("[24, 24] []\n", "")
