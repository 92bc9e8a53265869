"""Write requirements.lock from what .venv holds: exact versions, without the build tags of one machine's wheels."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

LOCK = Path(__file__).resolve().parent.parent / "requirements.lock"
ONLY_ON = {"triton": 'sys_platform == "linux"'}
HEAD = "# What make installs: exact versions, the same on every machine. Made by: make lock\n"


def lock_lines(freeze: str) -> list[str]:
    """The lines of ``pip freeze`` without pip itself and without local version tags."""
    lines = []
    for line in freeze.splitlines():
        name, _, version = line.partition("==")
        if not version or name == "pip":
            continue
        condition = f" ; {ONLY_ON[name]}" if name in ONLY_ON else ""
        lines.append(f"{name}=={re.sub(r'[+].*', '', version)}{condition}")
    return lines


if __name__ == "__main__":
    command = [sys.executable, "-m", "pip", "freeze", "--all", "--exclude-editable"]
    frozen = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    LOCK.write_text(HEAD + "".join(f"{line}\n" for line in lock_lines(frozen)))
