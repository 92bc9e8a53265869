"""How well the seed score tells families apart, from a published matrix of scores of public models and their families.

docs/evidence-screen.md has the figures. The files come from https://github.com/TensorLock/TensorLock (commit d2562ed),
folder evaluation/:

* RQ4_effectiveness/cluster/pdf_similarity.csv: the seed score of every pair of 137 models, square, names in the first
  row and the first column; "pdf" is their name for the method of arXiv 2507.03014;
* Benchmark/cluster.json: the families, a list of lists of names;
* RQ4_effectiveness/cluster/*_clusters.json, and code/step1_cluster/clusters.json for their own method: clusterings,
  lists of lists too; a model that is in none stands alone. "/" and "_" in names are the same.

No weights are read: this is the score as others computed it, with their labels. Pairs share models, so no textbook's
standard error applies.

    python bench/screen.py SCORES.csv FAMILIES.json [--clusters NAME.json ...] [--pair A B] [--as-one A B]
"""

from __future__ import annotations

import argparse
import csv
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from math import comb
from pathlib import Path

import numpy as np
import numpy.typing as npt
from tables import print_table

from weightprint.compare.families import components
from weightprint.compare.verdict import HIGH_PERCENTILE, HIGH_SCORE

ASYMMETRY = 1e-5  # float32 scores of (a, b) and (b, a) differ by less
FALSE_RATES = (0.01, 0.001)
LINKS = (0.8, 0.9, 0.93, 0.95, 0.97, 0.99)
FARTHEST = 8  # models far from their family that are listed

Floats = npt.NDArray[np.float64]
Row = tuple[str, ...]


@dataclass(frozen=True)
class Scores:
    """Names of models and their scores [models, models], symmetric."""

    names: tuple[str, ...]
    matrix: Floats


def plain(name: str) -> str:
    """A name as it is compared: clusterings write org_model where the matrix has org/model."""
    return name.replace("/", "_")


def position(name: str, names: Sequence[str]) -> int:
    """Where a model stands. Raises ValueError if it is not among them."""
    if name not in names:
        raise ValueError(f"{name}: no model of the matrix has this name")
    return names.index(name)


def read_scores(path: Path) -> Scores:
    """A square CSV with names. Raises ValueError if it is not square, not finite or not symmetric."""
    with path.open(newline="", encoding="utf-8") as lines:
        head, *rows = [row for row in csv.reader(lines) if row] or [[]]
    names = tuple(head[1:])
    if not names or tuple(row[0] for row in rows) != names or {len(row) for row in rows} != {len(head)}:
        raise ValueError(f"{path}: not a square matrix with the same names in its first row and its first column")
    if len({plain(name) for name in names}) < len(names):
        raise ValueError(f"{path}: a name stands twice, so rows cannot be told apart")
    try:
        matrix = np.array([[float(cell) for cell in row[1:]] for row in rows])
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    if not np.isfinite(matrix).all() or np.abs(matrix - matrix.T).max() > ASYMMETRY:
        raise ValueError(f"{path}: a score is not finite, or (a, b) and (b, a) differ by more than {ASYMMETRY}")
    return Scores(names, (matrix + matrix.T) / 2)


def read_groups(path: Path, names: Sequence[str]) -> list[int]:
    """The group of each name; one that is in no group stands alone. Raises ValueError for what is no list of groups."""
    try:
        groups = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    if not isinstance(groups, list) or not all(isinstance(group, list) for group in groups):
        raise ValueError(f"{path}: not a list of lists of names")
    listed = [(plain(str(name)), number) for number, group in enumerate(groups) for name in group]
    group_of = dict(listed)
    if len(group_of) < len(listed) or group_of.keys() - {plain(name) for name in names}:
        raise ValueError(f"{path}: a name stands in it twice, or is none of the matrix")
    return [group_of.get(plain(name), -1 - at) for at, name in enumerate(names)]


def share_below(background: Floats, scores: Floats) -> Floats:
    """The share of the background below each score, equal ones half; its mean is the AUC of scores over background."""
    ordered = np.sort(background)
    return np.asarray((np.searchsorted(ordered, scores) + np.searchsorted(ordered, scores, "right")) / 2 / len(ordered))


def true_rate(related: Floats, unrelated: Floats, false_rate: float) -> tuple[float, float]:
    """The lowest score that no more than ``false_rate`` of the unrelated exceed, and the share of the related above."""
    limit = float(np.sort(unrelated)[::-1][int(false_rate * len(unrelated))])
    return limit, float((related > limit).mean())


