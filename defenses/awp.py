"""Adversarial weight perturbation, AWP (Wu, Xia, Wang, NeurIPS 2020, https://arxiv.org/abs/2004.05884)."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor, distributed
from torch.func import functional_call

from robustbench_lite.classifier import Images, Logits
from robustbench_lite.defending import Step, soft_cross_entropy
from robustbench_lite.errors import UsageError
from robustbench_lite.registry import defense

from .adversary import Within, attack_for_training, attacked, reduced
from .trades import TRADES, Diverge, divergence

GAMMA = {"pgd-at": 0.01, "trades": 0.005}
"""The paper's, section 5.1."""

Network = Callable[[Images], Logits]


def direction(slope: Tensor) -> Tensor:
    """The tensor at length 1 over all of it; zero where it is."""
    scaled = slope / slope.abs().amax().clamp(min=1e-38)  # the squares of tiny gradients would vanish in float32
    length: Tensor = torch.linalg.vector_norm(scaled)
    return scaled / length.clamp(min=1e-12)


@defense("awp")
@dataclass(frozen=True)
class AWP(Within):
    """Learn from attacked images by the gradient at weights that are attacked too: each layer's one step up the loss from where they are.

    Costs one forward and one backward pass more than what it is used over. It narrows the gap between robustness on training and on
    test images, so it earns most in long trainings; a short one may only fit more slowly. Penalties of other defenses beside it see the
    weights as they are, and weight decay acts on these, where the authors' code lets it act on the perturbed ones.

    Args:
        eps: radius of the ball, in units of a pixel's full range; by default the usual one of the data.
        norm: linf or l2.
        over: pgd-at or trades: which images and which loss.
        gamma: length of a layer's perturbation as a share of its weights' length; by default 0.01 over pgd-at and 0.005 over trades.
        attack: over pgd-at, any gradient attack with its own parameters; by default (pgd:steps=10). TRADES has its own.
        beta: over trades, the weight of the divergence, by default 6.
        after: share of the training before which weights are not perturbed; the authors begin at once over pgd-at and after 10 of 200
            epochs over trades.
    """

    over: Literal["pgd-at", "trades"] = "pgd-at"
    gamma: Annotated[float, Field(gt=0, lt=1)] | None = None
    attack: str | None = None
    beta: Annotated[float, Field(gt=0)] | None = None
    after: Annotated[float, Field(ge=0, lt=1)] = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.over == "trades" and self.attack is not None:
            raise UsageError("awp:over=trades has the attack of TRADES: leave attack= out, or take over=pgd-at")
        if self.over == "pgd-at" and self.beta is not None:
            raise UsageError("awp:over=pgd-at has no divergence to weigh: leave beta= out, or take over=trades")
        attack_for_training(self.attack or "pgd:steps=10", self.norm)

    def fit(self, step: Step) -> Tensor:
        batch = step.batch
        attack: Any = attack_for_training(self.attack or "pgd:steps=10", self.norm)
        if self.over == "trades":
            attack = Diverge(TRADES.steps, TRADES.step_size)
        # of the weights as they are, in eval mode; all passes after it are in training mode
        x_adv = attacked(step.classifier, batch.images, batch.labels, self.threat, attack, step.draw)
        moved = {} if step.progress < self.after else self.perturbed(step, x_adv)
        return self.losses(partial(functional_call, step.classifier, moved), step, x_adv)

    def losses(self, network: Network, step: Step, x_adv: Images) -> Tensor:
        """(B,) of what it is used over."""
        batch = step.batch
        if self.over == "pgd-at":
            return soft_cross_entropy(network(x_adv).float(), batch.targets)
        logits, logits_adv = network(batch.images).float(), network(x_adv).float()
        beta = TRADES.beta if self.beta is None else self.beta
        return soft_cross_entropy(logits, batch.targets) + beta * divergence(logits, logits_adv)

    def perturbed(self, step: Step, x_adv: Images) -> dict[str, Tensor]:
        """The weights of more than one dimension by name, each with gamma * its length added where the loss of the whole step, over all
        processes, climbs fastest (equations 9 and 10, in one step). Gradients at them reach the weights themselves."""
        weights = {name: w for name, w in step.classifier.named_parameters() if w.requires_grad and w.ndim > 1}
        apart = {name: w.detach().requires_grad_() for name, w in weights.items()}
        # in training mode, as the authors' proxy is; it is a copy with running statistics of its own, which nobody reads
        statistics = {name: buffer.clone() for name, buffer in step.classifier.named_buffers()}
        device = x_adv.device.type
        with torch.autocast(device, dtype=reduced(device), enabled=reduced(device) is not None):
            losses = self.losses(partial(functional_call, step.classifier, {**apart, **statistics}), step, x_adv)
        slopes = torch.autograd.grad(losses.sum(), list(apart.values()), allow_unused=True, materialize_grads=True)
        if distributed.is_available() and distributed.is_initialized():
            for slope in slopes:
                distributed.all_reduce(slope)
        gamma = GAMMA[self.over] if self.gamma is None else self.gamma
        lengths = [torch.linalg.vector_norm(w) for w in apart.values()]
        return {
            name: weight + (gamma * length * direction(slope)).detach()
            for (name, weight), length, slope in zip(weights.items(), lengths, slopes, strict=True)
        }
