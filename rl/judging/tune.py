"""Ray Tune over configurations and walk-forward folds.

A trial trains one configuration on fold after fold and is scored on what it never trained on: the Sharpe ratio of the
concatenated returns on the folds' test spans, net of costs, with the window replay that serving uses; of several
seeds, the median. The holdout is not read.

    <out>/sweep.json                              settings, panel, every trial's figures by fold; written last
    <out>/config.json                             what is swept; written first
    <out>/trials/<digest>/seed-<seed>/<fold>/     trainings, named by configuration
    <out>/ray/                                    Ray Tune's own files, TensorBoard's among them
    <project>/ledger/                             every trial ever scored in the project (`trial_ledger`)

`out` may be an s3:// URI: then Tune's files stay on the driver's node, and the rest is in the bucket. Tune's own state
is not needed to go on: a sweep that was interrupted, or killed, takes everything from the ledger and the trainings.

Population-based training is left out on purpose: it ends in a schedule of settings that one fold's luck has made, and
there is nothing to train anew on the next fold.
"""

from __future__ import annotations

import json
import os
import shutil
import uuid
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from ray import tune as ray_tune

from data_pipeline.clearance import Clearance, cleared
from data_pipeline.config import Config
from data_pipeline.errors import ConfigError, RunError
from data_pipeline.folds import Fold, walk_forward
from data_pipeline.panel import Panel, open_panel
from envs.backtest import backtest
from rl.config import RunConfig, with_values
from rl.judging.course import Course, Job, chosen, score_of, seeds_of, spread_of
from rl.judging.metrics import sharpe, solvent_returns
from rl.judging.place import Place, Training, parent, training_name
from rl.judging.search import size_of
from rl.judging.trial_ledger import TrialLedger, TrialRecord
from rl.learning.panels import panel_at, share_panel
from rl.learning.train import train


class FoldScore(Config):
    """One training."""

    fold: str
    """Name of the fold."""
    seed: int = 0
    """train.seed of the training."""
    sharpe: float
    """Annualised, of the returns on the fold's test span."""
    total_return: float
    """Over the test span, as a fraction, net of costs."""
    seconds: float
    """Wall time of training."""


class Trial(Config):
    """One configuration."""

    number: int = 0
    """In the order in which they were begun."""
    values: dict[str, Any]
    """Dotted path -> value, what the search space chose."""
    config_hash: str
    """Of the resolved settings."""
    status: Literal["finished", "stopped", "failed"] = "finished"
    """stopped: early, because others did better."""
    folds: tuple[FoldScore, ...]
    """In time order, all seeds of each; fewer than the sweep's folds if the trial failed or was stopped."""
    score: float | None
    """Annualised Sharpe ratio of the test returns of all folds in one series, the median over seeds; None if the trial
    failed."""
    quartiles: tuple[float, float] | None = None
    """Of the seeds' ratios; None if the trial failed."""
    error: str | None = None
    """Why it failed."""

    @property
    def label(self) -> str:
        """The values, short enough for a table."""
        return label_of(self.values) or "as configured"


class Sweep(Config):
    """A finished sweep."""

    id: str
    """Its name in the trial ledger."""
    project: str
    """Folder or URI of the project, which holds the ledger."""
    config: RunConfig
    """Settings common to all trials."""
    panel: str
    """Folder of the panel."""
    clearance: Clearance = Clearance()
    """Whether its features see the future, as far as is known."""
    folds: int
    """Number of walk-forward folds."""
    trials: tuple[Trial, ...]
    """Finished ones, best first; then stopped ones; then failed ones."""
    ledger_head: str
    """Number and hash of the trial ledger's newest entry when the sweep was finished."""


def folds_of(panel: Panel, config: RunConfig) -> tuple[tuple[Fold, ...], Fold]:
    """Returns the walk-forward folds and the final fold of a panel.

    Raises:
        FoldError: The layout contradicts itself or the history is too short.
    """
    first_ready = int(np.argmax(panel.ready.any(axis=1)))
    return walk_forward(len(panel.sessions), first_ready + config.model.window_sessions, config.folds)


