"""Whole passes of the executor against the fake broker and a fake policy server."""

from __future__ import annotations

import json
import logging
import sqlite3
import threading
from collections.abc import Callable
from datetime import date, datetime, timedelta
from typing import Any

import httpx
import pytest
from desk import AS_OF, NEW_YORK, SECRETS, Desk, flat_bars, order_of

from data_pipeline.errors import ConfigError, LiveError
from envs.limits import Limits
from serving.contract import DecisionResponse
from serving.executor import gates
from serving.executor.broker import Broker
from serving.executor.config import Credentials, ExecutorConfig
from serving.executor.cycle import CycleReport
from serving.executor.journal import Journal
from serving.executor.plan import Intent
from serving.fake.faults import Fault

# exchange_calendars reads a pandas property that pandas 3.1 deprecates.
pytestmark = pytest.mark.filterwarnings("ignore:Series.values returning an ndarray that drops timezone")


def assert_held(desk: Desk, report: CycleReport, reason: str) -> None:
    assert report.state == "hold"
    assert reason in "; ".join(report.reasons)
    assert desk.posted == []


def journalled(desk: Desk, session: date = AS_OF) -> list[Intent]:
    with Journal(desk.journal_path) as journal:
        return journal.intents(session)


def assert_journal_equals_broker(desk: Desk, session: date = AS_OF) -> None:
    ours = {i.client_order_id: (i.state, i.filled, i.fill_price) for i in journalled(desk, session)}
    theirs = {o.asked.client_order_id: (o.status, float(o.asked.qty), o.fill_price) for o in desk.broker.orders}
    assert ours == theirs
    with Journal(desk.journal_path) as journal:
        assert {s: q for s, q in journal.positions(session).items() if q} == desk.held


def test_dry_run_plans_and_sends_nothing_each_time(desk: Desk) -> None:
    first, second = desk.cycle(), desk.cycle()
    # 0.4 of 100,000 at 100 USD; -0.2 of 100,000 at 40 USD.
    assert [(o.symbol, o.side, o.shares) for o in first.orders] == [("AAA", "buy", 400), ("BBB", "sell", 500)]
    assert (first.state, first.session, first.verdict) == ("planned", AS_OF, "promote")
    assert first == second
    assert desk.posted == []
    assert len(desk.policy.asked) == 2


def test_dry_run_does_not_mark_the_session_for_paper(desk: Desk) -> None:
    desk.cycle()
    assert desk.cycle("paper").state == "done"


def test_paper_executes_once_and_then_says_already_done(desk: Desk) -> None:
    report = desk.cycle("paper")
    assert (report.state, report.reasons) == ("done", [])
    assert desk.held == {"AAA": 400.0, "BBB": -500.0}
    assert_journal_equals_broker(desk)
    again = desk.cycle("paper")
    assert again.state == "already-done"
    assert again.orders == report.orders
    assert len(desk.posted) == 2
    assert len(desk.policy.asked) == 1


def test_paper_crossing_zero_closes_then_opens(desk: Desk) -> None:
    desk.broker.submit(order_of("AAA", 100, "buy"))
    desk.policy.weights = {"AAA": -0.3, "BBB": 0.0}
    assert desk.cycle("paper").state == "done"
    assert desk.posted == ["swing.20120614.AAA.stc.0", "swing.20120614.AAA.sto.0"]
    assert desk.held == {"AAA": -300.0}


def test_paper_lost_response_places_no_second_order(desk: Desk) -> None:
    desk.broker.faults.put(Fault(kind="drop", method="POST", path="/v2/orders", count=2, after=True))
    assert desk.cycle("paper").state == "done"
    assert desk.held == {"AAA": 400.0, "BBB": -500.0}
    assert len(desk.broker.orders) == len(set(desk.posted)) == 2
    assert_journal_equals_broker(desk)


class CrashError(Exception):
    pass


class CrashesAfterFirstPost(Broker):
    """Places the first order and dies before the journal learns of it."""

    def submit(self, intent: Intent) -> Any:
        super().submit(intent)
        raise CrashError


