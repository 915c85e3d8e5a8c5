"""What trading and holding cost, in USD; every term is at least zero and grows with its setting.

All arrays are `[N, ...]`. Costs are paid in cash beside the fill price; none moves the price for anyone else.
"""

from __future__ import annotations

from typing import Annotated, Literal, NamedTuple, Self

import numpy as np
from pydantic import Field

from data_pipeline.config import Config
from envs.contract import Floats, everywhere

NonNegative = Annotated[float, Field(ge=0)]
Fraction = Annotated[float, Field(ge=0, le=1)]
SESSIONS_PER_YEAR = 252
_UNKNOWN_SIGMA = 0.02


class Costs(Config):
    """The cost model; the defaults suit a small account in liquid US stocks in 2026."""

    commission_usd_per_share: NonNegative = 0.005
    """Broker's commission per share."""
    commission_usd_per_order: NonNegative = 0.0
    """Broker's commission per order that fills."""
    commission_bps: NonNegative = 0.0
    """Broker's commission in basis points of the notional."""
    commission_minimum_usd: NonNegative = 0.0
    """An order that fills costs at least this commission."""
    half_spread_bps: NonNegative = 2.0
    """Half of the quoted spread, paid on each side, in basis points of the notional."""
    spread: Literal["fixed", "high_low"] = "fixed"
    """high_low: the panel's estimate from highs and lows, and never less than `half_spread_bps`. Pessimistic for liquid
    symbols, whose spread is finer than daily ranges can tell."""
    impact: NonNegative = 0.5
    """c in c · sigma · sqrt(shares / ADV), the price move our own order causes, as a fraction."""
    max_participation: Annotated[float, Field(gt=0, le=1)] = 0.1
    """Share of a session's volume that an order may take; the rest stays unfilled and lapses."""
    slippage_bps: NonNegative = 0.0
    """Mean of a random extra cost in basis points of the notional: exponential, so it never helps."""
    borrow_bps_per_year: NonNegative = 50.0
    """Fee on short notional held overnight."""
    margin_bps_per_year: NonNegative = 650.0
    """Interest on cash owed overnight, short proceeds left out of account."""
    sec_fee_usd_per_million_sold: NonNegative = 20.60
    """SEC section 31 fee on the notional of sales (from 2026-04-04)."""
    taf_usd_per_share_sold: NonNegative = 0.000195
    """FINRA trading activity fee (2026)."""
    taf_maximum_usd: NonNegative = 9.79
    """Cap of the trading activity fee for one order (2026)."""
    cat_usd_per_share: NonNegative = 0.000003
    """Consolidated audit trail fee, on both sides."""
    maintenance_long: Fraction = 0.25
    """Equity that a long needs overnight, as a share of its value; below the sum everything is closed."""
    maintenance_short: Fraction = 0.30
    """The same of a short."""
    delisting_loss: Fraction = 0.3
    """Part of a long's last close that is lost when the symbol is delisted. Pessimistic: the mean of delistings for
    bad performance (Shumway 1997); takeovers lose nothing. A short is bought in at the last close."""

    def scaled(self, factor: float) -> Self:
        """Returns these costs with every price of trading and holding multiplied; rules stay as they are."""
        rules = {"max_participation", "maintenance_long", "maintenance_short", "delisting_loss"}
        prices = {name: value * factor for name, value in self if isinstance(value, float) and name not in rules}
        return self.model_copy(update=prices)


class TradeCosts(NamedTuple):
    """USD costs of trades by kind, each `[N, ...]`."""

    commission: Floats
    spread: Floats
    impact: Floats
    slippage: Floats
    fees: Floats

    @property
    def total(self) -> Floats:
        """Sum over kinds, `[N, ...]`."""
        return self.commission + self.spread + self.impact + self.slippage + self.fees

    def plus(self, other: TradeCosts) -> TradeCosts:
        """Returns the sum of two, kind by kind."""
        return TradeCosts(*(ours + theirs for ours, theirs in zip(self, other, strict=True)))


