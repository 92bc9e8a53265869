"""Confirm: read the weights of one pair and test what permuting units on purpose does not change. Torch is imported
where weights are read, not before."""

TAKEN_BACK = "the flag of possible laundering is withdrawn: "
"""How the first reason of a pair begins that was flagged and in whose weights nothing was found."""
