"""The report of real backtests, as text and as a browser shows it."""

from __future__ import annotations

import re
import socket
from collections.abc import Callable, Iterator
from datetime import date
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pytest
from playwright.sync_api import Page

from browser import brightness, browser, collisions, page  # noqa: F401  (fixtures)
from data_pipeline.clearance import Clearance
from data_pipeline.folds import Span
from data_pipeline.panel import Panel
from data_pipeline.scaling import Scaler
from envs.backtest import COST_KINDS, Ledger, backtest
from envs.contract import Floats, Policy, Window
from envs.costs import Costs
from envs.limits import Limits
from rl.judging.baselines import BuyAndHold, Cash, EqualWeight
from rl.judging.evidence import Account, Evidence
from rl.judging.explain import EVERYTHING, Ablation, regimes
from rl.judging.frontier import Frontier, frontier
from rl.judging.metrics import compare, figures
from rl.judging.pages import SUSPICIOUS_SHARPE
from rl.judging.plots import cost_caption, size_caption
from rl.judging.report import write_report
from rl.judging.tune import FoldScore, Trial
from rl.judging.twins import ranked
from rl.judging.verdict import Gate, Verdict, holdout_gate, shut_gate, verdict_of

HOSTILE = "</script><script>document.title='owned'</script><b>&"
CONTEXT = {"Data snapshot": "959af2c2d9410fcd", "Configuration": HOSTILE}


class Follower:
    """Buys what rose over a week and sells what fell."""

    name = "follower"
    window = 6

    def decide(self, window: Window) -> Floats:
        return np.sign(window.closes[-1] - window.closes[0])


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


def verdict_on(ledgers: list[Ledger], *, passed: bool = False) -> Verdict:
    """A verdict with a gate of each kind, one with hostile text."""
    comparisons = [compare(ledgers[0], ledger) for ledger in ledgers[1:3]]
    gates = (
        Gate(name="superiority", passed=True, says="SPA p = 0.012, below 0.05."),
        Gate(name="overfitting", passed=passed, says=f"The probability is 0.31, {HOSTILE}."),
        holdout_gate(comparisons[0]).model_copy(update={"passed": passed}),
    )
    return verdict_of(gates, comparisons)


def account(name: str, sharpe: float, number: int = 0) -> Account:
    return Account(
        name=name,
        sharpe=sharpe,
        sharpe_lower=sharpe - 0.9,
        sharpe_upper=sharpe + 0.9,
        annual_return=0.1 * sharpe,
        volatility=0.1,
        max_drawdown=-0.12 - 0.01 * number,
        value_at_risk=0.0101,
        expected_shortfall=0.0152,
        beta=0.5,
    )


def evidence_with(**changed: Any) -> Evidence:
    return Evidence(
        winner=f"lr=0.001, {HOSTILE}",
        benchmark="vol-target-10",
        first_session=date(2007, 1, 3),
        last_session=date(2010, 12, 31),
        sessions=1008,
        configurations=12,
        trials=40,
        accounts=(account("winner", 1.21), account("vol-target-10", 0.64, 1), account("equal-weight", 0.41, 2)),
        superiority_p=0.012,
        superiority_lower=0.011,
        superiority_upper=0.034,
        overfitting=0.31,
        loss=0.12,
        deflated_sharpe=0.873,
        deflated_threshold=0.62,
        difference=0.57,
        difference_lower=-0.21,
        difference_upper=1.35,
        difference_p=0.142,
        minimum_sessions=471.6,
        minimum_years=4.52,
    ).model_copy(update=changed)


def trial(number: int, ratios: dict[str, list[float]], **extra: Any) -> Trial:
    """A configuration with so many seeds on each fold."""
    return Trial(
        number=number,
        values={"learn.lr": 0.001 * (number + 1)},
        config_hash="",
        folds=tuple(
            FoldScore(fold=fold, seed=seed, sharpe=ratio, total_return=0.0, seconds=1.0)
            for fold, of_seeds in ratios.items()
            for seed, ratio in enumerate(of_seeds)
        ),
        **extra,
    )


