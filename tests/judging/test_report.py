"""The report of real backtests, as text and as a browser shows it."""

from __future__ import annotations

import re
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pytest
from playwright.sync_api import Page

from browser import brightness, browser, page  # noqa: F401  (fixtures)
from data_pipeline.folds import Span
from data_pipeline.panel import Panel
from envs.backtest import COST_KINDS, Ledger, backtest
from envs.contract import Floats, Policy, Window
from envs.costs import Costs
from envs.limits import Limits
from rl.judging.baselines import BuyAndHold, Cash, EqualWeight
from rl.judging.metrics import figures, verdict
from rl.judging.report import write_report

HOSTILE = "</script><script>document.title='owned'</script><b>&"
CONTEXT = {"Data snapshot": "959af2c2d9410fcd", "Configuration": HOSTILE}
TRIALS = [
    {"configuration": "learning_rate=0.001", "fold-1": 0.5, "all folds": 0.456},
    {"configuration": HOSTILE, "fold-1": None, "all folds": None},
]


class Reversal:
    """Buys what fell over a week and sells what rose."""

    name = "reversal"
    window = 6

    def decide(self, window: Window) -> Floats:
        return -np.sign(window.closes[-1] - window.closes[0])


class OneTrade:
    """Buys the first symbol on its thirtieth decision and sells it on the next."""

    name = "one-trade"
    window = 1

    def __init__(self) -> None:
        self.decisions = 0

    def decide(self, window: Window) -> Floats:
        self.decisions += 1
        return np.array([1.0, 0.0]) * (self.decisions == 30)


class Twin(EqualWeight):
    """Does what a baseline does, under another name."""

    name = "twin"


def random_market(sessions: int = 400) -> Panel:
    shape = (sessions, 2)
    closes = 50.0 * np.exp(np.cumsum(np.random.default_rng(0).normal(3e-4, 0.015, shape), axis=0))
    constant = {"volume": 1e7, "split": 1.0, "dividend": 0.0, "sigma": 0.015, "adv": 1e7, "spread": 0.0}
    return Panel.of(
        sessions=np.busday_offset("2010-01-04", np.arange(sessions)),
        symbols=("AAA", "B<B"),
        feature_names=("x",),
        schema_hash="",
        source={},
        features=np.zeros((*shape, 1), np.float32),
        fields={
            **dict.fromkeys(("open", "high", "low", "close", "adjusted_close"), closes),
            **{name: np.full(shape, value) for name, value in constant.items()},
        },
    )


def ledgers_of(policy: Policy, sessions: int = 400) -> list[Ledger]:
    panel = random_market(sessions)
    span = Span(10, sessions)
    policies: tuple[Policy, ...] = (policy, EqualWeight(), BuyAndHold(), Cash())
    return [backtest(each, panel, span, Limits(), Costs()) for each in policies]


def report_on(ledgers: list[Ledger], path: Path, **extra: Any) -> Path:
    found = verdict(ledgers[0], ledgers[1:])
    return write_report(path, title=f"Judgement {HOSTILE}", ledgers=ledgers, verdict=found, context=CONTEXT, **extra)


@pytest.fixture(scope="module")
def ledgers() -> list[Ledger]:
    return ledgers_of(Reversal())


@pytest.fixture(scope="module")
def report(ledgers: list[Ledger], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    def refuse(*_: object) -> NoReturn:
        raise AssertionError("the report touched the network")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket.socket, "connect", refuse)
        yield report_on(ledgers, tmp_path_factory.mktemp("judged") / "new folder" / "report.html", trials=TRIALS)


def test_report_is_two_whole_files_and_nothing_else(report: Path) -> None:
    assert sorted(path.name for path in report.parent.iterdir()) == ["report-tearsheet.html", "report.html"]
    assert all(path.read_text("utf-8").rstrip().endswith("</html>") for path in report.parent.iterdir())


def test_report_shows_hostile_text_as_text(report: Path) -> None:
    for written in report.parent.iterdir():
        text = written.read_text("utf-8")
        assert HOSTILE not in text
        assert "&lt;/script&gt;&lt;script&gt;document.title" in text


