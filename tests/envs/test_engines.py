"""The backtest against two engines of other people, backtesting.py and vectorbt, on the same real bars.

Neither knows splits, dividends, impact, borrow fees, interest or margin calls. So the bars are of a stretch without
splits and, unless said, without the dividends; where our account pays or receives what they cannot express, the two
equity paths differ by exactly that, summed up.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pytest

from data_pipeline.folds import Span
from data_pipeline.panel import Panel
from envs.backtest import Ledger, backtest
from envs.contract import Floats, Policy, Window
from envs.costs import Costs
from envs.limits import Limits
from rl.judging.baselines import BuyAndHold, Momentum

SYMBOLS = ("AAPL", "GOOG", "IBM", "MSFT")
SPAN = Span(1270, 2400)
"""2005-03-22 to 2009-09-15: GOOG is ready, and no symbol splits."""
BRIEF = Span(1270, 1600)
"""Enough where a run over `SPAN` has shown the rest."""
CASH = 100_000.0
SAME = 1e-12
"""Relative difference of equity that rounding may leave after years of the same arithmetic."""
POLICIES = ("discrete", "continuous", "momentum", "buy-and-hold")

FREE = Costs(
    commission_usd_per_share=0,
    half_spread_bps=0,
    impact=0,
    borrow_bps_per_year=0,
    margin_bps_per_year=0,
    sec_fee_usd_per_million_sold=0,
    taf_usd_per_share_sold=0,
    cat_usd_per_share=0,
)
RATES = FREE.model_copy(update={"half_spread_bps": 2.0, "commission_bps": 1.0, "commission_usd_per_order": 1.0})
BROKER = FREE.model_copy(update={"commission_usd_per_share": 0.005, "commission_bps": 1.0, "half_spread_bps": 2.0})
SHARES = FREE.model_copy(update={"commission_usd_per_share": 0.005})
TICKETS = Costs(commission_bps=0.5, commission_minimum_usd=2.0, impact=0, borrow_bps_per_year=0)
"""All that depends on one order alone: also a minimum, and fees that only sales pay."""
EVERYTHING = Costs(slippage_bps=3.0)
ROOMY = Limits(max_gross=0.8)
"""No gap of the stretch makes an account of four symbols short of cash."""
ALL_IN = Limits(max_gross=1.0, max_weight=1.0, no_trade_band=0.5)


class Table:
    """Target positions fixed beforehand, one row for each session of the panel."""

    window = 1

    def __init__(self, name: str, panel: Panel, positions: Floats) -> None:
        self.name, self.positions = name, positions
        self._rows = {session.item(): t for t, session in enumerate(panel.sessions)}

    def decide(self, window: Window) -> Floats:
        return self.positions[self._rows[window.session]]


def drawn(panel: Panel, name: str, spell: int = 1) -> Table:
    """Returns targets drawn anew every `spell` sessions: short, cash and long if discrete, else any."""
    rng, shape = np.random.default_rng(POLICIES.index(name)), (len(panel.sessions), len(panel.symbols))
    positions = rng.integers(-1, 2, shape) if name == "discrete" else rng.uniform(-1, 1, shape)
    return Table(name, panel, np.repeat(positions, spell, axis=0)[: shape[0]].astype(float))


def always(position: float, panel: Panel) -> Table:
    return Table("always", panel, np.full((len(panel.sessions), len(panel.symbols)), position))


def policy_of(name: str, panel: Panel) -> Policy:
    return {"momentum": Momentum(), "buy-and-hold": BuyAndHold()}.get(name) or drawn(panel, name)


def stretch(panel: Panel, symbols: tuple[str, ...], **columns: float) -> Panel:
    """Returns the panel of some symbols, with some columns of the bars set to a constant."""
    at = [panel.symbol_index(symbol) for symbol in symbols]
    fields = {name: values[:, at] for name, values in panel.fields.items()}
    fields |= {name: np.full_like(fields[name], value) for name, value in columns.items()}
    return panel.changed(symbols=symbols, features=panel.features[:, at], fields=fields)


def gap_up(panel: Panel) -> Span:
    """Returns five sessions of `SPAN`, the first of which opens furthest above the last close."""
    first = SPAN.start + int(np.argmax(bars(panel, "open")[:, 0] / previous(panel, "close")[:, 0]))
    return Span(first, first + 5)


@pytest.fixture(scope="module")
def plain(panel: Panel) -> Panel:
    """Four symbols of which the engines know all there is to know."""
    found = stretch(panel, SYMBOLS, dividend=0.0)
    assert (found.fields["split"][SPAN.start : SPAN.stop] == 1).all()
    assert found.ready[SPAN.start - 1 : SPAN.stop].all()
    return found


def ours(policy: Policy, panel: Panel, limits: Limits, costs: Costs, span: Span = SPAN) -> Ledger:
    return backtest(policy, panel, span, limits, costs, CASH)


def equity(ledger: Ledger) -> Floats:
    return ledger.account["equity"].to_numpy()


def cells(ledger: Ledger, column: str) -> Floats:
    """Returns a column of the ledger's positions, `[sessions, symbols]`."""
    return ledger.positions[column].to_numpy().reshape(ledger.account.height, -1).copy()


