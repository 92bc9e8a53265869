"""Reports written by hand: every verdict, every status, names that would like to be more than names."""

from dataclasses import replace

from fingerprints import small_fingerprint

from weightprint.compare import Family
from weightprint.compare.copies import Copies
from weightprint.compare.direction import Direction
from weightprint.compare.families import Link, Merge, Parent
from weightprint.data import Comparison, Fingerprint, Screen, Test
from weightprint.errors import Notice
from weightprint.lineage import DeclaredFinding
from weightprint.scan import Outcome, Report

VERDICTS = ("identical", "re-encoded", "shared-origin", "similar-profile", "no-evidence", "not-comparable")
LOG10_P = {"identical": -1234.5, "re-encoded": -400.0, "shared-origin": -9.25, "similar-profile": -1.5}

NASTY = {
    "escape": "a\x1b[31mb\x1b[0m",
    "newline": "a\nb\r\nc",
    "right-to-left": "a\u202eevil\u202c",
    "isolate": "a\u2066b\u2069",
    "markup": "[red]a[/red] [link=http://x]b[/link]",
    "emoji-code": "a:warning:b",
    "surrogate": "a\udc80b",
    "bell-and-null": "a\x07b\x00c",
    "one-byte-escape": "a\x9b31mb",
    "line-separator": "a\u2028b\u0085c",
    "zero-width": "a\u200bb\ufeffc",
    "tab": "a\tb",
    "backslash": "a\\x1b[31mb",
    "private-use": "a\ue000b",
}
"""Names as a hostile directory may hold them."""


def comparison(verdict: str, a: str = "a", b: str = "b") -> Comparison:
    """A judged pair of every kind of field."""
    log10_p = None if verdict == "not-comparable" else LOG10_P.get(verdict, -0.25)
    tests = (Test("v whole", 57764, 384, 46.42, -789.6, 0.6), Test("o layers", -12, 32, -0.5, -0.1, 2.76))
    return Comparison(
        a=a,
        b=b,
        verdict=verdict,
        pair_log10_p=log10_p,
        log10_p=log10_p,
        tests=() if log10_p is None else tests,
        screen=Screen(None) if log10_p is None else Screen(0.98765, 0.9, 0.8, None, -0.1, 97.5, 21),
        layer_map=() if log10_p is None else ((0, 0, 12.5), (1, 2, 3.25)),
        reasons=(f"why it is {verdict}", "and one thing more"),
        head_map=() if log10_p is None else ((0, 0, 0, 0, 9.5), (1, 2, 2, 0, 8.25)),
    )


def fingerprint(name: str, status: str = "complete") -> Fingerprint:
    """A fingerprint of a status, with what belongs to it."""
    whole = small_fingerprint(name)
    if status == "complete":
        return replace(whole, status=status, code=None, reason=None, notices=())
    if status == "partial":
        return whole
    notice = Notice("E_FILE_TRUNCATED", "ends too early; fetch it again", f"/models/{name}/model.safetensors")
    return replace(
        whole, status=status, code=notice.code, reason=notice.line(), notices=(notice,), matrices=(), energies={}
    )


def outcome(name: str, status: str = "complete", fresh: bool = False, reference: bool = False) -> Outcome:
    copies = (Copies("model.layers", "layers", (1, 3), ("v", "o")),)
    return Outcome(fingerprint(name, status), 0.0 if fresh else 1.25, fresh, reference, copies=copies)


def report(
    outcomes: tuple[Outcome, ...] = (outcome("a"), outcome("b", "partial"), outcome("c", "failed")),
    comparisons: tuple[Comparison, ...] = tuple(
        comparison(verdict, "a", "bc"[number % 2]) for number, verdict in enumerate(VERDICTS)
    ),
) -> Report:
    """A finished scan of every kind of entry."""
    return Report(
        outcomes=outcomes,
        references=(outcome("reference", fresh=True, reference=True),),
        comparisons=comparisons,
        families=(Family(("a", "b"), (Link("a", "b", "shared-origin", -9.25),), (merge("b", "a"),)),),
        notices=(Notice("E_FINGERPRINT_CORRUPT", "is damaged; delete it", "/store/x.weightprint"),),
        seconds=61.5,
        alpha=1e-6,
        backend="reference: asked for",
        directions={
            ("a", "b"): Direction("a", "b", ("why a is older",)),
            ("a", "c"): Direction(None, None, ("this", "that"), "cues disagree"),
        },
        declared={"a": (DeclaredFinding("README.md", "org/b", "b", "agrees", "shared-origin with b"),)},
    )


def merge(member: str, parent: str) -> Merge:
    """A merge candidate of a parent and a nameless one."""
    parents = (Parent(parent, 12.5, 0.7, 0.01), Parent("other", None, 0.3, 0.01))
    return Merge(member, parents, "linear", f"{member} lies between", exact=True)


def nasty_report(name: str) -> Report:
    """Every text of a report that comes from outside holds ``name``."""
    notice = Notice("E_READ", f"reason {name}", f"/path/{name}", f"tensor {name}")
    broken = fingerprint(name, "failed")
    broken = replace(broken, reason=notice.line(), notices=(notice, notice))
    pairs = tuple(replace(comparison(verdict, name, f"b {name}"), reasons=(f"why {name}",)) for verdict in VERDICTS)
    return replace(
        report((Outcome(broken, 1.0, False),), pairs),
        families=(
            Family(
                members=(name, f"b {name}"),
                evidence=(Link(name, f"b {name}", "shared-origin", -9.25),),
                merges=(merge(name, f"b {name}"),),
            ),
        ),
        notices=(notice,),
        directions={(name, f"b {name}"): Direction(name, f"b {name}", (f"why {name}",))},
        declared={name: (DeclaredFinding(f"README {name}", name, None, "contradicts", f"why {name}"),)},
    )
