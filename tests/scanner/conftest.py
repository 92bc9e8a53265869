"""What tests of the command line in this process share: a home, signals and streams of their own."""

import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from weightprint.cli import main as run_main

Call = Callable[..., tuple[int, str, str]]


@pytest.fixture
def own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No default store, reference set or index of the machine takes part."""
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("WEIGHTPRINT_DEBUG", raising=False)
    monkeypatch.delenv("WORLD_SIZE", raising=False)


@pytest.fixture
def own_signals() -> Iterator[None]:
    """What the program makes of signals ends with the test."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture
def call(
    own_home: None, own_signals: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Call:
    """Run the command line in this process: (exit code, stdout, stderr)."""

    def run_in_process(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["weightprint", *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            run_main()
        streams = capsys.readouterr()
        code = end.value.code
        assert code is None or isinstance(code, int)
        return code or 0, streams.out, streams.err

    return run_in_process
