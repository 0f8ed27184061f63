"""A policy that was found before, as a plain augmentation (Zhang et al., ICLR 2020, section 4.4, https://arxiv.org/abs/1912.11188)."""

from dataclasses import dataclass, replace
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import Any

from robustbench_lite.classifier import Images
from robustbench_lite.defending import About, Batch
from robustbench_lite.errors import RunMismatch
from robustbench_lite.registry import DEFENSES, defense
from robustbench_lite.streams import Streams

from .policies import Policies

PARTNERS = 256
"""Training images that others are paired with. The papers take them from the batch, where an image would depend on those beside it."""


def partners_among(about: About) -> Images:
    """(P, C, H, W) uint8, on the device of the training."""
    return (about.some(PARTNERS) * 255).round().byte().to(about.device)


@defense("policy")
@dataclass(frozen=True)
class Policy:
    """Every image under a sub-policy drawn from all of a file.

    Costs little, and no further passes. Trained on what the file's operations do, such as brightness, contrast and moves, so that accuracy
    on such corruptions is not on something new; evaluating a model there says so. Labels stay: not for data whose classes hang on place or
    colour unless the file leaves these operations out.

    Args:
        file: a .policies.json that a training with adversarial-autoaugment left beside its checkpoint, or one of your own in that form.
    """

    kind = "augmentation"
    # all that a policy may hold, not what this one does: a checkpoint must load, and warn, where the file is no more
    trained_on = ("adversarial-autoaugment",)

    file: str

    def informed(self, about: About) -> "Followed":
        """
        Raises:
            UsageError: the file cannot be read.
        """
        return Followed(self, Policies.read(Path(self.file).expanduser()).merged, about)


@dataclass(frozen=True, eq=False)
class Followed:
    """A policy at work: the file was read."""

    how: Policy
    policy: Policies
    about: About

    kind = Policy.kind
    trained_on = Policy.trained_on

    @property
    def spec(self) -> str:
        return DEFENSES.spec_of(self.how)

    @cached_property
    def partners(self) -> Images:
        return partners_among(self.about)

    def augment(self, batch: Batch, draw: Streams) -> Batch:
        (images,) = self.policy.shown(batch.images, draw, self.partners)
        return replace(batch, images=images)

    def state(self) -> dict[str, Any]:
        """What tells this policy from others."""
        return {"policy": sha256(self.policy.written().encode()).hexdigest()[:16]}

    def restore(self, state: dict[str, Any]) -> None:
        """
        Raises:
            RunMismatch: the file holds another policy than when the training began.
        """
        if state != self.state():
            raise RunMismatch(f"{self.how.file} has changed since this training began: put it back, or start over with --fresh")