def test_paper_crash_after_post_resumes_the_stored_plan(desk: Desk) -> None:
    with pytest.raises(CrashError):
        desk.cycle("paper", broker=CrashesAfterFirstPost)
    assert [intent.state for intent in journalled(desk)] == ["submitting", "planned"]
    desk.policy.weights = {"AAA": 0.0, "BBB": 0.9}
    assert desk.cycle("paper").state == "done"
    assert desk.held == {"AAA": 400.0, "BBB": -500.0}
    assert len(desk.policy.asked) == 1
    assert_journal_equals_broker(desk)


class NeverArrives(Broker):
    """The request is lost on the way, so the broker knows no such order."""

    def submit(self, intent: Intent) -> Any:
        return self.order(intent.client_order_id)


def test_paper_order_that_never_arrived_holds_and_is_sent_again_under_its_id(desk: Desk) -> None:
    assert_held(desk, desk.cycle("paper", broker=NeverArrives), "the broker does not know it yet")
    assert [intent.state for intent in journalled(desk)] == ["submitting", "planned"]
    assert desk.cycle("paper").state == "done"
    assert desk.posted == ["swing.20120614.AAA.bto.0", "swing.20120614.BBB.sto.0"]
    assert_journal_equals_broker(desk)


def test_paper_plan_left_over_from_an_earlier_session_lapses(desk: Desk) -> None:
    with pytest.raises(CrashError):
        desk.cycle("paper", broker=CrashesAfterFirstPost)
    desk.broker.move_to(desk.broker.now + timedelta(days=3))  # Monday, 10:00
    report = desk.cycle("paper")
    assert (report.state, report.session) == ("done", date(2012, 6, 15))
    assert [intent.state for intent in journalled(desk)] == ["filled", "lapsed"]
    assert desk.posted == ["swing.20120614.AAA.bto.0", "swing.20120615.BBB.sto.0"]


class ClosedByHand(Broker):
    """The position disappears between the plan and the first order."""

    desk: Desk

    def submit(self, intent: Intent) -> Any:
        self.desk.broker.lots.pop("AAA", None)
        return super().submit(intent)


def test_paper_position_closed_by_hand_is_not_sold_twice(desk: Desk) -> None:
    desk.broker.submit(order_of("AAA", 100, "buy"))
    desk.policy.weights = {"AAA": 0.0, "BBB": 0.4}
    ClosedByHand.desk = desk
    report = desk.cycle("paper", broker=ClosedByHand)
    assert report.state == "done"
    assert [order.state for order in report.orders] == ["refused", "skipped"]
    assert "position intent mismatch" in report.reasons[0]
    assert desk.held == {}


def test_paper_halted_symbol_is_cancelled_at_the_deadline_and_the_rest_fills(desk: Desk) -> None:
    desk.broker.halted.add("AAA")
    report = desk.cycle("paper")
    assert report.state == "done"
    assert [order.state for order in report.orders] == ["canceled", "filled"]
    assert report.reasons == ["swing.20120614.AAA.bto.0 canceled, 0 of 400 shares filled"]
    assert desk.held == {"BBB": -500.0}
    assert desk.broker.open_orders() == []


def test_paper_reducing_order_that_does_not_fill_stops_the_increase(desk: Desk) -> None:
    desk.broker.submit(order_of("AAA", 100, "buy"))
    desk.broker.halted.add("AAA")
    desk.policy.weights = {"AAA": 0.0, "BBB": 0.4}
    assert [order.state for order in desk.cycle("paper").orders] == ["canceled", "skipped"]
    assert desk.held == {"AAA": 100.0}


class CannotCancel(Broker):
    """A cancel that never takes effect, as one stuck in pending_cancel."""

    def cancel(self, order_id: str) -> None:
        pass


def test_paper_order_that_cannot_be_cancelled_holds_and_sends_nothing_more(desk: Desk) -> None:
    desk.broker.halted.add("AAA")
    for _ in range(2):
        report = desk.cycle("paper", broker=CannotCancel)
        assert (report.state, report.reasons) == ("hold", ["order swing.20120614.AAA.bto.0 is still new"])
    assert len(desk.posted) == 2
    assert desk.cycle("paper").state == "done"
    assert len(desk.posted) == 2


