"""The judge's findings as one self-contained page, with a quantstats tear sheet beside it.

<path>                     verdict, warnings, evidence, figures, plots, context, limits; plotly inline, no network
<stem>-tearsheet.html      more figures of the policy against its first benchmark
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

from data_pipeline.clearance import Clearance
from envs.backtest import Ledger
from envs.costs import SESSIONS_PER_YEAR
from rl.judging import plots
from rl.judging.ensemble import disagreement_text
from rl.judging.evidence import Account, Evidence
from rl.judging.explain import EVERYTHING, Ablation, Regime
from rl.judging.frontier import Frontier
from rl.judging.metrics import Comparison, Figures, figures
from rl.judging.pages import (
    alarm,
    causality,
    facts,
    or_dash,
    page,
    paragraph,
    plot_section,
    section,
    suspicion,
    table,
    trials_table,
    write,
)
from rl.judging.tear_sheet import write_tear_sheet
from rl.judging.twins import Twins
from rl.judging.verdict import Verdict

if TYPE_CHECKING:
    from rl.judging.tune import Trial  # loads Ray


def write_report(
    path: Path,
    *,
    title: str,
    ledgers: Sequence[Ledger],
    verdict: Verdict | None,
    context: Mapping[str, str],
    clearance: Clearance | None = None,
    evidence: Evidence | None = None,
    twins: Twins | None = None,
    frontier: Frontier | None = None,
    regimes: Sequence[Regime] = (),
    disagreement: float | None = None,
    ablations: Sequence[Ablation] = (),
    trials: Sequence[Trial] = (),
    times_opened: int = 0,
) -> Path:
    """Writes the report and its tear sheet, each whole or not at all, and returns `path`.

    Args:
        path: Of the page; its folder is made.
        title: Heading.
        ledgers: The policy's first, then the baselines', all over the same sessions; none: the holdout stayed shut.
        verdict: On that policy; None where nothing is judged.
        context: What was judged and how, name to value: data snapshot, spans, hashes.
        clearance: What is known of the panel's causality; None: nothing was trained on it for this report.
        evidence: Of the sweep, out of sample; None: there was none. Needed where there are no ledgers.
        twins: None: none were trained.
        frontier: None: not looked at.
        regimes: The policy in each kind of market; none: not looked at.
        disagreement: Of the policy's members, mean over the sessions; None: it has none.
        ablations: What each group of features is worth to the policy; none: not looked at.
        trials: All that were tried in the sweep; none: not recorded.
        times_opened: How often the holdout was opened, by anybody.
    """
    found = [figures(ledger) for ledger in ledgers]
    tear_sheet = _tear_sheet(path, title, ledgers, verdict)
    sections = (
        "" if clearance is None else causality(clearance),
        "" if verdict is None else _verdict_section(verdict, evidence, len(trials), times_opened),
        *_alarms(found, evidence, frontier, times_opened),
        "" if evidence is None else _evidence_section(evidence),
        *(
            _account_sections(
                ledgers, found, tear_sheet, "Figures" if verdict is None else "Figures on the holdout", disagreement
            )
            if ledgers
            else ()
        ),
        "" if twins is None else _twins_section(twins),
        *(() if frontier is None else _frontier_sections(frontier)),
        _regimes_section(regimes, found, verdict) if regimes else "",
        _ablations_section(ablations, found) if ablations else "",
        *(_trade_sections(ledgers, found) if ledgers else ()),
        _trials_section(trials),
        _context_section(context, found, judged=verdict is not None),
        _limits_section(found, len(trials), evidence),
    )
    return write(path, page(title, _subtitle(found, evidence), sections))


def _subtitle(found: Sequence[Figures], evidence: Evidence | None) -> str:
    if found:
        policy = found[0]
        return (
            f"{policy.name} on {policy.sessions} sessions, {policy.first_session} to {policy.last_session}, "
            "net of costs."
        )
    sessions = "" if evidence is None else f" {evidence.first_session} to {evidence.last_session}, net of costs."
    return f"The holdout stayed shut; out of sample by the sweep's folds:{sessions}"


def _verdict_section(verdict: Verdict, evidence: Evidence | None, tried: int, times_opened: int) -> str:
    gates = "".join(
        f'<li class="{_word(gate.passed)}"><span class="word">{_word(gate.passed)}</span>'
        f"<span><strong>{escape(gate.name.capitalize())}.</strong> {escape(gate.says)}</span></li>"
        for gate in verdict.gates
    )
    head = ("Against", "Excess per year", "95 % interval", "p, one-sided", "Bootstrap block, sessions")
    rows = [_comparison_row(comparison) for comparison in verdict.comparisons]
    compared = f"<h3>On the holdout, against each baseline</h3>{table('comparisons', head, rows)}" if rows else ""
    number, project = str(tried or "not recorded"), "not recorded" if evidence is None else str(evidence.trials)
    opened = {0: "never for this verdict", 1: "once"}.get(times_opened, f"{times_opened} times")
    return (
        f'<section id="verdict" class="{verdict.decision}"><p class="decision">{verdict.decision}</p>'
        f'<ul id="gates">{gates}</ul>{compared}'
        f'<p>Configurations tried in this sweep: <strong id="tried">{number}</strong>. '
        f'Trials in the project\'s ledger: <strong id="in-project">{project}</strong>. '
        f'The holdout has been opened: <strong id="opened">{opened}</strong>.</p>'
        "</section>"
    )


def _word(passed: bool) -> str:
    return "passed" if passed else "failed"


def _comparison_row(comparison: Comparison) -> tuple[str, ...]:
    return (
        comparison.benchmark,
        f"{comparison.excess:+.1%}",
        f"{comparison.lower:+.1%} to {comparison.upper:+.1%}",
        f"{comparison.p_value:.3f}",
        f"{comparison.block_sessions}",
    )


def _alarms(
    found: Sequence[Figures], evidence: Evidence | None, frontier: Frontier | None, times_opened: int
) -> Iterable[str]:
    if times_opened > 1:
        yield alarm(
            "reopened",
            f"the holdout was opened for the {_ordinal(times_opened)} time: no longer untouched.",
            "Whatever was learnt from it before may have shaped this candidate, so its figures on the holdout, and "
            "their intervals and p-values, look better than they are. The trial ledger says who opened it, and when.",
        )
    ratios = (
        [] if evidence is None else [(evidence.accounts[0].sharpe, f"in {evidence.sessions:,} sessions of the folds")]
    )
    ratios += [(policy.sharpe, f"in the {policy.sessions:,} sessions of this account") for policy in found[:1]]
    if ratios:
        yield suspicion(*max(ratios))
    if frontier is not None and frontier.faults:
        yield alarm(
            "faults",
            "dearer trading made an account richer, which is a fault of the simulator, not a merit of the policy.",
            *frontier.faults,
            "Rely on none of these figures until that is explained.",
        )


def _ordinal(number: int) -> str:
    ending = "th" if number % 100 in (11, 12, 13) else {1: "st", 2: "nd", 3: "rd"}.get(number % 10, "th")
    return f"{number}{ending}"


def _evidence_section(evidence: Evidence) -> str:
    head = (
        "Account",
        "Sharpe ratio per year",
        "95 % interval",
        "Return per year",
        "Volatility per year",
        "Largest drawdown",
        "VaR 95 %, one session",
        "ES 95 %, one session",
        "Beta to equal weight",
    )
    items = "".join(
        f"<dt>{escape(name)}: <strong>{escape(value)}</strong></dt><dd>{escape(meaning)}</dd>"
        for name, value, meaning in _findings(evidence)
    )
    return section(
        "Out of sample, before the holdout",
        paragraph(
            f"The {evidence.sessions:,} sessions of the folds' test spans, {evidence.first_session} to "
            f"{evidence.last_session}, in one series; each was traded by a policy trained on earlier sessions only. "
            f"The winner ({evidence.winner}) was chosen by these same sessions out of {evidence.configurations} "
            "configurations, so its own figures flatter it; the tests below make allowance for the choice."
        ),
        table("accounts", head, map(_account_row, evidence.accounts)),
        paragraph("VaR: the loss that one session in twenty exceeds. ES: the mean loss of such sessions."),
        f'<dl id="findings">{items}</dl>',
    )


def _account_row(account: Account) -> tuple[str, ...]:
    return (
        account.name,
        f"{account.sharpe:.2f}",
        _interval(account.sharpe_lower, account.sharpe_upper, "{:.2f}"),
        f"{account.annual_return:+.1%}",
        f"{account.volatility:.1%}",
        f"{account.max_drawdown:.1%}",
        f"{account.value_at_risk + 0.0:.2%}",  # not -0.00%
        f"{account.expected_shortfall:.2%}",
        f"{account.beta:.2f}",
    )


def _interval(lower: float | None, upper: float | None, pattern: str) -> str:
    if lower is None or upper is None:
        return "without bounds"  # too few returns that vary
    return f"{pattern.format(lower)} to {pattern.format(upper)}"


def _findings(evidence: Evidence) -> Iterable[tuple[str, str, str]]:
    """Yields name, value and meaning of each statistic."""
    yield (
        "Superior predictive ability (SPA), p-value",
        f"{evidence.superiority_p:.3f} (liberal {evidence.superiority_lower:.3f}, conservative "
        f"{evidence.superiority_upper:.3f})",
        f"If no configuration were better than {evidence.benchmark}, luck alone would make the best of "
        f"{evidence.configurations} look so much better in {evidence.superiority_p:.1%} of all histories.",
    )
    yield _overfitting(evidence)
    yield (
        "Deflated Sharpe ratio (DSR), probability",
        f"{evidence.deflated_sharpe:.3f} (threshold {evidence.deflated_threshold:.2f} per year, N = {evidence.trials})",
        f"The best of all {evidence.trials} trials of the project would show {evidence.deflated_threshold:.2f} by luck "
        f"alone; the winner's true ratio is above that with a probability of {evidence.deflated_sharpe:.0%}.",
    )
    yield _difference(evidence)
    yield from _lengths(evidence)


def _overfitting(evidence: Evidence) -> tuple[str, str, str]:
    name = "Probabilities of loss and of backtest overfitting (PBO)"
    loss, among = evidence.loss, evidence.overfitting
    if loss is None or among is None:
        return name, "–", "One configuration was tried, so none was chosen over another."
    return (
        name,
        f"{loss:.2f} and {among:.2f}",
        f"The sessions were cut into halves in many ways: in {loss:.0%} of them what was best in one half did no "
        f"better than {evidence.benchmark} in the other, and in {among:.0%} it was no better there than the median "
        "of the configurations. The second is near one half where all of them are equally good, or bad.",
    )


def _difference(evidence: Evidence) -> tuple[str, str, str]:
    told_apart = evidence.difference_p < 0.05
    return (
        f"Sharpe ratio less that of {evidence.benchmark} (Ledoit and Wolf), per year",
        f"{evidence.difference:+.2f} (95 % interval "
        f"{_interval(evidence.difference_lower, evidence.difference_upper, '{:+.2f}')}, "
        f"p = {evidence.difference_p:.3f}, two-sided)",
        f"Taken by itself, the winner's ratio {'can' if told_apart else 'cannot'} be told from the benchmark's at the "
        "5 % level; this test does not count how many were tried.",
    )


def _lengths(evidence: Evidence) -> Iterable[tuple[str, str, str]]:
    """Yields how long a history is needed, for one candidate and after so many trials."""
    needed, years = evidence.minimum_sessions, evidence.sessions / SESSIONS_PER_YEAR
    if needed is None:
        meaning = "The ratio is not above zero, so no length of such a record would show that it is."
    else:
        enough = "there are enough" if evidence.sessions >= needed else "there are too few"
        meaning = f"So many sessions like these would show a ratio above zero at 95 %; {enough}, {evidence.sessions:,}."
    yield "Minimum track record (MinTRL), sessions", or_dash(needed, "{:,.0f}", "never"), meaning
    enough = "is longer" if years >= evidence.minimum_years else "is too short"
    yield (
        "Minimum backtest length (MinBTL), years",
        f"{evidence.minimum_years:.1f}",
        f"In a shorter history the best of {evidence.trials} trials without skill is expected to show a Sharpe ratio "
        f"of 1 or more; this one {enough}, {years:.1f} years.",
    )


def _account_sections(
    ledgers: Sequence[Ledger],
    found: Sequence[Figures],
    tear_sheet: Path | None,
    heading: str,
    disagreement: float | None,
) -> tuple[str, ...]:
    return (
        _figures_section(found, tear_sheet, heading, disagreement),
        plot_section(
            "equity",
            "Equity",
            "Account value after each close, net of costs, on a logarithmic axis.",
            plots.equity(ledgers),
        ),
        plot_section(
            "drawdown", "Drawdown", "How far equity stood below its highest value so far.", plots.drawdown(ledgers)
        ),
    )


_FIGURE_ROWS: tuple[tuple[str, Callable[[Figures], str]], ...] = (
    ("Total return", lambda f: f"{f.total_return:+.1%}"),
    ("Return per year (CAGR)", lambda f: f"{f.cagr:+.1%}"),
    ("Volatility per year", lambda f: f"{f.volatility:.1%}"),
    ("Sharpe ratio per year ± standard error", lambda f: f"{f.sharpe:.2f}" + or_dash(f.sharpe_error, " ± {:.2f}", "")),
    ("Largest drawdown", lambda f: f"{f.max_drawdown:.1%}"),
    ("Exposure, mean of gross weight", lambda f: f"{f.exposure:.0%}"),
    ("Turnover per year, multiple of equity", lambda f: f"{f.turnover_per_year:.1f}"),
    ("Trades", lambda f: f"{f.trades:,}"),
    ("Holding time in sessions, mean", lambda f: or_dash(f.mean_holding_sessions, "{:.1f}")),
    ("Holding time in sessions, median", lambda f: or_dash(f.median_holding_sessions, "{:.1f}")),
    ("Costs paid, USD", lambda f: f"{f.cost_usd:,.0f}"),
    ("Costs per year, bps of equity", lambda f: f"{f.cost_bps_per_year:.1f}"),
    ("Final equity, USD", lambda f: f"{f.final_equity_usd:,.0f}"),
)


def _figures_section(
    found: Sequence[Figures], tear_sheet: Path | None, heading: str, disagreement: float | None
) -> str:
    policy = found[0]
    rows = [(label, *(text(f) for f in found)) for label, text in _FIGURE_ROWS]
    link = (
        f'<p><a id="tearsheet" href="{quote(tear_sheet.name)}">Tear sheet</a>: monthly returns, rolling figures, '
        "worst drawdowns.</p>"
        if tear_sheet
        else "<p>There is no tear sheet: the returns to be compared do not vary.</p>"
    )
    span = f"{policy.sessions} sessions, {policy.first_session} to {policy.last_session}, net of costs."
    together = "" if disagreement is None else f'<p id="disagreement">{disagreement_text(disagreement)}</p>'
    return section(heading, paragraph(span), table("figures", ("", *(f.name for f in found)), rows), together, link)


def _twins_section(twins: Twins) -> str:
    better, number = sum(twin >= twins.candidate for twin in twins.twins), len(twins.twins)
    caption = (
        "A zero-skill twin is the candidate trained anew on features that belong to other sessions: what it earns, "
        f"it earns without skill. {better} of {number} did at least as well on the holdout, so p = "
        f"(1 + {better}) / (1 + {number}) = {twins.p_value:.2f}; the least that {number} twins can show is "
        f"{1 / (1 + number):.2f}."
    )
    return plot_section("twins", "Zero-skill twins", caption, plots.twins(twins))


def _frontier_sections(found: Frontier) -> Iterable[str]:
    yield plot_section("frontier", "Cost frontier", plots.cost_caption(found), plots.cost_frontier(found))
    if any(point.axis == "account" for point in found.points):
        yield plot_section("capacity", "Account size", plots.size_caption(found), plots.size_frontier(found))


def _regimes_section(regimes: Sequence[Regime], found: Sequence[Figures], verdict: Verdict | None) -> str:
    against = verdict.comparisons[0].benchmark if verdict is not None and verdict.comparisons else "the benchmark"
    head = ("Regime", "Sessions", "Return per year", "Sharpe ratio per year ± standard error", f"Excess over {against}")
    rows = [
        (
            f"{regime.kind}: {regime.name}",
            f"{regime.sessions:,}",
            f"{regime.annual_return:+.1%}",
            f"{regime.sharpe:.2f}" + or_dash(regime.sharpe_error, " ± {:.2f}", ""),
            f"{regime.excess:+.1%}",
        )
        for regime in regimes
    ]
    name = found[0].name if found else "the policy"
    return section(
        "Regimes",
        paragraph(
            f"Where {name} earned it. Volatility by thirds of its own past, trend by the means of 50 and 200 sessions, "
            "both of the equally weighted set and known at the close before. Regimes are short: mind the errors."
        ),
        table("regimes", head, rows),
    )


def _ablations_section(ablations: Sequence[Ablation], found: Sequence[Figures]) -> str:
    head = ("Hidden", "Features", "Change of the Sharpe ratio per year", "Mean change of the target positions")
    rows = [
        (each.group, f"{len(each.features)}", f"{each.sharpe_change:+.2f}", f"{each.position_change:.3f}")
        for each in sorted(ablations, key=lambda each: (each.group == EVERYTHING, -each.position_change))
    ]
    name = found[0].name if found else "the policy"
    return section(
        "Features",
        paragraph(
            f"What becomes of {name} on the same sessions if it sees the training median of a group's features instead "
            "of them, which tells nothing. A negative change of the Sharpe ratio: they helped. Target positions are "
            "from -1 (short) to 1 (long); a change of 0: the features play no part. The policy was not trained "
            "without them, so this says what it hangs on, not what could be learnt without them; groups that tell the "
            "same can stand in for one another, and each then looks worthless."
        ),
        table("ablations", head, rows),
    )


def _trade_sections(ledgers: Sequence[Ledger], found: Sequence[Figures]) -> tuple[str, ...]:
    return (
        plot_section(
            "positions",
            f"Positions of {ledgers[0].name}",
            "Weight of each symbol after each close. Blue is long, orange is short, no colour is no position.",
            plots.positions(ledgers[0]),
        ),
        plot_section("costs", "Costs paid", "All costs of the whole span, by kind.", plots.costs(found)),
        plot_section("holding", "Holding time", _holding_caption(found[0]), plots.holding(ledgers[0])),
    )


def _holding_caption(policy: Figures) -> str:
    if policy.mean_holding_sessions is None:
        return f"{policy.name} held no position."
    return (
        f"Positions of {policy.name} by the number of closes they were held over: mean "
        f"{policy.mean_holding_sessions:.1f}, median {policy.median_holding_sessions:.1f}. One that was still "
        "open at the end counts as long as it was seen."
    )


def _trials_section(trials: Sequence[Trial]) -> str:
    if not trials:
        return ""
    return section(
        "Configurations tried",
        paragraph("Sharpe ratio per year on each fold's test span, net of costs; the best one was chosen."),
        f"<details><summary>{len(trials)} configurations, the best first</summary>"
        f"{trials_table(trials, lambda trial: trial.status)}</details>",
    )


def _context_section(context: Mapping[str, str], found: Sequence[Figures], *, judged: bool) -> str:
    return section("Context", *(paragraph(text) for text in _sample(found, judged)), facts(context))


def _sample(found: Sequence[Figures], judged: bool) -> Iterable[str]:
    if not found:
        return
    policy = found[0]
    yield (
        (
            f"Out of sample means: the {policy.sessions} sessions from {policy.first_session} to "
            f"{policy.last_session} come after every session that the network was trained on, that its inputs were "
            "scaled by, and that its configuration was chosen on, with a gap between. "
            if judged
            else "Nothing is judged here: whether these sessions are out of sample depends on what the policy was "
            "trained on and chosen by. "
        )
        + "Each decision was made after a close, from what was known then, and filled at the next session's open. All "
        "accounts saw the same sessions, symbols, limits and costs."
    )


def _limits_section(found: Sequence[Figures], tried: int, evidence: Evidence | None) -> str:
    number = f"{tried}" if tried else "an unrecorded number of"
    chosen = "one configuration" if tried == 1 else f"the best of {number} configurations"
    error = [
        f"The Sharpe ratio of {f.sessions} sessions has a standard error{_error(f)}, so a small gain cannot be told "
        "from luck."
        for f in found[:1]
    ]
    tries = (
        "The more configurations were tried, the better the best of them looks by luck alone, and neither the "
        "intervals nor the p-values allow for that."
        if evidence is None
        else "The tests out of sample allow for what the trial ledger holds, not for what was tried elsewhere. The "
        "intervals and p-values on the holdout are those of one candidate, which holds if it is opened once."
    )
    return section(
        "Limits",
        paragraph(
            " ".join(
                [
                    f"This is one stretch of history, one set of symbols and {chosen}.",
                    *error,
                    tries,
                    "Symbols that are known today have survived until today; only the differences between accounts "
                    "on the same symbols mean something.",
                ]
            )
        ),
        paragraph(
            "Fills are simulated: an order gets the opening price as far as its share of the session's volume allows, "
            "and its market impact is charged as a cost but moves no later price. Cash earns no interest, and taxes "
            "are left out. Past returns, simulated ones most of all, promise nothing."
        ),
    )


def _error(policy: Figures) -> str:
    return or_dash(policy.sharpe_error, " of {:.2f}", " that is unknown")


def _tear_sheet(path: Path, title: str, ledgers: Sequence[Ledger], verdict: Verdict | None) -> Path | None:
    """Writes the policy's tear sheet against its first benchmark; None where there is nothing to compare."""
    beside = path.with_name(f"{path.stem}-tearsheet.html")
    if not ledgers:
        beside.unlink(missing_ok=True)
        return None
    compared = () if verdict is None else verdict.comparisons
    against = compared[0].benchmark if compared else ledgers[1].name
    return write_tear_sheet(beside, title, ledgers[0], next(each for each in ledgers if each.name == against))
