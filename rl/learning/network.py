"""The recurrent policy network, in torch only.

Market features drive one LSTM layer; the portfolio state joins its output; a dense layer feeds logits
(never a softmax) and the value. Axes: B rows, T steps, F market and P portfolio features, H units, A outputs.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor, nn

from envs.contract import PORTFOLIO_FEATURES, ActionKind, Floats32


class SwingNet(nn.Module):
    """See the module."""

    def __init__(self, market_features: int, action: ActionKind, hidden: int) -> None:
        super().__init__()
        self.market_features, self.hidden = market_features, hidden
        self.lstm = nn.LSTM(market_features, hidden, batch_first=True)
        self.trunk = nn.Linear(hidden + len(PORTFOLIO_FEATURES), hidden)
        self.actor = nn.Linear(hidden, 3 if action is ActionKind.DISCRETE else 2)
        self.critic = nn.Linear(hidden, 1)
        # A nearly uniform first policy explores; 0.01 is the usual choice (Andrychowicz et al. 2021).
        nn.init.orthogonal_(self.actor.weight, 0.01)
        nn.init.zeros_(self.actor.bias)

    def trunk_BTH(self, obs: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """Returns the shared representation and the next state.

        Args:
            obs: `[B, T, F + P]`.
            state: h and c before the first step, `[B, H]` each.
        """
        market, portfolio = obs[..., : self.market_features], obs[..., self.market_features :]
        hidden, (h, c) = self.lstm(market, (state[0][None].contiguous(), state[1][None].contiguous()))
        joined = torch.cat([hidden, portfolio], dim=-1)
        return torch.tanh(self.trunk(joined)), (h[0], c[0])

    def forward(self, obs: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor, tuple[Tensor, Tensor]]:
        """Returns outputs `[B, T, A]`, values `[B, T]` and the next state; arguments as for `trunk_BTH`."""
        trunk, following = self.trunk_BTH(obs, state)
        return self.actor(trunk), self.critic(trunk)[..., 0], following


def policy_arrays(net: SwingNet) -> dict[str, Floats32]:
    """Returns what `envs.bundle.LstmPolicy` needs: the acting half of the network as float32 arrays."""
    state = {name: tensor.detach().cpu().numpy().astype(np.float32) for name, tensor in net.state_dict().items()}
    return {
        "lstm.weight_ih": state["lstm.weight_ih_l0"],
        "lstm.weight_hh": state["lstm.weight_hh_l0"],
        "lstm.bias": state["lstm.bias_ih_l0"] + state["lstm.bias_hh_l0"],
        **{f"{layer}.{part}": state[f"{layer}.{part}"] for layer in ("trunk", "actor") for part in ("weight", "bias")},
    }


def net_of(arrays: Mapping[str, Floats32], action: ActionKind) -> SwingNet:
    """Returns a torch network that acts as `policy_arrays` wrote it; its critic is untrained."""
    hidden, market_features = arrays["trunk.bias"].shape[0], arrays["lstm.weight_ih"].shape[1]
    net = SwingNet(market_features, action, hidden)
    state = {name: torch.tensor(array) for name, array in arrays.items()}
    for part in ("weight_ih", "weight_hh"):
        state[f"lstm.{part}_l0"] = state.pop(f"lstm.{part}")
    state["lstm.bias_ih_l0"] = state.pop("lstm.bias")
    state["lstm.bias_hh_l0"] = torch.zeros(4 * hidden)
    critic = {f"critic.{name}": value for name, value in net.critic.state_dict().items()}
    net.load_state_dict({**state, **critic})
    return net.eval()
