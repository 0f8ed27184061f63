"""Training under Gaussian noise, for smoothing (Cohen, Rosenfeld, Kolter, ICML 2019, https://arxiv.org/abs/1902.02918)."""

from dataclasses import dataclass, replace
from typing import Annotated, ClassVar

from pydantic import Field

from robustbench_lite.defending import Batch, Kind
from robustbench_lite.registry import defense
from robustbench_lite.streams import Streams


@defense("gaussian")
@dataclass(frozen=True)
class Gaussian:
    """Add Gaussian noise to every image, so that the certificate `smoothing` of the same sigma has a classifier to ask.

    Costs nothing. By itself it is weak against an attacker: what is proven afterwards is of the smoothed classifier. Together with
    adversarial training the attack starts at the noisy image and clips it to [0, 1], which is neither of the two.

    Args:
        sigma: standard deviation, in units of a pixel's full range; of every image and value alike.
    """

    kind: ClassVar[Kind] = "augmentation"
    trained_on = ("gaussian_noise",)

    sigma: Annotated[float, Field(gt=0)] = 0.25

    def augment(self, batch: Batch, draw: Streams) -> Batch:
        # beyond [0, 1], as the authors', and as the noise that the certificate asks under
        noise = draw.normal("gaussian", *batch.images.shape[1:])
        return replace(batch, images=batch.images + self.sigma * noise)
