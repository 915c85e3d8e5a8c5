"""The account's past: by pencil, and as whole passes remember it."""

from __future__ import annotations

from datetime import date, timedelta
from typing import Any

import pytest
from desk import AS_OF, Desk

from serving.contract import AccountState
from serving.executor.journal import Journal
from serving.executor.past import Past, Traded, account_state

# exchange_calendars reads a pandas property that pandas 3.1 deprecates.
pytestmark = pytest.mark.filterwarnings("ignore:Series.values returning an ndarray that drops timezone")

MONDAY, TUESDAY, WEDNESDAY, THURSDAY, FRIDAY = (date(2012, 6, day) for day in range(11, 16))
TENTH_PER_SESSION = 25.2


def state_of(
    equities: dict[date, float], as_of: date, traded: dict[date, Traded] | None = None, per_year: float | None = None
) -> AccountState:
    state = account_state(Past(equities, traded or {}), as_of, per_year)
    assert state is not None
    return state


def test_account_without_a_past_stands_at_its_peak() -> None:
    assert state_of({MONDAY: 100.0}, MONDAY) == AccountState(
        drawdown=0.0, session_return=0.0, turnover_used=0.0, may_open=True
    )


def test_drawdown_is_from_the_highest_equity_and_the_return_from_the_session_before() -> None:
    state = state_of({MONDAY: 100.0, TUESDAY: 120.0, WEDNESDAY: 80.0, THURSDAY: 90.0, FRIDAY: 500.0}, THURSDAY)
    assert state.drawdown == pytest.approx(0.25)
    assert state.session_return == pytest.approx(0.125)


def test_session_before_is_the_exchanges() -> None:
    assert state_of({FRIDAY: 100.0, date(2012, 6, 18): 90.0}, date(2012, 6, 18)).session_return == pytest.approx(-0.1)


def test_last_return_across_a_session_that_nobody_saw_is_not_known() -> None:
    assert account_state(Past({MONDAY: 100.0, WEDNESDAY: 90.0}, {}), WEDNESDAY, None) is None


def test_account_that_traded_before_anyone_noted_its_equity_has_a_past() -> None:
    assert account_state(Past({TUESDAY: 100.0}, {MONDAY: Traded(0.0, 100.0)}), TUESDAY, None) is None


def test_turnover_is_charged_to_the_session_that_filled_and_paid_off_by_each() -> None:
    traded = {MONDAY: Traded(50.0, 90.0), TUESDAY: Traded(20.0, 80.0)}
    equities = {MONDAY: 100.0, TUESDAY: 100.0, WEDNESDAY: 100.0, THURSDAY: 100.0}

    def used(as_of: date) -> float:
        return state_of(equities, as_of, traded, TENTH_PER_SESSION).turnover_used

    # Tuesday 50 / 100; Wednesday 0.5 - 0.1 + 20 / 100; Thursday 0.6 - 0.1.
    assert [used(day) for day in (MONDAY, TUESDAY, WEDNESDAY, THURSDAY)] == pytest.approx([0.0, 0.5, 0.6, 0.5])
    del equities[TUESDAY]  # not seen after its close: the equity of the plan stands in
    assert used(THURSDAY) == pytest.approx(50 / 90 - 0.1 + 0.2 - 0.1)


def remembering(desk: Desk, **limits: Any) -> None:
    desk.policy.weights, desk.policy.limits = {"AAA": 0.4, "BBB": 0.0}, limits
    desk.policy.needs_account = True


def asked(desk: Desk) -> AccountState:
    account = desk.policy.asked[-1].account
    assert account is not None
    return account


def pass_days(desk: Desk, days: float) -> None:
    desk.broker.move_to(desk.broker.now + timedelta(days=days))


def test_request_carries_no_past_where_no_limit_remembers(desk: Desk) -> None:
    desk.cycle("paper")
    assert desk.policy.asked[0].account is None


def test_request_carries_the_accounts_past_where_limits_remember(desk: Desk) -> None:
    remembering(desk, max_drawdown=0.2, turnover_per_year=TENTH_PER_SESSION)
    assert desk.cycle("paper").state == "done"
    assert asked(desk) == AccountState(drawdown=0.0, session_return=0.0, turnover_used=0.0, may_open=True)
    pass_days(desk, 3)  # Monday; as-of is Friday, when 400 shares filled at 100 USD
    desk.broker.cash -= 10_000.0
    assert desk.cycle("paper").state == "done"
    state = asked(desk)
    assert (state.drawdown, state.session_return) == pytest.approx((0.1, -0.1))
    assert state.turnover_used == pytest.approx(40_000 / 90_000)


def test_equity_of_a_session_is_the_first_one_seen_after_its_close(desk: Desk) -> None:
    remembering(desk, max_session_loss=0.5)
    desk.cycle("paper")
    pass_days(desk, 6.5 / 24)  # 16:30: the session is over, the market closed
    assert desk.cycle("paper").reasons == ["market is closed"]
    pass_days(desk, 3 - 6.5 / 24)  # Monday, 10:00
    desk.broker.cash -= 10_000.0
    assert desk.cycle("paper").state == "done"
    assert asked(desk).session_return == 0.0


def test_session_that_was_not_seen_holds_once(desk: Desk) -> None:
    remembering(desk, max_drawdown=0.2)
    desk.cycle("paper")
    pass_days(desk, 4)  # Tuesday: nobody looked between Friday's close and Monday's
    report = desk.cycle("paper")
    assert report.state == "hold"
    assert "no equity of 2012-06-15" in report.reasons[0]
    assert len(desk.policy.asked) == 1
    pass_days(desk, 1)
    assert desk.cycle("paper").state == "done"


def test_loss_that_stops_the_account_is_told(desk: Desk) -> None:
    remembering(desk, max_drawdown=0.05, max_session_loss=0.08)
    desk.cycle("paper")
    pass_days(desk, 3)
    desk.broker.cash -= 10_000.0
    desk.policy.weights = {"AAA": 0.0, "BBB": 0.0}
    report = desk.cycle("paper")
    assert report.state == "done"
    assert desk.held == {}
    assert "stopped: equity is 10.0% below its highest close (max_drawdown)" in report.warnings
    assert "stopped: the last session returned -10.0% (max_session_loss)" in report.warnings


def test_dry_run_tells_the_past_and_records_none(desk: Desk) -> None:
    remembering(desk, max_drawdown=0.2)
    assert desk.cycle().state == "planned"
    assert asked(desk).drawdown == 0.0
    with Journal(desk.journal_path) as journal:
        assert journal.past() == Past({}, {})
    desk.cycle("paper")
    with Journal(desk.journal_path) as journal:
        assert journal.past() == Past({AS_OF: 100_000.0}, {AS_OF: Traded(40_000.0, 100_000.0)})


def test_ruined_account_leaves_no_equity_to_measure_by(desk: Desk) -> None:
    desk.broker.cash = 0.0
    assert "account equity is 0.00 USD" in desk.cycle("paper").reasons
    with Journal(desk.journal_path) as journal:
        assert journal.past().equities == {}