def bars(panel: Panel, name: str, span: Span = SPAN) -> Floats:
    """Returns a column of the panel at the sessions that fill, `[sessions, symbols]`."""
    return panel.fields[name][span.start : span.stop].copy()


def previous(panel: Panel, name: str, span: Span = SPAN) -> Floats:
    """Returns a column of the panel at the sessions that decide, `[sessions, symbols]`."""
    return panel.fields[name][span.start - 1 : span.stop - 1].copy()


def beyond_them(ledger: Ledger) -> Floats:
    """Returns what our account received, less what it paid, that neither engine can express, `[sessions]`."""
    paid = ledger.account.select(pl.sum_horizontal("impact", "slippage", "borrow", "interest")).to_series()
    return (ledger.account["dividends"] - paid).cum_sum().to_numpy()


def apart(theirs: Floats, mine: Floats) -> float:
    """Returns the largest relative difference of two paths."""
    assert theirs.shape == mine.shape
    return float(np.abs(theirs / mine - 1.0).max())


# --- vectorbt: all symbols in one account; it executes order by order, the sales first --------------------------------


@pytest.fixture(scope="module")
def vectorbt() -> Any:
    """The package, interpreted: compiling its simulator takes longer than running it."""
    import numba

    numba.config.DISABLE_JIT = True
    try:
        import vectorbt
    finally:
        numba.config.DISABLE_JIT = False
    return vectorbt


def portfolio(vectorbt: Any, panel: Panel, size: Floats, span: Span = SPAN, **arguments: Any) -> Any:
    """Returns vectorbt's account after orders of `size`, whose rows are the sessions that fill, at their opens."""
    market = {"close": pd.DataFrame(bars(panel, "close", span)), "price": bars(panel, "open", span)}
    return vectorbt.Portfolio.from_orders(
        size=size, init_cash=CASH, cash_sharing=True, call_seq="auto", freq="1D", **market | arguments
    )


def value(account: Any) -> Floats:
    return account.value().to_numpy()


@pytest.mark.parametrize(("name", "fractional"), [*((name, False) for name in POLICIES), ("continuous", True)])
def test_vectorbt_given_our_orders_has_our_shares_cash_and_equity(vectorbt, plain, name, fractional):
    limits = ROOMY.model_copy(update={"fractional": fractional})
    ledger = ours(policy_of(name, plain), plain, limits, RATES)
    ordered = cells(ledger, "ordered")
    account = portfolio(vectorbt, plain, ordered, fees=3e-4, fixed_fees=1.0)
    assert apart(value(account), equity(ledger)) < SAME
    assert account.orders.count() == (ordered != 0).sum() >= 4
    np.testing.assert_allclose(account.assets().to_numpy(), cells(ledger, "shares"), rtol=0, atol=1e-9)
    np.testing.assert_allclose(account.cash().to_numpy(), ledger.account["cash"], rtol=0, atol=1e-5)


def test_vectorbt_given_our_targets_in_shares_trades_the_changes(vectorbt, plain):
    ledger = ours(policy_of("discrete", plain), plain, ROOMY, RATES, BRIEF)
    targets = cells(ledger, "ordered").cumsum(axis=0)
    account = portfolio(vectorbt, plain, targets, BRIEF, size_type="targetamount", fees=3e-4, fixed_fees=1.0)
    assert apart(value(account), equity(ledger)) < SAME


