"""Target weights to whole-share orders, the same for simulation and for the broker."""

from __future__ import annotations

import numpy as np

from envs.contract import Floats
from envs.limits import Limits


def order_shares(weights: Floats, equity: Floats, price: Floats, shares: Floats, limits: Limits) -> Floats:
    """Returns the signed whole shares to trade, `[..., N]`; positive buys.

    The wanted position is rounded toward zero, so the order never asks for more than the weight. A trade
    inside the no-trade band is skipped, unless it closes the position.

    Args:
        weights: Target weights, `[..., N]`.
        equity: Account equity in USD, `[...]`.
        price: Raw USD price that sizes the order, `[..., N]`; NaN where unknown: no order there.
        shares: Shares held now, `[..., N]`.
        limits: Gives the no-trade band.
    """
    known = np.isfinite(price) & (price > 0)
    unit = np.where(known, price, 1.0)
    wanted = np.trunc(weights * equity[..., None] / unit)
    change = wanted - shares
    inside_band = np.abs(change) * unit < limits.no_trade_band * equity[..., None]
    closes = (wanted == 0) & (shares != 0)
    return np.where(known & (closes | ~inside_band), change, 0.0)
