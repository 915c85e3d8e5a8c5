"""Those that training speed is compared with: a bare LSTM, a plain single file, RLlib's PPO and sb3-contrib's.

All train an LSTM of 128 units on `benchmarks.training_env`, 64 slots by 64 steps an iteration, sequences of 64, Adam,
one process, one torch thread. The LSTM reads the observation directly and linear heads read the LSTM. All are set up
on their first call, and each call is one iteration: so many environment steps sampled and learnt from.

Axes: T steps, B slots, A actions, D numbers of an observation.
"""

from __future__ import annotations

import atexit
import importlib.util
import logging
import shutil
import warnings
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.training_env import EPISODE_STEPS, ShapeEnv, ShapeVectorEnv
from envs.contract import Bools, Floats32
from rl.learning.cluster import ray_session
from rl.learning.process import settle

Run = Callable[[], int]
"""Performs one training iteration and returns its environment steps."""
State = tuple[Tensor, Tensor]

HIDDEN = 128
OBSERVED, ACTIONS = 29, 3
LEARNING_RATE, GAMMA, GAE_LAMBDA, CLIP, ENTROPY, VALUE_WEIGHT, GRADIENT_NORM = 3e-4, 0.99, 0.95, 0.2, 0.01, 0.5, 0.5

PUFFERLIB = (
    "pufferlib 3.0.0 does not install unpatched: its build wants Raylib from GitHub, and NO_OCEAN=1, which leaves that "
    "out, ends in a NameError"
)


@dataclass(frozen=True)
class Scale:
    """Of one iteration."""

    slots: int = 64
    steps: int = 64
    minibatch_steps: int = 1024
    """Of those who learn in minibatches."""


FULL, QUICK = Scale(), Scale(slots=8, steps=16, minibatch_steps=64)


class Lazy:
    """A contestant that is set up when it first runs, so that those who never run cost nothing."""

    def __init__(self, build: Callable[[], Run]) -> None:
        self._build = build
        self._run: Run | None = None

    def __call__(self) -> int:
        """Performs one iteration."""
        if self._run is None:
            self._run = self._build()
        return self._run()


def contestants(quick: bool) -> tuple[dict[str, Run], dict[str, str]]:
    """Returns the contestants by name, none of them set up, and why others are skipped.

    RLlib's connect to Ray, or use the connection there is, and end with the process.

    Args:
        quick: Smoke form: tiny iterations.
    """
    scale = QUICK if quick else FULL
    runs: dict[str, Run] = {
        "ceiling_b64": Lazy(lambda: ceiling(64)),
        "ceiling_b256": Lazy(lambda: ceiling(256)),
        "single_file": Lazy(lambda: single_file(1, scale.slots, scale)),
        "single_file4": Lazy(lambda: single_file(4, scale.slots, scale)),
    }
    skipped = {"pufferlib": PUFFERLIB}
    peers: dict[str, tuple[str, Callable[[], Run]]] = {
        "rllib_ppo1": ("ray", lambda: rllib_ppo(1, scale)),
        "rllib_ppo4": ("ray", lambda: rllib_ppo(4, scale)),
        "sb3_ppo1": ("sb3_contrib", lambda: sb3_ppo(1, scale)),
        "sb3_ppo4": ("sb3_contrib", lambda: sb3_ppo(4, scale)),
    }
    for name, (package, build) in peers.items():
        if importlib.util.find_spec(package) is None:
            skipped[name] = f"{package} is not installed"
        else:
            runs[name] = Lazy(build)
    return runs, skipped


def ceiling(batch: int, steps: int = FULL.steps) -> Run:
    """What no trainer of this network can pass: nn.LSTM forward and backward and Adam, on random data.

    Args:
        batch: B.
        steps: T.
    """
    _prepare()
    lstm = nn.LSTM(OBSERVED, HIDDEN)
    optimizer = _adam(lstm)
    obs_TBD, weight_TBH = torch.randn(steps, batch, OBSERVED), torch.randn(steps, batch, HIDDEN)

    def run() -> int:
        optimizer.zero_grad()
        lstm(obs_TBD)[0].backward(weight_TBH)  # that is, the loss is the dot product
        optimizer.step()
        return steps * batch

    return run


