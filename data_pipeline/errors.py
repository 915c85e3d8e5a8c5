"""The errors that people may meet; anything else is a defect.

SwingError            every message says what was wrong, where, and what to do
├── ConfigError       a setting is unknown, missing or out of range
├── BarsError         a bars table is not fit for use
├── UnknownSymbolError  a symbol that the source or panel does not hold
├── StoreError        a snapshot or panel is absent, torn or altered
├── AlpacaError       Alpaca cannot be reached, refuses, or answers what cannot be understood
├── FoldError         the history cannot be split as asked
├── BundleError       a policy bundle is absent, altered or does not fit
├── RunError          a training run or sweep cannot start, continue or be read
└── LiveError         the executor or policy server cannot be set up as asked
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")


class SwingError(Exception):
    """Base of all errors that are the user's to mend; commands print it in one line and exit with 2."""


class ConfigError(SwingError):
    """A setting is unknown, missing or out of range."""


class BarsError(SwingError):
    """A bars table is not fit for use."""


class UnknownSymbolError(SwingError):
    """A symbol that the source or panel does not hold."""


class StoreError(SwingError):
    """A snapshot or panel is absent, torn or altered."""


class AlpacaError(SwingError):
    """Alpaca cannot be reached, refuses, or answers what cannot be understood."""


class FoldError(SwingError):
    """The history cannot be split as asked."""


class BundleError(SwingError):
    """A policy bundle is absent, altered or does not fit."""


class RunError(SwingError):
    """A training run or sweep cannot start, continue or be read."""


class LiveError(SwingError):
    """The executor or policy server cannot be set up as asked."""


def one_line_errors(command: Callable[P, R]) -> Callable[P, R]:
    """Returns `command` so that a SwingError prints one line to stderr and exits with status 2."""

    @functools.wraps(command)
    def guarded(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return command(*args, **kwargs)
        except SwingError as error:
            sys.stderr.write(f"error: {error}\n")
            raise SystemExit(2) from error

    return guarded
