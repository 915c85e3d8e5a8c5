"""One session's bars by hand, and a market in which all that can befall a symbol does."""

from __future__ import annotations

from typing import Any

import numpy as np

from data_pipeline.panel import COLUMNS, Panel
from data_pipeline.scaling import Scaler
from data_pipeline.sessions import sessions_between
from envs.costs import Costs
from envs.limits import Limits
from envs.market import Market
from envs.portfolio import Bars

LOOSE = Limits(max_weight=1.0, max_gross=1.0, no_trade_band=0.0)
FREE = Costs().scaled(0.0).model_copy(update={"max_participation": 1.0})

EVERY_COST = {
    "commission_usd_per_order": 0.1,
    "commission_bps": 0.5,
    "commission_minimum_usd": 1.0,
    "spread": "high_low",
    "slippage_bps": 2.0,
    "max_participation": 0.02,
    "borrow_bps_per_year": 300.0,
}
EVERY_REWARD = {"excess": 0.5, "differential_sharpe": 0.01, "drawdown": 0.3, "turnover": 0.2}
EVERY_LIMIT = {
    "allocation": "volatility_target",
    "volatility_target": 0.4,
    "risk_per_trade": 0.08,
    "max_net": 0.6,
    "no_trade_band": 0.02,
    "minimum_trade_usd": 200.0,
    "min_holding_sessions": 3,
    "max_holding_sessions": 15,
    "turnover_per_year": 60.0,
    "max_session_loss": 0.04,
    "max_drawdown": 0.25,
    "stop_loss": 0.05,
    "take_profit": 0.08,
    "pattern_day_trader": True,
    "unshortable": ("S1", "S4"),
}
EVERY_OPTION = {
    "episode_sessions": 40,
    "action": "continuous",
    "initial_cash_usd": 24_000.0,
    "ruin_fraction": 0.5,
    "rewards": EVERY_REWARD,
    "limits": EVERY_LIMIT,
    "costs": EVERY_COST,
}


def session(
    open_: Any,
    close: Any = None,
    *,
    high: Any = None,
    low: Any = None,
    split: Any = 1.0,
    dividend: Any = 0.0,
    volume: Any = 1e6,
    sigma: Any = 0.02,
    adv: Any = 1e6,
    spread: Any = 0.001,
    luck: Any = 0.0,
    ready: Any = True,
    shortable: Any = True,
    listed: Any = True,
) -> Bars:
    """Bars of one session, one entry per symbol, `[N]`."""
    close = open_ if close is None else close
    low = np.fmin(open_, close) if low is None else low
    high = np.fmax(open_, close) if high is None else high
    values = (ready, shortable, sigma, adv, spread, luck, listed, split, dividend, open_, high, low, close, volume)
    width = np.broadcast_shapes(*(np.shape(value) for value in values), (1,))
    return Bars(*(np.broadcast_to(value, width).copy() for value in values))


def rough_panel(symbols: int = 12, total: int = 700, seed: int = 0) -> Panel:
    """A panel on which everything that can happen to a symbol happens; its features are noise."""
    rng = np.random.default_rng(seed)
    shape = (total, symbols)
    move = 0.03 * rng.standard_normal(shape) + np.where(rng.random(shape) < 0.01, rng.choice([-0.25, 0.4], shape), 0)
    split = np.where(rng.random(shape) < 0.004, rng.choice([2.0, 1.5, 0.1, 3.0], shape), 1.0)
    adjusted = 40 * np.exp(np.cumsum(move, axis=0))
    close = adjusted / np.cumprod(split, axis=0)
    dividend = np.where(rng.random(shape) < 0.01, 0.01 * close, 0.0)
    open_ = close * np.exp(0.01 * rng.standard_normal(shape))
    high = np.maximum(open_, close) * np.exp(0.01 * np.abs(rng.standard_normal(shape)))
    low = np.minimum(open_, close) * np.exp(-0.01 * np.abs(rng.standard_normal(shape)))
    volume = np.floor(np.exp(rng.normal(10, 1.5, shape)))
    fields = {
        "open": open_, "high": high, "low": low, "close": close, "volume": volume, "split": split,
        "dividend": dividend, "adjusted_close": adjusted, "sigma": np.full(shape, 0.03),
        "adv": np.full(shape, np.exp(10.0)), "spread": 0.004 * rng.random(shape),
    }  # fmt: skip
    features = rng.standard_normal((*shape, 3)).astype(np.float32)
    gone = rng.random(shape) < 0.004  # halted: no bar
    gone[:100, 2] = True  # listed later
    gone[450:, 3] = gone[600:, 5] = True  # delisted
    for name in ("open", "high", "low", "close", "volume", "adjusted_close", "sigma", "adv", "spread"):
        fields[name][gone] = np.nan
    fields["split"][gone], fields["dividend"][gone] = 1.0, 0.0
    dry = ~gone & (rng.random(shape) < 0.004)
    fields["volume"][dry] = 0.0
    features[gone] = np.nan
    days = sessions_between(np.datetime64("2012-01-03").item(), np.datetime64("2016-12-30").item())[:total]
    assert set(fields) == set(COLUMNS)
    names = tuple(f"S{number}" for number in range(symbols))
    return Panel.of(days, names, ("a", "b", "c"), "rough", {}, features, fields)


def rough_market(symbols: int = 12, total: int = 700, seed: int = 0) -> Market:
    """The same, ready for environments."""
    return Market(rough_panel(symbols, total, seed), Scaler(median=(0.0, 0.0, 0.0), spread=(1.0, 1.0, 1.0)))
