"""Parts of bench/lineage.py."""
