"""Shared fixtures: the bundled history, its panel, and one tiny run of the whole product by its own commands."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import yaml

from data_pipeline import features
from data_pipeline.adjusted import Bars, Column
from data_pipeline.assemble import build_panel
from data_pipeline.features import FeatureSet
from data_pipeline.indicators import INDICATORS, Indicator
from data_pipeline.panel import Panel
from data_pipeline.scaling import fit_scaler
from data_pipeline.sources.bundled import BundledBars
from envs.market import Market
from product import BIN, ROOT, TRAIN, Story, environment, tiny_settings

# Read when Ray is first imported, which test files may do at their top: loopback only.
os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--thorough", action="store_true", help="long forms of the tests that have one (an hour)")


@pytest.fixture(scope="session")
def command() -> Callable[..., subprocess.CompletedProcess[str]]:
    """Runs one of the three console commands, contained, and returns what it printed."""

    def run(*arguments: str | Path, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
        program, *rest = map(str, arguments)
        contained = [sys.executable, str(ROOT / "scripts" / "contained.py"), "--", str(BIN / program), *rest]
        return subprocess.run(contained, cwd=cwd, env=environment(), capture_output=True, text=True, check=False)

    return run


@pytest.fixture(scope="session")
def bars() -> pl.DataFrame:
    return BundledBars().fetch()


@pytest.fixture(scope="session")
def panel(bars: pl.DataFrame) -> Panel:
    return build_panel(bars, FeatureSet.of())


@pytest.fixture(scope="session")
def market(panel: Panel) -> Market:
    return Market(panel, fit_scaler(panel, TRAIN))


@pytest.fixture
def plant(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str, Callable[[Bars, int], Column]], None]]:
    """Makes an indicator of daily bars known by a name, as if it were one of the platform's own."""

    def planted(name: str, compute: Callable[[Bars, int], Column]) -> None:
        indicator = Indicator(name, "planted", ("close",), compute, lambda _: 0)
        monkeypatch.setattr(features, "INDICATORS", (*INDICATORS, indicator))
        features.feature.cache_clear()

    yield planted
    features.feature.cache_clear()


@pytest.fixture
def tomorrow(plant: Callable[[str, Callable[[Bars, int], Column]], None]) -> str:
    """Name of a feature that is the return of the session after."""
    plant("tomorrow", lambda bars, _: np.append(bars.log_return[1:], np.nan))
    return "tomorrow"


@pytest.fixture(scope="session")
def story(tmp_path_factory: pytest.TempPathFactory, command: Callable[..., subprocess.CompletedProcess[str]]) -> Story:
    """Bars to bundle by `swing-rl tune`, `validate` and `export`, on real Ray."""
    told = Story(tmp_path_factory.mktemp("story"))
    told.config.write_text(yaml.safe_dump(tiny_settings(told.root)))
    for arguments in (
        ("tune", "--config", told.config, "--out", told.sweep, "--json"),
        ("validate", told.sweep, "--out", told.verdict, "--json"),
        ("export", told.verdict, "--out", told.bundle, "--json"),
    ):
        done = command("swing-rl", *arguments)
        assert done.returncode == 0, f"{arguments}: {done.stderr[-3000:]}"
    return told
