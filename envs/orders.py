"""Target weights to orders, the same for simulation and for the broker."""

from __future__ import annotations

import numpy as np

from envs.contract import Floats
from envs.limits import Limits

_FRACTIONS = 1e6  # a broker takes at most nine decimals; six are a thousandth of a cent


def order_shares(weights: Floats, equity: Floats, price: Floats, shares: Floats, limits: Limits) -> Floats:
    """Returns the signed shares to trade, `[N, ...]`; positive buys.

    The wanted position is rounded toward zero, so the order never asks for more than the weight. A trade
    inside the no-trade band or below the minimum is skipped, unless it closes the position. An account
    without equity can only close.

    Args:
        weights: Target weights, `[N, ...]`; NaN leaves a position alone, 0 closes it.
        equity: Account equity in USD, `[...]`.
        price: Raw USD price that sizes the order, `[N, ...]`; NaN or 0 where unknown: no order there.
        shares: Shares held now, `[N, ...]`.
        limits: Gives band, minimum and whether fractions are traded.
    """
    equity = np.maximum(equity, 0.0)
    least = limits.no_trade_band * equity
    if limits.minimum_trade_usd:
        least = np.maximum(least, limits.minimum_trade_usd)
    with np.errstate(divide="ignore", invalid="ignore"):
        wanted = whole(weights * equity / price, limits)
        change = wanted - shares
        trades = (np.abs(change) * price >= least) | (wanted == 0)  # False for what is NaN
    return np.where(trades, change, 0.0)


def whole(shares: Floats, limits: Limits) -> Floats:
    """Returns `shares` rounded toward zero to what can be traded: whole shares, or six decimals."""
    result: Floats = np.trunc(shares * _FRACTIONS) / _FRACTIONS if limits.fractional else np.trunc(shares)
    return result
