"""The recurrent policy in plain NumPy, as trading needs it: no torch.

An LSTM of one or two layers over market features, maybe attention over its last outputs, then two dense layers over the
result and the portfolio state.

Axes: W sessions of the window, K of them that attention looks at, N symbols, F market and P portfolio features,
H units, D width of the dense layer, A outputs.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from data_pipeline.errors import BundleError
from data_pipeline.scaling import Scaler
from envs.contract import ActionKind, Floats, Floats32, Window, positions_of

ATTENTION_WEIGHTS = tuple(f"attention.{part}" for part in ("in_weight", "in_bias", "out_weight", "out_bias"))


@dataclass(frozen=True)
class LstmPolicy:
    """The recurrent policy in NumPy, as a `Policy`.

    Attributes:
        name: Shown in ledgers.
        window: W.
        weights: float32. lstm.weight_ih [4H, F], lstm.weight_hh [4H, H], lstm.bias [4H] (gates i, f, g, o);
            for a second layer lstm2.weight_ih [4H, H], lstm2.weight_hh [4H, H], lstm2.bias [4H];
            for attention attention.in_weight [3H, H], attention.in_bias [3H] (queries, keys, values),
            attention.out_weight [H, H], attention.out_bias [H];
            trunk.weight [D, H + P], trunk.bias [D], actor.weight [A, D], actor.bias [A].
        scaler: For the market features.
        action: Meaning of the outputs: see `greedy_positions`.
        attention_heads: They split H evenly; 0: no attention.
        attention_sessions: The last outputs that attention looks at, as many of them as the window has.
    """

    name: str
    window: int
    weights: Mapping[str, Floats32]
    scaler: Scaler
    action: ActionKind
    attention_heads: int = 0
    attention_sessions: int = 0

    def __post_init__(self) -> None:
        """Refuses attention that does not fit.

        Raises:
            BundleError: Heads without weights, sessions or an even share of H, or the reverse.
        """
        heads, sessions = self.attention_heads, self.attention_sessions
        held = [name for name in ATTENTION_WEIGHTS if name in self.weights]
        whole = heads > 0 and sessions > 0 and len(held) == len(ATTENTION_WEIGHTS)
        stated = f"policy {self.name}: attention of {heads} heads over {sessions} sessions"
        if not (whole or heads == sessions == len(held) == 0):
            raise BundleError(
                f"{stated} with the weights {', '.join(held) or 'none'}; "
                f"give both numbers and {', '.join(ATTENTION_WEIGHTS)}, or nothing of these"
            )
        if heads and (units := self.weights["lstm.weight_hh"].shape[1]) % heads:
            raise BundleError(f"{stated} cannot share out {units} units; give a number of heads that divides them")

    def decide(self, window: Window) -> Floats:
        """Returns the greedy target positions `[N]`; 0 where the symbol is not ready."""
        outputs = self.outputs(np.nan_to_num(window.features), window.portfolio)
        return np.where(window.ready, greedy_positions(outputs, self.action), 0.0)

    def outputs(self, features: Floats32, portfolio: Floats32) -> Floats32:
        """Returns the network's outputs `[N, A]` after replaying a window from a zero state.

        Args:
            features: Unscaled, `[W, N, F]`.
            portfolio: `[N, P]`.
        """
        weights = self.weights
        hidden = self._hidden(self.scaler.transform(features))
        joined = np.concatenate([hidden, portfolio], axis=1)
        trunk = np.tanh(joined @ weights["trunk.weight"].T + weights["trunk.bias"])
        result: Floats32 = trunk @ weights["actor.weight"].T + weights["actor.bias"]
        return result

    def _hidden(self, inputs: Floats32) -> Floats32:
        """Returns what stands for the market at the last session of `inputs` `[W, N, F]`, `[N, H]`."""
        weights, seen = self.weights, self.attention_sessions or 1
        if "lstm2.weight_ih" in weights:
            first = lstm_outputs(inputs, weights, "lstm", len(inputs))
            last = lstm_outputs(first, weights, "lstm2", seen)
        else:
            last = lstm_outputs(inputs, weights, "lstm", seen)
        return attended(last, weights, self.attention_heads) if self.attention_heads else last[-1]


def lstm_outputs(inputs: Floats32, weights: Mapping[str, Floats32], layer: str, kept: int) -> Floats32:
    """Returns the last `kept` outputs of one LSTM layer, from a zero state: `[min(kept, W), N, H]`.

    Args:
        inputs: `[W, N, F]`.
        weights: As in `LstmPolicy`.
        layer: First part of their names.
        kept: At least 1.
    """
    width = weights[f"{layer}.weight_hh"].shape[1]
    remember_in, forget, proposal, reveal = (np.s_[:, gate * width : (gate + 1) * width] for gate in range(4))
    # A sigmoid is (tanh(x / 2) + 1) / 2 and halving is exact, so one tanh serves all gates.
    halved = np.repeat(np.array([0.5, 0.5, 1.0, 0.5], np.float32), width)
    recurrent = np.ascontiguousarray(weights[f"{layer}.weight_hh"].T * halved)
    driven = (inputs @ weights[f"{layer}.weight_ih"].T + weights[f"{layer}.bias"]) * halved
    hidden = cell = np.zeros((inputs.shape[1], width), np.float32)
    outputs: deque[Floats32] = deque(maxlen=kept)
    for gates in driven:
        told = np.tanh(gates + hidden @ recurrent)
        share = 0.5 * told + 0.5
        cell = share[forget] * cell + share[remember_in] * told[proposal]
        hidden = share[reveal] * np.tanh(cell)
        outputs.append(hidden)
    return np.stack(outputs)


def attended(outputs: Floats32, weights: Mapping[str, Floats32], heads: int) -> Floats32:
    """Returns the last of `outputs` `[K, N, H]` with what self-attention over all K adds to it, `[N, H]`.

    Only the last step asks: the K outputs are those that it may look at, and each symbol looks at its own.
    """
    steps, symbols, width = outputs.shape
    in_weight, in_bias = weights["attention.in_weight"], weights["attention.in_bias"]
    query = outputs[-1] @ in_weight[:width].T + in_bias[:width]
    stored = outputs @ in_weight[width:].T + in_bias[width:]
    key, value = stored.reshape(steps, symbols, 2, heads, width // heads).swapaxes(0, 2)
    scores = np.einsum("nhd,nkhd->nkh", query.reshape(symbols, heads, -1), key) / np.float32((width // heads) ** 0.5)
    share = np.exp(scores - scores.max(axis=1, keepdims=True))
    share /= share.sum(axis=1, keepdims=True)
    mixed = np.einsum("nkh,nkhd->nhd", share, value).reshape(symbols, width)
    result: Floats32 = outputs[-1] + mixed @ weights["attention.out_weight"].T + weights["attention.out_bias"]
    return result


def greedy_positions(outputs: Floats32, action: ActionKind) -> Floats:
    """Returns the most probable target positions `[N]` of outputs `[N, A]`.

    Discrete: A = 3 logits. Continuous: A = 1, the mean; the standard deviation serves training alone and is not
    part of the policy.
    """
    chosen = outputs.argmax(axis=1) if action is ActionKind.DISCRETE else outputs[:, 0]
    return positions_of(chosen, action)
