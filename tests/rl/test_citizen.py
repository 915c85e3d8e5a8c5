"""Our algorithms, workers, learner and network as citizens of RLlib and Tune, on real Ray."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import ray
import torch
from ray import tune
from ray.exceptions import RayTaskError
from ray.rllib.algorithms.ppo import PPOConfig as StockPPOConfig
from ray.rllib.core import COMPONENT_RL_MODULE, DEFAULT_MODULE_ID
from ray.tune import CheckpointConfig, RunConfig, Tuner

from data_pipeline.errors import ConfigError, RunError
from data_pipeline.panel import save_panel
from product import TRAIN
from rl import config as settings
from rl.learning.a3c import A3C
from rl.learning.adapter import local_learner
from rl.learning.algorithm import ActorCriticConfig, LearnerLostError
from rl.learning.build import ENV_NAME
from rl.learning.cluster import ray_session
from rl.learning.gradients import Order
from rl.learning.runner import SwingEnvRunner
from rl.learning.train import train
from stepwise import flat
from tiny import CONTEXT, EPISODE, FRAGMENT, MODEL, SLOTS, STEPS, built, tiny

pytestmark = [
    pytest.mark.ray,
    pytest.mark.filterwarnings("ignore:.*Overriding environment rllib-single-agent-env-v0"),
    # A remote learner imports Ray's own deprecated settings.
    pytest.mark.filterwarnings("ignore::DeprecationWarning:ray.data.context"),
]

ALGORITHMS = ("a3c", "ppo", "async-ppo")
ITERATION = 8 * FRAGMENT
COMMON = {
    *("entropy", "explained_variance", "gradient_norm", "value_loss", "kl", "sample_share", "learning_rate"),
    *("staleness", "staleness_max", "gradients", "not_finite", "stale", "version", "cost_scale", "reward_scale"),
    *("workers_lost", "workers_absent"),
}
EXTRA = {"a3c": {"age_of_data"}, "ppo": {"clipped"}, "async-ppo": {"age_of_data", "clipped"}}


@pytest.fixture(scope="module", autouse=True)
def _session():
    with ray_session(cpus=4):
        yield


@pytest.fixture(scope="module", params=ALGORITHMS)
def trained(request, tmp_path_factory):
    """An algorithm in one process after three iterations, the last result, and a checkpoint of that moment."""
    with built(tiny(algorithm=request.param, iteration_steps=ITERATION)) as algorithm:
        first = algorithm.learner("vector")
        result = [algorithm.train() for _ in range(3)][-1]
        path = algorithm.save_to_path(str(tmp_path_factory.mktemp("checkpoint")))
        yield algorithm, result, path, first


@pytest.fixture(scope="module")
def one():
    """A3C with one remote worker, after three iterations, and the weights that it began with."""
    with built(tiny(env_runners=1)) as algorithm:
        first = algorithm.learner("vector")
        for _ in range(3):
            algorithm.train()
        yield algorithm, first, algorithm.learner("vector")


@pytest.fixture(scope="module")
def away():
    """A3C whose learner is a process of its own, after two iterations."""
    with built(tiny(remote_learner=True)) as algorithm:
        for _ in range(2):
            algorithm.train()
        yield algorithm


def _adam(algorithm):
    adam = local_learner(algorithm.learner_group).optimiser.adam
    return [value.clone() for part in adam.state.values() for value in part.values()]


def _weights(runner):
    return flat(list(runner.module.parameters()))


# Results


def test_result_counts_steps_as_the_algorithm_does(trained):
    algorithm, result, _, _ = trained
    assert result["env_runners"]["num_env_steps_sampled_lifetime"] == algorithm.steps == 3 * ITERATION
    assert result["env_runners"]["episode_len_mean"] == EPISODE
    assert np.isfinite(result["env_runners"]["episode_return_mean"])
    assert result["env_runners"]["steps_per_second"] > 0


def test_result_of_the_learner_has_every_figure(trained):
    algorithm, result, _, first = trained
    figures = result["learners"][DEFAULT_MODULE_ID]
    assert set(figures) >= COMMON | EXTRA[_name(algorithm)]
    assert all(np.isfinite(value) for value in figures.values())
    assert 0.9 < figures["entropy"] <= np.log(3) + 1e-6
    assert figures["gradients"] == figures["version"] == algorithm.version > 0
    assert not np.array_equal(algorithm.learner("vector"), first)


def test_result_with_a_worker_says_what_it_did(one):
    algorithm, _, _ = one
    result = algorithm.train()["env_runners"]
    assert result["num_env_steps_sampled_lifetime"] == algorithm.steps
    assert list(result["worker"]) == ["1"]
    assert 0 < result["worker"]["1"]["busy_share"] <= 1


# Runs can be repeated


def test_run_with_the_same_seed_ends_with_equal_weights(trained):
    algorithm, _, path, _ = trained
    with built(algorithm.config.copy(copy_frozen=False)) as again:
        for _ in range(3):
            again.train()
        mine = again.learner("vector")
    with built(tiny(seed=99)) as saved:
        saved.restore_from_path(path)
        assert np.array_equal(mine, saved.learner("vector"))


def test_a3c_with_one_worker_equals_none(one):
    _, first, last = one
    with built(tiny(seed=8)) as alone:  # a worker's seed is that of the settings and its index
        local_learner(alone.learner_group).optimiser.weights.load(first)
        for _ in range(3):
            alone.train()
        assert np.array_equal(alone.learner("vector"), last)


# Checkpoints


@pytest.mark.parametrize("way", ["restore_from_path", "from_checkpoint"])
def test_checkpoint_holds_all_that_training_needs(trained, way):
    algorithm, _, path, _ = trained
    if way == "from_checkpoint":
        other = type(algorithm).from_checkpoint(path)
    else:
        other = algorithm.config.copy(copy_frozen=False).debugging(seed=99).build_algo()
        other.restore_from_path(path)
    try:
        assert np.array_equal(other.learner("vector"), algorithm.learner("vector"))
        assert all(torch.equal(mine, its) for mine, its in zip(_adam(algorithm), _adam(other), strict=True))
        assert len(_adam(other)) > 0
        for name in ("steps", "version", "moments", "counters", "iteration"):
            assert getattr(other, name) == getattr(algorithm, name), name
        assert other.order() == algorithm.order()
    finally:
        other.stop()
        shutil.rmtree(other.logdir, ignore_errors=True)


def test_restored_run_continues_counters_and_schedules(trained):
    algorithm, before, path, _ = trained
    learn = {"lr_fall": 1.0, "cost_rise": 1.0}
    config = tiny(learn=learn, seed=99, algorithm=_name(algorithm), iteration_steps=ITERATION)
    with built(config) as other:
        other.restore_from_path(path)
        result = other.train()
        done = 4 * ITERATION / 4096
        figures = result["learners"][DEFAULT_MODULE_ID]
        assert result["training_iteration"] == 4
        assert result["env_runners"]["num_env_steps_sampled_lifetime"] == other.steps == 4 * ITERATION
        assert figures["cost_scale"] == pytest.approx(done)
        assert figures["learning_rate"] == pytest.approx(1e-3 * (1 - done))
        assert figures["gradients"] > before["learners"][DEFAULT_MODULE_ID]["gradients"]
        assert not np.array_equal(other.learner("vector"), algorithm.learner("vector"))


def _name(algorithm):
    return {"A3C": "a3c", "PPO": "ppo", "AsyncPPO": "async-ppo"}[type(algorithm).__name__]


def test_restored_run_has_no_request_out_and_sends_the_old_weights(one, tmp_path):
    algorithm, _, _ = one
    path, version = algorithm.save_to_path(str(tmp_path / "checkpoint")), algorithm.version
    weights = algorithm.learner("vector")
    algorithm.train()
    assert algorithm.crew.busy == [1]
    algorithm.restore_from_path(path)
    assert (algorithm.crew.busy, algorithm.version) == ([], version)
    assert np.array_equal(algorithm.weights(), weights)
    algorithm.train()
    assert algorithm.version == version + 4  # fragments of an iteration


# Evaluation


def _evaluated(runners, duration, unit):
    return tiny(iteration_steps=ITERATION).evaluation(
        evaluation_interval=1,
        evaluation_num_env_runners=runners,
        evaluation_duration=duration,
        evaluation_duration_unit=unit,
        evaluation_config={"explore": False},
    )


@pytest.mark.parametrize(
    ("duration", "unit", "episodes", "steps"),
    # Fragments are whole, and four episodes of 12 steps begin and end together.
    [(10, "episodes", 3 * SLOTS, 5 * FRAGMENT), (100, "timesteps", 2 * SLOTS, 4 * FRAGMENT)],
)
def test_evaluation_here_takes_best_actions_at_full_costs_with_newest_weights(
    monkeypatch, duration, unit, episodes, steps
):
    with built(_evaluated(0, duration, unit)) as algorithm:
        runner, asked = algorithm.eval_env_runner, []
        sample = runner.sampler.sample
        monkeypatch.setattr(runner.sampler, "sample", lambda *a, **k: asked.append(k["explore"]) or sample(*a, **k))
        within = algorithm.train()["evaluation"]["env_runners"]
        assert np.array_equal(_weights(runner), algorithm.learner("vector"))
        alone = algorithm.evaluate()["env_runners"]
    assert set(asked) == {False}
    assert runner.env.cost_scale == 1.0
    assert np.isfinite([within["episode_return_mean"], alone["episode_return_mean"]]).all()
    assert (within["num_episodes"], within["num_env_steps_sampled"]) == (episodes, steps)


def test_evaluation_by_a_worker_uses_the_newest_weights():
    with built(_evaluated(1, 10, "episodes")) as algorithm:
        for _ in range(2):
            result = algorithm.train()["evaluation"]["env_runners"]
            # A worker cannot import tests' own modules.
            (parameters,) = algorithm.eval_env_runner_group.foreach_env_runner(
                lambda runner: list(runner.module.parameters()), local_env_runner=False
            )
            assert np.array_equal(flat(parameters), algorithm.learner("vector"))
        assert result["num_episodes"] == 3 * SLOTS
        assert np.isfinite(result["episode_return_mean"])


def test_evaluation_on_the_training_worker_counts_its_own_episodes_at_full_costs():
    with built(tiny()) as algorithm:
        assert algorithm.train()["learners"][DEFAULT_MODULE_ID]["cost_scale"] < 1
        results = [algorithm.evaluate()["env_runners"]["num_episodes"] for _ in range(2)]
        assert results == [3 * SLOTS] * 2
        assert algorithm.env_runner.env.cost_scale == 1.0
        algorithm.train()
        assert algorithm.env_runner.env.cost_scale < 1


# The worker alone


@pytest.fixture
def runner():
    return SwingEnvRunner(config=tiny(), worker_index=0, num_workers=0)


@pytest.mark.parametrize(
    ("wanted", "fragments"), [({}, 1), ({"num_timesteps": FRAGMENT + 1}, 2), ({"num_episodes": SLOTS}, 2)]
)
def test_worker_samples_whole_fragments_until_it_has_enough(runner, wanted, fragments):
    found = runner.sample(**wanted)
    assert [fragment.rewards.shape for fragment in found] == [(STEPS, SLOTS)] * fragments
    assert found[0].starts[0].all()


def test_worker_begins_anew_where_episodes_are_wanted(runner):
    runner.sample()
    assert not runner.sample()[0].starts[0].any()
    assert runner.sample(num_episodes=1)[0].starts[0].all()
    assert runner.sample(force_reset=True)[0].starts[0].all()


def test_worker_metrics_are_those_since_the_last_call(runner):
    fragments = runner.sample(num_timesteps=3 * FRAGMENT)
    metrics = {name: stats.peek() for name, stats in runner.get_metrics().items()}
    rewards = np.concatenate([fragment.rewards for fragment in fragments])
    returns = rewards.reshape(2, EPISODE, SLOTS).sum(axis=1)
    assert metrics["num_episodes"] == 2 * SLOTS
    assert metrics["num_env_steps_sampled"] == metrics["num_env_steps_sampled_lifetime"] == 3 * FRAGMENT
    assert metrics["episode_len_mean"] == EPISODE
    for kind in ("mean", "min", "max"):
        assert metrics[f"episode_return_{kind}"] == pytest.approx(getattr(returns, kind)(), rel=1e-5)
    runner.sample()
    assert runner.get_metrics()["num_env_steps_sampled"].peek() == FRAGMENT


def test_worker_state_carries_weights_and_steps(runner):
    runner.sample()
    other = SwingEnvRunner(config=tiny(seed=99), worker_index=0, num_workers=0)
    assert not np.array_equal(_weights(other), _weights(runner))
    other.set_state(runner.get_state())
    assert np.array_equal(_weights(other), _weights(runner))
    assert other.num_env_steps_sampled_lifetime == FRAGMENT
    assert COMPONENT_RL_MODULE not in runner.get_state(not_components=[COMPONENT_RL_MODULE])


def test_worker_that_only_learns_keeps_no_episodes(runner):
    for version in range(6):
        runner.gradient(_weights(runner), Order(version, cost_scale=1.0, reward_scale=1.0, entropy=0.0))
    metrics = runner.get_metrics()
    assert (metrics["num_episodes"].peek(), metrics["num_env_steps_sampled"].peek()) == (0, 0)
    assert runner.num_env_steps_sampled_lifetime == 6 * FRAGMENT


# The learner in a process of its own


def test_remote_learner_gives_the_weights_of_a_local_one(away):
    with built(tiny()) as local:
        for _ in range(2):
            local.train()
        assert np.array_equal(away.learner("vector"), local.learner("vector"))


def test_remote_learner_checkpoint_restores_into_a_local_one(away, tmp_path):
    path = away.save_to_path(str(tmp_path / "checkpoint"))
    (theirs,) = away.learner_group.foreach_learner(
        lambda learner: [value for part in learner.optimiser.adam.state.values() for value in part.values()]
    )
    with built(tiny(seed=99)) as local:
        local.restore_from_path(path)
        assert np.array_equal(away.learner("vector"), local.learner("vector"))
        assert all(torch.equal(mine, its) for mine, its in zip(_adam(local), theirs.get(), strict=True))
        assert (local.steps, local.version) == (away.steps, away.version)


def test_remote_learner_mistake_is_told_from_its_loss(away):
    with pytest.raises(RayTaskError, match=r"\(3,\) numbers for a network of"):
        away.learner("apply_gradient", np.zeros(3, np.float32), 0.1)
    away.learner_group.foreach_learner(lambda _: None, healthy_only=False, mark_healthy=True)
    assert np.isfinite(away.learner("vector")).all()


def test_remote_learner_killed_is_said_to_be_lost(away, tmp_path):
    ray.kill(away.learner_group._workers[0])
    for act in (away.train, lambda: away.save_to_path(str(tmp_path))):
        with pytest.raises(LearnerLostError, match="process ended"):
            act()


def test_train_goes_on_from_the_checkpoint_when_its_learner_is_killed(panel, tmp_path, monkeypatch):
    algorithms, build = [], ActorCriticConfig.build_algo
    monkeypatch.setattr(ActorCriticConfig, "build_algo", lambda self: algorithms.append(build(self)) or algorithms[-1])
    config = settings.RunConfig.of(
        {
            "model": MODEL,
            "train": {
                "algorithm": "a3c",
                "steps": 3 * FRAGMENT,
                "iteration_steps": FRAGMENT,
                "env_runners": 0,
                "envs_per_runner": SLOTS,
                "remote_learner": True,
                "checkpoint_iterations": 1,
            },
        },
        "test",
    )

    def kill(progress):
        if progress.iteration == 2 and len(algorithms) == 1:  # the checkpoint of this iteration is still to come
            ray.kill(algorithms[0].learner_group._workers[0])

    run = tmp_path / "run"
    train(config, save_panel(panel, tmp_path / "panels"), TRAIN, run, on_progress=kill)
    for algorithm in algorithms:
        shutil.rmtree(algorithm.logdir, ignore_errors=True)
    lines = [json.loads(line) for line in (run / "progress.jsonl").read_text().splitlines()]
    assert [(line["session"], line["iteration"]) for line in lines] == [(0, 1), (0, 2), (1, 2), (1, 3)]
    assert (run / "weights.safetensors").is_file()


def test_checkpoint_that_does_not_fit_is_refused_and_kept(panel, tmp_path):
    amount = {"steps": 3 * FRAGMENT, "iteration_steps": FRAGMENT, "env_runners": 0, "envs_per_runner": SLOTS}
    tree = {"model": MODEL, "train": {"algorithm": "a3c", "checkpoint_iterations": 1, **amount}}
    config = settings.RunConfig.of(tree, "test")

    def interrupt(progress):
        if progress.iteration == 2:
            raise KeyboardInterrupt

    folder, run = save_panel(panel, tmp_path / "panels"), tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        train(config, folder, TRAIN, run, on_progress=interrupt)
    wider = settings.with_values(config, {"model.hidden": 2 * config.model.hidden}, "test")
    (run / "config.json").write_text(json.dumps(wider.tree()))
    with pytest.raises(RunError, match=r"checkpoint: was written by another version of the engine .*begin anew"):
        train(wider, folder, TRAIN, run, resume=True)
    (run / "config.json").write_text(json.dumps(config.tree()))
    assert train(config, folder, TRAIN, run, resume=True).folder == run


# Tune


def test_tuner_runs_trials_of_a_grid_and_keeps_their_checkpoints(tmp_path):
    rates = [1e-3, 1e-2]
    results = Tuner(
        A3C,
        param_space=tiny().training(lr=tune.grid_search(rates)),
        run_config=RunConfig(
            storage_path=str(tmp_path),
            stop={"training_iteration": 2},
            verbose=0,
            checkpoint_config=CheckpointConfig(checkpoint_at_end=True),
        ),
    ).fit()
    assert list(results.errors) == []
    assert sorted(result.config["lr"] for result in results) == rates
    for result in results:
        assert np.isfinite(result.metrics["env_runners"]["episode_return_mean"])
        assert result.metrics["learners"][DEFAULT_MODULE_ID]["learning_rate"] == result.config["lr"]
        restored = A3C.from_checkpoint(result.checkpoint.path)
        assert restored.steps == result.metrics["env_runners"]["num_env_steps_sampled_lifetime"] == 2 * 4 * FRAGMENT
        restored.stop()
        shutil.rmtree(restored.logdir, ignore_errors=True)


# The stock algorithm, kept as a reference, on our network and environment


@pytest.mark.parametrize("model", [{}, {"layers": 2, "attention_heads": 2, "attention_sessions": 4}])
def test_stock_ppo_trains_our_network_on_our_environment(model):
    config = (
        StockPPOConfig()
        .environment(ENV_NAME, env_config=CONTEXT)
        .env_runners(
            num_env_runners=0,
            num_envs_per_env_runner=SLOTS,
            gym_env_vectorize_mode="vector_entry_point",
            rollout_fragment_length=STEPS,
        )
        .rl_module(rl_module_spec=tiny(model).rl_module_spec)
        .training(train_batch_size_per_learner=256, minibatch_size=64, num_epochs=1, lr=1e-3)
        .debugging(seed=1, log_level="ERROR")
    )
    with built(config) as algorithm:
        first = _weights(algorithm.env_runner)
        result = algorithm.train()
        assert result["env_runners"]["episode_len_mean"] == EPISODE
        assert np.isfinite(result["env_runners"]["episode_return_mean"])
        assert np.isfinite(result["learners"][DEFAULT_MODULE_ID]["total_loss"])
        assert not np.array_equal(_weights(algorithm.env_runner), first)


# Settings


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda config: config.training(lr=[[0, 1e-3], [4096, 0.0]]), "lr_fall"),
        (lambda config: config.learners(num_learners=2), "num_learners 2"),
        (lambda config: config.training(grad_clip=None), "grad_clip None"),
        (lambda config: config.env_runners(rollout_fragment_length="auto"), "rollout_fragment_length 'auto'"),
    ],
)
def test_settings_that_contradict_the_engine_are_refused(change, words):
    with pytest.raises(ConfigError, match=words):
        change(tiny()).validate()


@pytest.mark.parametrize("name", ["a3c", "ppo", "async-ppo"])
def test_critic_dropout_is_for_every_algorithm(name):
    with built(tiny({"critic_dropout": 0.1}, algorithm=name)) as algorithm:
        assert np.isfinite(algorithm.train()["learners"][DEFAULT_MODULE_ID]["value_loss"])


def test_bf16_trains_with_or_without_such_instructions():
    with built(tiny({"bf16": True})) as algorithm:
        assert np.isfinite(algorithm.train()["learners"][DEFAULT_MODULE_ID]["gradient_norm"])