TRIALS = (
    trial(1, {"fold-1": [0.5, 0.7, 0.9], "fold-2": [0.1, 0.2, 0.4]}, score=0.456, quartiles=(0.4, 0.5)),
    trial(0, {"fold-1": [-0.5, -0.3, 0.1]}, score=-0.3, quartiles=(-0.4, -0.1), status="stopped"),
    trial(2, {}, score=None, status="failed", error=HOSTILE),
)
ABLATIONS = tuple(
    Ablation(group=group, features=("x", "y"), sharpe_change=change, position_change=moved)
    for group, change, moved in (("risk", 0.021, 0.0104), (f"B {HOSTILE}", -0.314, 0.25), (EVERYTHING, -0.9, 0.2))
)
TWINS = ranked(1.21, [0.3, -0.2, 0.7, 0.4, 0.1, 1.3, -0.6, 0.5])


def report_on(ledgers: list[Ledger], path: Path, **extra: Any) -> Path:
    found = extra.pop("verdict", None) or verdict_on(ledgers)
    return write_report(path, title=f"Judgement {HOSTILE}", ledgers=ledgers, verdict=found, context=CONTEXT, **extra)


def whole(ledgers: list[Ledger]) -> dict[str, Any]:
    """All that a judge may hand over."""
    panel, span = random_market(), Span(10, 400)
    own, other = ledgers[0].returns(), ledgers[1].returns()
    return {
        "evidence": evidence_with(),
        "twins": TWINS,
        "frontier": frontier(ledgers[0], panel, span, Limits(), Costs(), benchmark_return=0.01),
        "regimes": regimes(ledgers[0].account["session"].to_list(), own, other, panel),
        "disagreement": 0.3149,
        "ablations": ABLATIONS,
        "trials": TRIALS,
        "times_opened": 1,
    }


@pytest.fixture(scope="module")
def ledgers() -> list[Ledger]:
    return ledgers_of(Follower())


@pytest.fixture(scope="module")
def report(ledgers: list[Ledger], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    def refuse(*_: object) -> NoReturn:
        raise AssertionError("the report touched the network")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket.socket, "connect", refuse)
        yield report_on(ledgers, tmp_path_factory.mktemp("judged") / "new folder" / "report.html", **whole(ledgers))


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
    assert "cash held no position." in page
    assert "There is no tear sheet" in page
    assert not stale.exists()


def test_report_on_a_holdout_that_stayed_shut_shows_what_the_sweep_showed(tmp_path: Path) -> None:
    stale = tmp_path / "report-tearsheet.html"
    stale.write_text("of an earlier policy")
    judged = verdict_of([shut_gate("holdout"), shut_gate("twins")], ())
    path = report_on([], tmp_path / "report.html", verdict=judged, evidence=evidence_with(), trials=TRIALS)
    text = path.read_text("utf-8")
    assert "The holdout stayed shut: a gate before had failed" in text
    assert alarms_of(path) == []
    assert 'id="accounts"' in text
    assert 'id="equity"' not in text
    assert not stale.exists()


def test_report_without_a_verdict_claims_nothing_of_the_sample(ledgers: list[Ledger], tmp_path: Path) -> None:
    path = write_report(tmp_path / "report.html", title="A", ledgers=ledgers, verdict=None, context={})
    text = path.read_text("utf-8")
    assert 'id="verdict"' not in text
    assert "Nothing is judged here" in text
    assert "comes after every session" not in text


def test_report_of_a_validation_hands_over_all_that_was_found(ledgers: list[Ledger], tmp_path: Path) -> None:
    from rl.config import RunConfig
    from rl.judging.candidate import Candidate, Member
    from rl.judging.validate import Validation, _report

    panel, found = random_market(), whole(ledgers)
    validation = Validation(
        sweep="s",
        candidate=Candidate(members=(Member(trial=0, label="lr=1", config=RunConfig()),) * 2, combination="sharpe"),
        panel="",
        runs="",
        weights=(0.25, 0.75),
        scaler=Scaler(median=(0.0,), spread=(1.0,)),
        spans={"train": "then", "holdout": "later", "opened": "2"},
        figures=tuple(map(figures, ledgers)),
        ledger_head=f"12:{'a' * 64}",
        verdict=verdict_on(ledgers),
        **{name: value for name, value in found.items() if name != "times_opened"},
    )
    _report(tmp_path, validation, ledgers, panel)
    text = (tmp_path / "report.html").read_text("utf-8")
    names = ["verdict", "reopened", "accounts", "findings", "twins", "frontier", "capacity", "regimes", "trials"]
    for name in (*names, "disagreement", "ablations"):
        assert f'id="{name}"' in text
    assert "sharpe of lr=1, seed 0; lr=1, seed 0" in text
    assert "0.250, 0.750" in text
    assert f"12:{'a' * 64}" in text