@pytest.mark.parametrize(
    ("tamper", "reason"),
    [
        (lambda a: {**a, "request_id": "another"}, "request_id"),
        (lambda a: {**a, "as_of_session": "2012-06-13"}, "as_of_session"),
        (lambda a: {**a, "policy_version": "toy-2"}, "policy_version"),
        (lambda a: {**a, "weights": {**a["weights"], "AAA": float("nan")}}, "weights.AAA"),
        (lambda a: {**a, "weights": {**a["weights"], "AAA": None}}, "weights.AAA"),
        (lambda a: {**a, "weights": {"AAA": 0.4}, "cash": 0.6}, "symbols of weights"),
        (lambda a: {**a, "left_alone": ["BBB"]}, "symbols of weights and left_alone"),
        (lambda a: {k: v for k, v in a.items() if k != "left_alone"}, "left_alone"),
        (lambda a: {**a, "weights": {"AAA": 0.96, "BBB": 0.0}, "cash": 0.04}, "max_weight"),
        (lambda a: {**a, "weights": {"AAA": 0.8, "BBB": -0.2}, "cash": 0.4}, "max_gross"),
        (lambda a: {**a, "cash": 0.5}, "do not add up"),
        (lambda a: {**a, "surprise": 1}, "surprise"),
        (lambda _: "<html>busy</html>", "not a valid DecisionResponse"),
    ],
)
def test_decision_that_is_not_valid_holds(desk: Desk, tamper: Callable[[Any], Any], reason: str) -> None:
    desk.policy.tamper = tamper
    assert_held(desk, desk.cycle("paper"), reason)


@pytest.mark.parametrize("status", [401, 404, 408, 409, 422, 500, 503])
def test_policy_server_error_holds(desk: Desk, status: int) -> None:
    desk.policy.status = status
    assert_held(desk, desk.cycle("paper"), f"policy server answered {status}")


def test_policy_server_down_holds(desk: Desk) -> None:
    assert_held(desk, desk.cycle("paper", policy_url="http://127.0.0.1:9"), "cannot be reached")


@pytest.mark.parametrize(
    ("limits", "reason"),
    [
        ({"long_only": True}, "weight -0.2000 of BBB is short in a long-only account"),
        ({"unshortable": ["BBB"]}, "weight -0.2000 of BBB is short, and limits.unshortable names it"),
        ({"max_net": 0.1}, "net weight 0.2000 is beyond max_net 0.1"),
    ],
)
def test_decision_outside_the_executors_limits_holds(desk: Desk, limits: dict[str, Any], reason: str) -> None:
    assert_held(desk, desk.cycle("paper", limits=limits), reason)


UNKEPT = [
    ({"fractional": True}, "limits.fractional: orders are sent in whole shares"),
    ({"stop_loss": 0.05}, "limits.stop_loss: no protective orders are sent"),
    ({"take_profit": 0.1}, "limits.take_profit: no protective orders are sent"),
    ({"pattern_day_trader": True}, "limits.pattern_day_trader: the rule ended on 2026-06-04"),
]


@pytest.mark.parametrize("mode", ["dry-run", "paper"])
@pytest.mark.parametrize(("limits", "reason"), UNKEPT)
def test_policy_judged_with_limits_that_cannot_be_kept_holds(
    desk: Desk, mode: str, limits: dict[str, Any], reason: str
) -> None:
    desk.policy.limits = limits
    assert_held(desk, desk.cycle(mode), f"the policy was judged with {reason}")
    assert desk.policy.asked == []


@pytest.mark.parametrize(("limits", "reason"), UNKEPT)
def test_limits_that_cannot_be_kept_are_refused_in_the_settings(limits: dict[str, Any], reason: str) -> None:
    with pytest.raises(ConfigError, match=f"^settings: limits = .*{reason}.*; leave it out$"):
        ExecutorConfig.of({"limits": limits})


def test_limit_set_here_that_only_the_server_applies_holds_unless_it_does(desk: Desk) -> None:
    limits = {"max_holding_sessions": 5}
    desk.policy.limits = Limits().tree()
    reason = "limits.max_holding_sessions is 5 here, but only the policy server applies it, with None"
    assert_held(desk, desk.cycle("paper", limits=limits), reason)
    rehearsal = desk.cycle(limits=limits)
    assert rehearsal.state == "planned"
    assert "limits.max_holding_sessions is 5 here, the policy was judged with None" in rehearsal.warnings
    desk.policy.limits = limits
    assert desk.cycle("paper", limits=limits).state == "done"


