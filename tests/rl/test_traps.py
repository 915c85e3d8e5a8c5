"""The traps of RLlib on the pinned Ray: each is still there, so the way around it is still needed, and ours works.

Numbers are those of the list in `facts/rllib.md`. The last part holds `rl.learning.adapter` to its contract: the one
place that touches private parts of Ray.
"""

from __future__ import annotations

import ast
import logging
import time
from types import SimpleNamespace

import numpy as np
import pytest
import ray
import torch
from gymnasium.vector import AutoresetMode
from ray.actor import ActorHandle
from ray.exceptions import RayTaskError
from ray.rllib.algorithms.algorithm_config import AlgorithmConfig
from ray.rllib.algorithms.ppo import PPOConfig as StockPPOConfig
from ray.rllib.core import COMPONENT_RL_MODULE, DEFAULT_MODULE_ID
from ray.rllib.core.learner.torch.torch_learner import TorchLearner
from ray.rllib.core.rl_module.default_model_config import DefaultModelConfig
from ray.rllib.env.env_runner_group import EnvRunnerGroup
from ray.rllib.env.single_agent_env_runner import SingleAgentEnvRunner
from ray.rllib.policy.sample_batch import MultiAgentBatch, SampleBatch
from ray.rllib.utils.actor_manager import FaultAwareApply, FaultTolerantActorManager
from ray.rllib.utils.metrics import WEIGHTS_SEQ_NO
from ray.tune.registry import register_env

from data_pipeline.errors import ConfigError, RunError
from envs.worlds import WorldVectorEnv
from product import ROOT
from rl.learning.adapter import actors_of, env_creator, local_learner, quiet, seed_of, wants
from rl.learning.build import ENV_NAME, make_env
from rl.learning.cluster import INLINE_BYTES, ray_session
from rl.learning.crew import Crew
from rl.learning.gradients import Order, answers
from rl.learning.learner import SwingLearner
from rl.learning.module import SwingModule
from rl.learning.rollout import Sampler
from rl.learning.runner import SwingEnvRunner
from stepwise import flat
from tiny import CONTEXT, EPISODE, FRAGMENT, SLOTS, STEPS, built, tiny

pytestmark = [
    pytest.mark.ray,
    # RLlib registers one name with Gymnasium for every stock runner that it makes.
    pytest.mark.filterwarnings("ignore:.*Overriding environment rllib-single-agent-env-v0"),
]

ORDER = Order(version=3, cost_scale=1.0, reward_scale=1.0, entropy=0.01)


@pytest.fixture(scope="module", autouse=True)
def _session():
    with ray_session(cpus=4):
        yield


@pytest.fixture(scope="module")
def algorithm():
    with built(tiny()) as algorithm:
        algorithm.train()
        yield algorithm


@pytest.fixture(scope="module")
def remote():
    """An algorithm with a worker of its own process."""
    with built(tiny(env_runners=1)) as algorithm:
        yield algorithm


@pytest.fixture(scope="module")
def sleepers():
    """Two actors that answer at once and after two seconds, as RLlib's manager and ours want them."""

    class Sleeper:
        def __init__(self, seconds: float) -> None:
            self.seconds = seconds

        def work(self) -> str:
            time.sleep(self.seconds)
            return "done"

        ping = work

        def apply(self, func):
            return func(self)

    actors = [ray.remote(Sleeper).options(num_cpus=0).remote(seconds) for seconds in (0.0, 2.0)]
    ray.get([actor.ping.remote() for actor in actors])
    yield actors
    for actor in actors:
        ray.kill(actor)


@pytest.fixture
def runner():
    return SwingEnvRunner(config=tiny(), worker_index=0, num_workers=0)


@pytest.fixture
def vector(runner):
    return (0.3 * np.random.default_rng(0).standard_normal(runner.worker.weights.vector().size)).astype(np.float32)


