"""Backward pass differentiable approximation, BPDA (Athalye, Carlini, Wagner, ICML 2018, https://arxiv.org/abs/1802.00420)."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field
from torch import nn

from robustbench_lite.bpda import straight_through
from robustbench_lite.classifier import Images
from robustbench_lite.errors import UsageError
from robustbench_lite.losses import Loss
from robustbench_lite.pipeline import Stage
from robustbench_lite.registry import attack


@attack("bpda")
@dataclass(frozen=True)
class BPDA(Stage):
    """Climb gradients that pass a network's jagged layers by stand-ins of theirs, while every image is judged by the network itself.

    The adaptive attack on k-WTA; as dear as pgd:steps=100. No use on a model whose layers offer no stand-ins. Combines with other
    stages, as in bpda+mi. Stand-ins that layers declare (JPEG, rounding) every attack takes, and this one under --no-stand-ins too.

    Args:
        steps: gradient steps.
        step_size: in multiples of eps; steps four times as long as pgd's broke the most of k-WTA networks.
        loss: ce, dlr or margin.
        backward: the stand-in: smooth is a threshold without a jump, straight the identity, which is weak on k-WTA.
    """

    cost = "steps + 1 forwards, steps backwards, and little more for the stand-ins"

    steps: Annotated[int, Field(ge=1)] = 100
    step_size: Annotated[float, Field(gt=0)] | None = 0.1
    loss: Loss = "margin"
    backward: Literal["smooth", "straight"] = "smooth"

    @contextmanager
    def hooks(self, model: nn.Module, probe: Images) -> Iterator[None]:
        """A context in which gradients pass by the stand-ins.

        Raises:
            UsageError: no layer offers one.
        """
        with straight_through(model, self.backward) as names:
            if not names:
                raise UsageError(
                    f"bpda:backward={self.backward} needs layers that offer such a stand-in, as those of kwta do, and "
                    f"{getattr(model, 'name', 'this model')} has none: attack it with pgd or autoattack"
                )
            yield
