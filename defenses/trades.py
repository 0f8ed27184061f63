"""TRADES, a trade-off of accuracy and robustness (Zhang et al., ICML 2019, https://arxiv.org/abs/1901.08573)."""

from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import Field
from torch import Tensor

from robustbench_lite.classifier import Logits
from robustbench_lite.defending import Step
from robustbench_lite.oracle import WhiteBox
from robustbench_lite.plan import State
from robustbench_lite.registry import defense
from robustbench_lite.streams import Streams

from .adversary import Within, attacked


def divergence(expected: Logits, logits: Logits) -> Tensor:
    """(B,) KL(softmax(expected) || softmax(logits))."""
    log_p, log_q = expected.log_softmax(1), logits.log_softmax(1)
    return (log_p.exp() * (log_p - log_q)).sum(1)


@dataclass(frozen=True)
class Apart(State):
    expected: Tensor  # (B, K) logits of the clean images


@dataclass(frozen=True)
class Diverge:
    """The attack of algorithm 1: climb the divergence of the answers from those to the clean images, whatever the labels."""

    access = WhiteBox
    norms = ("linf", "l2")
    near = 0.001  # standard deviation of the start around the image, where the divergence itself has no slope

    steps: int
    step_size: float

    def start(self, oracle: WhiteBox, draw: Streams) -> Apart:
        noise = self.near * draw.normal("near", *oracle.origin.shape[1:])
        return Apart.at(oracle.threat.project(oracle.origin + noise, oracle.origin), expected=oracle.logits(oracle.origin))

    def step(self, oracle: WhiteBox, state: Apart, draw: Streams) -> Apart:
        _, gradient = oracle.gradient(state.x, lambda logits, _: divergence(state.expected, logits))
        return state.moved(oracle.threat.project(state.x + oracle.threat.ascent(gradient, self.step_size, state.x), oracle.origin))


@defense("trades")
@dataclass(frozen=True)
class TRADES(Within):
    """Learn the images as they are, and keep the answers to their neighbours the same: cross-entropy + beta * divergence.

    Costs the attack's passes besides: with ten steps a training takes about twelve times as long. Its small differences of answers
    can look safer under few steps of PGD than they are: test it with autoattack.

    Args:
        eps: radius of the ball, in units of a pixel's full range; by default the usual one of the data.
        norm: linf or l2.
        beta: weight of the divergence (the paper's 1 / lambda); more of it trades clean accuracy for robustness.
        steps: of the attack.
        step_size: of the attack, in multiples of eps; the authors' 0.007 at eps 0.031 in linf, and nearly their 2 / steps in l2.
    """

    beta: Annotated[float, Field(gt=0)] = 6.0
    steps: Annotated[int, Field(ge=1)] = 10
    step_size: Annotated[float, Field(gt=0)] = 7 / 31

    def penalty(self, step: Step) -> Tensor:
        batch = step.batch
        # the authors attack before the pass over the images as they are, whose statistics the attacked model here has taken in already
        attack: Any = Diverge(self.steps, self.step_size)  # frozen, where the protocol's fields are not
        x_adv = attacked(step.classifier, batch.images, batch.labels, self.threat, attack, step.draw)
        logits: Logits = step.classifier(x_adv)
        return self.beta * divergence(step.logits, logits.float())  # gradients flow through both, as in the authors' code