def _stock(context=CONTEXT, **model):
    return (
        StockPPOConfig()
        .environment(ENV_NAME, env_config=dict(context))
        .env_runners(
            num_env_runners=0,
            num_envs_per_env_runner=SLOTS,
            gym_env_vectorize_mode="vector_entry_point",
            rollout_fragment_length=STEPS,
        )
        .rl_module(rl_module_spec=tiny(model).rl_module_spec)
        .training(train_batch_size_per_learner=256, minibatch_size=64, num_epochs=1)
        .debugging(seed=1, log_level="ERROR")
    )


def _stock_runner(mode=AutoresetMode.NEXT_STEP):
    return SingleAgentEnvRunner(config=_stock({**CONTEXT, "autoreset_mode": mode}), worker_index=0, num_workers=0)


def _spec(**model):
    spec = tiny(model).rl_module_spec
    env = make_env({**CONTEXT, "num_envs": 1})
    spec.observation_space, spec.action_space = env.single_observation_space, env.single_action_space
    spec.inference_only = False
    return spec


def _seconds(call):
    started = time.monotonic()
    return call(), time.monotonic() - started


# 1: as_multi_rl_module builds another module


def test_module_wrapped_for_a_learner_is_another_one_with_other_weights():
    module = _spec().build()
    wrapped = module.as_multi_rl_module()[DEFAULT_MODULE_ID]
    assert wrapped is not module
    assert not np.array_equal(flat(list(module.parameters())), flat(list(wrapped.parameters())))


def test_runner_acts_and_learns_with_one_network(runner):
    own = list(runner.module.parameters())
    assert runner.module.net is runner.sampler.net is runner.worker.sampler.net
    assert len(own) == len(runner.worker.weights.parameters)
    assert all(one is other for one, other in zip(own, runner.worker.weights.parameters, strict=True))


def test_runner_acts_with_the_weights_that_were_sent(runner, vector):
    fragment, report, _ = runner.fragment(vector, ORDER)
    with torch.no_grad():
        likelihoods, values, _ = answers(runner.module.net, fragment)
    assert np.array_equal(flat(list(runner.module.parameters())), vector)
    assert np.allclose(likelihoods, fragment.log_likelihoods, atol=1e-5)
    assert np.allclose(values, fragment.values, atol=1e-5)
    assert (fragment.version, report.version) == (3, 3)


def test_runner_gradient_is_that_of_the_weights_that_were_sent(vector):
    other = np.roll(vector, 1)
    gradients = {}
    for name, before in (("fresh", None), ("used", other)):
        runner = SwingEnvRunner(config=tiny(), worker_index=0, num_workers=0)
        if before is not None:  # whatever it held, and without a step of the environment
            runner.set_state({COMPONENT_RL_MODULE: _state_of(runner, before), WEIGHTS_SEQ_NO: 9})
        gradients[name] = runner.gradient(vector, ORDER)[0]
    assert np.array_equal(gradients["fresh"], gradients["used"])
    assert np.abs(gradients["fresh"]).max() > 0


def _state_of(runner, vector):
    parameters = dict(runner.module.named_parameters())
    parts = np.split(vector, np.cumsum([p.numel() for p in parameters.values()])[:-1])
    return {name: part.reshape(p.shape) for (name, p), part in zip(parameters.items(), parts, strict=True)}


# 2: fetch_ready_async_reqs with a timeout waits for all


def test_rllib_fetch_with_a_timeout_waits_for_the_slowest(sleepers):
    manager = FaultTolerantActorManager(sleepers)
    manager.foreach_actor_async(lambda actor: actor.work())
    results, seconds = _seconds(lambda: manager.fetch_ready_async_reqs(timeout_seconds=20))
    assert len(list(results)) == 2
    assert seconds > 1.0


def test_crew_answer_of_the_fastest_comes_alone_and_first(sleepers):
    crew = Crew(dict(enumerate(sleepers, 1)), timeout_s=20)
    for worker in (2, 1):
        crew.ask(worker, "work")
    first = crew.answers(20)
    assert ([answer.worker for answer in first], crew.busy) == ([1], [2])
    assert [answer.worker for answer in crew.answers(20)] == [2]


# 3: Algorithm.step waits for the states of all runners


