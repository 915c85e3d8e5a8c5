"""Sweeps as they are shown: read from real ledgers, as text, as JSON, and as a browser shows the page."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Page

from browser import brightness, browser, collisions, page  # noqa: F401  (fixtures)
from data_pipeline.clearance import Clearance
from data_pipeline.errors import RunError
from rl.config import Axis, RunConfig
from rl.judging.pages import SUSPICIOUS_SHARPE
from rl.judging.results import Results, dimension, read_results, write_results
from rl.judging.trial_ledger import Began, Ended, FoldDates, Scored, TrialLedger
from rl.judging.tune import FoldScore, Sweep, Trial

HOSTILE = "</script><script>document.title='owned'</script><b>&"
SPACE: dict[str, Any] = {
    "learn.lr": {"loguniform": [1e-4, 1e-2]},
    "learn.entropy": {"uniform": [0.0, 0.04]},
    "model.hidden": {"choice": [64, 96, 128]},
    "model.window_sessions": {"integer": [20, 60]},
    "train.algorithm": {"grid": ["a3c", "ppo"]},
}
FOLDS = tuple(f"fold-{number}" for number in range(1, 5))


def settings(**tune: Any) -> RunConfig:
    return RunConfig.of({"tune": {"space": SPACE, "samples": 6, **tune}})


def values(number: int) -> dict[str, Any]:
    return {
        "learn.lr": 10.0 ** (-4 + 0.3 * (number % 7)),
        "learn.entropy": 0.005 * (number % 8),
        "model.hidden": (64, 96, 128)[number % 3],
        "model.window_sessions": 20 + 5 * (number % 9),
        "train.algorithm": ("a3c", "ppo")[number % 2],
    }


def trial(number: int, score: float | None, seeds: int = 1, folds: int = 4, **extra: Any) -> Trial:
    """A configuration whose folds lie around its score, and its seeds around that."""
    scores = [
        FoldScore(
            fold=fold, seed=seed, sharpe=(score or 0.0) + 0.3 * place - 0.4 + 0.1 * seed, total_return=0, seconds=1
        )
        for place, fold in enumerate(FOLDS[:folds])
        for seed in range(seeds)
    ]
    quartiles = None if score is None else (score - 0.1 * (seeds - 1), score + 0.15 * (seeds - 1))
    return Trial(
        number=number,
        values=values(number),
        config_hash="",
        folds=tuple(scores),
        score=score,
        quartiles=quartiles,
        **extra,
    )


def results_of(*trials: Trial, config: RunConfig | None = None, **changed: Any) -> Results:
    sweep = Sweep(
        id=f"sweep-{HOSTILE}",
        project="runs",
        config=config or settings(),
        panel="store/panels/959af2c2",
        folds=len(FOLDS),
        trials=trials,
        ledger_head="7:" + "a" * 64,
    )
    known = Results(
        sweep=sweep,
        finished=True,
        unended=(),
        ledger="runs/ledger",
        tried=40,
        recorded=len(trials),
        head="9:" + "b" * 64,
        tensorboard="runs/sweep/ray",
    )
    return known.model_copy(update=changed)


TRIALS = (
    *(trial(number, 1.1 - 0.15 * number, seeds=3) for number in range(10)),
    trial(10, 0.2, seeds=3, folds=1, status="stopped"),
    trial(11, -0.9, seeds=3, folds=2, status="stopped"),
    trial(12, None, folds=0, status="failed", error=f"RuntimeError: {HOSTILE}"),
)


# the record


def folds_dated() -> tuple[FoldDates, ...]:
    return tuple(
        FoldDates(name=name, first_session=date(2010 + i, 1, 4), last_session=date(2010 + i, 1, 6))
        for i, name in enumerate(FOLDS[:2])
    )


def begin(ledger: TrialLedger, sweep: str, number: int, seeds: int = 1) -> None:
    ledger.begin(
        Began(
            sweep=sweep,
            trial=number,
            config_hash="c",
            values=values(number),
            seeds=tuple(range(seeds)),
            folds=folds_dated(),
            panel="959af2c2",
            snapshot={},
        )
    )


def score(ledger: TrialLedger, sweep: str, number: int, fold: int, returns: tuple[float, ...], seed: int = 0) -> None:
    dated = folds_dated()[fold]
    ledger.score(
        Scored(
            sweep=sweep,
            trial=number,
            seed=seed,
            fold=dated.name,
            first_session=dated.first_session,
            last_session=dated.last_session,
            sharpe=1.0 + fold,
            total_return=0.01,
            seconds=2.0,
            returns=returns,
        )
    )


def interrupted(project: Path, sweep: str = "sweep-1") -> Path:
    """A sweep of which one trial is done, one failed, one was begun, and one has a fold; another sweep beside it."""
    folder = project / "sweep"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({"sweep": sweep, "config": settings().tree()}))
    ledger = TrialLedger(str(project))
    for number in range(4):
        begin(ledger, sweep, number)
    begin(ledger, "another", 0)
    score(ledger, "another", 0, 0, (0.01, 0.0, -0.01))
    score(ledger, sweep, 1, 0, (0.01, 0.02, -0.01))
    score(ledger, sweep, 1, 1, (0.01, 0.0, 0.01))
    ledger.end(Ended(sweep=sweep, trial=1, status="finished", score=2.0))
    ledger.end(Ended(sweep=sweep, trial=0, status="failed", error="out of memory"))
    score(ledger, sweep, 3, 0, (0.01, 0.0, 0.01))
    return folder


def test_unfinished_sweep_is_read_as_far_as_it_got(tmp_path: Path) -> None:
    found = read_results(str(interrupted(tmp_path)))
    assert not found.finished
    assert (found.sweep.id, found.sweep.folds, found.sweep.panel) == ("sweep-1", 2, "store/panels/959af2c2")
    assert found.counts == {"finished": 1, "running or abandoned": 2, "failed": 1}
    assert found.sweep.trials[0].number == 1
    assert (found.unended, found.recorded, found.tried) == ((2, 3), 4, 3)
    assert set(found.warnings) == {"unfinished"}
    assert "4 configurations begun, 3 trainings scored" in found.warnings["unfinished"]


def test_unfinished_sweep_may_name_a_project_elsewhere(tmp_path: Path) -> None:
    folder = interrupted(tmp_path / "project")
    moved = tmp_path / "elsewhere" / "sweep"
    moved.mkdir(parents=True)
    head = json.loads((folder / "config.json").read_text()) | {"project": str(tmp_path / "project")}
    (moved / "config.json").write_text(json.dumps(head))
    assert read_results(str(moved)).recorded == 4


def test_sweep_of_which_nothing_was_begun_is_shown_too(tmp_path: Path) -> None:
    folder = tmp_path / "sweep"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"sweep": "s", "config": settings().tree()}))
    found = read_results(str(folder))
    assert (found.sweep.trials, found.recorded, found.counts) == ((), 0, {})
    assert "Nothing was begun yet" in write_results(tmp_path / "page.html", found).read_text("utf-8")


def finished(project: Path) -> Path:
    """The same sweep, taken up again and brought to its end."""
    folder = interrupted(project)
    before = read_results(str(folder)).sweep
    (folder / "sweep.json").write_text(json.dumps(before.tree()))
    return folder


def test_finished_sweep_is_read_from_its_file_and_the_ledger_that_it_names(tmp_path: Path) -> None:
    folder = finished(tmp_path)
    found = read_results(str(folder))
    assert found.finished
    assert found.warnings == {}
    assert (found.recorded, found.tried, found.tensorboard) == (4, 3, str(folder / "ray"))
    assert found.head == TrialLedger(str(tmp_path)).head().text


def test_sweep_that_its_ledger_does_not_hold_says_so(tmp_path: Path) -> None:
    folder = finished(tmp_path / "before")
    moved = tmp_path / "after"
    moved.mkdir()
    tree = json.loads((folder / "sweep.json").read_text()) | {"project": str(moved)}
    (folder / "sweep.json").write_text(json.dumps(tree))
    found = read_results(str(folder))
    assert (found.recorded, found.tried) == (0, 0)
    assert set(found.warnings) == {"unrecorded"}
    assert list(moved.iterdir()) == []


@pytest.mark.parametrize(
    ("text", "says"), [(None, "holds no sweep"), ("{", "is not readable"), ('{"sweep": "s"}', "is not readable")]
)
def test_folder_without_a_sweep_is_an_error_that_says_what_to_do(tmp_path: Path, text: str | None, says: str) -> None:
    if text is not None:
        (tmp_path / "config.json").write_text(text)
    with pytest.raises(RunError, match=says):
        read_results(str(tmp_path))


def test_facts_are_the_sweep_and_what_its_record_says(tmp_path: Path) -> None:
    found = read_results(str(finished(tmp_path)))
    told = json.loads(json.dumps(found.facts()))
    beside = {name: told.pop(name) for name in ("finished", "counts", "unended", "ledger", "tensorboard")}
    assert Sweep.of(told) == found.sweep
    assert beside["ledger"] == {"place": found.ledger, "count": 3, "in_sweep": 4, "head": found.head}
    assert (beside["finished"], beside["unended"]) == (True, [2, 3])


# the command


Run = Callable[..., tuple[int, str, str]]


def test_command_shows_a_table_the_record_and_what_is_missing(tmp_path: Path, swing_rl: Run) -> None:
    folder = interrupted(tmp_path)
    status, out, _ = swing_rl("results", str(folder))
    flat = re.sub(r"\s+", " ", out)
    assert status == 0
    assert "running or abandoned" in out
    assert "failed: out of memory" in flat
    assert "1 finished, 2 running or abandoned, 1 failed" in flat
    assert "N = 3 scored trials" in flat
    assert "this sweep is not finished" in flat
    assert f"tensorboard --logdir {folder / 'ray'}" in out


def test_command_prints_json_and_writes_the_page(tmp_path: Path, swing_rl: Run) -> None:
    folder = finished(tmp_path)
    page = tmp_path / "pages" / "sweep.html"
    status, out, _ = swing_rl("results", str(folder), "--html", str(page), "--json")
    assert status == 0
    assert json.loads(out) == read_results(str(folder)).facts()
    assert page.read_text("utf-8").endswith("</html>")
    status, out, _ = swing_rl("results", str(folder), "--html", str(page))
    assert f"page: {page}" in out


def test_command_without_a_sweep_fails_in_one_line(tmp_path: Path, swing_rl: Run) -> None:
    status, out, err = swing_rl("results", str(tmp_path / "nowhere"))
    assert (status, out, len(err.splitlines())) == (2, "", 1)
    assert "swing-rl tune" in err


# axes of the parallel coordinates


def dimension_of(spec: dict[str, Any], *chosen: Any) -> Any:
    trials = [Trial(values={"learn.x": value}, config_hash="", folds=(), score=0.0) for value in chosen]
    return dimension("learn.x", Axis.of(spec), trials)


def test_log_axis_stands_at_equal_distances_for_equal_factors() -> None:
    axis = dimension_of({"loguniform": [1e-4, 1e-2]}, 1e-4, 1e-3, 1e-2)
    assert axis.places == pytest.approx((0.0, 0.5, 1.0))
    assert axis.ticks == pytest.approx(
        {"0.0001": 0, "0.00032": 0.2526, "0.001": 0.5, "0.0032": 0.7526, "0.01": 1}, abs=1e-3
    )
    assert "log scale" in axis.name


def test_even_axis_spans_its_bounds_and_not_only_what_was_drawn() -> None:
    axis = dimension_of({"uniform": [0.0, 4.0]}, 1.0, 3.0)
    assert axis.places == pytest.approx((0.25, 0.75))
    assert list(axis.ticks) == ["0", "1", "2", "3", "4"]


def test_whole_axis_has_whole_ticks_each_once() -> None:
    axis = dimension_of({"integer": [1, 3]}, 1, 2, 3)
    assert axis.ticks == pytest.approx({"1": 0.0, "2": 0.5, "3": 1.0})


@pytest.mark.parametrize("kind", ["choice", "grid"])
def test_listed_values_are_ticks_in_their_order_whatever_they_are(kind: str) -> None:
    axis = dimension_of({kind: ["ppo", None, True, [1, 2], 0.1]}, 0.1, "ppo", [1, 2])
    assert list(axis.ticks) == ["ppo", "None", "True", "[1, 2]", "0.1"]
    assert axis.places == pytest.approx((1.0, 0.0, 0.75))


@pytest.mark.parametrize("spec", [{"uniform": [2.0, 2.0]}, {"integer": [3, 3]}, {"choice": ["a"]}])
def test_axis_of_one_value_has_one_tick(spec: dict[str, Any]) -> None:
    (value,) = {*next(iter(spec.values()))}
    assert len(dimension_of(spec, value).ticks) == 1


# the page


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_results(tmp_path_factory.mktemp("sweep") / "new" / "sweep.html", results_of(*TRIALS, tried=57))


def test_page_is_one_whole_file_and_shows_hostile_text_as_text(written: Path) -> None:
    assert [path.name for path in written.parent.iterdir()] == ["sweep.html"]
    text = written.read_text("utf-8")
    assert text.rstrip().endswith("</html>")
    assert HOSTILE not in text
    assert "&lt;/script&gt;&lt;script&gt;document.title" in text


def cells(page: Page, table: str) -> list[list[str]]:
    rows: list[list[str]] = page.eval_on_selector_all(
        f"#{table} tbody tr", "rows => rows.map(row => [...row.cells].map(cell => cell.textContent))"
    )
    return rows


@pytest.mark.browser
def test_page_in_a_browser_draws_every_plot_with_named_axes(written: Path, page: Page) -> None:
    page.goto(written.as_uri())
    page.wait_for_selector("#folds .heatmaplayer image", state="attached")
    lines = page.eval_on_selector_all("#parallel path.js-line", "paths => paths.map(path => path.getAttribute('d'))")
    assert [len(re.split("[LHV]", line)) for line in lines] == [len(SPACE) + 1] * 12
    assert page.locator("#parallel .xtick text").all_text_contents() == [
        "learn.lr(log scale)",
        "learn.entropy",
        "model.hidden",
        "model.window_sessions",
        "train.algorithm",
        "Sharpe ratioper year",
    ]
    assert page.locator("#scores .scatterlayer path.point").count() == 12
    assert page.locator("#scores path.yerror").count() == 12
    assert page.locator("#folds .heatmaplayer image").count() == 1
    titles = page.locator(".g-xtitle text, .g-ytitle text, [class*=cbtitle] text").all_text_contents()
    assert sorted(titles) == sorted(
        [
            *("Configuration (number)", "Sharpe ratio (per year)"),
            *("Sharpe ratio (per year)", "Fold (its test span, oldest first)", "Configuration (number)"),
        ]
    )


@pytest.mark.browser
def test_page_in_a_browser_shows_what_the_sweep_holds(written: Path, page: Page) -> None:
    page.goto(written.as_uri())
    assert cells(page, "statuses") == [["finished", "10"], ["stopped early", "2"], ["failed", "1"]]
    assert cells(page, "errors") == [["#12", TRIALS[12].label, f"RuntimeError: {HOSTILE}"]]
    best, stopped, failed = (cells(page, "trials")[number] for number in (0, 10, 12))
    assert best == ["#0", TRIALS[0].label, "finished", "0.80", "1.10", "1.40", "1.70", "1.10", "0.90 to 1.40"]
    assert stopped[2:] == ["stopped early", "-0.10", "–", "–", "–", "0.20", "0.00 to 0.50"]
    assert failed[2:] == ["failed", *"––––––"]
    facts = dict(
        zip(page.locator(".facts dt").all_inner_texts(), page.locator(".facts dd").all_inner_texts(), strict=True)
    )
    assert facts["Scored trials in the whole project (N)"] == "57"
    assert facts["Its head"] == "9:" + "b" * 64
    assert facts["TensorBoard, on the node that ran the sweep"] == "tensorboard --logdir runs/sweep/ray"
    assert page.locator(".alarm").count() == 0


def many(count: int) -> Results:
    """A large search: long names, many folds' worth of rows."""
    space = {f"learn.{'long_' * 4}{letter}": {"uniform": [0.0, 1.0]} for letter in "abcdefgh"}
    config = settings().model_copy(
        update={"tune": settings().tune.model_copy(update={"space": {p: Axis.of(a) for p, a in space.items()}})}
    )
    trials = [
        trial(number, 2.0 - 0.03 * number).model_copy(update={"values": dict.fromkeys(space, (number % 11) / 10)})
        for number in range(count)
    ]
    return results_of(*trials, config=config)


