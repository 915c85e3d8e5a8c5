"""`swing-rl backtest`: any policy by name, ledgers that add up, a page without a verdict, mistakes in one line."""

from __future__ import annotations

import json

import polars as pl
import pytest

from envs.backtest import COST_KINDS, Ledger


def test_backtest_of_a_baseline_saves_ledgers_that_add_up_and_a_page(command, tmp_path):
    store = f"data.store={tmp_path / 'store'}", f"data.panels={tmp_path / 'panels'}"
    arguments = ["backtest", "momentum-12-1", "--out", str(tmp_path / "out"), "--start", "2010-01-04", "--json"]
    for assignment in (*store, "env.costs.slippage_bps=3", "env.limits.stop_loss=0.05"):
        arguments += ["--set", assignment]
    done = command("swing-rl", *arguments)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    others = ["equal-weight", "buy-and-hold", "vol-target-10", "sma-10-50", "cash"]
    assert [f["name"] for f in told["figures"]] == ["momentum-12-1", *others]
    ledger = Ledger.load(tmp_path / "out" / "ledgers" / "momentum-12-1")
    assert str(ledger.account["session"][0]) == told["figures"][0]["first_session"] == "2010-01-04"
    assert ledger.account["equity"][-1] == pytest.approx(told["figures"][0]["final_equity_usd"])
    for kind in set(COST_KINDS) - {"interest"}:
        by_session = ledger.positions.group_by("session", maintain_order=True).agg(pl.col(kind).sum())
        assert by_session[kind].to_list() == pytest.approx(ledger.account[kind].to_list())
    assert ledger.positions.filter(pl.col("exited") != 0).height > 0
    assert ledger.account["slippage"].sum() > 0
    page = (tmp_path / "out" / "report.html").read_text()
    assert 'id="equity"' in page
    assert 'id="verdict"' not in page


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["luck"], "policy 'luck': give a bundle's folder or one of equal-weight"),
        (["cash", "--start", "1990-01-02"], "choose within 20"),
        (["cash", "--start", "soon"], "--start 'soon': write it as"),
    ],
)
def test_backtest_mistake_exits_2_with_one_line(command, tmp_path, arguments, words):
    store = "--set", f"data.store={tmp_path / 'store'}", "--set", f"data.panels={tmp_path / 'panels'}"
    done = command("swing-rl", "backtest", *arguments, "--out", tmp_path / "out", *store)
    assert done.returncode == 2
    assert words in done.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.ray
def test_backtest_of_a_bundle_runs_it_as_it_was_judged(command, story, tmp_path):
    judged = Ledger.load(story.verdict / "ledgers" / "ppo-lstm")
    sessions = judged.account["session"]
    arguments = ["backtest", story.bundle, "--config", story.config, "--out", tmp_path / "out", "--json"]
    done = command("swing-rl", *arguments, "--start", str(sessions[0]), "--end", str(sessions[-1]))
    assert done.returncode == 0, done.stderr
    again = Ledger.load(tmp_path / "out" / "ledgers" / "ppo-lstm")
    assert again.account.equals(judged.account)
    assert again.positions.equals(judged.positions)