def adjusted_rand_index(a: Sequence[int], b: Sequence[int]) -> float:
    """Agreement of two groupings, 0 by chance and 1 if equal (Hubert and Arabie, 1985)."""
    sides: tuple[Sequence[object], ...] = (list(zip(a, b, strict=True)), a, b)
    both, in_a, in_b = (sum(comb(count, 2) for count in Counter(side).values()) for side in sides)
    expected, most = in_a * in_b / comb(len(a), 2), (in_a + in_b) / 2
    return 1.0 if most == expected else (both - expected) / (most - expected)


def linked(matrix: Floats, limit: float) -> list[int]:
    """Groups of models that chains of pairs at or above ``limit`` join: single linkage."""
    first, second = (side.tolist() for side in np.nonzero(matrix >= limit))
    of: dict[int, int] = components(zip(first, second, strict=True))
    return [of.get(model, model) for model in range(len(matrix))]


def figures(scores: Scores, families: Sequence[int]) -> list[Row]:
    """How related and unrelated pairs lie to each other. Raises ValueError if there are none of either."""
    family, pairs = np.array(families), np.triu_indices(len(families), 1)
    values, same = scores.matrix[pairs], family[pairs[0]] == family[pairs[1]]
    related, unrelated = values[same], values[~same]
    if not len(related) or not len(unrelated):
        raise ValueError("the models must be of several families, some of one family")
    highest = [side[np.where(same, -np.inf, values).argmax()] for side in pairs]
    rows: list[Row] = [
        ("related pairs", f"{len(related):,}", ""),
        ("unrelated pairs", f"{len(unrelated):,}", ""),
        ("AUC", f"{share_below(unrelated, related).mean():.4f}", "P(related > unrelated), equal ones half"),
        ("unrelated maximum", f"{unrelated.max():.4f}", " / ".join(scores.names[at] for at in highest)),
    ]
    for false_rate in FALSE_RATES:
        limit, rate = true_rate(related, unrelated, false_rate)
        rows.append((f"TPR at {100 * false_rate:g} % FPR", f"{rate:.3f}", f"above {limit:.4f}"))
    for word, own in (("related", related), ("unrelated", unrelated)):
        high = (own >= HIGH_SCORE) & (100 * share_below(unrelated, own) >= HIGH_PERCENTILE)
        why = f"at least {HIGH_SCORE}, and {HIGH_PERCENTILE:g} % of the unrelated below"
        rows.append((f"high for similar-profile, {word}", f"{high.mean():.3f}", why))
    return rows


def farthest(scores: Scores, families: Sequence[int]) -> list[Row]:
    """The models whose closest relative is farthest, and their closest stranger."""
    family = np.array(families)
    same = family[:, None] == family
    relative = np.where(same & ~np.eye(len(family), dtype=bool), scores.matrix, -np.inf).max(1)
    stranger = np.where(same, -np.inf, scores.matrix).max(1)
    order = [at for at in np.argsort(relative).tolist() if np.isfinite(relative[at])][:FARTHEST]
    return [(scores.names[at], f"{relative[at]:.4f}", f"{stranger[at]:.4f}") for at in order]


def report(options: argparse.Namespace) -> None:
    """Print everything. Raises ValueError for a file that is not what it should be."""
    scores = read_scores(options.scores)
    families = read_groups(options.families, scores.names)
    lost = [name for name, family in zip(scores.names, families, strict=True) if family < 0]
    if lost:
        raise ValueError(f"{options.families}: {lost[0]} is in no family")
    for pair in options.as_one:
        kept, other = (families[position(name, scores.names)] for name in pair)
        families = [kept if family == other else family for family in families]
    groupings = [(path.name, read_groups(path, scores.names)) for path in options.clusters]
    groupings += [(f"linked at {limit}", linked(scores.matrix, limit)) for limit in LINKS]
    agreement = [(name, str(len(set(own))), f"{adjusted_rand_index(families, own):.4f}") for name, own in groupings]
    places = [[position(name, scores.names) for name in pair] for pair in options.pair]
    named = [(scores.names[a], scores.names[b], f"{scores.matrix[a, b]:.4f}") for a, b in places]
    print(f"{len(scores.names)} models, {len(set(families))} families")
    for head, rows in (
        (("figure", "value", ""), figures(scores, families)),
        (("model", "closest relative", "closest stranger"), farthest(scores, families)),
        (("clustering", "groups", "ARI"), agreement),
        (("model", "model", "score"), named),
    ):
        if rows:
            print()
            print_table(head, rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scores", type=Path, help="square CSV of scores with names")
    parser.add_argument("families", type=Path, help="JSON: a list of lists of names")
    parser.add_argument("--clusters", type=Path, nargs="+", default=[], help="clusterings to hold against the families")
    parser.add_argument("--pair", nargs=2, action="append", default=[], metavar=("A", "B"), help="a pair to print")
    parser.add_argument("--as-one", nargs=2, action="append", default=[], metavar=("A", "B"), help="join two families")
    try:
        report(parser.parse_args())
    except (OSError, ValueError) as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