def test_limits_of_another_version_hold(desk: Desk) -> None:
    desk.policy.limits = {"max_sleeve": 1.0}
    assert_held(desk, desk.cycle("paper"), "unknown key 'max_sleeve'")


def test_differences_in_limits_are_told_for_every_kind_of_value(desk: Desk) -> None:
    desk.policy.limits = {"max_gross": 0.95, "allocation": "kelly", "kelly_edge_bps": 3.0, "unshortable": ["AAA"]}
    told = "; ".join(desk.cycle().warnings)
    assert "limits.allocation is equal here, the policy was judged with kelly" in told
    assert "limits.kelly_edge_bps is None here, the policy was judged with 3.0" in told
    assert "limits.unshortable is [] here, the policy was judged with ['AAA']" in told
    assert "max_gross" not in told


@pytest.mark.parametrize(("side", "held"), [("buy", 100.0), ("sell", -100.0)])
def test_symbol_left_alone_is_not_traded(desk: Desk, side: str, held: float) -> None:
    desk.broker.submit(order_of("BBB", 100, side))
    desk.policy.weights, desk.policy.left_alone = {"AAA": 0.4}, ["BBB"]
    report = desk.cycle("paper")
    assert (report.state, report.weights, report.left_alone) == ("done", {"AAA": 0.4}, ["BBB"])
    assert desk.posted == ["swing.20120614.AAA.bto.0"]
    assert desk.held == {"AAA": 400.0, "BBB": held}


def test_everything_left_alone_is_done_without_an_order_or_a_price(desk: Desk) -> None:
    desk.policy.weights, desk.policy.left_alone = {}, ["AAA", "BBB"]
    desk.broker.faults.put(Fault(kind="status", path="/v2/stocks/trades/latest", status=500, count=99))
    report = desk.cycle("paper")
    assert (report.state, report.orders, report.left_alone) == ("done", [], ["AAA", "BBB"])


def test_position_left_alone_takes_its_room_from_the_others(desk: Desk) -> None:
    desk.broker.submit(order_of("AAA", 500, "buy"))
    desk.policy.weights, desk.policy.left_alone = {"BBB": 0.46}, ["AAA"]
    report = desk.cycle("paper")
    assert report.reasons == ["policy: gross weight 0.9600 is beyond max_gross 0.95"]
    desk.policy.weights = {"BBB": 0.45}
    assert desk.cycle("paper").state == "done"


def test_position_left_alone_beyond_the_limit_stays_if_nothing_adds_to_it(desk: Desk) -> None:
    desk.broker.submit(order_of("AAA", 980, "buy"))
    desk.policy.weights, desk.policy.left_alone = {"BBB": 0.0}, ["AAA"]
    assert desk.cycle("paper", limits={"max_net": 0.5}).state == "done"
    assert desk.held == {"AAA": 980.0}


def test_cash_that_forgets_what_is_left_alone_holds(desk: Desk) -> None:
    desk.broker.submit(order_of("BBB", 100, "buy"))
    desk.policy.weights, desk.policy.left_alone = {"AAA": 0.4}, ["BBB"]
    desk.policy.tamper = lambda answer: {**answer, "cash": 0.6}
    assert desk.cycle("paper").reasons == ["policy: weights and cash 0.6000 do not add up to 1"]


def test_decision_recorded_by_another_version_holds_until_its_session_is_over(desk: Desk) -> None:
    desk.cycle("paper")
    with sqlite3.connect(desk.journal_path) as journal:
        journal.execute("UPDATE cycles SET decision = json_remove(decision, '$.left_alone')")
    report = desk.cycle("paper")
    assert (report.state, "recorded by another version" in report.reasons[0]) == ("hold", True)
    desk.broker.move_to(desk.broker.now + timedelta(days=3))
    assert desk.cycle("paper").state == "done"


