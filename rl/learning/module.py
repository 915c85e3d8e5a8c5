"""The network as an RLlib module."""

from __future__ import annotations

from typing import Any

import torch
from ray.rllib.core.columns import Columns
from ray.rllib.core.rl_module.apis.value_function_api import ValueFunctionAPI
from ray.rllib.core.rl_module.torch import TorchRLModule
from ray.rllib.utils.torch_utils import convert_to_torch_tensor
from torch import Tensor

from envs.contract import PORTFOLIO_FEATURES, ActionKind
from rl.learning.network import State, SwingNet
from rl.learning.settings import ModelConfig


class SwingModule(TorchRLModule, ValueFunctionAPI):
    """Recurrent actor-critic.

    The project's own runner and learner use `net` alone; the rest serves RLlib's stock ones, whose batches are
    `[B, T, ...]`. `model_config` carries `model` (a `ModelConfig` as a mapping), `action`, optionally
    `portfolio_features` (how many), and RLlib's max_seq_len.
    """

    def setup(self) -> None:
        """Builds the network."""
        portfolio = int(self.model_config.get("portfolio_features", len(PORTFOLIO_FEATURES)))
        self.net = SwingNet(
            self.observation_space.shape[0] - portfolio,
            ActionKind(self.model_config["action"]),
            ModelConfig.of(self.model_config.get("model", {}), "model"),
            portfolio,
        )

    def get_initial_state(self) -> dict[str, Tensor]:
        """Returns a zero state without a batch axis."""
        h, c, past, known = self.net.zero_state(1)
        return {"h": h[:, 0], "c": c[:, 0], "past": past[:, 0], "known": known[0]}

    def set_state(self, state: dict[str, Any]) -> None:
        """Takes all weights over; RLlib's own way lets missing ones pass in silence.

        Raises:
            RuntimeError: Weights are missing, left over, or of another shape.
        """
        self.load_state_dict(convert_to_torch_tensor(state), strict=True)

    def _forward(self, batch: dict[str, Any], **_: Any) -> dict[str, Any]:
        outputs, _values, state = self._answers(batch)
        h, c, past, known = state
        following = {"h": h.transpose(0, 1), "c": c.transpose(0, 1), "past": past.transpose(0, 1), "known": known}
        return {Columns.ACTION_DIST_INPUTS: outputs, Columns.STATE_OUT: following}

    def _forward_train(self, batch: dict[str, Any], **_: Any) -> dict[str, Any]:
        # The learner hands the values back to compute_values; a runner would store them in episodes.
        outputs, values, _state = self._answers(batch)
        return {Columns.ACTION_DIST_INPUTS: outputs, Columns.EMBEDDINGS: values}

    def compute_values(self, batch: dict[str, Any], embeddings: Tensor | None = None) -> Tensor:
        """Returns values `[B, T]`."""
        return self._answers(batch)[1] if embeddings is None else embeddings

    def _answers(self, batch: dict[str, Any]) -> tuple[Tensor, Tensor, State]:
        state = batch[Columns.STATE_IN]
        h, c, past = (state[name].transpose(0, 1).contiguous() for name in ("h", "c", "past"))
        before = State(h, c, past, state["known"].long())
        outputs, values, following = self.net(batch[Columns.OBS].transpose(0, 1), before)
        outputs = outputs.transpose(0, 1)
        if self.net.action is ActionKind.CONTINUOUS:  # RLlib's normal distribution wants mean and log deviation
            outputs = torch.cat([outputs, self.net.log_std.expand_as(outputs)], -1)
        return outputs, values.transpose(0, 1), following
