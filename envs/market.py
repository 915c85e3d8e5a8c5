"""The panel as the simulator reads it: scaled features and the bars of one step, gathered by row and column."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from data_pipeline.panel import Panel, open_panel
from data_pipeline.scaling import Scaler
from envs.contract import Bools, Floats, Floats32, Ints
from envs.portfolio import Bars


class Market:
    """Read-only market data for any number of slots.

    Attributes:
        features: Scaled features, `[T, N, F]` float32.
        ready: `[T, N]`.
    """

    def __init__(self, panel: Panel, scaler: Scaler) -> None:
        self.panel = panel
        self.features: Floats32 = scaler.transform(panel.features)
        self.ready: Bools = panel.ready

    @classmethod
    def open(cls, panel: str, scaler: dict[str, Any]) -> Market:
        """Returns the market of a saved panel; the arguments are plain so that they travel to workers."""
        return cls(open_panel(Path(panel)), Scaler.of(scaler, "scaler"))

    def bars(self, t: Ints, n: Ints) -> Bars:
        """Returns the bars that lead from session `t` to `t + 1`; `t` and `n` broadcast to `[..., N]`."""
        return gather_bars(self.panel, self.ready, t, n)

    def close(self, t: Ints, n: Ints) -> Floats:
        """Returns raw closes of sessions `t` and columns `n`."""
        return self.panel.fields["close"][t, n]

    def episode_starts(self, start: int, stop: int, length: int) -> Ints:
        """Returns all (session row, symbol column) pairs, `[M, 2]`, from which an episode fits.

        A fit has `length` decisions and their fills inside [start, stop), and is ready throughout.
        """
        ready = self.ready[start:stop].astype(np.int64)
        total = np.vstack([np.zeros((1, ready.shape[1]), np.int64), ready.cumsum(axis=0)])
        whole = total[length + 1 :] - total[: -length - 1] == length + 1
        return np.argwhere(whole) + np.array([start, 0])


def gather_bars(panel: Panel, ready: Bools, t: Ints, n: Ints) -> Bars:
    """See `Market.bars`; `ready` is `[T, N]`."""
    fields = panel.fields
    return Bars(
        ready=ready[t, n],
        sigma=fields["sigma"][t, n],
        adv=fields["adv"][t, n],
        split=fields["split"][t + 1, n],
        dividend=fields["dividend"][t + 1, n],
        open=fields["open"][t + 1, n],
        close=fields["close"][t + 1, n],
        volume=fields["volume"][t + 1, n],
    )
