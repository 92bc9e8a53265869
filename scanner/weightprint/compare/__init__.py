"""Compare fingerprints: exact tests of independent initialisation, the screen, verdicts and families. No I/O."""

from weightprint.compare.blocks import order_codes
from weightprint.compare.comparisons import WORDS, figures_of, words_of
from weightprint.compare.families import Family, Link, families
from weightprint.compare.holm import holm
from weightprint.compare.pair import compare_all, compare_pair
from weightprint.compare.prepared import Prepared, prepare
from weightprint.compare.verdict import ALPHA, judge

__all__ = [
    "ALPHA",
    "WORDS",
    "Family",
    "Link",
    "Prepared",
    "compare_all",
    "compare_pair",
    "families",
    "figures_of",
    "holm",
    "judge",
    "order_codes",
    "prepare",
    "words_of",
]