@pytest.mark.parametrize(("ours", "waits"), [(True, 0), (False, 1)])
def test_algorithm_step_waits_for_runner_states_unless_told_otherwise(monkeypatch, ours, waits):
    config = tiny()
    assert config._dont_auto_sync_env_runner_states is True
    config._dont_auto_sync_env_runner_states = ours
    calls = []
    with built(config) as algorithm:
        monkeypatch.setattr(algorithm.env_runner_group, "sync_env_runner_states", lambda **_: calls.append(1))
        algorithm.train()
    assert len(calls) == waits


# 4: restore_env_runners pings and waits


def test_rllib_ping_of_an_absent_worker_waits_for_it(sleepers):
    assert AlgorithmConfig().env_runner_health_probe_timeout_s == 30
    manager = FaultTolerantActorManager(sleepers)
    manager.set_actor_state(1, healthy=False)
    found, seconds = _seconds(lambda: manager.probe_unhealthy_actors(timeout_seconds=0.4))
    assert found == []
    assert seconds > 0.3


def test_restoring_training_workers_is_left_to_the_crew(algorithm, monkeypatch):
    asked = []
    monkeypatch.setattr(EnvRunnerGroup, "probe_unhealthy_env_runners", lambda self: asked.append(self) or [])
    assert algorithm.restore_env_runners(algorithm.env_runner_group) == []
    assert asked == []
    evaluation = SimpleNamespace(probe_unhealthy_env_runners=lambda: asked.append("evaluation") or [])
    assert algorithm.restore_env_runners(evaluation) == []
    assert asked == ["evaluation"]


# 5: an exception in a runner sleeps before the actor exits


def test_rllib_exception_in_a_worker_sleeps_and_ends_it(caplog):
    assert AlgorithmConfig().delay_between_env_runner_restarts_s == 60
    worker = FaultAwareApply()
    worker.config = SimpleNamespace(restart_failed_env_runners=True, delay_between_env_runner_restarts_s=0.3)
    started = time.monotonic()
    with caplog.at_level(logging.CRITICAL), pytest.raises(SystemExit):
        worker.apply(lambda _: 1 / 0)
    assert time.monotonic() - started > 0.25


def test_exception_in_our_worker_comes_at_once_and_leaves_it_alive(remote):
    assert remote.config.delay_between_env_runner_restarts_s == 0
    worker = actors_of(remote.env_runner_group)[1]
    short = np.zeros(3, np.float32)
    started = time.monotonic()
    with pytest.raises(RayTaskError, match="one model"):
        ray.get(worker.gradient.remote(short, ORDER), timeout=20)
    assert time.monotonic() - started < 10
    assert ray.get(worker.ping.remote(), timeout=20) == "pong"


# 6: an error in a runner's constructor surfaces as IndexError


@pytest.mark.parametrize(
    ("restart", "error", "words"), [(True, RunError, "no worker"), (False, RuntimeError, "no such market")]
)
def test_constructor_error_of_a_worker_is_told_soon_and_by_name_without_restarts(restart, error, words):
    def fail(_):
        raise RuntimeError("no such market")

    register_env("failing", fail)
    config = tiny(env_runners=1).environment("failing").fault_tolerance(restart_failed_env_runners=restart)
    started = time.monotonic()
    with pytest.raises(error, match=words) as caught:
        config.build_algo()
    assert time.monotonic() - started < 120
    assert not restart or isinstance(caught.value.__cause__, IndexError)  # all that RLlib said


# 7: requests beyond one in flight are dropped; an empty list of workers means all


def test_rllib_second_request_in_flight_is_dropped_in_silence(sleepers):
    assert AlgorithmConfig().max_requests_in_flight_per_env_runner == 1
    manager = FaultTolerantActorManager(sleepers, max_remote_requests_in_flight_per_actor=1)
    sent = [manager.foreach_actor_async(lambda actor: actor.work(), tag="t", remote_actor_ids=[1]) for _ in range(2)]
    assert sent == [1, 0]


def test_rllib_no_worker_means_every_worker(sleepers):
    manager = FaultTolerantActorManager(sleepers)
    assert len(list(manager.foreach_actor(lambda _: 1, remote_actor_ids=[]))) == 2


