"""Promote or reject: six gates in a fixed order, each a sentence with its numbers.

1. causality     the leakage audit found nothing that sees the future, and no panel was forced past it
2. superiority   the best of all that were tried beats the benchmark by more than the search alone explains
3. overfitting   what was best on one half of the sessions still beats the benchmark on the other half
4. holdout       on sessions that nothing was chosen by, the winner earns more than the benchmark
5. twins         there it does better than its zero-skill twins
6. substance     it traded, over enough sessions to be judged at all

Noise passes the second in one sweep of twenty and the others seldom; the holdout alone could not tell skill from luck,
for the standard error of a Sharpe ratio over two years is 0.7.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from data_pipeline.clearance import Clearance
from data_pipeline.config import Config
from envs import bundle
from rl.judging.criteria import JudgeConfig
from rl.judging.evidence import Evidence
from rl.judging.metrics import Comparison, Figures
from rl.judging.significance import MINIMUM_SESSIONS
from rl.judging.twins import Twins


class Gate(Config):
    """One condition of promotion."""

    name: Literal["causality", "superiority", "overfitting", "holdout", "twins", "substance"]
    """Which."""
    passed: bool
    """Whether it is met; one that was not looked at is not. Bars that cannot be audited pass causality."""
    says: str
    """A sentence with the numbers."""


class Verdict(bundle.Verdict):
    """Whether a policy may be used, and why, with the figures behind it."""

    gates: tuple[Gate, ...] = ()
    """All conditions, in order; promoted if all are met."""
    comparisons: tuple[Comparison, ...]
    """On the holdout, with each baseline, the benchmark first; empty if it stayed shut."""


def causality_gate(clearance: Clearance) -> Gate:
    """Returns the gate that the leakage audit decides; where it could not be run, its sentence says so."""
    return Gate(name="causality", passed=clearance.may_promote, says=clearance.says)


def search_gates(evidence: Evidence, config: JudgeConfig) -> tuple[Gate, ...]:
    """Returns the gates that the sweep itself decides."""
    level, most = config.superiority_level, config.most_overfitting
    found = evidence.superiority_p < level
    superiority = Gate(
        name="superiority",
        passed=found,
        says=f"Over {evidence.sessions} sessions out of sample, the best of {evidence.configurations} configurations "
        f"against {evidence.benchmark}: SPA p = {evidence.superiority_p:.3f}, {_side(found)} {level:g}; "
        + ("the search alone does not explain it." if found else "luck in the search explains it."),
    )
    chance, among = evidence.loss, evidence.overfitting
    if chance is None or among is None:
        steady = Gate(
            name="overfitting", passed=True, says="One configuration was tried, so none was chosen over another."
        )
    else:
        good = chance < most
        steady = Gate(
            name="overfitting",
            passed=good,
            says=f"What was best in one half of the sessions did no better than {evidence.benchmark} in the other half "
            f"with a probability of {chance:.2f}, {_side(good)} {most:g}; it was among the worse half of the "
            f"configurations with {among:.2f} (PBO).",
        )
    return superiority, steady


def holdout_gate(comparison: Comparison) -> Gate:
    """Returns the gate that the holdout decides: a gain at all, for its length can show no more."""
    return Gate(
        name="holdout",
        passed=comparison.excess > 0,
        says=f"On the holdout the excess over {comparison.benchmark} is {comparison.excess:+.1%} a year, with a 95 % "
        f"interval from {comparison.lower:+.1%} to {comparison.upper:+.1%}, p = {comparison.p_value:.3f}.",
    )


def twins_gate(twins: Twins, config: JudgeConfig) -> Gate:
    """Returns the gate that zero-skill twins decide."""
    better, number = sum(each >= twins.candidate for each in twins.twins), len(twins.twins)
    good = twins.p_value <= config.twin_level
    return Gate(
        name="twins",
        passed=good,
        says=f"{better} of {number} zero-skill twins did at least as well on the holdout (Sharpe ratio "
        f"{twins.candidate:.2f}; twins {min(twins.twins):.2f} to {max(twins.twins):.2f}): p = {twins.p_value:.2f}, "
        f"{'at most' if good else 'above'} {config.twin_level:g}.",
    )


def substance_gate(figures: Figures) -> Gate:
    """Returns the gate of those that did nothing, or were not watched for long enough."""
    if not figures.trades:
        says = f"{figures.name} made no trade in {figures.sessions} sessions, so it showed nothing."
    elif figures.sessions < MINIMUM_SESSIONS:
        says = f"{figures.sessions} sessions are too few to judge on; {MINIMUM_SESSIONS} are the least."
    else:
        says = f"{figures.name} made {figures.trades} trades in {figures.sessions} sessions of the holdout."
    return Gate(name="substance", passed=bool(figures.trades) and figures.sessions >= MINIMUM_SESSIONS, says=says)


def shut_gate(name: Literal["holdout", "twins"]) -> Gate:
    """Returns the gate that was not looked at, a gate before it having failed."""
    what = "The holdout stayed shut" if name == "holdout" else "No twins were trained"
    return Gate(name=name, passed=False, says=f"{what}: a gate before had failed (judge.thrifty).")


def verdict_of(gates: Sequence[Gate], comparisons: Sequence[Comparison]) -> Verdict:
    """Returns promote if all gates are passed."""
    return Verdict(
        decision="promote" if all(gate.passed for gate in gates) else "reject",
        reasons=tuple(f"{gate.name}, {'passed' if gate.passed else 'failed'}: {gate.says}" for gate in gates),
        gates=tuple(gates),
        comparisons=tuple(comparisons),
    )


def _side(below: bool) -> str:
    return "below" if below else "not below"
