"""The recurrent policy network, in torch only.

The market drives one or two LSTM layers, whose outputs may attend to those of the last sessions; the portfolio state
joins after that, for no action changes the market: so the recurrence over a whole fragment is one fused call. A dense
layer feeds the outputs of the actor (logits, never a softmax) and the value.

Axes: T steps, B rows, F market and P portfolio features, L layers, H units, D width of the dense layer, A outputs,
K = attention_sessions - 1 outputs that are remembered.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

from envs.contract import PORTFOLIO_FEATURES, ActionKind, Floats32
from rl.learning.settings import ModelConfig

log = logging.getLogger(__name__)


class State(NamedTuple):
    """What the network remembers of each row between two calls."""

    h: Tensor
    """Output of each layer, `[L, B, H]`."""
    c: Tensor
    """Cell of each layer, `[L, B, H]`."""
    past: Tensor
    """The last K outputs of the top layer, `[K, B, H]`; the first ones may be none of this episode's."""
    known: Tensor
    """How many of them are this episode's, `[B]` int64."""

    def at(self, rows: Tensor) -> State:
        """Returns the state of some rows."""
        return State(self.h[:, rows], self.c[:, rows], self.past[:, rows], self.known[rows])

    def put(self, rows: Tensor, other: State) -> State:
        """Returns this state with that of some rows replaced."""
        mine = State(*(part.clone() for part in self))
        mine.h[:, rows], mine.c[:, rows], mine.past[:, rows], mine.known[rows] = other
        return mine


