"""Shape or texture: what a model goes by (Geirhos et al., ICLR 2019, https://arxiv.org/abs/1811.12231).

Cue-conflict images have the shape of one category and the texture of another. The shape bias is the share of decisions for the shape among
those for either; a category's probability is the mean over its ImageNet classes.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

from .errors import DataError
from .stats import wilson


def _span(*ranges: tuple[int, int]) -> tuple[int, ...]:
    return tuple(index for first, last in ranges for index in range(first, last + 1))


CATEGORIES: Mapping[str, tuple[int, ...]] = {
    "airplane": (404,),
    "bear": _span((294, 297)),
    "bicycle": (444, 671),
    "bird": _span((8, 8), (10, 16), (18, 20), (22, 24), (80, 83), (87, 96), (98, 100), (127, 133), (135, 145)),
    "boat": (472, 554, 625, 814, 914),
    "bottle": (440, 720, 737, 898, 899, 901, 907),
    "car": (436, 511, 817),
    "cat": _span((281, 286)),
    "chair": (423, 559, 765, 857),
    "clock": (409, 530, 892),
    "dog": _span(
        (152, 191), (193, 203), (205, 226), (228, 241), (243, 250), (252, 257), (259, 259), (261, 263), (265, 268)
    ),
    "elephant": (385, 386),
    "keyboard": (508, 878),
    "knife": (499,),
    "oven": (766,),
    "truck": (555, 569, 656, 675, 717, 734, 864, 867),
}  # fmt: skip
"""The 16 categories and the class indices of ImageNet that each consists of; 207 in all."""

NAME = re.compile(r"(?:^|[/_])([a-z]+)\d+-([a-z]+)\d+\.\w+$")


@dataclass(frozen=True)
class Cues:
    """Decisions on n cue-conflict images: for the category of the shape, for that of the texture, and for others."""

    shape_correct: int
    texture_correct: int
    n: int

    @property
    def bias(self) -> float | None:
        """S / (S + T); None where no decision was for either."""
        either = self.shape_correct + self.texture_correct
        return self.shape_correct / either if either else None

    @property
    def interval(self) -> tuple[float, float]:
        """Wilson's, 95 %, of the bias; [0, 1] where there is none."""
        either = self.shape_correct + self.texture_correct
        return wilson(self.shape_correct, either) if either else (0.0, 1.0)

    @property
    def cue_accuracy(self) -> float:
        """(S + T) / n: how often the decision was for one of the two cues."""
        return (self.shape_correct + self.texture_correct) / self.n

    @property
    def cue_interval(self) -> tuple[float, float]:
        """Wilson's, 95 %, of the cue accuracy."""
        return wilson(self.shape_correct + self.texture_correct, self.n)


@dataclass(frozen=True)
class ShapeBias(Cues):
    """The same over all images, and by the category of the shape in `per_class`."""

    per_class: Mapping[str, Cues]


def cues(sample_id: str, names: Collection[str] = CATEGORIES) -> tuple[str, str]:
    """The categories of shape and texture that an image's name says: `bear/bear1-clock2.png` is a bear made of clocks.

    Args:
        names: of the categories that there are.

    Raises:
        DataError: the name is none of a cue-conflict image.
    """
    match = NAME.search(sample_id)
    if match is None or not {match[1], match[2]} <= set(names):
        raise DataError(f"{sample_id} is not named as a cue-conflict image, SHAPE/SHAPE1-TEXTURE2.png with two of {', '.join(names)}")
    return match[1], match[2]


def shape_bias(decisions: Iterable[tuple[str, int | None]], categories: Collection[str] = CATEGORIES) -> ShapeBias:
    """The shape bias of decisions; images whose two categories are one are left out.

    Args:
        decisions: sample ids, and predictions as positions in `categories`; None, where there was none, is for neither cue.
        categories: their names, in the order of the model's classes.

    Raises:
        DataError: an id that is none of a cue-conflict image, or no image with two categories.
    """
    names = list(categories)
    counts: Counter[tuple[str, str]] = Counter()
    for sample_id, prediction in decisions:
        shape, texture = cues(sample_id, names)
        if shape != texture:
            said = None if prediction is None else names[prediction]
            counts[shape, "shape" if said == shape else "texture" if said == texture else "other"] += 1
    per_class = {
        name: Cues(counts[name, "shape"], counts[name, "texture"], sum(counts[name, cue] for cue in ("shape", "texture", "other")))
        for name in names
        if any(shape == name for shape, _ in counts)
    }
    if not per_class:
        raise DataError("there is no image whose shape and texture are of two categories, so that there is no shape bias")
    parts = per_class.values()
    total = (sum(c.shape_correct for c in parts), sum(c.texture_correct for c in parts), sum(c.n for c in parts))
    return ShapeBias(*total, per_class)


@dataclass(frozen=True)
class Published:
    """A shape bias to compare with: decisions for shape and for texture, counted from published raw data."""

    name: str
    shape_correct: int
    texture_correct: int
    source: str

    @property
    def bias(self) -> float:
        """S / (S + T)."""
        return self.shape_correct / (self.shape_correct + self.texture_correct)


TEXTURE_VS_SHAPE = "https://github.com/rgeirhos/texture-vs-shape"
MODEL_VS_HUMAN = "https://github.com/bethgelab/model-vs-human"

PUBLISHED = (
    Published("humans", 9236, 398, MODEL_VS_HUMAN),  # 10 observers together
    Published("AlexNet", 283, 376, TEXTURE_VS_SHAPE),
    Published("GoogLeNet", 228, 503, TEXTURE_VS_SHAPE),
    Published("ResNet-50", 162, 572, TEXTURE_VS_SHAPE),
    Published("VGG-16", 130, 625, TEXTURE_VS_SHAPE),
    Published("AlexNet, Stylized-ImageNet", 488, 161, TEXTURE_VS_SHAPE),
    Published("DenseNet-121, Stylized-ImageNet", 618, 130, TEXTURE_VS_SHAPE),
    Published("ResNet-50, Stylized-ImageNet", 586, 141, TEXTURE_VS_SHAPE),
    Published("SqueezeNet, Stylized-ImageNet", 467, 124, TEXTURE_VS_SHAPE),
    Published("VGG-16, Stylized-ImageNet", 551, 163, TEXTURE_VS_SHAPE),
)
"""Figures that were published; the models for Stylized-ImageNet were trained on it."""
