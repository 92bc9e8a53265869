"""Confirm: read the weights of one pair and test what permuting units on purpose does not change. Torch is imported
where weights are read, not before."""
