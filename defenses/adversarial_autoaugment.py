"""Adversarial AutoAugment (Zhang et al., ICLR 2020, https://arxiv.org/abs/1912.11188)."""

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor

from robustbench_lite.classifier import Images
from robustbench_lite.defending import About, Batch, Step, Together, soft_cross_entropy
from robustbench_lite.registry import DEFENSES, defense
from robustbench_lite.streams import Streams, generator

from .controller import Controller, Reinforce
from .policies import MAGNITUDES, NAMES, Policies
from .policy import partners_among

SUB_POLICIES, DEPTH = 5, 2


@defense("adversarial-autoaugment", "aaa")
@dataclass(frozen=True)
class AdversarialAutoAugment:
    """Learn every image under several policies at once, which a controller chooses so that they are hard: it climbs the training loss.

    Costs `copies` times the passes and the memory of a batch. The policies of the last epoch are left beside the checkpoint.
    It trains on brightness, contrast, saturate, sharpness, moves, cutout and others, so that accuracy on such corruptions is not on
    something new, and evaluating a model there says so. The controller takes one step an epoch: in 40 epochs at the paper's rate its
    choices stay nearly random, in 200 they do not, and one that settles early narrows what is learnt. Against an adversary it is of no
    use. Not for data whose classes hang on colour or place.

    Args:
        copies: of every batch, each under a policy of its own (the paper's M); 4 is enough for small data.
        rate: learning rate of the controller.
        entropy: weight of the entropy of its decisions, which keeps it from settling too early.
    """

    kind = "augmentation"
    trained_on = ("adversarial-autoaugment",)

    copies: Annotated[int, Field(ge=2)] = 8
    rate: Annotated[float, Field(gt=0)] = 0.00035
    entropy: Annotated[float, Field(ge=0)] = 1e-5

    def informed(self, about: About) -> "Search":
        return Search(self, about)


class Search:
    """The controller beside a network that is trained on its policies."""

    kind = AdversarialAutoAugment.kind
    trained_on = AdversarialAutoAugment.trained_on

    def __init__(self, how: AdversarialAutoAugment, about: About) -> None:
        self.how, self.about = how, about
        options, rounds = (len(NAMES), MAGNITUDES), SUB_POLICIES * DEPTH
        controller = Controller(options, rounds, generator(about.seed, "policy controller"))
        self.player = Reinforce(controller, how.rate, how.entropy)
        self.epoch = 0
        self.decisions = self._sampled()
        self.last = self.decisions  # of the last whole epoch
        self.totals = torch.zeros(how.copies + 1, dtype=torch.float64)  # losses of this epoch by policy, and how many images
        self.of_step = torch.zeros(how.copies + 1)

    @property
    def spec(self) -> str:
        return DEFENSES.spec_of(self.how)

    @cached_property
    def partners(self) -> Images:
        return partners_among(self.about)

    @property
    def policies(self) -> Policies:
        """Of this epoch."""
        return _policies(self.decisions)

    def augment(self, batch: Batch, draw: Streams) -> Batch:
        first, *others = self.policies.shown(batch.images, draw, self.partners)
        return replace(batch, images=first, views=tuple(others))

    def fit(self, step: Step) -> Tensor:
        """(B,) the mean cross-entropy of an image's copies."""
        losses = torch.stack([soft_cross_entropy(logits, step.batch.targets) for logits in step.answers])
        sums = losses.detach().sum(1)
        self.of_step = torch.cat([sums, sums.new_tensor([losses.shape[1]])])
        return losses.mean(0)

    def stepped(self, together: Together, over: bool) -> None:
        """Add up the losses; after an epoch, learn from them and choose the next policies."""
        self.totals += together.total(self.of_step).cpu()  # at every step: the state on disk is the first process's alone
        if not over:
            return
        self.player.learn(self.decisions, self.totals[:-1] / self.totals[-1])
        together.agree(self.player.controller.parameters())  # where machines differ, the last bit may
        self.epoch, self.last = self.epoch + 1, self.decisions
        self.decisions = self._sampled()
        together.agree([self.decisions])
        self.totals.zero_()

    def state(self) -> dict[str, Any]:
        kept = {"epoch": self.epoch, "decisions": self.decisions, "last": self.last, "totals": self.totals.clone()}
        return kept | self.player.state()

    def restore(self, state: dict[str, Any]) -> None:
        self.player.restore(state)
        self.epoch, self.decisions, self.last = state["epoch"], state["decisions"], state["last"]
        self.totals = state["totals"].clone()

    def written(self) -> dict[str, str]:
        """The policies of the last whole epoch."""
        return {"policies.json": _policies(self.last).written()}

    def _sampled(self) -> Tensor:
        """(M, T) the decisions of this epoch."""
        controller = self.player.controller
        chances = generator(self.about.seed, "policies", self.epoch).random((self.how.copies, controller.turns), dtype="float32")
        return controller.sample(torch.from_numpy(chances))


def _policies(decisions: Tensor) -> Policies:
    return Policies(decisions.view(-1, SUB_POLICIES, DEPTH, 2))
