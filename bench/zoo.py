"""A zoo of small models with known lineage: seeds of one recipe, and what people make out of a model.

Trains Llama-style models on the sources of Python's standard library and derives others from them, into a directory of
checkpoints with their lineage in ``lineage.json``. What is there already under the same recipe is not made again.

    python bench/zoo.py DIR [--quick] [--threads 1]
"""

from __future__ import annotations

import argparse
import hashlib
import json
import time
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from zoo_parts.llama import Config, Weights, save
from zoo_parts.members import Member, Model, members

PARTS = Path(__file__).parent / "zoo_parts"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", type=Path)
    parser.add_argument("--quick", action="store_true", help="a quarter of the training, three seeds")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    build(options.directory, members(options.quick), key_of(options.quick))


def key_of(quick: bool) -> str:
    """Changes with whatever changes the weights: the sources here, torch, and how long is trained."""
    digest = hashlib.sha256(f"{torch.__version__} {quick}".encode())
    for source in sorted(PARTS.glob("*.py")):
        digest.update(source.read_bytes())
    return digest.hexdigest()[:16]


def build(directory: Path, wanted: list[Member], key: str) -> None:
    """Make what is not there, and write the lineage of all."""
    exact = directory / ".exact" / key
    exact.mkdir(parents=True, exist_ok=True)
    made: dict[str, Model] = {}
    for member in wanted:
        began = time.perf_counter()
        kept = exact / f"{member.name}.safetensors"
        if not kept.exists():
            config, weights = member.make(made)
            _keep(kept, config, weights)
            print(f"{member.name}: made in {time.perf_counter() - began:.1f} s", flush=True)
        made[member.name] = _kept(kept)
        save(directory / "models" / member.name, *made[member.name], member.dtype)
    lineage = {"key": key, "members": [described(member) for member in wanted]}
    (directory / "lineage.json").write_text(json.dumps(lineage, indent=1))


def described(member: Member) -> dict[str, Any]:
    """A member in lineage.json."""
    return {
        "name": member.name,
        "kind": member.kind,
        "parents": list(member.parents),
        "seeds": sorted(member.seeds),
        "same_units": member.same_units,
    }


def _keep(path: Path, config: Config, weights: Weights) -> None:
    """As it was trained, not as it is stored: others are derived from it."""
    temporary = path.with_suffix(".tmp")
    tensors = {name: tensor.clone().contiguous() for name, tensor in weights.items()}
    save_file(tensors, temporary, metadata={"config": json.dumps(vars(config))})
    temporary.replace(path)


def _kept(path: Path) -> Model:
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        config = Config(**json.loads(file.metadata()["config"]))
    return config, load_file(path)


if __name__ == "__main__":
    main()