@pytest.mark.parametrize("name", ["discrete", "continuous"])
def test_vectorbt_sizing_by_weights_at_the_last_close_reaches_our_equity_by_itself(vectorbt, plain, name):
    """It is told weights and prices alone: it values the account before any order, and sizes before costs, as we do."""
    limits = ROOMY.model_copy(update={"fractional": True, "no_trade_band": 0.0})
    policy = drawn(plain, name)
    costs = RATES.model_copy(update={"commission_usd_per_order": 0.0})
    ledger = ours(policy, plain, limits, costs)
    weights = policy.positions[SPAN.start - 1 : SPAN.stop - 1] * limits.max_gross / len(SYMBOLS)
    closes = previous(plain, "close")
    account = portfolio(vectorbt, plain, weights, size_type="targetpercent", val_price=closes, fees=3e-4)
    # Ours are cut to six decimals of a share.
    np.testing.assert_allclose(account.assets().to_numpy(), cells(ledger, "shares"), rtol=0, atol=1e-5)
    assert apart(value(account), equity(ledger)) < 1e-8


def test_vectorbt_in_whole_shares_cuts_the_trade_where_we_cut_the_position(vectorbt, plain):
    """So it may hold a share more than the weight allows, never two."""
    limits = ROOMY.model_copy(update={"no_trade_band": 0.0})
    policy = drawn(plain, "continuous")
    ledger = ours(policy, plain, limits, FREE, BRIEF)
    weights = policy.positions[BRIEF.start - 1 : BRIEF.stop - 1] * limits.max_gross / len(SYMBOLS)
    closes = previous(plain, "close", BRIEF)
    account = portfolio(
        vectorbt, plain, weights, BRIEF, size_type="targetpercent", val_price=closes, size_granularity=1.0
    )
    held, exact = account.assets().to_numpy(), weights * np.r_[CASH, value(account)[:-1]][:, None] / closes
    assert (np.abs(held - exact) < 1 + 1e-6).all()
    assert (np.abs(held) > np.abs(exact) + 1e-6).mean() > 0.2
    mine = weights * np.r_[CASH, equity(ledger)[:-1]][:, None] / closes
    assert (np.abs(cells(ledger, "shares")) <= np.abs(mine) + 1e-6).all()
    assert 1e-6 < apart(value(account), equity(ledger)) < 0.01


def test_vectorbt_filling_at_a_worse_price_pays_what_we_pay_for_half_the_spread(vectorbt, plain):
    costs = FREE.model_copy(update={"half_spread_bps": 5.0})
    ledger = ours(policy_of("discrete", plain), plain, ROOMY, costs, BRIEF)
    account = portfolio(vectorbt, plain, cells(ledger, "ordered"), BRIEF, slippage=5e-4)
    assert apart(value(account), equity(ledger)) < SAME
    assert ledger.account["spread"].sum() > 1000


def test_vectorbt_given_the_price_of_each_ticket_pays_minimum_and_fees_of_sales(vectorbt, plain):
    ledger = ours(policy_of("continuous", plain), plain, ROOMY, TICKETS, BRIEF)
    ordered = cells(ledger, "ordered")
    size, notional = np.abs(ordered), np.abs(ordered) * bars(plain, "open", BRIEF)
    commission = np.maximum(size * 0.005 + notional * 0.5e-4, 2.0)
    fees = np.where(ordered < 0, notional * 20.60e-6 + np.minimum(size * 0.000195, 9.79), 0.0) + size * 0.000003
    account = portfolio(vectorbt, plain, ordered, BRIEF, fees=2e-4, fixed_fees=commission + fees)
    assert apart(value(account), equity(ledger)) < SAME
    assert 0.1 < (commission[ordered != 0] == 2.0).mean() < 0.9


def test_vectorbt_told_the_session_s_share_of_volume_fills_as_little_as_we_do(vectorbt, plain):
    costs = RATES.model_copy(update={"max_participation": 2e-5})
    ledger = ours(policy_of("discrete", plain), plain, ROOMY, costs, BRIEF)
    ordered = cells(ledger, "ordered")
    account = portfolio(
        vectorbt,
        plain,
        ordered,
        BRIEF,
        fees=3e-4,
        fixed_fees=1.0,
        max_size=np.floor(bars(plain, "volume", BRIEF) * 2e-5),
    )
    assert apart(value(account), equity(ledger)) < SAME
    partly = np.abs(cells(ledger, "filled")) < np.abs(ordered)
    assert 0.1 < partly[ordered != 0].mean() < 0.9


