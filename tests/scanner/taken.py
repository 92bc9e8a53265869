"""A checkpoint's fingerprint in one call: its plan carried out on a backend, and what came of it put together."""

from weightprint.data import Checkpoint, Fingerprint
from weightprint.engine.cpu import reduce_plan
from weightprint.fingerprint import Structure, fingerprint_from
from weightprint_kernels.backend import Backend


def take_fingerprint(checkpoint: Checkpoint, structure: Structure, backend: Backend, threads: int = 1) -> Fingerprint:
    return fingerprint_from(checkpoint, structure, reduce_plan(structure.plan, backend, threads))