def test_rejected_policy_holds_in_paper_and_warns_in_dry_run(desk: Desk) -> None:
    desk.policy.verdict = "reject"
    assert_held(desk, desk.cycle("paper"), "rejected by its judge")
    rehearsal = desk.cycle()
    assert rehearsal.state == "planned"
    assert any("rejected by its judge" in warning for warning in rehearsal.warnings)
    assert desk.cycle("paper", allow_rejected=True).state == "done"


def test_rejected_policy_with_an_override_trades_on_paper_and_every_report_says_why(desk: Desk) -> None:
    desk.policy.verdict, desk.policy.override = "reject", "rehearsal of the desk"
    warning = "policy toy-1 was rejected by its judge and is used by override: rehearsal of the desk"
    for mode, state in (("dry-run", "planned"), ("paper", "done"), ("paper", "already-done")):
        report = desk.cycle(mode)
        assert (report.state, report.verdict, report.warnings.count(warning)) == (state, "reject", 1)
    assert desk.held == {"AAA": 400.0, "BBB": -500.0}


@pytest.mark.parametrize(
    ("verdict", "override", "mode", "held"),
    [
        ("promote", None, "live", False),
        ("reject", None, "paper", True),
        ("reject", "rehearsal", "dry-run", False),
        ("reject", "rehearsal", "paper", False),
        ("reject", "rehearsal", "live", True),
    ],
)
def test_override_counts_in_no_mode_that_trades_money(
    verdict: str, override: str | None, mode: str, held: bool
) -> None:
    answer = DecisionResponse.model_construct(policy_version="toy-1", verdict=verdict, override=override)
    assert gates.verdict_reasons(answer, mode) == (["policy toy-1 was rejected by its judge"] if held else [])


@pytest.mark.parametrize("mode", ["dry-run", "paper"])
def test_missing_bar_of_the_session_holds(desk: Desk, mode: str) -> None:
    bars = flat_bars({"AAA": 100.0, "BBB": 40.0})
    gone = (bars["symbol"] == "BBB") & (bars["session"] == AS_OF)
    bars.filter(~gone).write_parquet(desk.folder / "bars.parquet")
    assert_held(desk, desk.cycle(mode), "no bar of BBB for 2012-06-14")
    assert desk.policy.asked == []


def test_symbols_that_are_not_the_models_hold(desk: Desk) -> None:
    assert_held(desk, desk.cycle("paper", symbols=["AAA"]), "are not the model's")


def test_foreign_open_order_holds(desk: Desk) -> None:
    desk.broker.submit(order_of("AAA", 5, "buy", limit=1.0))
    assert_held(desk, desk.cycle("paper"), "is not part of the present plan")


def test_position_outside_the_universe_holds(desk: Desk) -> None:
    desk.policy.weights = {"AAA": 0.4}
    desk.broker.submit(order_of("BBB", 5, "buy"))
    assert_held(desk, desk.cycle("paper"), "position in BBB")


@pytest.mark.parametrize(
    ("cap", "reason"),
    [({"max_order_usd": 30_000.0}, "is 40000 USD"), ({"max_orders_per_session": 1}, "2 orders")],
)
def test_plan_beyond_a_cap_holds(desk: Desk, cap: dict[str, float], reason: str) -> None:
    assert_held(desk, desk.cycle("paper", **cap), reason)


@pytest.mark.parametrize(
    ("moment", "reason"),
    [
        ((15, 9, 44), "09:44 is outside the trading window 09:45 to 15:30"),
        ((15, 15, 31), "outside the trading window"),
        ((15, 8, 0), "market is closed"),
        ((16, 11, 0), "market is closed"),
    ],
)
def test_outside_the_window_holds_in_paper_and_warns_in_dry_run(
    desk: Desk, moment: tuple[int, int, int], reason: str
) -> None:
    day, hour, minute = moment
    desk.broker.move_to(datetime(2012, 6, day, hour, minute, tzinfo=NEW_YORK))
    assert_held(desk, desk.cycle("paper"), reason)
    rehearsal = desk.cycle()
    assert rehearsal.state == "planned"
    assert any(reason in warning for warning in rehearsal.warnings)