def test_vectorbt_on_split_adjusted_bars_agrees_with_our_raw_bars_and_their_split(vectorbt, panel):
    """Prices before 2005-02-28 are half, shares double; the dividends of AAPL begin after the span."""
    raw, span = stretch(panel, ("AAPL",)), Span(800, 1900)
    split = bars(raw, "split", span)
    assert np.flatnonzero(split != 1).tolist() == [panel.session_index("2005-02-28") - span.start]
    assert not bars(raw, "dividend", span).any()
    later = 1 / split.cumprod(axis=0) * split.prod()
    ledger = ours(drawn(raw, "continuous"), raw, Limits(max_gross=0.8, max_weight=0.8), RATES, span)
    account = portfolio(
        vectorbt,
        raw,
        cells(ledger, "ordered") * later,
        span,
        close=pd.DataFrame(bars(raw, "close", span) / later),
        price=bars(raw, "open", span) / later,
        fees=3e-4,
        fixed_fees=1.0,
    )
    assert apart(value(account), equity(ledger)) < SAME


def test_vectorbt_lacks_exactly_the_dividends_impact_slippage_and_borrow_fees(vectorbt, panel):
    dividends = stretch(panel, SYMBOLS)
    ledger = ours(drawn(dividends, "continuous", spell=20), dividends, ROOMY, EVERYTHING)
    ordered = cells(ledger, "ordered")
    tickets = np.abs(ordered) * 0.005 + cells(ledger, "fees")
    account = portfolio(vectorbt, dividends, ordered, fees=2e-4, fixed_fees=tickets)
    assert apart(value(account) + beyond_them(ledger), equity(ledger)) < SAME
    sums = ledger.account.select("impact", "slippage", "borrow").sum().row(0)
    assert min(sums) > 50
    assert ledger.account["dividends"].min() < -1
    assert ledger.account["dividends"].max() > 1


class Trimming:
    """Buys half a position, then sells a hundred thousandth of it after each close."""

    name, window = "trimming", 1

    def decide(self, window: Window) -> Floats:
        held = window.portfolio[:, 0].astype(float)
        return np.where(held == 0, 0.5, held * (1 - 1e-5))


def test_vectorbt_refuses_a_sale_that_does_not_cover_its_own_fee_and_ours_pays_it(vectorbt, plain):
    market, span = stretch(plain, ("AAPL",)), Span(SPAN.start, SPAN.start + 5)
    ledger = ours(Trimming(), market, Limits(fractional=True, no_trade_band=0), RATES, span)
    ordered = cells(ledger, "ordered")
    account = portfolio(vectorbt, market, ordered, span, fees=3e-4, fixed_fees=1.0)
    assert (ordered[1:] < 0).all()
    assert account.orders.count() == 1
    assert (value(account) - equity(ledger))[1:] == pytest.approx([1, 2, 3, 4], abs=0.05)


def test_vectorbt_short_of_cash_buys_less_where_our_account_owes(vectorbt, plain):
    """An order sized at the close costs more after a gap up. Ours borrows and pays interest, as a broker does."""
    market = stretch(plain, ("GOOG",))
    span = gap_up(market)
    ledger = ours(always(1.0, market), market, ALL_IN, FREE.model_copy(update={"margin_bps_per_year": 650.0}), span)
    ordered, opens = cells(ledger, "ordered"), bars(market, "open", span)[:, 0]
    assert ordered[1:].tolist() == [[0]] * 4
    less, none = (portfolio(vectorbt, market, ordered, span, allow_partial=partial) for partial in (True, False))
    owed = ordered[0, 0] * opens[0] - CASH
    assert owed > 10_000
    assert ledger.account["cash"][0] == pytest.approx(-owed * (1 + 0.065 / 252))
    assert ledger.account["interest"].min() > 0
    assert less.assets().to_numpy()[:, 0] == pytest.approx(CASH / opens[0])
    assert less.cash().to_numpy() == pytest.approx(0)
    assert none.orders.count() == 0