# the shouts


def alarms_of(path: Path) -> list[str]:
    return re.findall('class="alarm" id="([a-z]+)"', path.read_text("utf-8"))


def faulty(found: Frontier) -> Frontier:
    return found.model_copy(update={"faults": ("With spread costs times 2 it was richer.",), "monotone": "broken"})


def with_winner(sharpe: float) -> Evidence:
    return evidence_with(accounts=(account("winner", sharpe), *evidence_with().accounts[1:]))


@pytest.mark.parametrize(
    ("changed", "alarms"),
    [
        ({}, []),
        ({"times_opened": 0}, []),
        ({"clearance": Clearance(looked_at="2 columns")}, []),
        ({"clearance": Clearance(unable="too few sessions")}, []),
        ({"clearance": Clearance(looked_at="2 columns", forced=True), "times_opened": 2}, ["unaudited", "reopened"]),
        ({"times_opened": 2}, ["reopened"]),
        ({"evidence": with_winner(SUSPICIOUS_SHARPE)}, []),
        ({"evidence": with_winner(SUSPICIOUS_SHARPE + 0.01)}, ["suspicious"]),
        ({"frontier": faulty}, ["faults"]),
        ({"times_opened": 13, "evidence": with_winner(9.0), "frontier": faulty}, ["reopened", "suspicious", "faults"]),
    ],
)
def test_report_shouts_exactly_when_it_should(
    changed: dict[str, Any], alarms: list[str], ledgers: list[Ledger], tmp_path: Path
) -> None:
    found = whole(ledgers) | {key: value for key, value in changed.items() if key != "frontier"}
    if "frontier" in changed:
        found["frontier"] = changed["frontier"](found["frontier"])
    path = report_on([], tmp_path / "report.html", verdict=verdict_on(ledgers), **found)
    text = path.read_text("utf-8")
    assert alarms_of(path) == alarms
    assert ("<code>swing-data audit</code>" in text) is ("suspicious" in alarms)
    assert ("With spread costs times 2 it was richer." in text) is ("faults" in alarms)


@pytest.mark.parametrize(
    ("clearance", "noted"),
    [(None, False), (Clearance(looked_at="2 columns"), False), (Clearance(unable=f"too few, {HOSTILE}"), True)],
)
def test_report_on_what_could_not_be_audited_says_so_calmly(
    clearance: Clearance | None, noted: bool, tmp_path: Path
) -> None:
    path = tmp_path / "report.html"
    report_on([], path, verdict=verdict_of([], ()), evidence=evidence_with(), clearance=clearance)
    text = path.read_text("utf-8")
    assert ('class="note" id="causality"' in text) is noted
    assert ("could not be run (too few, &lt;/script&gt;" in text) is noted
    assert alarms_of(path) == []


@pytest.mark.parametrize(
    ("times", "nth"), [(2, "2nd"), (3, "3rd"), (4, "4th"), (11, "11th"), (21, "21st"), (112, "112th")]
)
def test_report_says_for_which_time_the_holdout_was_opened(times: int, nth: str, tmp_path: Path) -> None:
    path = report_on(
        [], tmp_path / "report.html", verdict=verdict_of([], ()), evidence=evidence_with(), times_opened=times
    )
    assert f"the holdout was opened for the {nth} time: no longer untouched" in path.read_text("utf-8")


class Prophet:
    """Knows tomorrow."""

    name = "prophet"
    window = 1

    def __init__(self, panel: Panel) -> None:
        self.closes = panel.fields["close"]
        self.row = {session.item(): row for row, session in enumerate(panel.sessions)}

    def decide(self, window: Window) -> Floats:
        row = self.row[window.session]
        return np.sign(
            self.closes[min(row + 2, len(self.closes) - 1)] - self.closes[min(row + 1, len(self.closes) - 1)]
        )


