"""Reports: JSON documents, files by suffix, and tables for people. Nothing here computes evidence."""
