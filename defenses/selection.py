"""Which epoch's weights are kept: those most robust on images held out, since robustness is lost again in long trainings (Rice et al., ICML
2020, https://arxiv.org/abs/2002.11569)."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from typing import Any

import torch

from robustbench_lite.classifier import Classifier
from robustbench_lite.errors import UsageError
from robustbench_lite.labelled import LabelledImages
from robustbench_lite.plan import Attack
from robustbench_lite.streams import Streams
from robustbench_lite.threat import Ball

from .adversary import attacked
from .feed import stacked
from .world import World

BATCH = 128


@dataclass(frozen=True, order=True)
class Score:
    """Shares of the images held out that are right: attacked first, because that is what decides; without an attack, the clean ones."""

    attacked: float
    clean: float


@dataclass
class Selection:
    """The best weights so far.

    Args:
        data: images held out of the training.
        attack, threat: what they are attacked with; None chooses by clean accuracy.
        seed: of the attack's draws, which are the same after every epoch.
        world: the processes that share the work.
    """

    data: LabelledImages
    attack: Attack | None
    threat: Ball | None
    seed: int
    world: World
    score: Score | None = None
    epoch: int = 0
    weights: dict[str, Any] = field(default_factory=dict)

    def consider(self, classifier: Classifier, epoch: int, *, settled: bool = True) -> Score:
        """The score of these weights, which are kept where they are settled and it is the best so far; of equals, the earlier."""
        score = self._scored(classifier)
        if not settled:
            return score
        if self.score is None or score > self.score:
            self.score, self.epoch = score, epoch
            self.weights = {name: tensor.detach().cpu().clone() for name, tensor in classifier.state_dict().items()}
        return score

    def best(self, classifier: Classifier) -> Classifier:
        """A classifier like this one with the best weights; this one where nothing was considered yet."""
        if self.score is None:
            return classifier
        chosen = copy.deepcopy(classifier)
        chosen.load_state_dict(self.weights)
        return chosen

    @property
    def identity(self) -> dict[str, str]:
        """Everything that scores depend on."""
        threat = "none" if self.threat is None else f"{self.threat.norm} {float(self.threat.eps)}"
        return {"held out": self.data.digest[:16], "validation attack": repr(self.attack), "validation threat": threat}

    def state(self) -> dict[str, Any]:
        score = None if self.score is None else (self.score.attacked, self.score.clean)
        return {"score": score, "epoch": self.epoch, "weights": self.weights}

    def restore(self, state: dict[str, Any]) -> None:
        self.score = None if state["score"] is None else Score(*state["score"])
        self.epoch, self.weights = state["epoch"], state["weights"]

    def _scored(self, classifier: Classifier) -> Score:
        device, right = self.world.device, torch.zeros(2, device=self.world.device)
        training = classifier.training
        classifier.eval()
        mine = self.world.share(torch.arange(len(self.data))).tolist()
        for first in range(0, len(mine), BATCH):
            indices = mine[first : first + BATCH]
            x = stacked([self.data.pictures[i] for i in indices], self.data.name).to(device)
            y = torch.tensor([self.data.labels[i] for i in indices], device=device)
            draw = Streams(self.seed, "selection", [(self.data.ids[i], 0) for i in indices], None, device)
            x_adv = x if self.attack is None or self.threat is None else attacked(classifier, x, y, self.threat, self.attack, draw)
            with torch.no_grad():
                answers = [classifier(images) for images in (x_adv, x)]
            right += torch.stack([((logits.argmax(1) == y) & logits.isfinite().all(1)).sum() for logits in answers])
        classifier.train(training)
        shares = (self.world.total(right) / len(self.data)).tolist()
        return Score(*shares)


def held_out(data: LabelledImages, share: float, seed: int) -> tuple[LabelledImages, LabelledImages]:
    """Training images, and a seeded share of them that is held out, every class in proportion.

    Raises:
        UsageError: the share leaves one of the two without images.
    """
    count = round(share * len(data)) if 0 < share < 1 else 0
    if not 0 < count < len(data):
        raise UsageError(f"--validation {share:g}: a share between 0 and 1 that leaves some of the {len(data)} images on either side")
    kept = set(data.subset(count, seed).ids)
    positions = range(len(data))
    return (
        data.take([i for i in positions if data.ids[i] not in kept]),
        data.take([i for i in positions if data.ids[i] in kept]),
    )