def test_report_on_a_backtest_that_sees_the_future_shouts_too(tmp_path: Path) -> None:
    accounts = ledgers_of(Prophet(random_market()))
    path = write_report(tmp_path / "report.html", title="A", ledgers=accounts, verdict=None, context={})
    assert figures(accounts[0]).sharpe > SUSPICIOUS_SHARPE
    assert alarms_of(path) == ["suspicious"]


# what it says in words


def test_frontier_captions_say_where_the_return_ends(ledgers: list[Ledger]) -> None:
    found = whole(ledgers)["frontier"]
    assert f"falls to cash at × {found.break_even_factor:.2f}" in cost_caption(found)
    endless = found.model_copy(update={"break_even_factor": None, "monotone": "not promised"})
    assert "stays above cash up to × 10" in cost_caption(endless)
    assert "was not checked" in cost_caption(endless)
    hopeless = found.model_copy(update={"break_even_factor_over_benchmark": 0.0, "benchmark_return": 9.0})
    assert "not above the benchmark even at × 0" in cost_caption(hopeless)


@pytest.mark.parametrize(
    ("returns", "capacity", "says"),
    [
        ((0.20, 0.18, 0.02), 1.2e5, "at $120k the return over the benchmark is half of its best"),
        ((0.20, 0.18, 0.15), None, "does not fall to half of its best up to $1M"),
        ((-0.1, -0.2, -0.3), 0.0, "No size earns more than the benchmark"),
        ((-0.2, -0.1, 0.02), None, "The largest, $1M, does best"),
    ],
)
def test_capacity_caption_says_where_it_is(
    returns: tuple[float, ...], capacity: float | None, says: str, ledgers: list[Ledger]
) -> None:
    known = whole(ledgers)["frontier"]
    points = tuple(
        known.points[0].model_copy(update={"axis": "account", "initial_cash_usd": size, "annual_return": gain})
        for size, gain in zip((1e4, 1e5, 1e6), returns, strict=True)
    )
    assert says in size_caption(known.model_copy(update={"points": points, "capacity_usd": capacity}))


def test_findings_of_one_hopeless_configuration_are_told(tmp_path: Path) -> None:
    found = evidence_with(overfitting=None, loss=None, minimum_sessions=None, configurations=1, difference_lower=None)
    text = report_on([], tmp_path / "report.html", verdict=verdict_of([], ()), evidence=found).read_text("utf-8")
    assert "none was chosen over another" in text
    assert "<strong>never</strong>" in text
    assert "95 % interval without bounds" in text


@pytest.mark.parametrize(("policy", "sessions"), [(OneTrade, 400), (Follower, 13), (Twin, 60)])
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
    assert len(drawn(page, "#twins .bars path")) == 8
    assert len(drawn(page, "#twins .scatterlayer path.js-line")) == 1
    assert len(drawn(page, "#frontier .scatterlayer path.js-line")) == 5  # four axes and the benchmark
    assert len(drawn(page, "#capacity .scatterlayer path.js-line")) == 2
    assert {"commission", "spread", "impact", "fees"} <= set(paid)
    assert len([path for path in drawn(page, "#holding .bars path") if path != "M0,0Z"]) > 2
    assert page.locator("#positions .heatmaplayer image").count() == 1
    assert page.locator(".legendtext", has_text="candidate").text_content() == "candidate: 1.21, p = 0.22"
    factor = whole(ledgers)["frontier"].break_even_factor
    assert page.locator(".legendtext", has_text="with cash").text_content() == f"break-even with cash: × {factor:.2f}"
    titles = page.locator(".g-xtitle text, .g-ytitle text, [class*=cbtitle] text").all_text_contents()
    assert titles == [
        *("Session (date)", "Equity (USD, log scale)"),
        *("Session (date)", "Drawdown (%)"),
        *("Sharpe ratio on the holdout (per year)", "Twins (count)"),
        *("Factor on costs (multiple of those assumed)", "Return (% per year)"),
        *("Account (USD, log scale)", "Return (% per year)"),
        *("Weight (% of equity)", "Session (date)", "Symbol"),
        *("Costs paid (USD)", "Account"),
        *("Holding time (sessions)", "Positions (count)"),
    ]