# --- backtesting.py: one symbol, whole shares; it runs bar by bar and fills at the next open --------------------------


def theirs(panel: Panel, act: Callable[[Any, int], None], span: Span = SPAN, **arguments: Any) -> Floats:
    """Returns the equity of backtesting.py after each session of `span`.

    Args:
        panel: Of one symbol.
        act: Is given the strategy at each close and the number of the session that will fill.
        span: Sessions that fill.
        arguments: Of `Backtest`; by default nothing is refused for lack of cash.
    """
    from backtesting import Backtest, Strategy

    class Acting(Strategy):
        def init(self) -> None:
            pass

        def next(self) -> None:
            number = len(self.data) - 2  # it begins at its second bar
            if number < len(span):
                act(self, number)

    rows = slice(span.start - 2, span.stop)
    frame = pd.DataFrame(
        {name.capitalize(): panel.fields[name][rows, 0] for name in ("open", "high", "low", "close", "volume")},
        index=pd.DatetimeIndex(panel.sessions[rows]),
    )
    with warnings.catch_warnings():
        # `finalize_trades` would trade once more at the last bar's open, and put that in the equity of its close.
        warnings.filterwarnings("ignore", message="Some trades remain open")
        # backtesting.py 0.6 counts weekends by a name that pandas 3.1 means to drop.
        warnings.filterwarnings("ignore", message="DatetimeIndex.dayofweek")
        found = Backtest(frame, Acting, cash=CASH, **{"margin": 0.01} | arguments).run()
    return found["_equity_curve"]["Equity"].to_numpy()[2:]


def sizing(positions: Floats, limits: Limits) -> Callable[[Any, int], None]:
    """Returns a strategy that trades to `positions` `[sessions]` by its own account's equity and shares.

    It leaves the account alone where they are NaN.
    """

    def act(strategy: Any, number: int) -> None:
        if np.isnan(positions[number]):
            return
        price, total = strategy.data.Close[-1], strategy.equity
        wanted = int(positions[number] * limits.max_gross * total / price)
        change = wanted - strategy.position.size
        if change and (abs(change) * price >= limits.no_trade_band * total or not wanted):
            send(strategy, change)

    return act


def sending(orders: Floats) -> Callable[[Any, int], None]:
    """Returns a strategy that sends given orders `[sessions]`."""
    return lambda strategy, number: send(strategy, orders[number])


def send(strategy: Any, shares: float, **brackets: float | None) -> None:
    if shares:
        (strategy.buy if shares > 0 else strategy.sell)(size=abs(int(shares)), **brackets)


def broker(size: float, price: float) -> float:
    """Returns what `BROKER` charges for an order."""
    return abs(size) * 0.005 + abs(size) * price * 3e-4


@pytest.mark.parametrize("name", POLICIES)
@pytest.mark.parametrize("symbol", SYMBOLS)
def test_backtesting_py_sizing_and_trading_by_itself_reaches_our_equity(plain, symbol, name):
    market = stretch(plain, (symbol,))
    ledger = ours(policy_of(name, market), market, Limits(), BROKER)
    positions = cells(ledger, "target_position")[:, 0]
    found = theirs(market, sizing(positions, Limits()), commission=broker)
    assert apart(found, equity(ledger)) < SAME


@pytest.mark.parametrize("flags", [{}, {"hedging": True}, {"exclusive_orders": True}], ids=str)
def test_backtesting_py_keeping_lots_in_any_way_has_our_equity(plain, flags):
    """Hedging opens the other side beside a lot; exclusive closes all and opens the whole position anew."""
    market = stretch(plain, ("AAPL",))
    ledger = ours(drawn(market, "discrete", spell=10), market, Limits(no_trade_band=0.5), FREE)
    orders = cells(ledger, "ordered")[:, 0]
    held = orders.cumsum()
    sent = np.where(orders != 0, held, 0.0) if "exclusive_orders" in flags else orders

    def act(strategy: Any, number: int) -> None:
        if "exclusive_orders" in flags and orders[number] and not held[number]:
            strategy.position.close()
        send(strategy, sent[number])

    assert (orders != 0).sum() > 50
    assert apart(theirs(market, act, margin=0.001, **flags), equity(ledger)) < SAME


