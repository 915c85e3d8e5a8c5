"""Reward terms, pure and finite from the first step."""

from __future__ import annotations

import numpy as np

from envs.contract import Floats

_FLOOR = 1e-3


def log_return(equity_t: Floats, equity_tm1: Floats) -> Floats:
    """Returns log(equity_t / equity_tm1), `[...]`; a loss of all counts as one of 99.9 %."""
    result: Floats = np.log(np.maximum(equity_t / equity_tm1, _FLOOR))
    return result
