"""What a fingerprint says of attention alone: as if nothing else had been read.

Two fingerprints of which one was read in full are compared with this, and a scan of attention takes it from a store.
"""

from __future__ import annotations

from dataclasses import replace

from weightprint.data import ATTENTION_ROLES, Fingerprint


def attention_part(fingerprint: Fingerprint) -> Fingerprint:
    """``fingerprint`` without feed-forward matrices, their energies and what was said of them. ``bytes`` stay those of
    what was read."""
    if fingerprint.feed_forward is None:
        return fingerprint
    matrices = tuple(matrix for matrix in fingerprint.matrices if matrix.role in ATTENTION_ROLES)
    own = {tensor for matrix in matrices for tensor in matrix.tensors}
    others = {tensor for matrix in fingerprint.matrices for tensor in matrix.tensors} - own
    said = set(fingerprint.feed_forward.not_understood)
    notices = tuple(
        notice
        for notice in fingerprint.notices
        if notice not in said and not (notice.code == "E_NON_FINITE" and notice.tensor in others)
    )
    first = notices[0] if notices else None
    return replace(
        fingerprint,
        status="failed" if not matrices else "partial" if notices else "complete",
        code=first.code if first else None,
        reason=first.line() if first else None,
        matrices=matrices,
        energies={key: units for key, units in fingerprint.energies.items() if key[2] in ATTENTION_ROLES},
        notices=notices,
        feed_forward=None,
    )