def test_report_written_again_replaces_the_old_one(ledgers: list[Ledger], tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    path.write_text("old")
    report_on(ledgers, path)
    assert "old" not in path.read_text("utf-8")[:100]
    assert "not recorded" in path.read_text("utf-8")


def test_report_on_a_policy_that_never_traded_says_so_and_has_no_tear_sheet(tmp_path: Path) -> None:
    stale = tmp_path / "report-tearsheet.html"
    stale.write_text("of an earlier policy")
    accounts = ledgers_of(Cash())
    page = report_on(accounts, tmp_path / "report.html").read_text("utf-8")
    assert "cash made no trade in 390 sessions" in page
    assert "cash held no position." in page
    assert "There is no tear sheet" in page
    assert not stale.exists()


@pytest.mark.parametrize(("policy", "sessions"), [(OneTrade, 400), (Reversal, 13), (Twin, 60)])
def test_report_on_an_odd_policy_is_written(policy: Callable[[], Policy], sessions: int, tmp_path: Path) -> None:
    path = report_on(ledgers_of(policy(), sessions), tmp_path / "report.html")
    assert path.with_name("report-tearsheet.html").is_file()


def cells(page: Page, table: str) -> list[list[str]]:
    rows: list[list[str]] = page.eval_on_selector_all(
        f"#{table} tbody tr", "rows => rows.map(row => [...row.cells].map(cell => cell.textContent))"
    )
    return rows


def drawn(page: Page, selector: str) -> list[str]:
    page.wait_for_selector(selector, state="attached")
    paths: list[str] = page.eval_on_selector_all(selector, "paths => paths.map(path => path.getAttribute('d'))")
    return paths


@pytest.mark.browser
def test_report_in_a_browser_draws_every_plot_with_named_axes(report: Path, page: Page, ledgers: list[Ledger]) -> None:
    page.goto(report.as_uri())
    for plot in ("equity", "drawdown"):
        cash, *moving = drawn(page, f"#{plot} [class*=scatterlayer] path.js-line")  # the policy last, on top
        assert len(moving) == 3
        assert all(len(re.split("[LHV]", line)) > 100 for line in moving)
        assert len(re.split("[LHV]", cash)) == 2
    paid = [kind for kind in COST_KINDS if any(figures(ledger).costs_usd[kind] for ledger in ledgers)]
    assert len(drawn(page, "#costs .bars path")) == 4 * len(paid)
    assert {"commission", "spread", "impact", "fees"} <= set(paid)
    assert len([path for path in drawn(page, "#holding .bars path") if path != "M0,0Z"]) > 2
    assert page.locator("#positions .heatmaplayer image").count() == 1
    titles = page.locator(".g-xtitle text, .g-ytitle text, [class*=cbtitle] text").all_text_contents()
    assert titles == [
        *("Session (date)", "Equity (USD, log scale)"),
        *("Session (date)", "Drawdown (%)"),
        *("Weight (% of equity)", "Session (date)", "Symbol"),
        *("Account", "Costs paid (USD)"),
        *("Holding time (sessions)", "Positions (count)"),
    ]


@pytest.mark.browser
def test_report_in_a_browser_shows_verdict_and_figures(report: Path, page: Page, ledgers: list[Ledger]) -> None:
    page.goto(report.as_uri())
    found, judged = [figures(ledger) for ledger in ledgers], verdict(ledgers[0], ledgers[1:])
    assert page.title() == f"Judgement {HOSTILE}"
    assert page.locator(".decision").text_content() == judged.decision
    assert page.locator("#verdict li").all_text_contents() == list(judged.reasons)
    assert page.locator("#tried").text_content() == "2"
    assert page.locator("#figures thead th").all_text_contents() == ["", *(f.name for f in found)]
    shown = {label: values for label, *values in cells(page, "figures")}
    assert shown["Total return"] == [f"{f.total_return:+.1%}" for f in found]
    assert shown["Trades"] == [f"{f.trades:,}" for f in found]
    assert shown["Costs paid, USD"] == [f"{f.cost_usd:,.0f}" for f in found]
    assert shown["Sharpe ratio per year ± standard error"] == [
        *(f"{f.sharpe:.2f} ± {f.sharpe_error:.2f}" for f in found[:3]),
        "0.00",
    ]
    assert shown["Holding time in sessions, mean"][-1] == "–"
    assert [row[1] for row in cells(page, "comparisons")] == [f"{c.excess:+.1%}" for c in judged.comparisons]
    assert cells(page, "trials") == [["learning_rate=0.001", "0.50", "0.46"], [HOSTILE, "–", "–"]]


@pytest.mark.browser
def test_report_in_a_browser_links_to_the_tear_sheet(report: Path, page: Page) -> None:
    page.goto(report.as_uri())
    page.click("#tearsheet")
    page.wait_for_url(re.compile("report-tearsheet.html$"))
    assert "reversal" in (page.locator("#right table").first.text_content() or "")
    assert len(drawn(page, "#log_returns svg path")) > 10


@pytest.mark.browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_report_in_a_browser_is_legible_in_both_colour_schemes(report: Path, page: Page, scheme: Any) -> None:
    page.emulate_media(color_scheme=scheme)
    page.goto(report.as_uri())
    ground = brightness(page, "body", "backgroundColor")
    for text in ("h1", "section > p", "#equity .ytick text", "#equity .legendtext", "#figures td"):
        colour = "fill" if text.startswith("#equity") else "color"
        assert abs(brightness(page, text, colour) - ground) > 90
