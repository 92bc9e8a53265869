"""weightprint: where a checkpoint comes from."""

__version__ = "0.1.0"
