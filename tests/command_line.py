"""Run the command line as a user does: a process of its own."""

import json
import subprocess
import sys
from typing import Any


def run(*arguments: str, expect: int | None = 0, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run weightprint; no traceback may ever appear, and the exit code must be ``expect`` (None: any)."""
    command = [sys.executable, "-m", "weightprint", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300, **options)
    assert "Traceback" not in done.stderr, done.stderr
    assert expect is None or done.returncode == expect, (done.returncode, done.stdout, done.stderr)
    return done


def run_json(*arguments: str, expect: int | None = 0, **options: Any) -> dict[str, Any]:
    """Run weightprint and parse the one document on its stdout."""
    return dict(json.loads(run(*arguments, expect=expect, **options).stdout))
