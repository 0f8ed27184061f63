"""MART, misclassification-aware adversarial training (Wang et al., ICLR 2020, https://openreview.net/forum?id=rklOg6EFwS)."""

from dataclasses import dataclass
from typing import Annotated

from pydantic import Field
from torch import Tensor
from torch.nn.functional import one_hot

from robustbench_lite.classifier import Labels, Logits
from robustbench_lite.defending import Step, soft_cross_entropy
from robustbench_lite.registry import defense

from .adversary import Within, attack_for_training, attacked
from .trades import divergence


def rival_loss(logits: Logits, labels: Labels) -> Tensor:
    """(B,) -log(1 - p) of the likeliest class p that is not the label's: the second half of the boosted cross-entropy, equation 8.

    Exact where p is so near to 1 that the authors' log(1.0001 - p + 1e-12) no longer tells how near.
    """
    log_p = logits.log_softmax(1)
    rival = log_p.masked_fill(one_hot(labels, logits.shape[1]).bool(), -float("inf")).argmax(1)
    return -log_p.masked_fill(one_hot(rival, logits.shape[1]).bool(), -float("inf")).logsumexp(1)


@defense("mart")
@dataclass(frozen=True)
class MART(Within):
    """Learn from attacked images by a loss that pushes the likeliest wrong class down too, and keep the answers to an image and its
    attacked neighbour the same, the more so the less sure the network is of the image.

    Costs one pass more than pgd-at. Clean accuracy falls further than with TRADES. What it gains under pgd is known to shrink under
    stronger attacks, as its loss flattens the margins that they climb: test it with autoattack.

    Args:
        eps: radius of the ball, in units of a pixel's full range; by default the usual one of the data.
        norm: linf or l2.
        attack: any gradient attack with its own parameters, such as (pgd:steps=7,step_size=0.25); by default ten steps of eps / 4 from
            a random start, which are the paper's.
        beta: weight of the divergence, the paper's lambda of 5; the authors' code takes 6 in runs on CIFAR-10.
    """

    attack: str = "pgd:steps=10"
    beta: Annotated[float, Field(gt=0)] = 5.0

    def __post_init__(self) -> None:
        super().__post_init__()
        attack_for_training(self.attack, self.norm)

    def fit(self, step: Step) -> Tensor:
        batch = step.batch
        # attacked in eval mode, as the authors do, and before both passes that are learnt from: these are in training mode, so that the
        # running statistics are of clean and of attacked images, one batch each
        x_adv = attacked(step.classifier, batch.images, batch.labels, self.threat, attack_for_training(self.attack, self.norm), step.draw)
        logits, logits_adv = step.logits, step.classifier(x_adv).float()
        boosted = soft_cross_entropy(logits_adv, batch.targets) + rival_loss(logits_adv, batch.labels)
        doubt = 1 - (batch.targets * logits.softmax(1)).sum(1)  # with one class an image, 1 - p_y
        return boosted + self.beta * doubt * divergence(logits, logits_adv)  # gradients flow through all three, as in the authors' code