@pytest.mark.browser
@pytest.mark.parametrize("width", [1280, 400])
@pytest.mark.parametrize(
    "results", [results_of(*TRIALS), results_of(TRIALS[0]), many(120)], ids=["some", "one", "many"]
)
def test_page_in_a_browser_overlaps_nowhere(results: Results, width: int, page: Page, tmp_path: Path) -> None:
    page.set_viewport_size({"width": width, "height": 900})
    page.goto(write_results(tmp_path / "sweep.html", results).as_uri())
    assert collisions(page) == []
    assert page.evaluate("document.documentElement.scrollWidth") == width


@pytest.mark.browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_page_in_a_browser_is_legible_in_both_colour_schemes(written: Path, page: Page, scheme: Any) -> None:
    page.emulate_media(color_scheme=scheme)
    page.goto(written.as_uri())
    ground = brightness(page, "body", "backgroundColor")
    for text in ("#parallel .xtick text", "#parallel .annotation-text", "#scores .ytick text", "#folds .cbaxis text"):
        assert abs(brightness(page, text, "fill") - ground) > 90
    assert abs(brightness(page, "#trials td", "color") - ground) > 90


@pytest.mark.browser
def test_page_of_an_unfinished_sweep_shouts_and_shows_what_there_is(tmp_path: Path, page: Page) -> None:
    found = read_results(str(interrupted(tmp_path)))
    page.goto(write_results(tmp_path / "sweep.html", found).as_uri())
    assert "not finished" in (page.locator("#unfinished").text_content() or "")
    assert [row[2] for row in cells(page, "trials")] == [found.status(each) for each in found.sweep.trials]
    failed = next(each for each in found.sweep.trials if each.number == 0)
    assert cells(page, "errors") == [["#0", failed.label, "out of memory"]]