@pytest.mark.browser
def test_report_in_a_browser_shows_verdict_and_figures(report: Path, page: Page, ledgers: list[Ledger]) -> None:
    page.goto(report.as_uri())
    found, judged = [figures(ledger) for ledger in ledgers], verdict_on(ledgers)
    assert page.title() == f"Judgement {HOSTILE}"
    assert page.locator(".decision").text_content() == judged.decision
    assert page.locator("#gates li").all_text_contents() == [
        f"{'passed' if gate.passed else 'failed'}{gate.name.capitalize()}. {gate.says}" for gate in judged.gates
    ]
    assert [page.locator(name).text_content() for name in ("#tried", "#in-project", "#opened")] == ["3", "40", "once"]
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
    assert cells(page, "trials") == [
        ["#1", "lr=0.002", "finished", "0.70", "0.20", "0.46", "0.40 to 0.50"],
        ["#0", "lr=0.001", "stopped", "-0.30", "–", "-0.30", "-0.40 to -0.10"],
        ["#2", "lr=0.003", "failed", "–", "–", "–", "–"],
    ]


@pytest.mark.browser
def test_report_in_a_browser_shows_the_evidence(report: Path, page: Page, ledgers: list[Ledger]) -> None:
    page.goto(report.as_uri())
    assert cells(page, "accounts")[0] == [
        *("winner", "1.21", "0.31 to 2.11", "+12.1%", "10.0%", "-12.0%", "1.01%", "1.52%", "0.50")
    ]
    values = page.locator("#findings dt strong").all_text_contents()
    assert values == [
        "0.012 (liberal 0.011, conservative 0.034)",
        "0.12 and 0.31",
        "0.873 (threshold 0.62 per year, N = 40)",
        "+0.57 (95 % interval -0.21 to +1.35, p = 0.142, two-sided)",
        "472",
        "4.5",
    ]
    told = page.locator("#findings dd").all_text_contents()
    assert len(told) == len(values)
    assert "cannot be told" in told[3]
    assert "there are enough, 1,008" in told[4]
    assert "is too short, 4.0 years" in told[5]
    assert [row[0] for row in cells(page, "regimes")] == [
        f"{each.kind}: {each.name}" for each in whole(ledgers)["regimes"]
    ]
    assert "differ by 0.31 (standard deviation" in (page.locator("#disagreement").text_content() or "")
    assert cells(page, "ablations") == [
        [f"B {HOSTILE}", "2", "-0.31", "0.250"],
        ["risk", "2", "+0.02", "0.010"],
        [EVERYTHING, "2", "-0.90", "0.200"],
    ]


@pytest.mark.browser
@pytest.mark.parametrize("width", [1280, 400])
def test_report_in_a_browser_overlaps_nowhere(report: Path, page: Page, width: int) -> None:
    page.set_viewport_size({"width": width, "height": 900})
    page.goto(report.as_uri())
    assert collisions(page) == []
    assert page.evaluate("document.documentElement.scrollWidth") == width


@pytest.mark.browser
def test_report_in_a_browser_links_to_the_tear_sheet(report: Path, page: Page) -> None:
    page.goto(report.as_uri())
    page.click("#tearsheet")
    page.wait_for_url(re.compile("report-tearsheet.html$"))
    assert "follower" in (page.locator("#right table").first.text_content() or "")
    assert len(drawn(page, "#log_returns svg path")) > 10


@pytest.mark.browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_report_in_a_browser_is_legible_in_both_colour_schemes(report: Path, page: Page, scheme: Any) -> None:
    page.emulate_media(color_scheme=scheme)
    page.goto(report.as_uri())
    ground = brightness(page, "body", "backgroundColor")
    for text in (
        "h1",
        "section > p",
        "#equity .ytick text",
        "#frontier .legendtext",
        "#positions .cbaxis text",
        "#gates li",
        "td",
    ):
        colour = "fill" if "text" in text else "color"
        assert abs(brightness(page, text, colour) - ground) > 90