def test_clock_skew_holds_in_paper_unless_the_broker_is_on_this_machine(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert any("clock differ" in warning for warning in desk.cycle(skew_s=60).warnings)
    with monkeypatch.context() as elsewhere:
        elsewhere.setattr(ExecutorConfig, "broker_is_loopback", property(lambda _: False))
        assert_held(desk, desk.cycle("paper", skew_s=-60), "local and broker clock differ by 60 s")
    assert desk.cycle("paper", skew_s=60).state == "done"


def test_request_carries_bars_up_to_the_session_and_the_holdings(desk: Desk) -> None:
    desk.policy.weights = {"AAA": 0.4, "BBB": 0.0}
    desk.cycle("paper")
    desk.broker.move_to(desk.broker.now + timedelta(days=4))  # Tuesday; as-of is Monday, 18 June
    desk.cycle("paper")
    first, second = desk.policy.asked
    assert (first.portfolio, first.bars["AAA"].session[-1]) == ({}, AS_OF)
    assert len(first.bars["AAA"].session) == 30
    assert second.as_of_session == second.bars["BBB"].session[-1] == date(2012, 6, 18)
    # Bought on Friday the 15th, held over the closes of the 15th and the 18th.
    assert second.portfolio["AAA"].sessions_held == 2
    assert second.portfolio["AAA"].weight == pytest.approx(0.4)


def test_second_executor_on_the_same_journal_is_locked_out(desk: Desk) -> None:
    inside, go_on = threading.Event(), threading.Event()

    def slow(answer: Any) -> Any:
        inside.set()
        go_on.wait(10)
        return answer

    desk.policy.tamper = slow
    thread = threading.Thread(target=desk.cycle)
    thread.start()
    assert inside.wait(10)
    assert desk.cycle().state == "locked"
    go_on.set()
    thread.join(10)
    assert not thread.is_alive()


def test_broker_down_holds(desk: Desk) -> None:
    report = desk.cycle("paper", broker_url="http://127.0.0.1:9")
    assert_held(desk, report, "broker cannot be reached")


@pytest.mark.parametrize(
    ("setting", "reason"),
    [
        ({"mode": "live"}, "live trading is not part of this version"),
        ({"broker_url": ""}, "broker_url"),
        ({"broker_url": "https://api.alpaca.markets"}, "leave it out to use Alpaca's paper account"),
        ({"symbols": ["aapl"]}, "symbols"),
    ],
)
def test_config_that_could_do_harm_is_refused(setting: dict[str, Any], reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        ExecutorConfig.of(setting)


@pytest.mark.parametrize("variable", sorted(SECRETS))
def test_credentials_missing_variable_is_named(variable: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(variable, "")
    with pytest.raises(LiveError, match=variable):
        Credentials.from_environment()


def test_secrets_appear_in_no_repr_log_report_or_journal(desk: Desk, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    desk.policy.status = 401
    reports = [desk.cycle("paper"), desk.cycle("paper", broker_url="http://127.0.0.1:9")]
    desk.policy.status = 200
    reports.append(desk.cycle("paper"))
    credentials = Credentials.from_environment()
    seen = [caplog.text, repr(credentials), str(credentials), credentials.model_dump_json()]
    seen += [report.model_dump_json() for report in reports]
    seen += [path.read_bytes().decode(errors="replace") for path in desk.folder.glob("journal*")]
    for value in SECRETS.values():
        assert not any(value in text for text in seen)


def test_journal_records_holds_once_while_they_repeat(desk: Desk) -> None:
    desk.policy.status = 503
    desk.cycle("paper")
    desk.cycle("paper")
    with Journal(desk.journal_path) as journal:
        assert [kind for kind, _ in journal.events()] == ["hold"]


def test_order_posted_has_only_fields_the_plan_names(desk: Desk) -> None:
    desk.cycle("paper")
    assert desk.broker.requests[0] == {
        "symbol": "AAA",
        "qty": 400.0,
        "side": "buy",
        "type": "market",
        "time_in_force": "day",
        "client_order_id": "swing.20120614.AAA.bto.0",
        "position_intent": "buy_to_open",
    }


def test_fake_clock_route_moves_the_day(desk: Desk) -> None:
    answer = httpx.put(f"{desk.broker_url}/fake/clock", json={"now": "2012-06-18T10:00:00-04:00"})
    assert json.loads(answer.text)["is_open"] is True
    assert desk.cycle().session == date(2012, 6, 15)