def tune(
    config: RunConfig,
    out: str | Path,
    on_result: Callable[[int, int], None] = lambda *_: None,
    resume: bool = False,
    project: str | None = None,
    on_audit: Callable[[int, int], None] = lambda *_: None,
) -> Sweep:
    """Runs the sweep and returns it; needs a Ray connection.

    Args:
        config: Settings, the search space among them.
        out: The sweep's folder or s3:// URI.
        on_result: Called with (trainings done, trainings in all).
        resume: Go on with a sweep that was interrupted; nothing that finished is trained again.
        project: Folder or URI of the trial ledger; None: the one that `out` is in.
        on_audit: Called with (sessions looked at, sessions in all) while the panel is audited.

    Raises:
        ConfigError: The search space names an unknown path or an impossible value, or judge.ensemble asks for more.
        RunError: Every trial failed, a feature sees the future, `out` holds a sweep of other settings, or one that is
            not to be resumed.
    """
    _check_space(config)
    place = Place(str(out))
    project = _absolute(project or parent(str(out)))
    known = _known(place, config, project, resume)
    folder, clearance = cleared(config.data, on_audit)
    sweep_id = known or _claim(place, config, project)  # a panel that is refused leaves no sweep behind
    panel_folder = folder.resolve()
    panel = open_panel(panel_folder)
    folds, _ = folds_of(panel, config)
    course = Course(config, sweep_id, panel, panel_folder.name, folds, TrialLedger(project))
    shelf = share_panel(panel_folder)
    _fit(course, panel_folder, folds, place, on_result)
    del shelf  # trials on other nodes may ask for the panel until here
    trials = tuple(sorted(map(trial_of, course.ledger.trials(sweep_id)), key=_rank))
    if not trials or trials[0].score is None:
        raise RunError(f"{out}: every trial failed; the first said: {trials[0].error if trials else 'nothing'}")
    sweep = Sweep(
        id=sweep_id,
        project=project,
        config=config,
        panel=str(panel_folder),
        clearance=clearance,
        folds=len(folds),
        trials=trials,
        ledger_head=course.ledger.head().text,
    )
    place.write("sweep.json", json.dumps(sweep.tree(), indent=1))
    return sweep


def read_sweep(out: str | Path) -> Sweep:
    """Returns the finished sweep in `out`.

    Raises:
        RunError: There is none.
    """
    try:
        return Sweep.of(json.loads(Place(str(out)).read("sweep.json") or ""), f"{out}/sweep.json")
    except (ValueError, ConfigError) as error:
        raise RunError(f"{out}: holds no finished sweep ({error}); run `swing-rl tune --out {out}`") from error


def run_trial(
    job: Job,
    config: RunConfig,
    panel_folder: Path,
    folds: Sequence[Fold],
    root: str,
    on_fold: Callable[[int, float, list[Training]], None],
) -> None:
    """Trains one configuration fold after fold; a training that finished before is not repeated.

    Args:
        job: The configuration, and the folds that it is to be trained on.
        config: Settings of the sweep.
        panel_folder: Of the panel.
        folds: Of the sweep.
        root: Of the sweep.
        on_fold: Is told the number of folds done, the score so far, and the trainings of the latest fold.
    """
    place, settings, panel = Place(root), chosen(config, job.values), panel_at(panel_folder)
    digest, done = settings.digest(), list[list[Training]]()
    for fold in [fold for fold in folds if fold.name in job.folds]:
        done.append(
            [
                place.training(digest, seed, fold.name) or _trained(place, settings, seed, fold, panel, panel_folder)
                for seed in seeds_of(config)
            ]
        )
        series = [np.concatenate([np.array(each.returns) for each in of_seed]) for of_seed in zip(*done, strict=True)]
        score, _ = spread_of([sharpe(returns).ratio for returns in series])
        on_fold(len(done), score or 0.0, done[-1])


def _trained(place: Place, settings: RunConfig, seed: int, fold: Fold, panel: Panel, panel_folder: Path) -> Training:
    """Trains on one fold, measures on its test span, and keeps both."""
    digest = settings.digest()
    folder = place.folder / training_name(digest, seed, fold.name)
    seeded = with_values(settings, {"train.seed": seed}, "trial")
    trained = train(seeded, panel_folder, fold.train, folder, resume=True)
    env = seeded.env
    ledger = backtest(trained.policy, panel, fold.test, env.limits, env.costs, env.initial_cash_usd)
    ledger.save(folder / "test")
    returns = solvent_returns(ledger)
    training = Training(
        seed=seed,
        fold=fold.name,
        first_session=ledger.account["session"][0],
        last_session=ledger.account["session"][-1],
        sharpe=sharpe(returns).ratio,
        total_return=float(np.prod(1.0 + returns) - 1.0),
        seconds=round(trained.seconds, 2),
        returns=tuple(returns.tolist()),
        files=tuple(sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())),
    )
    place.finish(digest, training)
    return training