class SwingNet(nn.Module):
    """See the module.

    Attributes:
        market_features: F.
        portfolio_features: P.
        model: The size of it.
        action: Meaning of the outputs: three logits, or the mean of a normal distribution whose log deviation is the
            parameter `log_std`.
    """

    def __init__(
        self,
        market_features: int,
        action: ActionKind,
        model: ModelConfig | None = None,
        portfolio_features: int = len(PORTFOLIO_FEATURES),
    ) -> None:
        super().__init__()
        self.model = model = model or ModelConfig()
        self.market_features, self.portfolio_features, self.action = market_features, portfolio_features, action
        self.lstm = nn.LSTM(market_features, model.hidden, model.layers)
        if model.attention_heads:
            self.attention_in = nn.Linear(model.hidden, 3 * model.hidden)
            self.attention_out = nn.Linear(model.hidden, model.hidden)
        self.trunk = nn.Linear(model.hidden + portfolio_features, model.dense)
        self.actor = nn.Linear(model.dense, 3 if action is ActionKind.DISCRETE else 1)
        self.critic = nn.Linear(model.dense, 1)
        # A nearly uniform first policy explores; 0.01 is the usual choice (Andrychowicz et al. 2021).
        nn.init.orthogonal_(self.actor.weight, 0.01)
        nn.init.zeros_(self.actor.bias)
        if action is ActionKind.CONTINUOUS:
            self.log_std = nn.Parameter(torch.full((1,), math.log(model.action_deviation)))
        self.bf16 = model.bf16 and has_bf16()
        if model.bf16 and not self.bf16:
            log.warning("model.bf16: this processor has no bfloat16 instructions; float32 is used")

    def zero_state(self, rows: int) -> State:
        """Returns the state before an episode."""
        model, kept = self.model, max(self.model.attention_sessions - 1, 0) if self.model.attention_heads else 0
        layer = torch.zeros(model.layers, rows, model.hidden)
        return State(layer, layer.clone(), torch.zeros(kept, rows, model.hidden), torch.zeros(rows, dtype=torch.int64))

    def recur(self, market: Tensor, state: State) -> tuple[Tensor, State]:
        """Returns what the market says, `[T, B, H]`, and the state after it, for rows `[T, B, F]` of one episode each.

        No gradient flows into the state that is given or returned.
        """
        with torch.autocast("cpu", torch.bfloat16, enabled=self.bf16):
            told, (h, c) = self._lstm(market, state)
        told = told.float()
        past, known = state.past, state.known
        if self.model.attention_heads:
            keys = torch.cat([past, told])
            told = told + self._attend(told, keys, known)
            kept = len(past)
            past, known = keys[len(keys) - kept :].detach(), (known + len(market)).clamp(max=kept)
        return told, State(h.detach().float(), c.detach().float(), past, known)

    def _lstm(self, market: Tensor, state: State) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """Returns what `lstm` does; for a single step torch has a function of its own, that takes less time."""
        if len(market) > 1 or torch.is_grad_enabled() or self.bf16:
            return cast("tuple[Tensor, tuple[Tensor, Tensor]]", self.lstm(market, (state.h, state.c)))
        told, after = market[0], []
        for h, c, weights in zip(state.h, state.c, self.lstm.all_weights, strict=True):
            after.append(torch.lstm_cell(told, (h, c), *weights))
            told = after[-1][0]
        hs, cs = zip(*after, strict=True)
        return told[None], (torch.stack(hs), torch.stack(cs))

    def unroll(self, market: Tensor, state: State, starts: Tensor) -> Tensor:
        """Returns what the market says, `[T, B, H]`, where episodes may begin on the way.

        Args:
            market: `[T, B, F]`.
            state: Before the first step.
            starts: Where an episode begins, `[T, B]` bool: the state is zero before that step.
        """
        first = torch.nonzero(starts[0])[:, 0]
        if len(first):
            state = state.put(first, self.zero_state(len(first)))
        told, _ = self.recur(market, state)
        begins, rows = torch.nonzero(starts[1:], as_tuple=True)
        if not len(begins):
            return told
        begins = begins + 1
        # Each later episode runs once more from a zero state, all of them side by side, padded at the end.
        steps = torch.arange(len(market) - int(begins.min()))
        at = (begins[None] + steps[:, None]).clamp(max=len(market) - 1)
        again, _ = self.recur(market[at, rows[None]], self.zero_state(len(rows)))
        number = starts.cumsum(0)
        mine = (begins[None] + steps[:, None] < len(market)) & (number[at, rows[None]] == number[begins, rows])
        return told.index_put((at[mine], rows.expand_as(at)[mine]), again[mine])

    def drive(self, told: Tensor) -> Tensor:
        """Returns the market's share of the dense layer before its tanh, `[..., D]`."""
        return functional.linear(told, self.trunk.weight[:, : self.model.hidden].contiguous(), self.trunk.bias)

    def heads(self, drive: Tensor, portfolio: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the actor's outputs `[..., A]` and the values `[...]` of drives `[..., D]`, portfolios `[..., P]`.

        Args:
            drive: As `drive` returns it.
            portfolio: What the account adds.
        """
        dense = torch.tanh(drive + functional.linear(portfolio, self.trunk.weight[:, self.model.hidden :]))
        if self.training and self.model.critic_dropout:
            valued = functional.dropout(dense, self.model.critic_dropout)
            return self.actor(dense), self.critic(valued)[..., 0]
        # One product for both reads the dense layer once.
        weight = torch.cat([self.actor.weight, self.critic.weight])
        both = functional.linear(dense, weight, torch.cat([self.actor.bias, self.critic.bias]))
        return both[..., :-1], both[..., -1]

    def known(self, told: Tensor, portfolio: Tensor, halves: Tensor, answers: Tensor) -> tuple[Tensor, Tensor]:
        """Returns what `heads` does, where it was computed before; gradients flow as if it were computed here.

        Args:
            told: `[T, B, H]`.
            portfolio: `[T, B, P]`.
            halves: σ(2x) where the dense layer is tanh(x) = 2 σ(2x) - 1, `[T, B, D]`.
            answers: Outputs, and the value as the last, `[T, B, A + 1]`.
        """
        layers = (self.trunk, self.actor, self.critic)
        weights = [part for layer in layers for part in (layer.weight, layer.bias)]
        answered = _Known.apply(told, portfolio, halves, answers, *weights)  # type: ignore[no-untyped-call]
        return cast("tuple[Tensor, Tensor]", answered)

    def forward(self, obs: Tensor, state: State) -> tuple[Tensor, Tensor, State]:
        """Returns outputs `[T, B, A]`, values `[T, B]` and the next state for observations `[T, B, F + P]`."""
        told, state = self.recur(obs[..., : self.market_features], state)
        outputs, values = self.heads(self.drive(told), obs[..., self.market_features :])
        return outputs, values, state

    def judge(self, outputs: Tensor, actions: Tensor) -> tuple[Tensor, Tensor]:
        """Returns log-probabilities (densities) of `actions` `[...]` and entropies in nats, of outputs `[..., A]`."""
        if self.action is ActionKind.DISCRETE:
            judged = _Judged.apply(outputs, actions)  # type: ignore[no-untyped-call]
            return cast("tuple[Tensor, Tensor]", judged)
        deviations = (actions - outputs[..., 0]) * torch.exp(-self.log_std)
        constant = 0.5 * math.log(2 * math.pi)
        return -0.5 * deviations**2 - self.log_std - constant, (self.log_std + constant + 0.5).expand_as(actions)

    def _attend(self, told: Tensor, keys: Tensor, known: Tensor) -> Tensor:
        """Returns what attention adds, `[T, B, H]`: each step looks at itself and the K outputs before it.

        Args:
            told: `[T, B, H]`.
            keys: The past and `told`, `[K + T, B, H]`.
            known: How many of the past belong to the episode, `[B]`.
        """
        steps, rows, width = told.shape
        kept = len(keys) - steps
        query, _, _ = self.attention_in(told).chunk(3, -1)
        _, key, value = self.attention_in(keys).chunk(3, -1)
        heads = (-1, rows, self.model.attention_heads, width // self.model.attention_heads)
        query, key, value = (part.reshape(heads).permute(1, 2, 0, 3) for part in (query, key, value))
        here, there = torch.arange(steps)[:, None], torch.arange(kept + steps)[None]
        seen = (there >= here) & (there <= here + kept)
        seen = seen[None] & (there >= kept - known[:, None, None])
        mixed = functional.scaled_dot_product_attention(query, key, value, seen[:, None])
        added: Tensor = self.attention_out(mixed.permute(2, 0, 1, 3).reshape(steps, rows, width))
        return added


class _Known(torch.autograd.Function):
    """See `SwingNet.known`."""

    @staticmethod
    def forward(
        ctx: Any, told: Tensor, portfolio: Tensor, halves: Tensor, answers: Tensor, *weights: Tensor
    ) -> tuple[Tensor, Tensor]:
        trunk, _, actor, _, critic, _ = weights
        ctx.save_for_backward(told, portfolio, halves, trunk, actor, critic)
        return answers[..., :-1].clone(), answers[..., -1].clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        told, portfolio, halves, trunk, actor, critic = ctx.saved_tensors
        told_2d, rows, halves = told.flatten(0, -2), portfolio.flatten(0, -2), halves.flatten(0, -2)
        answers = torch.cat([grads[0], grads[1][..., None]], -1).flatten(0, -2)
        # With σ for σ(2x), dtanh(x)/dx = 4 σ (1 - σ); and what the last layers read is 2σ - 1.
        inner = answers @ (4.0 * torch.cat([actor, critic]))
        torch.ops.aten.sigmoid_backward.grad_input(inner, halves, grad_input=inner)
        bias = answers.sum(0)
        last = 2.0 * _turned(answers, halves) - bias[:, None]
        first = torch.cat([inner.t() @ told_2d, _turned(inner, rows)], 1)
        before = inner @ trunk[:, : told.shape[-1]].contiguous()
        return before.view_as(told), None, None, None, first, inner.sum(0), last[:-1], bias[:-1], last[-1:], bias[-1:]


def _turned(one: Tensor, other: Tensor) -> Tensor:
    """Returns one' · other of thousands of short rows, at which NumPy is twice as fast."""
    return torch.from_numpy(one.numpy().T @ other.numpy())


class _Judged(torch.autograd.Function):
    """Log-probabilities of actions, and entropies, of logits `[..., A]`."""

    @staticmethod
    @np.errstate(invalid="ignore")  # as torch has it
    def forward(ctx: Any, logits: Tensor, actions: Tensor) -> tuple[Tensor, Tensor]:
        # Along three rows, not within each of thousands.
        shifted = np.ascontiguousarray(logits.numpy().reshape(-1, logits.shape[-1]).T)
        shifted -= shifted.max(axis=0)
        odds = np.exp(shifted)
        total = odds.sum(axis=0)
        logs, odds = shifted - np.log(total), odds / total
        entropies = -(odds * logs).sum(axis=0)
        chosen = actions.numpy().reshape(-1) * len(total) + np.arange(len(total))
        ctx.told = odds, logs, entropies, chosen
        return torch.from_numpy(logs.take(chosen)).view(actions.shape), torch.from_numpy(entropies).view(actions.shape)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        odds, logs, entropies, chosen = ctx.told
        likelihoods, spreads = (each.numpy().reshape(-1) for each in grads)
        logits = -odds * (likelihoods + spreads * (logs + entropies))
        logits.reshape(-1)[chosen] += likelihoods
        return torch.from_numpy(logits.T).view(*grads[0].shape, -1), None


class Joined:
    """Parameters that are views of one vector, and so are their gradients: each is read and written in one go.

    Attributes:
        parameters: In the vector's order.
        whole: The vector, as a parameter that an optimiser may step.
    """

    def __init__(self, parameters: Iterable[nn.Parameter]) -> None:
        """Moves the parameters' numbers into the vector."""
        self.parameters = list(parameters)
        self.whole = nn.Parameter(torch.cat([each.detach().reshape(-1) for each in self.parameters]))
        gradient = torch.zeros_like(self.whole)
        self._numbers, self._gradient = self.whole.detach().numpy(), gradient.numpy()
        self._grads = self._parts(gradient)
        for parameter, part in zip(self.parameters, self._parts(self.whole.detach()), strict=True):
            parameter.data = part

    def vector(self) -> Floats32:
        """Returns the numbers, in a fresh vector."""
        self._check()
        return self._numbers.copy()

    def load(self, vector: Floats32) -> None:
        """Sets the parameters to the numbers of a vector of their like.

        Raises:
            ValueError: The vector is of another length: a network of another size.
        """
        self._check()
        self._numbers[...] = self.fitting(vector)

    def fitting(self, vector: Floats32) -> Floats32:
        """Returns a vector of weights or of their gradient as it is.

        Raises:
            ValueError: It is of another length: a network of another size.
        """
        if vector.shape != self._numbers.shape:
            raise ValueError(f"{vector.shape} numbers for a network of {self._numbers.size}; both must be of one model")
        return vector

    def gradient(self, loss: Tensor) -> Floats32:
        """Returns the gradient of a loss, in a fresh vector."""
        self._gradient[...] = 0.0
        for parameter, part in zip(self.parameters, self._grads, strict=True):
            parameter.grad = part
        torch.autograd.backward(loss)
        return self._gradient.copy()

    def _parts(self, vector: Tensor) -> list[Tensor]:
        sizes = [each.numel() for each in self.parameters]
        return [part.view_as(each) for part, each in zip(torch.split(vector, sizes), self.parameters, strict=True)]

    def _check(self) -> None:
        """Raises if a parameter was given memory of its own, as a change of type or device does."""
        first, last = self.parameters[0].data_ptr(), self.parameters[-1].data_ptr()
        begin = self.whole.data_ptr()
        if first != begin or last != begin + 4 * (self.whole.numel() - self.parameters[-1].numel()):
            raise RuntimeError("parameters were moved away from their vector; load numbers into them in place")


def policy_arrays(net: SwingNet) -> dict[str, Floats32]:
    """Returns what `envs.lstm.LstmPolicy` needs: the acting half of the network as float32 arrays."""
    state = {name: tensor.detach().cpu().numpy().astype(np.float32) for name, tensor in net.state_dict().items()}
    arrays = {f"{layer}.{part}": state[f"{layer}.{part}"] for layer in ("trunk", "actor") for part in _DENSE}
    for number in range(net.model.layers):
        name = _LSTM[number]
        arrays[f"{name}.weight_ih"] = state[f"lstm.weight_ih_l{number}"]
        arrays[f"{name}.weight_hh"] = state[f"lstm.weight_hh_l{number}"]
        arrays[f"{name}.bias"] = state[f"lstm.bias_ih_l{number}"] + state[f"lstm.bias_hh_l{number}"]
    if net.model.attention_heads:
        arrays |= {f"attention.{way}_{part}": state[f"attention_{way}.{part}"] for way in _WAYS for part in _DENSE}
    return arrays


def net_of(arrays: Mapping[str, Floats32], action: ActionKind, heads: int = 0, sessions: int = 0) -> SwingNet:
    """Returns a torch network that acts as `policy_arrays` wrote it; its critic is untrained.

    Args:
        arrays: As of `policy_arrays`.
        action: Meaning of the outputs.
        heads: Of the attention.
        sessions: It looks at.
    """
    dense, hidden = arrays["trunk.bias"].shape[0], arrays["lstm.weight_hh"].shape[1]
    layers = sum(f"{name}.bias" in arrays for name in _LSTM)
    model = ModelConfig(
        hidden=hidden, layers=layers, dense=dense, attention_heads=heads, attention_sessions=sessions or 1
    )
    portfolio = arrays["trunk.weight"].shape[1] - hidden
    net = SwingNet(arrays["lstm.weight_ih"].shape[1], action, model, portfolio)
    state = dict(net.state_dict())
    for name, array in arrays.items():
        layer, part = name.split(".")
        if layer in _LSTM and part == "bias":
            state[f"lstm.bias_ih_l{_LSTM.index(layer)}"] = torch.tensor(array)
            state[f"lstm.bias_hh_l{_LSTM.index(layer)}"] = torch.zeros(4 * hidden)
        elif layer in _LSTM:
            state[f"lstm.{part}_l{_LSTM.index(layer)}"] = torch.tensor(array)
        else:
            state[name.replace("attention.in_", "attention_in.").replace("attention.out_", "attention_out.")] = (
                torch.tensor(array)
            )
    net.load_state_dict(state)
    return net.eval()


_LSTM, _WAYS, _DENSE = ("lstm", "lstm2"), ("in", "out"), ("weight", "bias")


def has_bf16() -> bool:
    """Returns whether this processor multiplies bfloat16 itself; without, it would be slower than float32."""
    flags = Path("/proc/cpuinfo")
    known = flags.read_text(encoding="utf-8").split() if flags.is_file() else []
    return not {"avx512_bf16", "amx_bf16"}.isdisjoint(known)
