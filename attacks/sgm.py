"""Skip gradient method (Wu et al., ICLR 2020, https://arxiv.org/abs/2002.05990)."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field
from torch import nn

from robustbench_lite.classifier import Images
from robustbench_lite.errors import UsageError
from robustbench_lite.pipeline import Stage
from robustbench_lite.registry import attack
from robustbench_lite.residual import residual_branches, skip_gradient


@attack("sgm")
@dataclass(frozen=True)
class SGM(Stage):
    """Climb gradients that come through the skip connections more than through the residual branches, which transfer better.

    For images that are to fool another model: on the model itself plain gradients are stronger. No use without skip connections.

    Args:
        step_size: in multiples of eps; the paper steps 2/255 in a ball of 16/255.
        gamma: what gradients are multiplied by in every residual branch. The paper's: 0.2 for ResNets, 0.5 for DenseNets.
        mode: strict damps every branch whose skip is the identity, which is the paper's formula; reference_compat leaves out, as the
            published code does, blocks whose number ends in 0: layer1.0 of a ResNet-18, but also layer3.10 and layer3.20 of a ResNet-101.
    """

    step_size: Annotated[float, Field(gt=0)] | None = 0.125
    gamma: Annotated[float, Field(ge=0, le=1)] = 0.5
    mode: Literal["strict", "reference_compat"] = "strict"

    @contextmanager
    def hooks(self, model: nn.Module, probe: Images) -> Iterator[None]:
        """A context in which the model's gradients are damped in its residual branches.

        Raises:
            UsageError: it has none.
        """
        branches = residual_branches(model, probe)
        if self.mode == "reference_compat":
            branches = [name for name in branches if not name.rpartition(".")[0].endswith("0")]
        if not branches:
            raise UsageError(
                f"sgm needs residual connections, and {getattr(model, 'name', 'this model')} shows none: "
                "give it a ResNet, DenseNet or the like, or leave sgm out"
            )
        with skip_gradient(model, branches, self.gamma):
            yield
