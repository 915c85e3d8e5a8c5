"""The sweep's winner before its judge: what the search showed, then the holdout, opened on record.

<out>/final/              trainings of the candidate on the final fold (`candidate`)
<out>/twins/              the same of its zero-skill twins
<out>/ledgers/<name>/     what each account did on the holdout
<out>/validation.json     evidence, figures, verdict; written last
<out>/report.html         the same for people
<project>/ledger/         the trial ledger: every opening of the holdout and every verdict is in it for ever
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

from data_pipeline.clearance import Clearance
from data_pipeline.config import Config
from data_pipeline.errors import ConfigError, RunError
from data_pipeline.folds import Fold
from data_pipeline.panel import Panel, open_panel
from data_pipeline.scaling import Scaler, fit_scaler
from envs.backtest import Ledger, backtest
from envs.ensemble import Ensemble
from envs.lstm import LstmPolicy
from rl.config import RunConfig, with_values
from rl.judging.baselines import BASELINES
from rl.judging.candidate import Candidate, candidate_of
from rl.judging.chain import Head
from rl.judging.ensemble import watched
from rl.judging.evidence import Evidence, evidence_of, series_of
from rl.judging.explain import Ablation, Regime, ablation, regimes
from rl.judging.frontier import Frontier, frontier
from rl.judging.metrics import Figures, compare, figures, solvent_returns
from rl.judging.report import write_report
from rl.judging.trial_ledger import Judged, Opened, TrialLedger
from rl.judging.tune import Sweep, Trial, folds_of, read_sweep
from rl.judging.twins import Twins, ranked, twin_ratios
from rl.judging.verdict import (
    Gate,
    Verdict,
    causality_gate,
    holdout_gate,
    search_gates,
    shut_gate,
    substance_gate,
    twins_gate,
    verdict_of,
)
from rl.learning.train import Progress


class Validation(Config):
    """What the judge found."""

    sweep: str
    """Its name in the trial ledger."""
    candidate: Candidate
    """What was judged."""
    runs: str
    """Folder of its trainings."""
    weights: tuple[float, ...]
    """Of its members, by inner validation; none unless they are combined by sharpe."""
    panel: str
    """Folder of the panel."""
    clearance: Clearance = Clearance()
    """Whether its features see the future, as far as is known."""
    scaler: Scaler
    """Fitted on the final training span."""
    spans: dict[str, str]
    """First and last session of training and holdout, and how often the holdout has been opened."""
    evidence: Evidence
    """Out of sample, before the holdout."""
    figures: tuple[Figures, ...]
    """On the holdout: the policy's first, then the baselines'; empty if it stayed shut."""
    disagreement: float | None
    """Of the members, mean over the holdout (`ensemble.disagreement`); None for a single one, or if it stayed shut."""
    twins: Twins | None
    """None: none were trained."""
    frontier: Frontier | None
    """What dearer trading and a larger account would have made of the holdout; None if it stayed shut."""
    regimes: tuple[Regime, ...]
    """The policy in each kind of market, on the holdout."""
    ablations: tuple[Ablation, ...]
    """What each group of features is worth to it there; empty if it stayed shut."""
    trials: tuple[Trial, ...]
    """All that were tried in this sweep."""
    ledger_head: str
    """Number and hash of the trial ledger's newest entry before this verdict."""
    verdict: Verdict
    """Promote or reject."""

    @property
    def config(self) -> RunConfig:
        """Settings of the winner."""
        return self.candidate.config

    def open_panel(self) -> Panel:
        """Returns the panel it was judged on."""
        return open_panel(Path(self.panel))

    def policy(self) -> LstmPolicy | Ensemble:
        """Returns the judged policy.

        Raises:
            RunError: It was never trained.
        """
        if not self.figures:
            raise RunError(
                f"sweep {self.sweep}: its candidate was not trained, for a gate before had failed (judge.thrifty); "
                "tune and validate with judge.thrifty=false"
            )
        return self.candidate.policy(Path(self.runs), self.scaler, self.weights)