def test_crew_second_request_of_a_busy_worker_is_refused_aloud(sleepers):
    crew = Crew({1: sleepers[0]}, timeout_s=20)
    crew.ask(1, "work")
    with pytest.raises(ValueError, match="owes 1 answers"):
        crew.ask(1, "work")


# 8: torch_skip_nan_gradients steps all the same


def test_rllib_gradient_that_is_not_finite_spoils_the_weights():
    with built(tiny()) as algorithm:
        learner = local_learner(algorithm.learner_group)
        learner.config = learner.config.copy(copy_frozen=False)
        learner.config.torch_skip_nan_gradients = True
        nan = {name: torch.full_like(parameter, torch.nan) for name, parameter in learner._params.items()}
        TorchLearner.apply_gradients(learner, nan)
        assert np.isnan(algorithm.learner("vector")).all()


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_gradient_that_is_not_finite_leaves_weights_and_adam_as_they_were(algorithm, bad):
    adam = local_learner(algorithm.learner_group).optimiser.adam
    before = algorithm.learner("vector")
    state = [value.clone() for part in adam.state.values() for value in part.values()]
    gradient = np.ones_like(before)
    gradient[5] = bad
    assert not np.isfinite(algorithm.learner("apply_gradient", gradient, 0.1))
    assert np.array_equal(algorithm.learner("vector"), before)
    after = [value for part in adam.state.values() for value in part.values()]
    assert len(state) > 0
    assert all(torch.equal(one, other) for one, other in zip(state, after, strict=True))


def test_algorithm_gradient_that_is_not_finite_is_counted_and_no_new_version(algorithm, runner, vector):
    gradient, report, seconds = runner.gradient(vector, ORDER)
    version, refused = algorithm.version, algorithm.counters["not_finite"]
    algorithm._take(0, gradient * np.float32(np.nan), report._replace(version=version), seconds)
    assert (algorithm.version, algorithm.counters["not_finite"]) == (version, refused + 1)


# 9: TorchRLModule.set_state is not strict


def test_rllib_state_without_weights_passes_in_silence():
    module = _spec().build()
    before = flat(list(module.parameters()))
    super(SwingModule, module).set_state({})
    assert np.array_equal(flat(list(module.parameters())), before)


def test_module_state_of_another_model_is_refused(runner):
    plain, attentive = _spec().build(), _spec(attention_heads=2).build()
    with pytest.raises(RuntimeError, match=r"Missing key.*attention_in"):
        attentive.set_state(plain.get_state())
    with pytest.raises(RuntimeError, match=r"Unexpected key.*attention_in"):
        plain.set_state(attentive.get_state())
    with pytest.raises(ValueError, match="one model"):
        runner.gradient(flat(list(attentive.parameters())), ORDER)


# 10, 11, 12: the stock runner: autoreset unchecked, native vector environments, no critic


def test_stock_runner_takes_same_step_resets_and_loses_steps():
    def lengths(mode):
        return {len(episode) for episode in _stock_runner(mode).sample(num_timesteps=200) if episode.is_done}

    assert lengths(AutoresetMode.NEXT_STEP) == {EPISODE}
    assert lengths(AutoresetMode.SAME_STEP) == {EPISODE, EPISODE - 1}


def test_sampler_of_next_step_resets_is_refused(runner):
    env = make_env({**CONTEXT, "num_envs": SLOTS})
    with pytest.raises(ConfigError, match="autoreset_mode"):
        Sampler(runner.module.net, env)
    assert runner.env.metadata["autoreset_mode"] is AutoresetMode.SAME_STEP
    lengths = [done.lengths for done in (runner.sampler.sample(STEPS)[2] for _ in range(6))]
    assert set(np.concatenate(lengths)) == {EPISODE}


def test_creator_answers_native_vector_environment_only_where_asked():
    stock = _stock_runner()
    assert isinstance(stock.env.unwrapped, WorldVectorEnv)
    assert stock.env.num_envs == SLOTS
    assert not hasattr(make_env(CONTEXT), "num_envs")


