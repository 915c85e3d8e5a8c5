"""RLlib's learner as the keeper of weights and optimiser; the passes themselves are in `rl.learning.gradients`."""

from __future__ import annotations

from typing import Any

import numpy as np
from ray.rllib.core import DEFAULT_MODULE_ID
from ray.rllib.core.learner.torch.torch_learner import TorchLearner

from envs.contract import Floats32
from rl.learning.gradients import Optimiser, Recipe, learn
from rl.learning.network import SwingNet
from rl.learning.process import settle
from rl.learning.rollout import Fragment


class SwingLearner(TorchLearner):
    """Local or remote; checkpoints, states and optimiser as in any RLlib learner."""

    optimiser: Optimiser

    def build(self) -> None:
        """Builds module and optimiser."""
        settle()
        super().build()

    @property
    def net(self) -> SwingNet:
        """The network."""
        net: SwingNet = self.module[DEFAULT_MODULE_ID].unwrapped().net
        return net

    def configure_optimizers_for_module(self, module_id: str, config: Any = None) -> None:
        """Registers Adam, so that RLlib keeps its state; the step size comes with each gradient."""
        self.optimiser = Optimiser(self.net, self.config.grad_clip)
        self.register_optimizer(
            module_id=module_id,
            optimizer=self.optimiser.adam,
            params=[self.optimiser.weights.whole],
            lr_or_lr_schedule=config.lr,
        )

    def apply_gradient(self, gradient: Floats32, lr: float) -> float:
        """Applies a flat gradient; see `Optimiser.apply`."""
        return self.optimiser.apply(gradient, lr)

    def learn(
        self, fragments: list[Fragment], recipe: Recipe, lr: float, entropy: float, seed: list[int]
    ) -> tuple[dict[str, float], int, int]:
        """Runs PPO's passes; see `rl.learning.gradients.learn`."""
        return learn(self.optimiser, fragments, recipe, lr, entropy, np.random.default_rng(seed))

    def vector(self) -> Floats32:
        """Returns the weights as one vector."""
        return self.optimiser.vector()

    def compute_loss_for_module(self, **_: Any) -> Any:
        """Refuses: RLlib's own update path is not used.

        Raises:
            NotImplementedError: Always.
        """
        raise NotImplementedError("gradients come from the workers; call apply_gradient or learn")
