"""Plots of bench/lineage.py as SVG, the same bytes for the same figures."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np

matplotlib.use("svg")
matplotlib.rcParams["svg.hashsalt"] = "weightprint"

from matplotlib import pyplot  # noqa: E402  the backend comes first
from matplotlib.figure import Figure  # noqa: E402

SIZE = (6.4, 4.0)


def draw_drift(place: Mapping[str, Any], file: Path) -> None:
    """-log10 p of the pair and the seed score against the cosine of the weights of V."""
    figure, evidence = pyplot.subplots(figsize=SIZE)
    rows = place["drift"]
    cosine = [row["cosine"] for row in rows]
    evidence.scatter(cosine, [max(-row["pair_log10_p"], 0.05) for row in rows], s=22, label="order code")
    evidence.axhline(6, linewidth=0.8, linestyle="--", color="grey")
    evidence.set_yscale("log")
    evidence.set_xlabel("cosine of W_V with the model it goes back to")
    evidence.set_ylabel("-log10 p of the pair (dots)")
    screen = evidence.twinx()
    scored = [(row["cosine"], row["seed_score"]) for row in rows if row["seed_score"] is not None]
    screen.scatter([x for x, _ in scored], [y for _, y in scored], s=22, marker="x", color="tab:orange")
    screen.set_ylabel("seed score (crosses)")
    _save(figure, file)


def draw_null(place: Mapping[str, Any], file: Path) -> None:
    """Sorted p of layer pairs of unrelated models against what is expected of uniform ones."""
    figure, axes = pyplot.subplots(figsize=SIZE)
    p = place["null"]
    # Points so close that they would lie on each other are left out.
    shown = np.unique(np.geomspace(1, len(p), 200).astype(int)) - 1
    least = 0.5 / len(p)
    axes.loglog((shown + 0.5) / len(p), [p[number] for number in shown], ".", markersize=4)
    axes.loglog([least, 1], [least, 1], linewidth=0.8, color="grey")
    axes.set_xlabel("expected p")
    axes.set_ylabel("p of layer pairs of unrelated models")
    _save(figure, file)


def _save(figure: Figure, file: Path) -> None:
    figure.tight_layout()
    figure.savefig(file, metadata={"Date": None})
    pyplot.close(figure)
