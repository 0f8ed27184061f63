"""Admix, gradients at mixed images (Wang et al., ICCV 2021, https://arxiv.org/abs/2102.00436)."""

from dataclasses import dataclass
from functools import lru_cache
from typing import Annotated

import torch
from pydantic import Field

from robustbench_lite.classifier import Images, Preprocess
from robustbench_lite.data import load_data
from robustbench_lite.errors import BadSpec
from robustbench_lite.pipeline import Stage
from robustbench_lite.registry import attack
from robustbench_lite.streams import Streams


@attack("admix")
@dataclass(frozen=True)
class Admix(Stage):
    """Climb the mean of the gradients at the image with a little of others mixed in, at several scales.

    The paper mixes in images of other classes from the same batch, so that an image's verdict would hang on its neighbours. Here they
    come from the 20 ImageNet pictures that foolbox bundles, at the size of the images attacked, in draws keyed by the image: published
    figures need not be met exactly, least of all on data unlike these. Made for transfer and combined with others, as in admix+mi; a step
    costs as much as 16 of mi.

    Args:
        steps: gradient steps.
        step_size: in multiples of eps; by default 1 / steps.
        loss: ce, dlr or margin.
        scales: how many of x, x/2, x/4, ... (m1).
        partners: images mixed in, one at a time (m2).
        share: of a partner that is added (eta).
    """

    cost = "steps * (scales * partners + 1) + 1 forwards, steps * scales * partners backwards"

    scales: Annotated[int, Field(ge=1)] = 5
    partners: Annotated[int, Field(ge=1)] = 3
    share: Annotated[float, Field(ge=0)] = 0.2

    def views(self, x: Images, draw: Streams) -> Images:
        others = _pictures(*x.shape[2:]).to(x)
        chosen = (draw.uniform("admix", x.shape[1], self.partners) * len(others)).long()
        mixed = (x[:, :, None] + self.share * others[chosen]).flatten(1, 2)
        return torch.cat([mixed / 2**i for i in range(self.scales)], 1)


@lru_cache(maxsize=1)
def _pictures(channels: int, height: int, width: int) -> Images:
    """(20, C, H, W) the images that are mixed in.

    Raises:
        BadSpec: the images attacked are not pictures.
    """
    if channels not in (1, 3):
        raise BadSpec(f"admix mixes in grey or RGB pictures, and these images have {channels} channels: leave it out")
    found = load_data("imagenet", preprocess=Preprocess((height, width), None, channels=channels))
    return torch.stack([image for image, _ in found])
