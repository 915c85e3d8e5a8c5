"""`swing-data` as a person runs it, from bars to an audited panel."""

from __future__ import annotations

import json
from datetime import date
from pathlib import Path

import polars as pl
import pytest

from data_pipeline.panel import open_panel
from product import ROOT


@pytest.fixture(scope="module")
def store(tmp_path_factory, bars, command):
    """A folder with two snapshots of the same file: as it was one session before its end, and now."""
    folder = tmp_path_factory.mktemp("store")
    file = folder / "mine.parquet"
    told = []
    for last in (date(2013, 2, 28), date(2013, 3, 1)):
        bars.filter(pl.col("session") <= last).write_parquet(file)
        done = command("swing-data", "build", *_settings(folder), "--json")
        assert done.returncode == 0, done.stderr
        told.append(json.loads(done.stdout))
    return folder, told


def _settings(folder):
    values = {"source": folder / "mine.parquet", "store": folder / "s", "panels": folder / "p"}
    return [part for name, value in values.items() for part in ("--set", f"{name}={value}")]


def test_build_continues_the_panel_as_if_built_anew(store, panel):
    _, (before, after) = store
    assert before["snapshot"] != after["snapshot"]
    continued = open_panel(Path(after["panel"]), verify=True)
    assert (continued.features.view("u4") == panel.features.view("u4")).all()


def test_diff_names_the_session_that_was_added(store, command):
    folder, (before, after) = store
    done = command("swing-data", "diff", before["snapshot"], after["snapshot"], "--store", folder / "s", "--json")
    changes = json.loads(done.stdout)["changes"]
    assert {(c["session"], c["change"]) for c in changes} == {("2013-03-01", "added")}
    assert {c["symbol"] for c in changes} == {"AAPL", "FB", "GOOG", "IBM", "MSFT"}


def test_build_as_of_an_earlier_time_gives_that_view(store, command):
    folder, (before, _) = store
    first = json.loads(command("swing-data", "show", "--store", folder / "s", "--json").stdout)[0]
    settings = (*_settings(folder), "--set", f"as_of={first['written_at']}")
    done = command("swing-data", "build", *settings, "--json")
    assert json.loads(done.stdout) == before
    too_early = command("swing-data", "build", *_settings(folder), "--set", "as_of=2020-01-01T00:00:00Z")
    assert too_early.returncode == 2
    assert "no snapshot" in too_early.stderr


def test_show_lists_tells_and_draws(store, command, tmp_path):
    folder, (_, after) = store
    listed = json.loads(command("swing-data", "show", "--store", folder / "s", "--json").stdout)
    assert [s["id"] for s in listed][-1] == after["snapshot"]
    told = json.loads(command("swing-data", "show", after["snapshot"], "--store", folder / "s", "--json").stdout)
    assert told["timeframes"]["1Day"]["rows"] == 12154
    page = tmp_path / "ibm.html"
    drawing = ("--symbol", "IBM", "--features", "rsi_14,week.return_4", "--html", page)
    done = command("swing-data", "show", after["snapshot"], "--store", folder / "s", *drawing)
    assert done.returncode == 0, done.stderr
    assert "week.return_4" in page.read_text(encoding="utf-8")
    done = command("swing-data", "show", after["snapshot"], "--symbol", "IBM")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "--html together" in done.stderr


def test_check_tells_all_findings_and_fails_on_errors(command, bars, tmp_path):
    broken = bars.with_columns(
        high=pl.when(pl.col("session") == date(2010, 3, 1)).then(0.5).otherwise(pl.col("high"))
    ).filter(~((pl.col("symbol") == "IBM") & (pl.col("session").dt.year() == 2005)))
    broken.write_csv(tmp_path / "broken.csv")
    done = command("swing-data", "check", tmp_path / "broken.csv", "--json")
    told = json.loads(done.stdout)
    assert done.returncode == 1
    assert {"range", "gap"} <= {f["check"] for f in told["findings"] if f["severity"] == "error"}
    assert command("swing-data", "check", "bundled").returncode == 0


def test_build_of_bars_with_an_error_stops_and_stores_nothing(command, bars, tmp_path):
    bars.filter(~((pl.col("symbol") == "IBM") & (pl.col("session").dt.year() == 2005))).write_csv(tmp_path / "gap.csv")
    values = {"source": tmp_path / "gap.csv", "store": tmp_path / "s", "panels": tmp_path / "p"}
    done = command("swing-data", "build", *(p for k, v in values.items() for p in ("--set", f"{k}={v}")))
    assert done.returncode == 2
    assert "gap at IBM 2005" in done.stderr
    assert not (tmp_path / "s").exists()


def test_audit_of_the_default_set_passes(command):
    done = command("swing-data", "audit", "--json")
    told = json.loads(done.stdout)
    assert (done.returncode, told["passed"], told["leaks"]) == (0, True, [])
    assert told["cells_compared"] > 1_000_000


def test_audit_of_a_planted_leak_names_the_culprit(command):
    done = command("swing-data", "audit", "--pipeline", "leaks:CENTRED", cwd=ROOT / "tests" / "data")
    assert done.returncode == 1
    assert "centred_21" in done.stdout
    assert "window" in done.stdout