def test_stock_runner_module_is_for_inference_only_and_ours_has_its_critic(runner):
    assert _stock_runner().module.inference_only is True
    assert runner.module.inference_only is False
    assert runner.module.net.critic.weight.requires_grad


# 13: rows of 20 steps, and standardisation over steps that never were


def test_row_length_defaults_to_20_and_ours_is_the_fragment():
    assert DefaultModelConfig().max_seq_len == 20
    assert tiny().rl_module_spec.model_config["max_seq_len"] == STEPS == tiny().recipe().steps


def test_stock_advantages_are_standardised_over_phantom_steps():
    with built(_stock()) as algorithm:
        learner = local_learner(algorithm.learner_group)
        episodes = algorithm.env_runner.sample(num_timesteps=256)
        steps = sum(len(episode) for episode in episodes)
        batch = learner._learner_connector(
            rl_module=learner.module, batch={}, episodes=episodes, shared_data={}, metrics=learner.metrics
        )[DEFAULT_MODULE_ID]
    real = batch["advantages"][batch["loss_mask"]]
    assert batch["obs"].shape[1] == STEPS
    assert len(real) == steps < sum(len(episode) for episode in episodes)
    assert abs(float(real.std(correction=0)) - 1) > 1e-3


def test_fragment_holds_steps_and_slots_and_nothing_else(runner, vector):
    fragment, report, _ = runner.fragment(vector, ORDER)
    shapes = {getattr(fragment, name).shape for name in ("actions", "rewards", "values", "next_values", "starts")}
    assert shapes == {(STEPS, SLOTS)}
    assert report.steps == fragment.env_steps() == FRAGMENT


# 14: older weights are ignored


def test_rllib_state_with_an_older_number_is_ignored():
    stock = _stock_runner()
    new, old = ({name: np.full_like(w, number) for name, w in stock.module.get_state().items()} for number in (2, 1))
    for weights, number in ((new, 5), (old, 4)):
        stock.set_state({COMPONENT_RL_MODULE: weights, WEIGHTS_SEQ_NO: number})
    assert (flat(list(stock.module.parameters())) == 2).all()


def test_rllib_learner_keeps_newer_weights_and_ours_are_never_numbered():
    with built(tiny()) as algorithm:
        learner, first = local_learner(algorithm.learner_group), algorithm.learner_group.get_state()["learner"]
        algorithm.train()
        later = algorithm.learner("vector")
        assert first[WEIGHTS_SEQ_NO] == learner.get_state()[WEIGHTS_SEQ_NO] == 0  # 0 forces the update
        learner._weights_seq_no = 5
        learner.set_state({**first, WEIGHTS_SEQ_NO: 4})
        assert np.array_equal(algorithm.learner("vector"), later)
        learner.set_state(first)
        assert not np.array_equal(algorithm.learner("vector"), later)


def test_runner_goes_back_to_older_weights(runner, vector):
    for weights, number in ((vector, 5), (2 * vector, 4)):
        runner.set_state({COMPONENT_RL_MODULE: ray.put(_state_of(runner, weights)), WEIGHTS_SEQ_NO: number})
    assert np.array_equal(flat(list(runner.module.parameters())), 2 * vector)
    assert runner.get_state()[WEIGHTS_SEQ_NO] == 4


# 15: feeding RLlib's own update


def test_rllib_update_with_numpy_forgets_the_padding_and_ours_refuses(algorithm):
    learner = local_learner(algorithm.learner_group)
    padded = SampleBatch({"obs": np.zeros((2, STEPS, 2), np.float32)}, _zero_padded=True)
    converted = learner._convert_batch_type(MultiAgentBatch({DEFAULT_MODULE_ID: padded}, env_steps=2 * STEPS))
    assert (padded.zero_padded, converted[DEFAULT_MODULE_ID].zero_padded) == (True, False)
    state = {name: np.stack([part] * 2) for name, part in algorithm.env_runner.module.get_initial_state().items()}
    whole = SampleBatch({**padded, "state_in": state})
    before = algorithm.learner("vector")
    with pytest.raises(NotImplementedError, match="apply_gradient"):
        algorithm.learner_group.update(batch=MultiAgentBatch({DEFAULT_MODULE_ID: whole}, env_steps=2 * STEPS))
    assert np.array_equal(algorithm.learner("vector"), before)


