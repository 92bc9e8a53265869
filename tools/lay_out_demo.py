"""Lay out the demo: two published checkpoints as references, four others to scan, as links into the cache."""

from __future__ import annotations

import shutil

from fetch_real import ROOT, cache_directory, fetch

DEMO = ROOT / "demo"
REFERENCES = ("rxnfp-bert-pretrained", "antiberty")


def main() -> None:
    """Make demo/references and demo/checkpoints anew; what the last run left is removed."""
    shutil.rmtree(DEMO, ignore_errors=True)
    for name, directory in fetch(cache_directory()).items():
        link = DEMO / ("references" if name in REFERENCES else "checkpoints") / name
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(directory.resolve(), target_is_directory=True)


if __name__ == "__main__":
    main()
