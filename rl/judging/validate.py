"""The sweep's winner on the untouched holdout, against baselines, net of costs.

<out>/final/             training run of the winner on the final fold
<out>/ledgers/<name>/    what each account did on the holdout
<out>/validation.json    figures, comparison, verdict; written last
<out>/report.html        the same for people
<sweep>/holdout_openings.jsonl   one line for every time the holdout was opened
"""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

from data_pipeline.config import Config
from data_pipeline.errors import RunError
from data_pipeline.panel import Panel, open_panel
from data_pipeline.scaling import Scaler
from envs.backtest import Ledger, backtest
from envs.bundle import LstmPolicy
from envs.contract import Policy
from rl.config import RunConfig
from rl.judging.baselines import BASELINES
from rl.judging.metrics import Figures, Verdict, figures, verdict
from rl.judging.report import write_report
from rl.judging.tune import Trial, folds_of, read_sweep
from rl.learning.train import Progress, policy_of, train


class Validation(Config):
    """What the judge found."""

    config: RunConfig
    """Settings of the winner."""
    panel: str
    """Folder of the panel."""
    run: str
    """Folder of the final training run."""
    scaler: Scaler
    """Fitted on the final training span."""
    spans: dict[str, str]
    """First and last session of training and holdout, and how often the holdout has been opened."""
    figures: tuple[Figures, ...]
    """The policy's first, then the baselines'."""
    trials: tuple[Trial, ...]
    """All that were tried."""
    verdict: Verdict
    """Promote or reject."""

    def open_panel(self) -> Panel:
        """Returns the panel it was judged on."""
        return open_panel(Path(self.panel))

    def policy(self) -> LstmPolicy:
        """Returns the judged policy."""
        return policy_of(Path(self.run), self.config, self.scaler)


def validate(sweep_folder: Path, out: Path, on_progress: Callable[[Progress], None] = lambda _: None) -> Validation:
    """Trains the winner once more up to the holdout, opens it, and judges; needs a Ray connection.

    Raises:
        RunError: There is no finished sweep.
    """
    sweep = read_sweep(sweep_folder)
    config, panel_folder = sweep.winner, Path(sweep.panel)
    panel = open_panel(panel_folder, verify=True)
    _, final = folds_of(panel, config)
    trained = train(config, panel_folder, final.train, out / "final", resume=True, on_progress=on_progress)
    spans = {
        "train": _dates(panel, final.train.start, final.train.stop),
        "holdout": _dates(panel, final.test.start, final.test.stop),
        "opened": str(_record_opening(sweep_folder, out)),
    }
    env = config.env
    policies: tuple[Policy, ...] = (trained.policy, *BASELINES)
    ledgers = [backtest(policy, panel, final.test, env.limits, env.costs, env.initial_cash_usd) for policy in policies]
    for ledger in ledgers:
        ledger.save(out / "ledgers" / ledger.name)
    validation = Validation(
        config=config,
        panel=str(panel_folder),
        run=str((out / "final").resolve()),
        scaler=trained.policy.scaler,
        spans=spans,
        figures=tuple(figures(ledger) for ledger in ledgers),
        trials=sweep.trials,
        verdict=verdict(ledgers[0], ledgers[1:]),
    )
    _report(out, validation, ledgers, panel)
    scratch = out / "validation.json.writing"
    scratch.write_text(json.dumps(validation.tree(), indent=1), encoding="utf-8")
    scratch.replace(out / "validation.json")
    return validation


def _report(out: Path, validation: Validation, ledgers: list[Ledger], panel: Panel) -> None:
    trials = [
        {
            "configuration": trial.label,
            **{score.fold: score.sharpe for score in trial.folds},
            "all folds": trial.score,
        }
        for trial in validation.trials
    ]
    context = {
        "trained on": validation.spans["train"],
        "judged on": validation.spans["holdout"],
        "times this holdout was opened": validation.spans["opened"],
        "symbols": ", ".join(panel.symbols),
        "decision and fill": "decided at the close of a session, filled at the open of the next",
        "costs": json.dumps(validation.config.env.costs.tree()),
        "limits": json.dumps(validation.config.env.limits.tree()),
        "bars": ", ".join(f"{key} {value}" for key, value in panel.source.items()),
        "settings": f"sha256 {validation.config.digest()}",
    }
    title = f"{validation.figures[0].name} on {', '.join(panel.symbols)}"
    write_report(
        out / "report.html",
        title=title,
        ledgers=ledgers,
        verdict=validation.verdict,
        context=context,
        trials=trials,
    )


def _dates(panel: Panel, start: int, stop: int) -> str:
    return f"{panel.sessions[start]} .. {panel.sessions[stop - 1]}"


def _record_opening(sweep_folder: Path, out: Path) -> int:
    """Adds a line for this opening of the holdout and returns how many there are."""
    record = sweep_folder / "holdout_openings.jsonl"
    with record.open("a", encoding="utf-8") as file:
        file.write(json.dumps({"at": datetime.now(UTC).isoformat(timespec="seconds"), "by": str(out)}) + "\n")
    return len(record.read_text(encoding="utf-8").splitlines())


def read_validation(out: Path) -> Validation:
    """Returns the validation in `out`.

    Raises:
        RunError: There is none.
    """
    path = out / "validation.json"
    try:
        return Validation.of(json.loads(path.read_text(encoding="utf-8")), str(path))
    except (OSError, ValueError) as error:
        raise RunError(f"{out}: holds no validation ({error}); run `swing-rl validate`") from error