def validate(
    sweep_folder: str | Path,
    out: Path,
    on_progress: Callable[[Progress], None] = lambda _: None,
    on_twin: Callable[[int, int], None] = lambda *_: None,
) -> Validation:
    """Judges the winner of a sweep, or its best configurations as one; needs a Ray connection.

    Args:
        sweep_folder: Folder or URI of the finished sweep.
        out: Folder for runs, ledgers, figures and report.
        on_progress: Is told of each iteration of the final trainings.
        on_twin: Is told (twins done, twins in all).

    Raises:
        RunError: There is no finished sweep, too few of its configurations finished, or its ledger is damaged.
    """
    case = _Case(sweep_folder, out)
    gates = [causality_gate(case.sweep.clearance), *search_gates(case.evidence, case.config.judge)]
    policy = holdout = None
    if not case.config.judge.thrifty or all(gate.passed for gate in gates):
        policy = case.candidate.trained(case.panel_folder, case.final, case.runs, on_progress)
        holdout = case.opened(policy)
    gates += [shut_gate("holdout")] if holdout is None else [holdout.gate]
    twins = None
    if case.config.judge.twins and holdout is not None and not (case.config.judge.thrifty and not holdout.gate.passed):
        twins = ranked(
            holdout.found[0].sharpe, twin_ratios(case.candidate, case.panel_folder, case.final, out / "twins", on_twin)
        )
        gates.append(twins_gate(twins, case.config.judge))
    elif case.config.judge.twins:
        gates.append(shut_gate("twins"))
    if holdout is not None:
        gates.append(substance_gate(holdout.found[0]))
    return case.closed(policy, gates, holdout, twins)


class _Holdout:
    """What the accounts did on it."""

    def __init__(self, ledgers: Sequence[Ledger], disagreement: float | None, benchmark: str, seed: int) -> None:
        self.ledgers, self.disagreement = ledgers, disagreement
        self.found = tuple(figures(ledger) for ledger in ledgers)
        rest = sorted(ledgers[1:], key=lambda ledger: ledger.name != benchmark)
        self.comparisons = tuple(compare(ledgers[0], ledger, seed) for ledger in rest if ledger.name != "cash")
        self.gate = holdout_gate(self.comparisons[0])
        self.benchmark = rest[0]


class _Case:
    """One sweep before its judge."""

    def __init__(self, sweep_folder: str | Path, out: Path) -> None:
        self.sweep: Sweep = read_sweep(sweep_folder)
        self.candidate = candidate_of(self.sweep)
        self.out, self.config, self.panel_folder = out, self.candidate.config, Path(self.sweep.panel)
        self.runs = out / "final"
        self.ledger = TrialLedger(self.sweep.project)
        self.head = self.ledger.verify(Head.of(self.sweep.ledger_head)).text
        self.panel = open_panel(self.panel_folder, verify=True)
        self.folds, _ = folds_of(self.panel, self.sweep.config)  # as the sweep laid them out
        longest = with_values(self.sweep.config, {"model.window_sessions": self.candidate.window}, "candidate")
        _, self.final = folds_of(self.panel, longest)
        best = self.sweep.trials[0]
        series = series_of(
            self.ledger.trials(self.sweep.id),
            self.panel,
            self.folds,
            self.config.env,
            BASELINES,
            self.config.judge.benchmark,
        )
        self.evidence = evidence_of(series, best.number, best.label, self.ledger, self.config.judge)
        self.holdout = tuple(
            self.panel.sessions[row].item() for row in (self.final.test.start, self.final.test.stop - 1)
        )
        self.times_opened = len(self.ledger.openings(*self.holdout))

    def opened(self, policy: LstmPolicy | Ensemble) -> _Holdout:
        """Opens the holdout, on record before anybody looks."""
        first, last = self.holdout
        by = str(self.out)
        self.ledger.open(
            Opened(sweep=self.sweep.id, candidate=self.candidate.label, by=by, first_session=first, last_session=last)
        )
        self.times_opened = len(self.ledger.openings(first, last))
        panel, span, account = self.panel, self.final.test, self.candidate.account
        seen = watched(policy, panel, span, *account) if isinstance(policy, Ensemble) else None
        own = backtest(policy, panel, span, *account) if seen is None else seen.ledger
        ledgers = [own, *(backtest(baseline, panel, span, *account) for baseline in BASELINES)]
        for ledger in ledgers:
            ledger.save(self.out / "ledgers" / ledger.name)
        judge, disagreement = self.config.judge, None if seen is None else seen.mean_disagreement
        return _Holdout(ledgers, disagreement, judge.benchmark, judge.seed)

    def closed(
        self, policy: LstmPolicy | Ensemble | None, gates: list[Gate], holdout: _Holdout | None, twins: Twins | None
    ) -> Validation:
        """Gives the verdict and writes everything down; without a policy there is no holdout."""
        spans = {
            "train": _dates(self.panel, self.final, "train"),
            "holdout": _dates(self.panel, self.final, "test"),
            "opened": str(self.times_opened),
        }
        validation = Validation(
            sweep=self.sweep.id,
            candidate=self.candidate,
            runs=str(self.runs.resolve()),
            weights=policy.weights if isinstance(policy, Ensemble) else (),
            panel=str(self.panel_folder),
            clearance=self.sweep.clearance,
            scaler=fit_scaler(self.panel, self.final.train),
            spans=spans,
            evidence=self.evidence,
            figures=() if holdout is None else holdout.found,
            disagreement=None if holdout is None else holdout.disagreement,
            twins=twins,
            frontier=None if holdout is None else self._frontier(holdout),
            regimes=() if holdout is None else self._regimes(holdout),
            ablations=() if policy is None else self._ablations(policy),
            trials=self.sweep.trials,
            ledger_head=self.head,
            verdict=verdict_of(gates, () if holdout is None else holdout.comparisons),
        )
        self.ledger.judge(
            Judged(
                sweep=self.sweep.id,
                candidate=self.candidate.label,
                decision=validation.verdict.decision,
                reasons=validation.verdict.reasons,
                figures=self.evidence.tree(),
            )
        )
        if holdout is not None:
            _report(self.out, validation, holdout.ledgers, self.panel)
        self.out.mkdir(parents=True, exist_ok=True)
        scratch = self.out / "validation.json.writing"
        scratch.write_text(json.dumps(validation.tree(), indent=1), encoding="utf-8")
        scratch.replace(self.out / "validation.json")
        return validation

    def _frontier(self, holdout: _Holdout) -> Frontier:
        found = holdout.found[[ledger.name for ledger in holdout.ledgers].index(holdout.benchmark.name)]
        own, account = holdout.ledgers[0], self.candidate.account
        return frontier(own, self.panel, self.final.test, *account, benchmark_return=found.cagr)

    def _regimes(self, holdout: _Holdout) -> tuple[Regime, ...]:
        own, other = (solvent_returns(ledger) for ledger in (holdout.ledgers[0], holdout.benchmark))
        return regimes(holdout.ledgers[0].account["session"].to_list(), own, other, self.panel)

    def _ablations(self, policy: LstmPolicy | Ensemble) -> tuple[Ablation, ...]:
        return ablation(policy, self.panel, self.final.test, self.final.train, *self.candidate.account)


