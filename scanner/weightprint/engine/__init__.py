"""Bytes into moments and unit energies: files are read, slot by slot, and reduced on the CPU or on CUDA."""

from weightprint.engine.collect import Reduction
from weightprint.engine.cpu import CpuEngine, reduce_plan
from weightprint.engine.protocol import Engine, Pending

__all__ = ["CpuEngine", "Engine", "Pending", "Reduction", "reduce_plan"]
