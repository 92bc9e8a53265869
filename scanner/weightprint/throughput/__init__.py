"""What this machine reads and reduces a second against what it could: ``weightprint bench``, the scripts in bench/."""
