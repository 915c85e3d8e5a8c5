"""Fixtures of the executor's and the fake broker's tests."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from desk import SECRETS, TODAY_AT_TEN, Desk, FakePolicy, flat_bars

from data_pipeline.sources.files import FileBars
from loopback import served
from serving.fake.app import app
from serving.fake.broker import FakeBroker


@pytest.fixture(autouse=True)
def credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    """AAA at 100 USD and BBB at 40 USD, 100,000 USD cash, 10:00 on 15 June 2012."""
    flat_bars({"AAA": 100.0, "BBB": 40.0}).write_parquet(tmp_path / "bars.parquet")
    broker = FakeBroker(FileBars(tmp_path / "bars.parquet"), TODAY_AT_TEN)
    policy = FakePolicy({"AAA": 0.4, "BBB": -0.2})
    with served(app(broker), policy.app()) as (broker_url, policy_url):
        yield Desk(tmp_path, broker, broker_url, policy, policy_url)