def test_backtesting_py_takes_the_minimum_once_more_where_an_order_turns_a_position(plain):
    """It charges by lot: closing and opening are two tickets there, one here."""
    market, costs = stretch(plain, ("MSFT",)), FREE.model_copy(update={"commission_minimum_usd": 25.0})
    ledger = ours(drawn(market, "discrete", spell=5), market, Limits(no_trade_band=0.5), costs)
    orders, held = cells(ledger, "ordered")[:, 0], cells(ledger, "shares")[:, 0]
    turned = np.r_[0.0, held[:-1]] * held < 0
    found = theirs(market, sending(orders), commission=lambda size, price: 25.0)
    assert turned.sum() > 50
    assert (orders[~turned] != 0).sum() > 50
    assert apart(found + 25.0 * turned.cumsum(), equity(ledger)) < SAME


def test_backtesting_py_pays_its_whole_spread_on_entry_and_ours_half_on_each_side(plain):
    market, costs = stretch(plain, ("IBM",)), FREE.model_copy(update={"half_spread_bps": 5.0})
    long = Table("long", market, np.maximum(drawn(market, "discrete", spell=5).positions, 0.0))
    ledger = ours(long, market, Limits(no_trade_band=0.5), costs)
    orders = cells(ledger, "ordered")[:, 0]
    found = theirs(market, sending(orders), spread=1e-3)
    bought = np.maximum(orders, 0.0) * bars(market, "open")[:, 0]
    assert apart(found + 1e-3 * bought.cumsum() - ledger.account["spread"].cum_sum().to_numpy(), equity(ledger)) < SAME
    assert (orders < 0).sum() > 50


def test_backtesting_py_lacks_exactly_the_dividends_and_the_costs_of_holding(panel):
    market, limits = stretch(panel, ("IBM",)), Limits(max_gross=1.0, max_weight=1.0)
    ledger = ours(drawn(market, "discrete", spell=20), market, limits, EVERYTHING)
    orders, fees = cells(ledger, "ordered")[:, 0], ledger.account["fees"].cum_sum().to_numpy()
    found = theirs(market, sending(orders), commission=lambda size, price: abs(size) * (0.005 + 2e-4 * price))
    # It cannot tell a sale from a purchase when it charges a lot, so fees of sales are beyond it too.
    assert apart(found + beyond_them(ledger) - fees, equity(ledger)) < SAME
    assert min(ledger.account.select("impact", "slippage", "borrow", "interest", "fees").sum().row(0)) > 1
    assert ledger.account["dividends"].min() < -100
    assert ledger.account["dividends"].max() > 100


def test_backtesting_py_short_of_cash_drops_the_order_that_ours_fills(plain):
    market = stretch(plain, ("GOOG",))
    span = gap_up(market)
    ledger = ours(always(1.0, market), market, ALL_IN, FREE, span)
    orders = cells(ledger, "ordered")[:, 0]
    with pytest.warns(UserWarning, match="canceled the order due to insufficient margin"):
        refused = theirs(market, sending(orders), span, margin=1.0)
    assert refused.tolist() == [CASH] * len(span)
    assert apart(theirs(market, sending(orders), span, margin=0.5), equity(ledger)) < SAME


def test_backtesting_py_knows_no_margin_call_so_paths_part_where_ours_closes(plain):
    market, costs = stretch(plain, ("GOOG",)), FREE.model_copy(update={"maintenance_short": 0.8})
    ledger = ours(always(-1.0, market), market, Limits(no_trade_band=0.9), costs)
    called = int(np.flatnonzero(ledger.account["margin_call"])[0])
    orders = cells(ledger, "ordered")[:, 0]
    assert np.flatnonzero(orders)[:2].tolist() == [0, called]
    assert orders[0] == -orders[called]
    orders[called:] = 0
    found, mine = theirs(market, sending(orders)), equity(ledger)
    assert apart(found[:called], mine[:called]) < SAME
    # Its short goes on from the open at which ours was bought in.
    move = bars(market, "close")[called, 0] - bars(market, "open")[called, 0]
    assert found[called] - mine[called] == pytest.approx(orders[0] * move)