class Liquidity(NamedTuple):
    """What the cost of a trade depends on besides its size, `[N, ...]` each, known before the fill.

    Attributes:
        sigma: Daily volatility of returns as a fraction; not above 0 or NaN: counts as 0.02.
        adv: Average daily volume in shares; above 0 wherever shares are traded.
        spread: Estimated quoted spread as a fraction of the price; NaN where unknown.
        luck: Uniform in [0, 1), drawn for this trade.
    """

    sigma: Floats
    adv: Floats
    spread: Floats
    luck: Floats


def trade_costs(shares: Floats, price: Floats, liquidity: Liquidity, costs: Costs) -> TradeCosts:
    """Returns what trading `shares` at `price` costs; 0 where no shares are traded.

    Args:
        shares: Signed shares traded, `[N, ...]`.
        price: Raw USD fill price before costs, `[N, ...]`, finite everywhere.
        liquidity: See `Liquidity`.
        costs: The cost model.
    """
    size = np.abs(shares)
    notional = size * price
    return TradeCosts(
        commission=commission(size, notional, costs),
        spread=notional * half_spread(liquidity.spread, costs),
        impact=impact(size, notional, liquidity, costs),
        slippage=slippage(notional, liquidity.luck, costs),
        fees=regulatory_fees(shares, size, price, costs),
    )


def commission(size: Floats, notional: Floats, costs: Costs) -> Floats:
    """Returns the broker's commission in USD: per share, per order and per notional, then the minimum."""
    fee = size * costs.commission_usd_per_share
    if costs.commission_bps:
        fee += notional * (costs.commission_bps * 1e-4)
    if costs.commission_usd_per_order or costs.commission_minimum_usd:
        some = (size > 0).astype(np.float64)
        fee += some * costs.commission_usd_per_order
        fee = np.maximum(fee, some * costs.commission_minimum_usd)
    return fee


def half_spread(spread: Floats, costs: Costs) -> Floats | float:
    """Returns half of the quoted spread as a fraction: fixed, or half of the estimate where that is more."""
    fixed = costs.half_spread_bps * 1e-4
    return np.fmax(spread * 0.5, fixed) if costs.spread == "high_low" else fixed


def impact(size: Floats, notional: Floats, liquidity: Liquidity, costs: Costs) -> Floats:
    """Returns notional · c · sigma · sqrt(size / ADV) in USD.

    Square-root impact as in Almgren et al. (2005) and Grinold & Kahn. Optimistic: it leaves no lasting mark
    on later prices.
    """
    sigma, adv = liquidity.sigma, liquidity.adv
    if not everywhere(sigma * adv > 0):
        sigma, adv = np.where(sigma > 0, sigma, _UNKNOWN_SIGMA), np.where(adv > 0, adv, np.inf)
    return notional * sigma * np.sqrt(size / adv) * costs.impact


def slippage(notional: Floats, luck: Floats, costs: Costs) -> Floats:
    """Returns a random cost in USD, exponential with the set mean, from uniform `luck`."""
    if not costs.slippage_bps:
        return np.zeros_like(notional)
    return notional * np.log(1.0 - luck) * (-costs.slippage_bps * 1e-4)


def regulatory_fees(shares: Floats, size: Floats, price: Floats, costs: Costs) -> Floats:
    """Returns SEC and FINRA fees on sales, and the audit trail's fee on both sides, in USD.

    Approximation: broker's rounding up to the cent is left out.
    """
    sold = np.maximum(-shares, 0.0)
    fee = sold * price * (costs.sec_fee_usd_per_million_sold * 1e-6)
    fee += np.minimum(sold * costs.taf_usd_per_share_sold, costs.taf_maximum_usd)
    fee += size * costs.cat_usd_per_share
    return fee


def borrow_cost(short_value: Floats, costs: Costs) -> Floats:
    """Returns the USD fee for one night of shorts worth `short_value` (zero or negative), `[N, ...]`."""
    return short_value * (-costs.borrow_bps_per_year * 1e-4 / SESSIONS_PER_YEAR)


def margin_interest(owed: Floats, costs: Costs) -> Floats:
    """Returns the USD interest for one night on cash `owed`, at least zero, `[...]`."""
    return owed * (costs.margin_bps_per_year * 1e-4 / SESSIONS_PER_YEAR)
