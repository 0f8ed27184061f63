"""Standard training: cross-entropy on slightly turned and shifted images; no defense, what every defense is compared with.

Label smoothing: Szegedy et al., CVPR 2016, https://arxiv.org/abs/1512.00567, section 7.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Generator, Tensor
from torch.nn.functional import affine_grid, cross_entropy, grid_sample

from robustbench_lite.classifier import Classifier, Images, Labels


@dataclass(frozen=True)
class Standard:
    """Cross-entropy with label smoothing; every image is turned and shifted anew each time it is seen.

    Costs one forward and one backward per image. Use it as the undefended baseline, not where images may be attacked.

    Args:
        turn: largest rotation either way, in degrees.
        shift: largest shift either way along each axis, as a share of the image's side.
        label_smoothing: share of the target that is spread evenly over all classes.
    """

    turn: float = 10.0
    shift: float = 0.08
    label_smoothing: float = 0.1

    def __call__(self, classifier: Classifier, images: Images, labels: Labels, generator: Generator) -> Tensor:
        """(B,) losses to minimise."""
        moved = self.moved(images, generator)
        return cross_entropy(classifier(moved), labels, label_smoothing=self.label_smoothing, reduction="none")

    def moved(self, images: Images, generator: Generator) -> Images:
        """The images turned and shifted, black where nothing was. Three draws an image, made where the generator lives."""
        draws = torch.rand(len(images), 3, generator=generator) * 2 - 1
        angle = draws[:, 0] * math.radians(self.turn)
        shift = draws[:, 1:] * 2 * self.shift  # the grid's coordinates span 2
        rows = [
            torch.stack([angle.cos(), -angle.sin(), shift[:, 0]], dim=1),
            torch.stack([angle.sin(), angle.cos(), shift[:, 1]], dim=1),
        ]
        grid = affine_grid(torch.stack(rows, dim=1), list(images.shape), align_corners=False)
        return grid_sample(images, grid.to(images), align_corners=False).clamp(0, 1)