def forced(results: Results, **known: Any) -> Results:
    """The same, its panel forced past the audit."""
    clearance = Clearance(forced=True, **known)
    return results.model_copy(update={"sweep": results.sweep.model_copy(update={"clearance": clearance})})


def test_unfinished_sweep_whose_panel_was_forced_through_is_known_by_its_settings(tmp_path: Path) -> None:
    folder = interrupted(tmp_path)
    head = json.loads((folder / "config.json").read_text())
    assert not read_results(str(folder)).sweep.clearance.suspect
    head["config"]["data"]["audit"] = False
    (folder / "config.json").write_text(json.dumps(head))
    assert read_results(str(folder)).sweep.clearance.suspect


@pytest.mark.browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_page_of_a_panel_that_was_forced_through_shouts_at_the_top(scheme: Any, page: Page, tmp_path: Path) -> None:
    page.emulate_media(color_scheme=scheme)
    page.goto(write_results(tmp_path / "sweep.html", forced(results_of(*TRIALS), unable="no bars")).as_uri())
    banner = page.locator("header + *")
    assert banner.get_attribute("id") == "unaudited"
    assert "NOT AUDITED: features may see the future" in (banner.text_content() or "")
    ground = brightness(page, "#unaudited", "backgroundColor")
    for text in ("#unaudited strong", "#unaudited p"):
        assert abs(brightness(page, text, "color") - ground) > 150


@pytest.mark.parametrize(
    ("results", "alarms"),
    [
        (results_of(trial(0, SUSPICIOUS_SHARPE)), set()),
        (results_of(trial(0, SUSPICIOUS_SHARPE + 0.01)), {"suspicious"}),
        (results_of(trial(0, 1.0), recorded=3), {"unrecorded"}),
        (forced(results_of(trial(0, 1.0))), {"unaudited"}),
        (results_of(trial(0, 1.0), finished=False), {"unfinished"}),
        (results_of(TRIALS[12], finished=False), {"unfinished"}),
    ],
)
def test_page_shouts_exactly_when_it_should(results: Results, alarms: set[str], tmp_path: Path) -> None:
    text = write_results(tmp_path / "sweep.html", results).read_text("utf-8")
    assert set(re.findall('class="alarm" id="([a-z]+)"', text)) == alarms
    assert ("<code>swing-data audit</code>" in text) is ("suspicious" in alarms)


def test_page_of_a_sweep_that_searched_nothing_says_so(tmp_path: Path) -> None:
    alone = trial(0, 1.0).model_copy(update={"values": {}})
    page = write_results(tmp_path / "sweep.html", results_of(alone, config=RunConfig()))
    assert "no setting was searched" in page.read_text("utf-8")
