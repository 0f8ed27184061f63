"""Training augmentations that do what a test corruption does, so that the robustness measured is not to what is new."""

from __future__ import annotations

import re
from collections.abc import Sequence

from torch import nn

from .errors import UnknownName
from .registry import CORRUPTIONS

NOISES = ("gaussian_noise", "shot_noise", "speckle_noise", "impulse_noise", "iso_noise")
BLURS = ("gaussian_blur", "kernel_blur", "defocus_blur", "glass_blur", "motion_blur", "zoom_blur")

SEEN = {
    "autocontrast": ("contrast", "fog"),
    "equalize": ("contrast", "fog"),
    "contrast": ("contrast", "tonal_contrast", "fog"),
    "brightness": ("brightness", "exposure"),
    "color": ("saturate",),
    "sharpness": BLURS,
    "posterize": ("color_quant",),
    "rotate": ("rotate", "elastic_transform"),
    "shear": ("shear", "elastic_transform"),
    "translate": ("translate",),
    "cutout": ("checkerboard_cutout",),
    "jpeg": ("jpeg_compression",),
    "gaussian_noise": NOISES,
    "gaussian_blur": BLURS,
}
"""Which corruptions look like an operation."""

COLOURS = ("autocontrast", "equalize", "posterize")
MOVES = ("rotate", "shear", "translate")
ENHANCED = ("color", "contrast", "brightness", "sharpness")

POLICIES = {
    "augmix": (*COLOURS, *MOVES),  # the paper leaves out those of ENHANCED for the sake of the test
    "augmix-all": (*COLOURS, *MOVES, *ENHANCED),
    "autoaugment": (*COLOURS, *MOVES, *ENHANCED),
    "randaugment": (*COLOURS, *MOVES, *ENHANCED),
    "trivialaugment": (*COLOURS, *MOVES, *ENHANCED),
    "adversarial-autoaugment": (*COLOURS, *MOVES, *ENHANCED, "cutout"),
    "color-jitter": ("brightness", "contrast", "color"),
    "random-erasing": ("cutout",),
}
"""What the augmentations that have a name of their own are made of."""

NOTHING = ("adversarial", "crop", "cutmix", "flip", "mixup", "solarize", "stylise")
"""What repeats no corruption."""

SPELLINGS = {
    "colour": "color",
    "saturation": "color",
    "saturate": "color",
    "noise": "gaussian-noise",
    "blur": "gaussian-blur",
    "jpeg-compression": "jpeg",
    "equalise": "equalize",
    "adversarial-auto-augment": "adversarial-autoaugment",
    "auto-augment": "autoaugment",
    "rand-augment": "randaugment",
    "trivialaugmentwide": "trivialaugment",
}
AXES = re.compile(r"-[xy]$")


def fitted_on_judged(model: nn.Module, ids: Sequence[str]) -> list[str]:
    """A sentence where layers were fitted on images that are judged; such layers keep ids in `fitted_on`."""
    seen = {key for module in model.modules() for key in getattr(module, "fitted_on", ())}
    both = len(seen.intersection(ids))
    if not both:
        return []
    judged = f"{both:,} of the images judged have the ids of images that the model's confidences were fitted on"
    return [f"{judged}: its calibration may look better than it is; fit it on others"]


def overlaps(trained_on: Sequence[str], corruptions: Sequence[str]) -> list[str]:
    """Which augmentations of the training do the same as corruptions of the test, one sentence for each.

    Args:
        trained_on: operations and policies, such as `contrast`, `shear_x`, `augmix`, or names of corruptions.
        corruptions: names of corruptions, those of suites (`pneumonia/gaussian_noise`, `brightness_up`) included.

    Returns:
        Sentences in the order of `trained_on`; none where nothing overlaps.

    Raises:
        UnknownName: an augmentation that nothing is known of, which would be no warning.
    """
    sentences = []
    for given in trained_on:
        operations = _operations(given)
        met = [name for name in corruptions if any(_same(name, seen) for operation in operations for seen in _seen(operation))]
        if met:
            sentences.append(f"trained on {given}, which does much the same as {_listed(met)}: accuracy there is not on something new")
    return sentences


def _operations(given: str) -> tuple[str, ...]:
    name = AXES.sub("", given.lower().replace("_", "-"))
    name = SPELLINGS.get(name, name)
    operations = POLICIES.get(name, (name.replace("-", "_"),))
    known = {*SEEN, *POLICIES, *NOTHING, *CORRUPTIONS.names()}
    if name not in POLICIES and operations[0] not in known:
        raise UnknownName("augmentation", given, known)
    return operations


def _seen(operation: str) -> tuple[str, ...]:
    return SEEN.get(operation, (operation,))


def _same(corruption: str, seen: str) -> bool:
    name = corruption.rpartition("/")[2].partition("(")[0]
    return name in (seen, f"{seen}_up", f"{seen}_down")


def _listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