def protected(market: Panel, stop: float | None, take: float | None) -> tuple[Ledger, Floats, Floats]:
    """Returns our ledger, their equity, and the entry price of what is held into or at each open, `[sessions]`.

    Our brackets hang on the average entry price and theirs on each lot, so no lot is added to here. They would also
    let a stop of a position go before the order that closes it at the open, unless it is that position's own.
    """
    opens, before = bars(market, "open")[:, 0], previous(market, "close")[:, 0]
    # They refuse an order whose bracket does not lie around the last close, so nothing is entered before such a gap.
    quiet = np.abs(opens / before - 1) < min(stop or 1, take or 1) / 2
    positions = drawn(market, "discrete", spell=7).positions
    positions[SPAN.start - 1 : SPAN.stop - 1, 0] *= quiet
    limits = Limits(no_trade_band=0.9, stop_loss=stop, take_profit=take)
    ledger = ours(Table("quiet", market, positions), market, limits, SHARES)
    orders = cells(ledger, "ordered")[:, 0]

    def act(strategy: Any, number: int) -> None:
        held, order = strategy.position.size, orders[number]
        if order and held:
            strategy.position.close()
        if order and (rest := order + held):
            entry, side = opens[number], np.sign(rest)
            sl, tp = stop and entry * (1 - side * stop), take and entry * (1 + side * take)
            send(strategy, rest, sl=sl, tp=tp)

    found = theirs(market, act, commission=lambda size, price: abs(size) * 0.005)
    return ledger, found, ledger.positions["price"].forward_fill().to_numpy()


@pytest.mark.parametrize("symbol", ["AAPL", "GOOG"])
def test_backtesting_py_stops_fill_where_ours_do_at_the_open_beyond_a_gap(plain, symbol):
    market = stretch(plain, (symbol,))
    ledger, found, entry = protected(market, stop=0.02, take=None)
    assert apart(found, equity(ledger)) < SAME
    price, opens = ledger.positions["exit_price"].drop_nulls().to_numpy(), bars(market, "open")[:, 0]
    assert len(price) > 50
    exited = cells(ledger, "exited")[:, 0] != 0
    assert 0 < (np.abs(price / entry[exited] - 1) > 0.0201).sum() == np.isin(price, opens[exited]).sum()


@pytest.mark.parametrize("symbol", ["AAPL", "GOOG"])
def test_backtesting_py_profits_are_those_of_ours_and_of_the_gap_at_an_open_beyond(plain, symbol):
    """Ours, pessimistic, takes no more than the limit; theirs takes the open."""
    market = stretch(plain, (symbol,))
    ledger, found, _ = protected(market, stop=None, take=0.03)
    exited, price = cells(ledger, "exited")[:, 0], cells(ledger, "exit_price")[:, 0]
    beyond = np.where(exited != 0, np.maximum(-exited * (bars(market, "open")[:, 0] - price), 0.0), 0.0)
    assert apart(found - beyond.cumsum(), equity(ledger)) < SAME
    assert (exited != 0).sum() > 50
    assert 0 < (beyond > 0).sum() < 20
    assert beyond.sum() > 100


@pytest.mark.parametrize("symbol", ["AAPL", "GOOG"])
def test_backtesting_py_bar_with_stop_and_profit_in_it_is_stopped_as_ours_is(plain, symbol):
    market = stretch(plain, (symbol,))
    ledger, found, entry = protected(market, stop=0.01, take=0.012)
    exited, price = cells(ledger, "exited")[:, 0], cells(ledger, "exit_price")[:, 0]
    side, opens = -np.sign(exited), bars(market, "open")[:, 0]
    highest, lowest = bars(market, "high")[:, 0], bars(market, "low")[:, 0]
    adverse, favourable = np.where(side > 0, lowest, highest), np.where(side > 0, highest, lowest)
    stopped, taken = side * (adverse / entry - 1) <= -0.01, side * (favourable / entry - 1) >= 0.012
    both = (side != 0) & stopped & taken
    assert both.sum() > 20
    assert (side * (price - entry) < 0)[both].all()
    won = side * (price - entry) > 0
    beyond = np.where(won, np.maximum(-exited * (opens - price), 0.0), 0.0)
    assert apart(found - beyond.cumsum(), equity(ledger)) < SAME
