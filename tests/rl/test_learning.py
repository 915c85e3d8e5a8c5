"""Network and training."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time

import numpy as np
import psutil
import pytest
import torch
import yaml

from data_pipeline.errors import ConfigError
from envs.contract import ActionKind
from envs.lstm import LstmPolicy
from product import BIN, ROOT, environment, tiny_settings
from rl.config import RunConfig, load_config
from rl.judging.export import disagreement
from rl.learning.network import SwingNet, policy_arrays
from rl.learning.settings import ModelConfig


@pytest.mark.parametrize("action", list(ActionKind))
def test_numpy_policy_equals_torch(market, action):
    torch.manual_seed(1)
    net = SwingNet(market.feature_count, action, ModelConfig(hidden=24, dense=20))
    policy = LstmPolicy("p", 30, policy_arrays(net), _scaler(market), action)
    features = market.panel.features[2000:2030][:, [0, 3, 4]]
    portfolio = np.random.default_rng(0).uniform(-1, 1, (3, 2)).astype(np.float32)
    error, reference = disagreement(policy, features, portfolio)
    assert error < 1e-5
    assert np.abs(reference).max() > 1e-3


def _scaler(market):
    from data_pipeline.scaling import fit_scaler
    from product import TRAIN

    return fit_scaler(market.panel, TRAIN)


def test_every_shipped_config_loads():
    found = sorted((ROOT / "tune_configs").glob("*.yaml"))
    assert found
    for path in found:
        assert isinstance(load_config(path), RunConfig)


@pytest.mark.parametrize(
    ("assignment", "words"),
    [
        ("learn.lrr=1", r"unknown key 'learn\.lrr'.*lr"),
        ("learn.lr=-1", r"learn\.lr = -1"),
        ("train.steps=many", r"train\.steps = 'many'"),
        ("nothing", "path.to.key=value"),
    ],
)
def test_config_mistake_names_path_and_remedy(assignment, words):
    with pytest.raises(ConfigError, match=words):
        load_config(None, [assignment])


def test_train_wrong_config_key_exits_2_and_writes_nothing(command, tmp_path):
    done = command("swing-rl", "train", "--out", tmp_path / "run", "--set", "learn.lrr=1")
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert "learn.lrr" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_tune_search_space_with_an_unknown_path_exits_2_before_anything_starts(command, tmp_path):
    space = '{"ppo.nonsense": {"grid": [1]}}'
    done = command("swing-rl", "tune", "--out", tmp_path / "sweep", "--set", f"tune.space={space}")
    assert done.returncode == 2
    assert "ppo.nonsense" in done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.ray
def test_train_whose_driver_is_killed_continues_within_one_checkpoint_interval(command, tmp_path):
    settings = tiny_settings(tmp_path)
    settings["train"] = {
        "algorithm": "a3c",
        "steps": 81920,
        "envs_per_runner": 32,
        "env_runners": 1,
        "checkpoint_iterations": 2,
        "iteration_steps": 2048,
    }
    config, out = tmp_path / "run.yaml", tmp_path / "run"
    config.write_text(yaml.safe_dump(settings))
    arguments = ["train", "--config", str(config), "--out", str(out), "--json"]
    contained = [sys.executable, str(ROOT / "scripts" / "contained.py"), "--grace", "0", "--", str(BIN / "swing-rl")]
    with subprocess.Popen(
        contained + arguments, env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as run:
        limit = time.monotonic() + 120
        while not (out / "checkpoint").is_dir() and run.poll() is None and time.monotonic() < limit:
            time.sleep(0.02)
        (driver,) = psutil.Process(run.pid).children()
        driver.kill()
    assert (out / "checkpoint").is_dir()
    assert not (out / "weights.safetensors").exists()
    refused = command("swing-rl", *arguments)
    assert refused.returncode == 2
    assert "--resume" in refused.stderr
    assert command("swing-rl", *arguments, "--resume").returncode == 0
    lines = [json.loads(line) for line in (out / "progress.jsonl").read_text().splitlines()]
    first, second = ([line for line in lines if line["session"] == session] for session in (0, 1))
    assert first[-1]["iteration"] - 2 <= second[0]["iteration"] - 1 <= first[-1]["iteration"]
    assert (second[0]["iteration"] - 1) % 2 == 0
    assert second[0]["steps"] == 2048 * second[0]["iteration"]
    assert second[0]["figures"]["cost_scale"] == pytest.approx(2 * second[0]["steps"] / 81920)
    assert lines[-1]["steps"] == 81920
    assert (out / "weights.safetensors").is_file()


@pytest.mark.ray
def test_tune_interrupted_stops_at_once_and_leaves_no_half_sweep(tmp_path):
    config, out = tmp_path / "sweep.yaml", tmp_path / "sweep"
    settings = tiny_settings(tmp_path)
    settings["train"] = {"steps": 10_000_000, "envs_per_runner": 32}
    config.write_text(yaml.safe_dump(settings))
    command = [sys.executable, str(ROOT / "scripts" / "contained.py"), "--", str(BIN / "swing-rl"), "tune"]
    with subprocess.Popen(
        [*command, "--config", str(config), "--out", str(out), "--json"],
        env=environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as sweep:
        limit = time.monotonic() + 120
        while not list(out.glob("trials/*/seed-0/fold-1/progress.jsonl")) and time.monotonic() < limit:
            assert sweep.poll() is None
            time.sleep(0.05)
        sweep.send_signal(signal.SIGINT)
        assert sweep.wait(60) == 130
    assert list(out.glob("trials/*/seed-0/fold-1/progress.jsonl"))
    assert not (out / "sweep.json").exists()
