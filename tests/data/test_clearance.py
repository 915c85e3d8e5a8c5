"""The gate before training: a leak is refused by name, once for each panel; what is forced through is known by it."""

from __future__ import annotations

import json
import shutil
from datetime import date

import numpy as np
import polars as pl
import pytest

from data_pipeline import clearance
from data_pipeline.assemble import build_panel
from data_pipeline.build import DataConfig, build
from data_pipeline.clearance import KEPT, Clearance, cleared, kept_clearance
from data_pipeline.errors import RunError
from data_pipeline.features import FeatureSet
from data_pipeline.intraday import to_daily
from data_pipeline.panel import open_panel
from data_pipeline.schema import checked
from data_pipeline.store import Store
from ticks import ticks

HONEST = ("return_1", "rsi_14")


@pytest.fixture(scope="module")
def recent(bars) -> pl.DataFrame:
    """A year of two symbols."""
    return bars.filter(pl.col("symbol").is_in(["AAPL", "IBM"]) & (pl.col("session") >= date(2012, 1, 1)))


@pytest.fixture
def config(recent, tmp_path) -> DataConfig:
    recent.write_parquet(tmp_path / "bars.parquet")
    return DataConfig(
        source=str(tmp_path / "bars.parquet"), features=HONEST, store=str(tmp_path / "s"), panels=tmp_path / "p"
    )


@pytest.fixture
def audits(monkeypatch) -> list[Clearance]:
    """Counts the audits that are run."""
    run, done = clearance.audit, []

    def counted(*arguments, **named):
        done.append(run(*arguments, **named))
        return done[-1]

    monkeypatch.setattr(clearance, "audit", counted)
    return done


def test_honest_panel_is_cleared_with_what_was_looked_at_on_record(config):
    told = []
    folder, found = cleared(config, lambda *step: told.append(step))
    assert folder == build(config)
    assert (found.suspect, found.forced, found.leaks, found.unable) == (False, False, (), "")
    assert found.says.startswith("The leakage audit finds nothing that sees the future: 15 columns × 2 symbols at 24 ")
    assert told[-1] == (24, 24)
    assert kept_clearance(folder, config) == found
    assert sorted(path.name for path in folder.iterdir() if "json" in path.name) == [KEPT, "panel.json"]
    assert open_panel(folder, verify=True).feature_names == HONEST


def test_panel_is_audited_once_and_nothing_inherits_what_was_found(config, audits):
    folder, found = cleared(config)
    assert cleared(config) == (folder, found)
    assert len(audits) == 1
    shorter = config.model_copy(update={"end": date(2013, 2, 27)})
    other, _ = cleared(shorter)
    assert (other != folder, len(audits)) == (True, 2)
    cleared(config.model_copy(update={"features": HONEST[:1]}))
    assert len(audits) == 3
    shutil.copy(folder / KEPT, other / KEPT)
    assert kept_clearance(other, config) is None
    cleared(shorter)
    assert len(audits) == 4


@pytest.mark.parametrize("torn", ["{", "[]", "{}", '{"panel": 1}'])
def test_record_that_cannot_be_read_is_made_anew(config, audits, torn):
    folder, found = cleared(config)
    (folder / KEPT).write_text(torn)
    assert kept_clearance(folder, config) is None
    assert cleared(config) == (folder, found)
    assert kept_clearance(folder, config) == found
    assert len(audits) == 2


def test_leak_is_refused_with_its_column_reach_and_remedy(config, tomorrow):
    with pytest.raises(RunError) as refused:
        cleared(config.model_copy(update={"features": (*HONEST, tomorrow)}))
    line = str(refused.value)
    assert "tomorrow (next session, 1 session ahead)" in line
    assert "--set data.audit=false" in line
    assert "\n" not in line
    assert not any(name in line for name in HONEST)


