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

PROVABLE: dict[str, Any] = {"epochs": 40, "lr": 1e-3, "weight_decay": 1e-4, "label_smoothing": 0.0}
"""Of training on bounds, and of what is compared with it."""

PROOFS = ("crown", "zonotope")

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
        architecture: of what is trained.
        certificates: that are asked what they prove. Of digits_cnn crown proves next to nothing, at three seconds an image.
        around: the trained model of the zoo that the defense is put around; None where the model is trained with it.
    """

    description: str
    good_for: str
    not_for: str
    defense: str
    adaptive: tuple[str, ...] = PLAIN
    recipe: dict[str, Any] = field(default_factory=dict)
    chosen: str = UNTUNED
    architecture: str = "digits_cnn"
    certificates: tuple[str, ...] = ()
    around: str | None = None

    def request(self, out: Path) -> Request:
        """What is asked of robust-train, where the model is trained."""
        return Request(out=out, data="digits", model=self.architecture, defense=self.defense, **self.recipe)


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
    "digits_ibp": Entry(
        "A small network trained on interval bounds at linf 0.1, IBP (Gowal et al.): most of what it gets right is proven.",
        good_for="certificates: brackets that are narrow, and proofs that are cheap",
        not_for="clean accuracy; norms and radii it was not trained for",
        defense="ibp:eps=0.1",
        recipe=PROVABLE,
        architecture="small_cnn",
        certificates=PROOFS,
    ),
    "digits_crown_ibp": Entry(
        "A small network trained on linear bounds and intervals at linf 0.1, CROWN-IBP (Zhang et al.).",
        good_for="comparing with digits_ibp: the same bounds in the end, met by tighter ones on the way",
        not_for="clean accuracy; norms and radii it was not trained for",
        defense="crown-ibp:eps=0.1",
        recipe=PROVABLE,
        architecture="small_cnn",
        certificates=PROOFS,
    ),
    "digits_colt": Entry(
        "A small network trained layer by layer within convex regions at linf 0.1, COLT (Balunović & Vechev).",
        good_for="certificates that follow more than intervals: crown and zonotope prove much of it, ibp nothing",
        not_for="norms and radii it was not trained for",
        defense="colt:eps=0.1",
        recipe=PROVABLE | {"epochs": 30},
        architecture="small_cnn",
        certificates=PROOFS,
    ),
    "digits_small_pgd_at": Entry(
        "The small network of digits_colt trained on what PGD makes of its images, at the same linf 0.1 and for as many epochs.",
        good_for="what attacks leave and certificates do not prove: compare with digits_ibp, digits_crown_ibp and digits_colt",
        not_for="any claim of proven robustness",
        defense="pgd-at:eps=0.1,ramp=0.5",
        recipe=PROVABLE | {"epochs": 30},
        architecture="small_cnn",
        certificates=PROOFS,
    ),
    "digits_laplace": Entry(
        "digits_standard with uncertain weights in its last layer (Kristiadi et al.): less sure of itself, and no more robust.",
        good_for="confidences, and comparing with digits_standard",
        not_for="any claim of robustness",
        defense="laplace",
        around=UNDEFENDED,
    ),
    "digits_jpeg": Entry(
        "digits_standard behind JPEG compression, which has no gradient: attacks that stop there find little, and it is not robust.",
        good_for="testing whether an evaluation goes through what has no gradient",
        not_for="any claim of robustness",
        defense="jpeg",
        around=UNDEFENDED,
    ),
}