def single_file(epochs: int, batch: int = FULL.slots, scale: Scale = FULL) -> Run:
    """A plain loop that knows nothing of this project, after CleanRL's, without its waste.

    Args:
        epochs: 1: one gradient of the whole rollout, which is A2C; more: PPO in minibatches.
        batch: B.
        scale: Gives the steps of a rollout and of a minibatch.
    """
    _prepare()
    return SingleFile(epochs, batch, scale).iterate


class SingleFile:
    """The state of `single_file`: rolls out step by step, then learns from whole sequences.

    Episodes end only where a rollout does, so that no sequence holds two and no value is masked.
    """

    def __init__(self, epochs: int, batch: int, scale: Scale) -> None:
        if EPISODE_STEPS % scale.steps:
            raise ValueError(f"{scale.steps} steps: give a divisor of the episode's {EPISODE_STEPS}")
        self.epochs, self.batch, self.steps = epochs, batch, scale.steps
        self.minibatch = batch if epochs == 1 else max(scale.minibatch_steps // scale.steps, 1)
        self.net = _Network()
        self.optimizer = _adam(self.net)
        self.env = ShapeVectorEnv(batch, "SameStep")
        self.seen_BD, _ = self.env.reset(seed=0)
        self.state = self.first = _zeros(batch)
        self.obs_TBD = torch.empty(self.steps, batch, OBSERVED)
        self.out_TBO = torch.empty(self.steps, batch, ACTIONS + 1)
        self.action_TB = torch.empty(self.steps, batch, dtype=torch.int64)
        self.reward_TB = np.empty((self.steps, batch), np.float32)

    def iterate(self) -> int:
        """Performs one iteration."""
        bootstrap_B = self._roll_out()
        values_TB = self.out_TBO[..., -1].numpy()
        self.advantage_TB = torch.from_numpy(_advantages(self.reward_TB, values_TB, bootstrap_B))
        self.target_TB = self.advantage_TB + self.out_TBO[..., -1]
        self.advantage_TB.sub_(self.advantage_TB.mean()).div_(self.advantage_TB.std() + 1e-8)
        self.log_prob_TB = _chosen(self.out_TBO[..., :-1].log_softmax(-1), self.action_TB)
        for _ in range(self.epochs):
            if self.minibatch >= self.batch:
                self._learn(slice(None))
                continue
            for slots in torch.randperm(self.batch).view(-1, self.minibatch):
                self._learn(slots)
        return self.steps * self.batch

    @torch.no_grad()
    def _roll_out(self) -> Floats32:
        """Fills the rollout and returns the values `[B]` of the observations after it."""
        self.first = self.state
        gumbel_TBA = torch.empty(self.steps, self.batch, ACTIONS).exponential_().log_().neg_()
        for t in range(self.steps):
            self.obs_TBD[t] = torch.from_numpy(self.seen_BD)
            out_1BO, self.state = self.net(self.obs_TBD[t : t + 1], self.state)
            self.out_TBO[t] = out_1BO[0]
            action_B = (out_1BO[0, :, :-1] + gumbel_TBA[t]).argmax(-1)
            self.action_TB[t] = action_B
            self.seen_BD, self.reward_TB[t], _, truncated_B, infos = self.env.step(action_B.numpy())
        ended = bool(truncated_B[0])
        last_BD = infos["final_obs"] if ended else self.seen_BD
        out_1BO, _ = self.net(torch.from_numpy(last_BD)[None], self.state)
        if ended:
            self.state = _zeros(self.batch)
        return out_1BO[0, :, -1].numpy()

    def _learn(self, slots: Tensor | slice) -> None:
        """Takes one step on the sequences of `slots`."""
        state = (self.first[0][:, slots], self.first[1][:, slots])
        out_TBO, _ = self.net(self.obs_TBD[:, slots], state)
        log_probs_TBA = out_TBO[..., :-1].log_softmax(-1)
        ratio_TB = (_chosen(log_probs_TBA, self.action_TB[:, slots]) - self.log_prob_TB[:, slots]).exp()
        advantage_TB = self.advantage_TB[:, slots]
        gain = torch.minimum(ratio_TB * advantage_TB, ratio_TB.clamp(1 - CLIP, 1 + CLIP) * advantage_TB).mean()
        entropy = -(log_probs_TBA.exp() * log_probs_TBA).sum(-1).mean()
        value_loss = nn.functional.mse_loss(out_TBO[..., -1], self.target_TB[:, slots])
        self.optimizer.zero_grad()
        (VALUE_WEIGHT * value_loss - gain - ENTROPY * entropy).backward()
        nn.utils.clip_grad_norm_(self.net.parameters(), GRADIENT_NORM)
        self.optimizer.step()


class _Network(nn.Module):
    """An LSTM over the observation and one linear layer for logits and value, `[..., A + 1]`."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(OBSERVED, HIDDEN)
        self.head = nn.Linear(HIDDEN, ACTIONS + 1)

    def forward(self, obs_TBD: Tensor, state: State) -> tuple[Tensor, State]:
        hidden_TBH, state = self.lstm(obs_TBD, state)
        return self.head(hidden_TBH), state


def rllib_ppo(epochs: int, scale: Scale = FULL) -> Run:
    """RLlib's PPO, new API stack, sampling in this process from a native vector environment.

    Its network would put a hidden layer before the LSTM; its catalog, as documented, is told to leave that out.

    Args:
        epochs: Over each rollout.
        scale: Of an iteration.
    """
    from ray.rllib.algorithms.ppo.ppo import PPOConfig  # noqa: TID251  (here RLlib is the peer)
    from ray.rllib.core.rl_module.default_model_config import DefaultModelConfig  # noqa: TID251
    from ray.rllib.core.rl_module.rl_module import RLModuleSpec  # noqa: TID251
    from ray.tune.registry import register_env

    _prepare()
    until_exit = ExitStack()
    atexit.register(until_exit.close)
    until_exit.enter_context(ray_session(cpus=1))
    for name in ("ray", "ray.rllib", "ray.tune"):  # they warn of their own deprecated calls
        logging.getLogger(name).setLevel(logging.ERROR)
    register_env("training_shape", _shape_env)
    model = DefaultModelConfig(
        use_lstm=True, lstm_cell_size=HIDDEN, max_seq_len=scale.steps, head_fcnet_hiddens=[], vf_share_layers=True
    )
    config = (
        PPOConfig()
        .environment("training_shape")
        .env_runners(
            num_env_runners=0,
            num_envs_per_env_runner=scale.slots,
            rollout_fragment_length=scale.steps,
            gym_env_vectorize_mode="vector_entry_point",
        )
        .learners(num_learners=0)
        .rl_module(rl_module_spec=RLModuleSpec(catalog_class=_straight_catalog(), model_config=model))
        .training(
            lr=LEARNING_RATE,
            gamma=GAMMA,
            lambda_=GAE_LAMBDA,
            clip_param=CLIP,
            entropy_coeff=ENTROPY,
            vf_loss_coeff=VALUE_WEIGHT,
            vf_clip_param=float("inf"),
            use_kl_loss=False,
            grad_clip=GRADIENT_NORM,
            grad_clip_by="global_norm",
            num_epochs=epochs,
            train_batch_size_per_learner=scale.slots * scale.steps,
            minibatch_size=scale.minibatch_steps,
        )
        .debugging(seed=0, log_level="ERROR")
        .reporting(min_sample_timesteps_per_iteration=0, min_time_s_per_iteration=0)
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a second algorithm overrides the environment's registration
        algorithm = config.build_algo()
    until_exit.callback(shutil.rmtree, algorithm.logdir, ignore_errors=True)
    until_exit.callback(algorithm.stop)
    return lambda: int(algorithm.train()["env_runners"]["num_env_steps_sampled"])


def _shape_env(context: dict[str, Any]) -> Any:
    """RLlib calls this with `num_envs` for a vector environment and without for the space probe."""
    return ShapeVectorEnv(context["num_envs"]) if "num_envs" in context else ShapeEnv()


def _straight_catalog() -> type:
    from ray.rllib.algorithms.ppo.ppo_catalog import PPOCatalog  # noqa: TID251  (here RLlib is the peer)

    class StraightCatalog(PPOCatalog):  # type: ignore[misc]  # it ships no types
        @classmethod
        def get_tokenizer_config(cls, *_: Any, **__: Any) -> None:
            """Puts nothing between the observation and the LSTM."""

    return StraightCatalog


def sb3_ppo(epochs: int, scale: Scale = FULL) -> Run:
    """sb3-contrib's RecurrentPPO, one LSTM for policy and value, no hidden layers.

    The shared LSTM gets the policy's gradient alone, which spares it some work.

    Args:
        epochs: Over each rollout.
        scale: Of an iteration.
    """
    from sb3_contrib import RecurrentPPO
    from stable_baselines3.common.logger import Logger

    _prepare()
    model = RecurrentPPO(
        "MlpLstmPolicy",
        _sb3_env(scale.slots),
        learning_rate=LEARNING_RATE,
        n_steps=scale.steps,
        batch_size=scale.minibatch_steps,
        n_epochs=epochs,
        gamma=GAMMA,
        gae_lambda=GAE_LAMBDA,
        clip_range=CLIP,
        ent_coef=ENTROPY,
        vf_coef=VALUE_WEIGHT,
        max_grad_norm=GRADIENT_NORM,
        policy_kwargs={
            "net_arch": [],
            "lstm_hidden_size": HIDDEN,
            "n_lstm_layers": 1,
            "shared_lstm": True,
            "enable_critic_lstm": False,
        },
        seed=0,
        device="cpu",
    )
    model.set_logger(Logger(folder=None, output_formats=[]))  # else each call makes one
    steps = scale.slots * scale.steps

    def run() -> int:
        model.learn(steps, log_interval=None, reset_num_timesteps=False)
        return steps

    return run


def _sb3_env(slots: int) -> Any:
    """Returns `ShapeVectorEnv` as a VecEnv of stable-baselines3."""
    from stable_baselines3.common.vec_env import VecEnv

    class ShapeVecEnv(VecEnv):  # type: ignore[misc]  # it ships no types that hold
        """Answers the same empty infos at every step but the last of an episode."""

        def __init__(self) -> None:
            self.env = ShapeVectorEnv(slots, "SameStep")
            self.none: list[dict[str, Any]] = [{} for _ in range(slots)]
            super().__init__(slots, self.env.single_observation_space, self.env.single_action_space)

        def reset(self) -> Floats32:
            observed, _ = self.env.reset(seed=self._seeds)
            self._reset_seeds()
            return observed

        def step_async(self, actions: Any) -> None:
            self.actions = actions

        def step_wait(self) -> tuple[Floats32, Any, Bools, list[dict[str, Any]]]:
            observed, reward, _, truncated, infos = self.env.step(self.actions)
            if not infos:
                return observed, reward, truncated, self.none
            ends = [{"terminal_observation": last, "TimeLimit.truncated": True} for last in infos["final_obs"]]
            return observed, reward, truncated, ends

        def close(self) -> None:
            self.env.close()

        def get_attr(self, attr_name: str, indices: Any = None) -> list[Any]:
            return [getattr(self.env, attr_name)] * len(self._slots_of(indices))

        def set_attr(self, attr_name: str, value: Any, indices: Any = None) -> None:
            raise NotImplementedError

        def env_method(self, method_name: str, *arguments: Any, indices: Any = None, **named: Any) -> list[Any]:
            raise NotImplementedError

        def env_is_wrapped(self, wrapper_class: Any, indices: Any = None) -> list[bool]:  # noqa: ARG002
            return [False] * len(self._slots_of(indices))

        def _slots_of(self, indices: Any) -> Sequence[int]:
            found: Sequence[int] = list(self._get_indices(indices))
            return found

    return ShapeVecEnv()


def _prepare() -> None:
    settle()
    torch.manual_seed(0)


def _adam(net: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.Adam(net.parameters(), LEARNING_RATE, fused=True)


def _zeros(batch: int) -> State:
    return torch.zeros(1, batch, HIDDEN), torch.zeros(1, batch, HIDDEN)


def _chosen(log_probs_TBA: Tensor, action_TB: Tensor) -> Tensor:
    return log_probs_TBA.gather(-1, action_TB[..., None])[..., 0]


def _advantages(reward_TB: Floats32, value_TB: Floats32, bootstrap_B: Floats32) -> Floats32:
    """Returns the advantages `[T, B]` by GAE of a rollout in which no episode ends before the last step."""
    following_TB = np.concatenate([value_TB[1:], bootstrap_B[None]])
    advantage_TB = (reward_TB + GAMMA * following_TB - value_TB).astype(np.float32, copy=False)
    for t in reversed(range(len(advantage_TB) - 1)):
        advantage_TB[t] += GAMMA * GAE_LAMBDA * advantage_TB[t + 1]
    return advantage_TB