def _report(out: Path, validation: Validation, ledgers: Sequence[Ledger], panel: Panel) -> None:
    context = {
        "candidate": validation.candidate.label,
        **({"members' weights": ", ".join(f"{each:.3f}" for each in validation.weights)} if validation.weights else {}),
        "trained on": validation.spans["train"],
        "judged on": validation.spans["holdout"],
        "trial ledger's head": validation.ledger_head,
        "symbols": ", ".join(panel.symbols),
        "decision and fill": "decided at the close of a session, filled at the open of the next",
        "costs": json.dumps(validation.config.env.costs.tree()),
        "limits": json.dumps(validation.config.env.limits.tree()),
        "bars": ", ".join(f"{key} {value}" for key, value in panel.source.items()),
        "settings": f"sha256 {validation.config.digest()}",
    }
    write_report(
        out / "report.html",
        title=f"{ledgers[0].name} on {', '.join(panel.symbols)}",
        ledgers=ledgers,
        verdict=validation.verdict,
        context=context,
        clearance=validation.clearance,
        evidence=validation.evidence,
        twins=validation.twins,
        frontier=validation.frontier,
        regimes=validation.regimes,
        disagreement=validation.disagreement,
        ablations=validation.ablations,
        trials=validation.trials,
        times_opened=int(validation.spans["opened"]),
    )


def _dates(panel: Panel, fold: Fold, name: str) -> str:
    span = getattr(fold, name)
    return f"{panel.sessions[span.start]} .. {panel.sessions[span.stop - 1]}"


def read_validation(out: Path) -> Validation:
    """Returns the validation in `out`.

    Raises:
        RunError: There is none.
    """
    path = out / "validation.json"
    try:
        return Validation.of(json.loads(path.read_text(encoding="utf-8")), str(path))
    except (OSError, ValueError, ConfigError) as error:
        raise RunError(f"{out}: holds no validation ({error}); run `swing-rl validate`") from error
