"""What a trade and a position cost, in USD; every term is at least zero and grows with its setting."""

from __future__ import annotations

from typing import Annotated, NamedTuple

import numpy as np
from pydantic import Field

from data_pipeline.config import Config
from envs.contract import Floats

NonNegative = Annotated[float, Field(ge=0)]
SESSIONS_PER_YEAR = 252


class Costs(Config):
    """The cost model; the defaults suit a small account in liquid US stocks."""

    commission_usd_per_share: NonNegative = 0.005
    """Broker's commission per share."""
    half_spread_bps: NonNegative = 2.0
    """Half of the quoted spread, paid on each side, in basis points of the notional."""
    impact: NonNegative = 0.5
    """c in c · sigma · sqrt(shares / ADV), the price move our own order causes, as a fraction."""
    borrow_bps_per_year: NonNegative = 50.0
    """Fee on short notional held overnight."""


class TradeCosts(NamedTuple):
    """USD costs by kind, each `[..., N]`."""

    commission: Floats
    spread: Floats
    impact: Floats

    @property
    def total(self) -> Floats:
        """Sum over kinds, `[..., N]`."""
        return self.commission + self.spread + self.impact


def trade_costs(shares: Floats, price: Floats, sigma: Floats, adv: Floats, costs: Costs) -> TradeCosts:
    """Returns what trading `shares` at `price` costs.

    Square-root impact as in Almgren et al. (2005) and Grinold & Kahn; optimistic in that it leaves no
    lasting mark on later prices.

    Args:
        shares: Signed shares traded, `[..., N]`.
        price: Raw USD fill price before costs, finite wherever shares are traded.
        sigma: Daily return volatility as a fraction, known before the fill; NaN counts as 0.02.
        adv: Average daily volume in shares, known before the fill; must be above 0 where shares trade.
        costs: The cost model.
    """
    size = np.abs(shares)
    notional = size * np.where(size > 0, price, 0.0)
    participation = size / np.where(adv > 0, adv, np.inf)
    volatility = np.where(np.isfinite(sigma), sigma, 0.02)
    return TradeCosts(
        commission=size * costs.commission_usd_per_share,
        spread=notional * (costs.half_spread_bps * 1e-4),
        impact=notional * (costs.impact * volatility * np.sqrt(participation)),
    )


def borrow_cost(shares: Floats, price: Floats, costs: Costs) -> Floats:
    """Returns the USD fee for holding the short part of `shares` over one session, `[..., N]`."""
    short_notional = np.maximum(-shares, 0.0) * price
    return short_notional * (costs.borrow_bps_per_year * 1e-4 / SESSIONS_PER_YEAR)
