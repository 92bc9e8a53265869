"""What a scan says beside verdicts, held against the truth: drift, directions, claims, merges, confirmations."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from lineage_parts.truth import Held, Truth
from weightprint.compare.families import EVIDENCE
from weightprint.compare.invariants import LAUNDERING
from weightprint.confirm.outcome import confirm_pair
from weightprint.gather import one_checkpoint
from weightprint.scan import Report

Members = Mapping[str, Truth]


def drifts(models: Path, pairs: Sequence[Held], truths: Members) -> list[dict[str, Any]]:
    """Each member whose units kept their order against the model that it goes back to: the cosine of all weights of V,
    exact p of the test layer by layer in either channel, and the word."""
    found = []
    for pair in pairs:
        for younger, older in ((pair.a, pair.b), (pair.b, pair.a)):
            if older.name not in younger.origins or older is younger or younger.attention != "same order":
                continue
            whole = {test.name: test for test in pair.found.tests if " whole" in test.name and test.name[0] in "vo"}
            cosine = _cosine(values_of(models / older.name), values_of(models / younger.name))
            if whole and cosine is not None:
                found.append(
                    {
                        "name": younger.name,
                        "kind": younger.kind,
                        "cosine": cosine,
                        **{f"{name.split()[0]}_log10_p": test.log10_p for name, test in whole.items()},
                        "blocks": next(iter(whole.values())).blocks,
                        "pair_log10_p": pair.found.pair_log10_p,
                        "seed_score": pair.found.screen.score,
                        "verdict": pair.found.verdict,
                    }
                )
    return sorted(found, key=lambda row: -float(row["cosine"]))


def values_of(directory: Path) -> list[Tensor]:
    """The matrices V of a model of the zoo, layer by layer; none where they are stored in another way."""
    file = directory / "model.safetensors"
    tensors = load_file(file) if file.is_file() else {}
    found = []
    for name, tensor in sorted(tensors.items()):
        if name.endswith("v_proj.weight"):
            found.append(tensor.float())
        elif name.endswith("c_attn.weight"):
            found.append(tensor.float().chunk(3, dim=1)[2])
    return found


def _cosine(first: Sequence[Tensor], second: Sequence[Tensor]) -> float | None:
    if not first or [own.shape for own in first] != [own.shape for own in second]:
        return None
    flat = [torch.cat([own.flatten() for own in side]) for side in (first, second)]
    return float(torch.nn.functional.cosine_similarity(flat[0], flat[1], dim=0))


def directions(report: Report, truths: Members) -> dict[str, Any]:
    """How many directions are stated, how many of these are true, and those that are not known to be."""
    stated = [own for own in report.directions.values() if own.older is not None and own.younger is not None]
    wrong = [own for own in stated if own.older not in older_than(truths, own.younger or "")]
    cues = Counter(cue.split(":")[0] for own in stated for cue in own.cues)
    return {
        "related_pairs": sum(found.verdict in EVIDENCE for found in report.comparisons),
        "stated": len(stated),
        "true": len(stated) - len(wrong),
        "not_true": [[own.older, own.younger, *own.cues] for own in wrong],
        "cues": dict(cues.most_common()),
    }


def older_than(truths: Members, name: str) -> set[str]:
    """Every member that is certainly older than ``name``: those that it says, its parents, and theirs."""
    found: set[str] = set()
    waiting = [name]
    while waiting:
        own = truths[waiting.pop()]
        new = ({*own.older, *own.parents} & set(truths)) - found
        found |= new
        waiting += new
    return found


def claims(report: Report, truths: Members) -> dict[str, Any]:
    """What was found of the origins that members declare, by whether the claim is true."""
    counts: Counter[tuple[bool, str]] = Counter()
    for name, found in report.declared.items():
        for own in found:
            counts[truths[name].declared_true, own.finding] += 1
    return {f"{'true' if true else 'false'} claims": _of(counts, true) for true in (True, False)}


def _of(counts: Counter[tuple[bool, str]], true: bool) -> dict[str, int]:
    return {word: number for (own, word), number in sorted(counts.items()) if own is true}


def merges(report: Report, truths: Members) -> dict[str, Any]:
    """Merge candidates with the parents named and their weights, beside the truth; and merges that were not found."""
    found = [merge for family in report.families for merge in family.merges]
    same = {frozenset({own.a, own.b}) for own in report.comparisons if own.verdict in ("identical", "re-encoded")}

    def stands_for(name: str, member: str) -> str | None:
        """The parent of a member that a name is, or holds the same weights as."""
        parents = truths[member].parents
        alike = (parent for parent in parents if name == parent or frozenset({name, parent}) in same)
        return next(alike, None)

    true = {name for name, truth in truths.items() if truth.kind.startswith("merged")}
    return {
        "candidates": [
            {
                "member": merge.member,
                "kind": merge.kind,
                "is_merge": merge.member in true,
                "parents": [
                    {
                        "name": parent.name,
                        "is_parent": stands_for(parent.name, merge.member),
                        "partial_z": parent.partial_z,
                        "weight": parent.weight,
                        "weight_error": parent.weight_error,
                        "true_weight": (truths[merge.member].weights or {}).get(
                            stands_for(parent.name, merge.member) or ""
                        ),
                    }
                    for parent in merge.parents
                ],
            }
            for merge in found
        ],
        "not_found": sorted(true - {merge.member for merge in found}),
    }


def confirmations(
    models: Path, attention: Sequence[Held], everything: Sequence[Held], truths: Members
) -> dict[str, Any]:
    """Of each laundered member against what it was made of: flagged with attention read, linked or flagged with
    feed-forward blocks too, confirmed; of unrelated pairs: flagged, confirmed. Of these the untouched models are all
    confirmed with each other, and every pair that is flagged."""
    rows = []
    for pair, more in zip(attention, everything, strict=True):
        younger = next((own for own in (pair.a, pair.b) if own.attention == "laundered"), None)
        if younger is not None and (pair.names - {younger.name}) <= set(younger.parents):
            rows.append({"kind": younger.kind, "name": younger.name, **_looked_at(models, pair, more)})
    untouched = {name for name, truth in truths.items() if not truth.parents}
    unrelated = [own for own in zip(attention, everything, strict=True) if not own[0].related]
    flags = [_flagged(pair) or _flagged(more) for pair, more in unrelated]
    looked_at = [own for own, flag in zip(unrelated, flags, strict=True) if flag or own[0].names <= untouched]
    false = [_looked_at(models, *own) for own in looked_at]
    kinds = sorted({row["kind"] for row in rows})
    return {
        "laundered": {kind: _counts([row for row in rows if row["kind"] == kind]) for kind in kinds},
        "all laundered": _counts(rows),
        "missed": [row["name"] for row in rows if not row["linked"] and row["outcome"] != "confirmed"],
        "unrelated": {"pairs": len(unrelated), "flagged": sum(flags), **_outcomes(false)},
    }


def _looked_at(models: Path, pair: Held, more: Held) -> dict[str, Any]:
    """What two scans say of a pair, and what reading its weights does."""
    a, b = (one_checkpoint(models / own.name) for own in (pair.a, pair.b))
    confirmation = confirm_pair(a, b, "cpu")
    linked = more.found.verdict in EVIDENCE
    return {
        "flagged": _flagged(pair),
        "linked": linked,
        "linked or flagged": linked or _flagged(more),
        "outcome": confirmation.outcome,
        "log10_p": confirmation.log10_p,
    }


def _flagged(pair: Held) -> bool:
    return any(reason.startswith(LAUNDERING) for reason in pair.found.reasons)


def _counts(rows: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    """Over laundered pairs, how many are found in which way."""
    found = {name: sum(row[name] for row in rows) for name in ("flagged", "linked", "linked or flagged")}
    return {"pairs": len(rows), **found, **_outcomes(rows)}


def _outcomes(rows: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    return {"looked_at": len(rows), **dict(_outcome_counts(rows))}


def _outcome_counts(rows: Sequence[Mapping[str, Any]]) -> Iterator[tuple[str, int]]:
    for outcome in ("confirmed", "withdrawn", "not possible"):
        yield outcome, sum(row["outcome"] == outcome for row in rows)