# 16: defaults of PPO


def test_ppo_defaults_of_rllib_surprise_and_ours_are_the_settings_ones():
    stock, ours = StockPPOConfig(), tiny(algorithm="ppo")
    assert (stock.lambda_, stock.num_epochs, stock.vf_clip_param, stock.use_kl_loss) == (1.0, 30, 10.0, True)
    assert (ours.recipe().lambda_, ours.recipe().epochs, ours.recipe().minibatches) == (0.95, 4, 4)


# 17: a first result without the metric; mutated values that a restore overwrites


def test_first_result_lacks_the_return_until_an_episode_ended():
    with built(tiny(iteration_steps=FRAGMENT)) as algorithm:
        results = [algorithm.train()["env_runners"] for _ in range(2)]
    assert ["episode_return_mean" in result for result in results] == [False, True]


def test_learning_rate_of_the_settings_survives_a_restore(algorithm, tmp_path):
    path = algorithm.save_to_path(str(tmp_path / "checkpoint"))
    with built(tiny(learn={"lr": 0.5})) as mutated:
        mutated.restore_from_path(path)
        live = mutated.train()["learners"][DEFAULT_MODULE_ID]["learning_rate"]
        adam = local_learner(mutated.learner_group).optimiser.adam
    assert live == 0.5
    assert [group["lr"] for group in adam.param_groups] == [0.5]


# 18: connectors with a state


def test_runner_state_has_no_connectors_to_lose(runner):
    assert set(runner.get_state()) == {COMPONENT_RL_MODULE, WEIGHTS_SEQ_NO, "num_env_steps_sampled_lifetime"}
    assert set(_stock_runner().get_state()) > {"env_to_module_connector", "module_to_env_connector"}


# 19: checkpoints are pickle


def test_checkpoint_states_are_pickle(algorithm, tmp_path):
    algorithm.save_to_path(str(tmp_path))
    states = [path for path in tmp_path.rglob("*") if path.is_file() and path.suffix != ".json"]
    assert len(states) > 5
    assert {path.suffix for path in states} == {".pkl"}


# 20: RLModuleSpec.build swallows AttributeError


def test_rllib_attribute_error_in_setup_turns_into_a_deprecation():
    class Broken(SwingModule):
        def setup(self) -> None:
            self.net = self.model_config.no_such_thing

    spec = _spec()
    spec.module_class = Broken
    with pytest.raises(ValueError, match="deprecated"):
        spec.build()


# Tune


def test_tune_names_are_where_we_import_them():
    names = ("Tuner", "TuneConfig", "RunConfig", "CheckpointConfig", "FailureConfig", "ResumeConfig")
    assert [name for name in names if not hasattr(ray.tune, name)] == []


@pytest.mark.parametrize(("runners", "remote_learner", "cpus"), [(0, False, 1), (2, False, 3), (2, True, 4)])
def test_trial_asks_for_a_processor_for_each_process(runners, remote_learner, cpus):
    config = tiny(env_runners=runners, remote_learner=remote_learner)
    request = config.algo_class.default_resource_request(config)
    assert sum(bundle["CPU"] for bundle in request.bundles) == cpus


# The adapter


def test_only_the_adapter_touches_private_parts_of_ray():
    found = _borrowed({path: path.read_text(encoding="utf-8") for path in sorted((ROOT / "rl").rglob("*.py"))})
    found = {f"{path.relative_to(ROOT)}: {name}" for path, name in found if path.name != "adapter.py"}
    # Arguments of ray.init, in a module that must not load RLlib, as the adapter does.
    assert found == {"rl/learning/cluster.py: _node_ip_address", "rl/learning/cluster.py: _system_config"}


