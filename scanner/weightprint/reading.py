"""What is read of a checkpoint. Imports nothing, so that the command line can offer the choice before anything else."""

from __future__ import annotations

from enum import StrEnum


class Read(StrEnum):
    """``attention`` reads attention matrices alone; ``all`` reads those of feed-forward blocks and experts as well."""

    attention = "attention"
    all = "all"
