"""The network as an RLlib module."""

from __future__ import annotations

from typing import Any

import torch
from ray.rllib.core.columns import Columns
from ray.rllib.core.rl_module.apis.value_function_api import ValueFunctionAPI
from ray.rllib.core.rl_module.torch import TorchRLModule
from torch import Tensor

from envs.contract import PORTFOLIO_FEATURES, ActionKind
from rl.learning.network import SwingNet


class SwingModule(TorchRLModule, ValueFunctionAPI):
    """Recurrent actor-critic; `model_config` carries `hidden`, `action` and RLlib's max_seq_len."""

    def setup(self) -> None:
        """Builds the network."""
        features = self.observation_space.shape[0] - len(PORTFOLIO_FEATURES)
        self.net = SwingNet(features, ActionKind(self.model_config["action"]), self.model_config["hidden"])

    def get_initial_state(self) -> dict[str, Tensor]:
        """Returns a zero state without a batch axis."""
        return {"h": torch.zeros(self.net.hidden), "c": torch.zeros(self.net.hidden)}

    def _forward(self, batch: dict[str, Any], **_: Any) -> dict[str, Any]:
        trunk, (h, c) = self.net.trunk_BTH(batch[Columns.OBS], _state(batch))
        return {
            Columns.ACTION_DIST_INPUTS: self.net.actor(trunk),
            Columns.STATE_OUT: {"h": h, "c": c},
        }

    def _forward_train(self, batch: dict[str, Any], **_: Any) -> dict[str, Any]:
        # The learner hands the embeddings back to compute_values; a runner would store them in episodes.
        trunk, _state_out = self.net.trunk_BTH(batch[Columns.OBS], _state(batch))
        return {Columns.ACTION_DIST_INPUTS: self.net.actor(trunk), Columns.EMBEDDINGS: trunk}

    def compute_values(self, batch: dict[str, Any], embeddings: Tensor | None = None) -> Tensor:
        """Returns values `[B, T]`."""
        if embeddings is None:
            embeddings, _ = self.net.trunk_BTH(batch[Columns.OBS], _state(batch))
        values: Tensor = self.net.critic(embeddings)[..., 0]
        return values


def _state(batch: dict[str, Any]) -> tuple[Tensor, Tensor]:
    return batch[Columns.STATE_IN]["h"], batch[Columns.STATE_IN]["c"]