def test_leak_that_is_forced_through_is_known_and_said(config, tomorrow, audits, caplog):
    forced = config.model_copy(update={"features": (*HONEST, tomorrow), "audit": False})
    folder, found = cleared(forced)
    assert (found.forced, found.suspect) == (True, True)
    assert [leak.column for leak in found.leaks] == ["tomorrow"]
    assert "forced through" in found.says
    assert caplog.messages == [found.says]
    assert cleared(forced) == (folder, found)
    assert len(audits) == 1
    with pytest.raises(RunError, match="tomorrow"):  # it does not become honest by having been let through
        cleared(forced.model_copy(update={"audit": True}))


def test_honest_panel_that_is_forced_through_stays_suspect(config):
    _, found = cleared(config.model_copy(update={"audit": False}))
    assert (found.suspect, found.leaks) == (True, ())
    assert "finds nothing" in found.says
    _, asked = cleared(config)
    assert not asked.suspect


def test_leak_on_record_that_was_mended_stops_nothing(config, tomorrow, audits):
    leaking = config.model_copy(update={"features": (*HONEST, tomorrow), "audit": False})
    leaks = cleared(leaking)[1].tree()["leaks"]
    folder, _ = cleared(config)
    body = json.loads((folder / KEPT).read_text())
    (folder / KEPT).write_text(json.dumps(body | {"leaks": leaks}))
    assert kept_clearance(folder, config).suspect
    assert not cleared(config)[1].suspect
    assert not kept_clearance(folder, config).suspect
    assert len(audits) == 3


def test_panel_does_not_go_on_from_one_that_leaked(config, recent, tomorrow, plant):
    """A feature is mended under its old name, and a session more is there."""
    known = config.model_copy(update={"features": (tomorrow,), "end": date(2013, 2, 28)})
    build(known)
    plant(tomorrow, lambda bars, _: bars.log_return)
    whole = known.model_copy(update={"end": None})
    honest = build_panel(recent, FeatureSet.of((tomorrow,)))
    assert not np.array_equal(open_panel(build(whole)).features, honest.features, equal_nan=True)
    folder, found = cleared(whole)
    assert not found.suspect
    assert np.array_equal(open_panel(folder).features, honest.features, equal_nan=True)


def test_bars_that_cannot_be_audited_go_on_with_a_word(config, caplog):
    folder, found = cleared(config.model_copy(update={"start": date(2013, 2, 28), "features": HONEST[:1]}))
    assert (found.suspect, found.looked_at) == (False, "")
    assert "could not be run (2 sessions are too few to audit" in found.says
    assert caplog.messages == [found.says]
    assert kept_clearance(folder, config) is None


def test_very_many_bars_are_audited_by_a_sample_of_symbols(config, monkeypatch, tomorrow):
    monkeypatch.setattr(clearance, "_MOST_BARS", 400)
    found = cleared(config)[1]
    assert " × 1 symbols at 24 " in found.says
    assert "in a sample of 2 symbols" in found.says
    with pytest.raises(RunError, match="tomorrow"):
        cleared(config.model_copy(update={"features": (*HONEST, tomorrow)}))


def test_features_of_intraday_bars_are_audited_too(config, monkeypatch):
    five = ticks(("S00",), date(2024, 6, 3), date(2024, 6, 28))
    store = Store(config.store)
    snapshot = store.write({"1Day": checked(to_daily(five), "ticks"), "5Min": five}, {"source": "ticks"})
    asked = config.model_copy(update={"snapshot": snapshot.id, "features": ("return_1", "hour.return_1")})
    folder, found = cleared(asked)
    assert found.looked_at
    assert not found.suspect
    assert kept_clearance(folder, asked) == found


def test_without_a_record_nothing_is_claimed():
    assert Clearance().says == ("The leakage audit is not on record, so nothing tells whether features see the future.")
    assert not Clearance().suspect
    assert Clearance(forced=True, unable="no bars").says.startswith("The panel was forced through (data.audit=false).")
