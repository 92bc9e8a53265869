"""Bytes into moments and unit energies: files are read, slot by slot, and reduced on the CPU or on a device."""
