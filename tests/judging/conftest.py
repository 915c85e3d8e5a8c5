"""The command line, run in the process of the test."""

from __future__ import annotations

import sys

import pytest

from rl.cli import main


@pytest.fixture
def swing_rl(monkeypatch, capsys):
    """Runs `swing-rl`; returns exit status, stdout and stderr."""

    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["swing-rl", *arguments])
        monkeypatch.setenv("COLUMNS", "160")
        with pytest.raises(SystemExit) as left:
            main()
        told = capsys.readouterr()
        return int(left.value.code or 0), told.out, told.err

    return run
