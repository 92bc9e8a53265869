"""What an engine is: it carries out plans, several at once, and gives back their reductions."""

from __future__ import annotations

from typing import Protocol

from weightprint.engine.collect import Reduction
from weightprint.plan import Plan


class Pending(Protocol):
    """A plan on its way. Faults of files become notices of its result; any other fault is raised by it."""

    def result(self) -> Reduction:
        """Wait for the last slot."""
        ...

    def done(self) -> bool:
        """Whether :meth:`result` would not wait."""
        ...


class Engine(Protocol):
    """Carries out plans in the order in which they come. Leaving its context gives up what is not done."""

    @property
    def description(self) -> str:
        """What computes, and why; what had to be redone elsewhere."""
        ...

    def submit(self, plan: Plan) -> Pending:
        """Queue the slots of ``plan`` behind those that wait already."""
        ...

    def __enter__(self) -> Engine: ...

    def __exit__(self, *exception: object) -> None: ...
