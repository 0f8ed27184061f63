"""The controller of Adversarial AutoAugment, an LSTM that learns by REINFORCE (Zhang et al., ICLR 2020, https://arxiv.org/abs/1912.11188)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

Decisions = Tensor
"""(M, T) int64: T decisions for each of M policies; every column has a number of options of its own."""

AT_THE_START = 0.1
"""All weights are drawn from U(-0.1, 0.1)."""


class Controller(nn.Module):
    """A chain of decisions, each by a softmax over its options, given all before it.

    Args:
        options: how many options the kinds of decisions have, which take turns.
        rounds: how often every kind has its turn.
        random: of the first weights.
        hidden: values that the LSTM remembers.
        embedding: values that stand for a decision.
    """

    def __init__(self, options: Sequence[int], rounds: int, random: np.random.Generator, hidden: int = 100, embedding: int = 32) -> None:
        super().__init__()
        self.options, self.turns = tuple(options), rounds * len(options)
        with torch.device("meta"):  # initialisers would draw from the global generator
            self.embedding = nn.Embedding(1 + sum(options), embedding)  # the first stands for nothing decided yet
            self.cell = nn.LSTMCell(embedding, hidden)
            self.heads = nn.ModuleList(nn.Linear(hidden, count) for count in options)
        self.to_empty(device="cpu")
        with torch.no_grad():
            for weights in self.parameters():
                weights.copy_(torch.from_numpy(random.uniform(-AT_THE_START, AT_THE_START, weights.shape)))

    def forward(self, decisions: Decisions) -> tuple[Tensor, Tensor]:
        """(M,) log-probability of each policy, and (M,) the sum of the entropies of its softmaxes."""
        columns = decisions.unbind(1)
        logs = self._unrolled(len(decisions), lambda turn, log_p: columns[turn])
        chosen = [log_p.gather(1, column[:, None])[:, 0] for log_p, column in zip(logs, columns, strict=True)]
        return torch.stack(chosen).sum(0), torch.stack([-(log_p.exp() * log_p).sum(1) for log_p in logs]).sum(0)

    @torch.no_grad()
    def sample(self, chances: Tensor) -> Decisions:
        """Policies by their probability, from numbers (M, T) uniform in [0, 1)."""
        columns: list[Tensor] = []

        def drawn(turn: int, log_p: Tensor) -> Tensor:
            reached = log_p.exp().cumsum(1) <= chances[:, turn, None]
            columns.append(reached.sum(1).clamp(max=log_p.shape[1] - 1))  # a sum of probabilities may end below 1
            return columns[-1]

        self._unrolled(len(chances), drawn)
        return torch.stack(columns, 1)

    def _unrolled(self, count: int, decide: Callable[[int, Tensor], Tensor]) -> list[Tensor]:
        """The log-probabilities (M, K) of every turn's options, each after the decisions of the turns before."""
        token = torch.zeros(count, dtype=torch.int64)
        state: tuple[Tensor, Tensor] | None = None
        logs = []
        for turn in range(self.turns):
            kind = turn % len(self.options)
            state = self.cell(self.embedding(token), state)
            logs.append(self.heads[kind](state[0]).log_softmax(1))
            token = 1 + sum(self.options[:kind]) + decide(turn, logs[-1])
        return logs


def normalised(losses: Tensor) -> Tensor:
    """(M,) with mean 0 and standard deviation 1; all 0 where they differ by no more than rounding."""
    apart = losses - losses.mean()
    deviation = apart.square().mean().sqrt()
    alike = deviation <= 1e-6 * losses.abs().mean()
    return torch.where(alike, torch.zeros_like(apart), apart / deviation)


class Reinforce:
    """Makes decisions that were followed by high losses more probable: ascent along (1/M) sum_m grad log p_m * normalised loss_m.

    Args:
        controller: what learns.
        rate: learning rate of Adam.
        entropy: weight of the mean entropy of the policies, which keeps the controller from settling too early.
    """

    def __init__(self, controller: Controller, rate: float, entropy: float) -> None:
        self.controller, self.entropy = controller, entropy
        self.optimizer = torch.optim.Adam(controller.parameters(), lr=rate, maximize=True)

    def objective(self, decisions: Decisions, losses: Tensor) -> Tensor:
        """What is climbed; the losses (M,) are of policies that these decisions made."""
        log_p, entropy = self.controller(decisions)
        climbed: Tensor = (log_p * normalised(losses).to(log_p)).mean() + self.entropy * entropy.mean()
        return climbed

    def learn(self, decisions: Decisions, losses: Tensor) -> None:
        """One step."""
        self.optimizer.zero_grad()
        torch.autograd.backward(self.objective(decisions, losses))
        self.optimizer.step()

    def state(self) -> dict[str, Any]:
        return {"controller": self.controller.state_dict(), "optimizer": self.optimizer.state_dict()}

    def restore(self, state: dict[str, Any]) -> None:
        self.controller.load_state_dict(state["controller"])
        self.optimizer.load_state_dict(state["optimizer"])
