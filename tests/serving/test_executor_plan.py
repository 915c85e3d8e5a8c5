"""Plans by pencil."""

from __future__ import annotations

from datetime import date

import pytest

from envs.limits import Limits
from serving.executor.plan import Intent, plan

DAY = date(2026, 11, 23)


def planned(weights: dict[str, float], positions: dict[str, float], prices: dict[str, float]) -> list[Intent]:
    return plan("swing1", DAY, weights, equity=100_000.0, prices=prices, positions=positions, limits=Limits())


def legs(intents: list[Intent]) -> list[tuple[str, str, int]]:
    return [(intent.symbol, intent.position_intent, intent.shares) for intent in intents]


@pytest.mark.parametrize(("weight", "kind"), [(0.5, "buy_to_open"), (-0.5, "sell_to_open")])
def test_plan_fractional_target_is_rounded_toward_zero(weight: float, kind: str) -> None:
    # 50,000 / 333 = 150.15
    assert legs(planned({"AAA": weight}, {}, {"AAA": 333.0})) == [("AAA", kind, 150)]


def test_plan_change_inside_the_band_is_not_traded() -> None:
    # The band is 1 % of 100,000: 9 shares of 100 USD are inside it, 10 are not.
    assert planned({"AAA": 0.109}, {"AAA": 100.0}, {"AAA": 100.0}) == []
    assert legs(planned({"AAA": 0.110}, {"AAA": 100.0}, {"AAA": 100.0})) == [("AAA", "buy_to_open", 10)]


def test_plan_tiny_position_with_zero_target_is_closed_despite_the_band() -> None:
    assert legs(planned({"AAA": 0.0}, {"AAA": -1.0}, {"AAA": 100.0})) == [("AAA", "buy_to_close", 1)]


def test_plan_position_without_a_target_is_left_alone() -> None:
    assert planned({"AAA": 0.1}, {"AAA": 100.0, "BBB": -20.0}, {"AAA": 100.0}) == []


def test_plan_reducing_orders_come_before_increasing_ones() -> None:
    intents = planned(
        {"AAA": 0.3, "BBB": 0.1, "CCC": 0.0},
        {"BBB": 500.0, "CCC": -20.0},
        {"AAA": 100.0, "BBB": 100.0, "CCC": 50.0},
    )
    assert legs(intents) == [
        ("BBB", "sell_to_close", 400),
        ("CCC", "buy_to_close", 20),
        ("AAA", "buy_to_open", 300),
    ]


@pytest.mark.parametrize(
    ("weight", "held", "kinds"),
    [
        (-0.2, 100.0, [("AAA", "sell_to_close", 100), ("AAA", "sell_to_open", 200)]),
        (0.2, -100.0, [("AAA", "buy_to_close", 100), ("AAA", "buy_to_open", 200)]),
    ],
)
def test_plan_crossing_zero_makes_two_legs(weight: float, held: float, kinds: list[tuple[str, str, int]]) -> None:
    assert legs(planned({"AAA": weight}, {"AAA": held}, {"AAA": 100.0})) == kinds


def test_plan_ids_are_the_same_at_another_price() -> None:
    def ids(price: float) -> list[str]:
        return [intent.client_order_id for intent in planned({"AAA": 0.5}, {"AAA": -10.0}, {"AAA": price})]

    assert ids(100.0) == ids(140.0) == ["swing1.20261123.AAA.btc.0", "swing1.20261123.AAA.bto.0"]


def test_intent_with_unknown_broker_status_counts_as_in_flight() -> None:
    intent = planned({"AAA": 0.5}, {}, {"AAA": 100.0})[0]
    assert not intent.model_copy(update={"state": "pondering"}).terminal
    assert intent.model_copy(update={"state": "filled"}).terminal