def test_search_for_private_parts_finds_every_form():
    source = """
from ray.tune.registry import _global_registry, ENV_CREATOR
class Ours(Theirs):
    def __init__(self):
        self._own = other._manager
        self._module, cls._built = 1, self._theirs._actors
    def _method(self):
        return self._method(), self._own, self.__dict__, call(_private=1), call(own=1), report._replace(own=1)
"""
    more = "class Heir(Ours):\n    def use(self, other):\n        return self._method(), other._method()"
    private = ("_global_registry", "_manager", "_theirs", "_actors", "_private")
    assert _borrowed({"a": source, "b": more}) == {*(("a", name) for name in private), ("b", "_method")}


def _borrowed(sources):
    """Returns (module, private name) of all that modules use of others: imports, attributes, inherited, keywords."""
    nodes = {module: list(ast.walk(ast.parse(source))) for module, source in sources.items()}
    everything = [node for found in nodes.values() for node in found]
    own = {node.name for node in everything if isinstance(node, ast.FunctionDef | ast.ClassDef)}
    own |= {node.attr for node in everything if _on_self(node) and isinstance(node.ctx, ast.Store)}
    return {
        (module, name)
        for module, found in nodes.items()
        for node in found
        for name in _names(node)
        if name.startswith("_") and not name.startswith("__") and not (_on_self(node) and name in own)
    }


def _names(node):
    if isinstance(node, ast.Attribute):
        return {node.attr} - {"_replace"}  # public, of named tuples
    if isinstance(node, ast.ImportFrom) and str(node.module).split(".")[0] == "ray":
        return {alias.name for alias in node.names}
    return {str(keyword.arg) for keyword in node.keywords} if isinstance(node, ast.Call) else set()


def _on_self(node):
    return isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in ("self", "cls")


def test_adapter_hands_out_the_remote_workers_by_their_index(remote, algorithm):
    actors = actors_of(remote.env_runner_group)
    assert list(actors) == [1]
    assert isinstance(actors[1], ActorHandle)
    assert ray.get(actors[1].get_spaces.remote(), timeout=20).keys() == remote.env_runner_group.get_spaces().keys()
    assert actors_of(algorithm.env_runner_group) == {}


def test_adapter_finds_the_learner_of_this_process_and_no_other(algorithm):
    assert type(local_learner(algorithm.learner_group)) is SwingLearner
    assert local_learner(SimpleNamespace(is_local=False, _learner=None)) is None


def test_adapter_finds_what_was_registered():
    tiny()
    assert env_creator(ENV_NAME) is make_env


@pytest.mark.parametrize(("index", "evaluates", "seed"), [(0, False, 7), (2, False, 9), (1, True, 1_000_008)])
def test_adapter_seed_is_of_settings_index_and_purpose(index, evaluates, seed):
    config = tiny()
    config.in_evaluation = evaluates
    assert seed_of(SwingEnvRunner(config=config, worker_index=index, num_workers=index)) == seed


def test_adapter_says_which_components_a_state_is_asked_for(runner):
    assert wants(runner, "rl_module", None, None)
    assert wants(runner, "rl_module", ["rl_module/default_policy"], None)
    assert not wants(runner, "rl_module", ["learner"], None)
    assert not wants(runner, "rl_module", None, ["rl_module"])


def test_adapter_flag_against_waiting_is_a_default_of_the_pinned_ray():
    assert AlgorithmConfig()._dont_auto_sync_env_runner_states is False


def test_adapter_quiet_leaves_errors(caplog):
    quiet()
    assert {logging.getLogger(name).level for name in ("ray", "ray.rllib", "ray.tune")} == {logging.ERROR}


def test_weights_and_gradients_do_not_pass_through_the_object_store():
    @ray.remote
    def answer(size):
        return np.zeros(size, np.uint8)

    for size, stored in ((INLINE_BYTES // 2, False), (2 * INLINE_BYTES, True)):
        reference = answer.remote(size)
        ray.wait([reference])
        where = ray.experimental.get_object_locations([reference])[reference]["node_ids"]
        assert bool(where) is stored


def test_session_is_on_loopback():
    assert ray.util.get_node_ip_address() == "127.0.0.1"
