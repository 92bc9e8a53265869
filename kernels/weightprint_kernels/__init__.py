"""Reductions over raw weight bytes: partial moments and column energies, on CPU and CUDA."""