class _Feed(ray_tune.search.Searcher):  # type: ignore[misc]
    """Hands the course's jobs to Tune."""

    def __init__(self, course: Course) -> None:
        super().__init__(metric="score", mode="max")
        self._course = course
        self.jobs: dict[str, Job] = {}

    def suggest(self, trial_id: str) -> Any:
        job = self._course.next()
        if job is None:
            return ray_tune.search.Searcher.FINISHED
        self.jobs[trial_id] = job
        fold = {"fold": job.folds[0]} if self._course.config.tune.parallel_folds else {}
        return {"trial": job.trial, **fold, **job.values}

    def on_trial_complete(self, trial_id: str, result: Any = None, error: bool = False) -> None:
        """The callback hears of it, with the error's text."""

    def save(self, checkpoint_path: str) -> None:
        """The ledger keeps what matters."""

    def restore(self, checkpoint_path: str) -> None:
        """See `save`."""

    def __getstate__(self) -> dict[str, Any]:
        return {}


class _Clerk(ray_tune.Callback):  # type: ignore[misc]
    """Tells the course what Tune hears from trials."""

    def __init__(self, course: Course, feed: _Feed, on_result: Callable[[int, int], None]) -> None:
        self._course, self._feed, self._on_result = course, feed, on_result

    def on_trial_result(self, iteration: int, trials: Any, trial: Any, result: Any, **info: Any) -> None:  # noqa: ARG002
        job = self._feed.jobs[trial.trial_id]
        self._course.scored(job.trial, [Training.of(each, "trial") for each in result["trainings"]])
        self._on_result(*self._course.trainings)

    def on_trial_complete(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:  # noqa: ARG002
        self._course.ended(self._feed.jobs[trial.trial_id])
        self._on_result(*self._course.trainings)

    def on_trial_error(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:  # noqa: ARG002
        said = str(trial.get_error() or "").strip().splitlines()
        self._course.ended(self._feed.jobs[trial.trial_id], said[-1] if said else "ended without a word")
        self._on_result(*self._course.trainings)

    def __getstate__(self) -> dict[str, Any]:
        # Tune pickles its callbacks beside the sweep; the ledger neither can nor need be kept there.
        return {}


class _Halving(ray_tune.Stopper):  # type: ignore[misc]
    """Asks the course whether a trial goes on."""

    def __init__(self, course: Course, feed: _Feed) -> None:
        self._course, self._feed = course, feed

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        return self._course.stops(self._feed.jobs[trial_id].trial, result["folds_done"], result["score"])

    def stop_all(self) -> bool:
        return False

    def __getstate__(self) -> dict[str, Any]:
        return {}


def _fit(
    course: Course, panel_folder: Path, folds: Sequence[Fold], place: Place, on_result: Callable[[int, int], None]
) -> None:
    on_result(*course.trainings)
    if not course.jobs_left:
        return
    os.environ["TUNE_DISABLE_SIGINT_HANDLER"] = "1"  # Tune would take Ctrl-C for "done" and return half a sweep
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")  # the newer console output ignores verbose=0
    config, feed = course.config, _Feed(course)
    tree, root = config.tree(), place.root if "://" in place.root else str(Path(place.root).resolve())
    names = tuple(fold.name for fold in folds)

    def trainable(values: dict[str, Any]) -> None:
        number, fold = values.pop("trial"), values.pop("fold", None)
        job = Job(number, values, (fold,) if fold else names)
        run_trial(
            job,
            RunConfig.of(tree),
            panel_folder,
            folds,
            root,
            lambda done, score, trainings: ray_tune.report(
                {"score": score, "folds_done": done, "trainings": tuple(each.tree() for each in trainings)}
            ),
        )

    local = place.folder.resolve() / "ray"
    shutil.rmtree(local, ignore_errors=True)  # of a sweep that was interrupted: what it finished is told again
    bundles = [{"CPU": 1.0}] * (1 + config.tune.env_runners)
    tuner = ray_tune.Tuner(
        ray_tune.with_resources(trainable, ray_tune.PlacementGroupFactory(bundles)),
        tune_config=ray_tune.TuneConfig(
            metric="score",
            mode="max",
            num_samples=course.jobs_left,
            search_alg=feed,
            trial_dirname_creator=lambda trial: _folder_name(trial.config),
        ),
        run_config=ray_tune.RunConfig(
            name="ray",
            storage_path=str(local.parent),
            verbose=0,
            stop=_Halving(course, feed),
            callbacks=[_Clerk(course, feed, on_result)],
            failure_config=ray_tune.FailureConfig(max_failures=1),
        ),
    )
    tuner.fit()


def label_of(values: Mapping[str, Any]) -> str:
    """Returns values by the last part of their paths, short enough for a table; empty for none."""
    texts = {path: f"{v:.4g}" if isinstance(v, float) else str(v) for path, v in values.items()}
    return ", ".join(f"{path.split('.')[-1]}={text}" for path, text in texts.items())


def _folder_name(values: Mapping[str, Any]) -> str:
    rest = {path: value for path, value in values.items() if path != "trial"}
    label = label_of(rest).replace(", ", ",")
    return f"trial-{values['trial']:04d} {label}".strip().replace("/", "_")[:120]


def trial_of(record: TrialRecord) -> Trial:
    """Returns a trial as the ledger has it; one without an end counts as failed."""
    score, quartiles = score_of(record)
    ended = record.ended
    status = ended.status if ended is not None else "failed"
    return Trial(
        number=record.began.trial,
        values=dict(record.began.values),
        config_hash=record.began.config_hash,
        status=status,
        folds=tuple(
            FoldScore(
                fold=each.fold,
                seed=each.seed,
                sharpe=each.sharpe,
                total_return=each.total_return,
                seconds=each.seconds,
            )
            for each in sorted(record.scores, key=lambda each: (each.first_session, each.seed))
        ),
        score=None if status == "failed" else score,
        quartiles=None if status == "failed" else quartiles,
        error=ended.error if ended is not None else "it did not end",
    )


def _rank(trial: Trial) -> tuple[int, float]:
    return ("finished", "stopped", "failed").index(trial.status), -(trial.score or 0.0)


def _check_space(config: RunConfig) -> None:
    for path, axis in config.tune.space.items():
        for value in axis.extremes:
            with_values(config, {path: value}, f"tune.space {path}")
    if config.judge.ensemble > (size := size_of(config.tune)):
        raise ConfigError(
            f"judge.ensemble {config.judge.ensemble}: the sweep tries {size} configurations; widen tune.space, raise "
            "tune.samples or lower judge.ensemble"
        )


def _absolute(root: str) -> str:
    return root if "://" in root else str(Path(root).resolve())


def _claim(place: Place, config: RunConfig, project: str) -> str:
    """Writes down what is swept, and returns the sweep's new id."""
    fresh = f"{place.root.rstrip('/').rpartition('/')[-1]}-{uuid.uuid4().hex[:8]}"
    head = {"sweep": fresh, "project": project, "config": config.tree()}
    place.write("config.json", json.dumps(head, indent=1, sort_keys=True))
    return fresh


def _known(place: Place, config: RunConfig, project: str, resume: bool) -> str | None:
    """Returns the id of the sweep to go on with; None where there is none yet."""
    text = place.read("config.json")
    if text is None:
        return None
    if not resume:
        raise RunError(f"{place.root}: holds a sweep already; add --resume to go on with it, or choose another --out")
    try:
        head = json.loads(text)
        found, name, ledger = head["config"], str(head["sweep"]), str(head["project"])
    except (ValueError, KeyError, TypeError) as error:
        raise RunError(f"{place.root}/config.json: is not readable ({error}); choose another --out") from error
    if found != config.tree():
        raise RunError(f"{place.root}: holds a sweep of other settings; choose another --out")
    if ledger != project:
        raise RunError(f"{place.root}: its trials are in the ledger of {ledger}; give --project {ledger}")
    return name
