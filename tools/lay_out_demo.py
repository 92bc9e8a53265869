"""Lay out the demo: two published checkpoints as references, four others to scan, as links into the cache."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path

from fetch_real import ROOT, cache_directory, fetch

REFERENCES = ("rxnfp-bert-pretrained", "antiberty")


def lay_out(demo: Path, checkpoints: Mapping[str, Path]) -> None:
    """Make ``demo``/references and ``demo``/checkpoints anew; what the last run left is removed."""
    shutil.rmtree(demo, ignore_errors=True)
    for name, directory in checkpoints.items():
        link = demo / ("references" if name in REFERENCES else "checkpoints") / name
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(directory.resolve(), target_is_directory=True)


if __name__ == "__main__":
    lay_out(ROOT / "demo", fetch(cache_directory()))
