"""Gradient attacks made of stages that combine freely: `sgm:gamma=0.5+mi+di`.

A stage changes one thing about the iterative fast gradient sign method: the model's backward pass, the images at which gradients are
taken, the gradient itself, or the direction that comes of it. Whatever the order in which they are named, a step goes

    look ahead -> views -> gradient -> filter -> variance and momentum -> step -> projection.
"""

# no `from __future__ import annotations`: the annotations of inherited fields are read in the modules of the stages that inherit them

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, fields, replace
from functools import partial
from typing import Annotated, Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from .classifier import Images
from .errors import BadSpec
from .losses import Loss
from .oracle import WhiteBox
from .plan import State
from .registry import ATTACKS
from .rows import per_sample
from .streams import Streams

Slope = Callable[[Images, Streams], Images]
"""The gradient at images (B, C, H, W) as the stages make it, with draws for their transforms."""


@dataclass(frozen=True)
class Moving(State):
    """momentum: the direction of the last step; variance: of the gradients around it. Both like x."""

    momentum: Tensor
    variance: Tensor


@dataclass(frozen=True)
class Stage:
    """One ingredient, which is an attack of its own too. What a stage does not define is as in the iterative fast gradient sign method.

    Args:
        steps: gradient steps.
        step_size: in multiples of eps; by default 1 / steps.
        loss: ce, dlr or margin.
    """

    access = WhiteBox
    norms: ClassVar[tuple[str, ...]] = ("linf", "l2", "l1")
    cost: ClassVar[str] = "steps + 1 forwards, steps backwards"

    steps: Annotated[int, Field(ge=1)] = 10
    step_size: Annotated[float, Field(gt=0)] | None = None
    loss: Loss = "ce"

    def hooks(self, model: nn.Module, probe: Images) -> AbstractContextManager[None]:
        """A context in which the model's gradients are other than its own; probe (1, C, H, W) is to trace it with."""
        return nullcontext()

    def ahead(self, x: Images, momentum: Images, length: Tensor) -> Images:
        """Where the gradient is taken instead of at x. length: of a step, (B, 1, 1, 1) or 0-d, in image units."""
        return x

    def views(self, x: Images, draw: Streams) -> Images:
        """(B, M, C, H, W) differentiable transforms of x (B, N, C, H, W), at which gradients are taken and whose mean counts."""
        return x

    def filtered(self, gradient: Images) -> Images:
        """The gradient, smoothed or masked."""
        return gradient

    def direction(self, gradient: Images, state: Moving) -> Images:
        """What to climb along."""
        return gradient

    def variance(self, state: Moving, gradient: Images, slope: Slope, eps: Tensor, draw: Streams) -> Images:
        """What the next step adds to its gradient. eps: (B, 1, 1, 1) or 0-d."""
        return state.variance

    def parts(self, norm: str) -> Mapping[str, "Pipeline"]:
        return {"": Pipeline((self,))}

    @staticmethod
    def combined(made: Sequence[Any]) -> "Pipeline":
        """All of them in one attack.

        Raises:
            BadSpec: one is not a stage, is named twice, or contradicts another.
        """
        foreign = [thing for thing in made if not isinstance(thing, Stage)]
        if foreign:
            classes = {name: ATTACKS.get(name) for name in ATTACKS.names()}
            stages = [name for name, found in classes.items() if isinstance(found, type) and issubclass(found, Stage)]
            raise BadSpec(f"{ATTACKS.spec_of(foreign[0])} cannot be combined with others: {', '.join(stages)} can")
        names = [ATTACKS.spec_of(stage).partition(":")[0] for stage in made]
        twice = [name for name in names if names.count(name) > 1]
        if twice:
            raise BadSpec(f"{twice[0]} is named twice in {'+'.join(names)}: name it once")
        moving = [name for name, stage in zip(names, made, strict=True) if isinstance(stage, Momentum)]
        if len(moving) > 1:
            raise BadSpec(f"{' and '.join(moving)} each bring their momentum: keep one of them")
        pipeline = Pipeline(tuple(made))
        for field in fields(Stage):
            pipeline.shared(field.name)
        return pipeline


@dataclass(frozen=True)
class Momentum(Stage):
    """Climb along an accumulated direction.

    Args:
        decay: share of the accumulated direction that is kept.
    """

    decay: Annotated[float, Field(ge=0)] = 1.0

    def direction(self, gradient: Images, state: Moving) -> Images:
        # by the mean and not the sum of absolute values, as in the authors' code: the same signs, and NI's look-ahead needs the scale
        gradient = gradient + state.variance
        size = gradient.flatten(1).abs().mean(1).clamp(min=1e-30)
        return self.decay * state.momentum + gradient / per_sample(size, gradient)


@dataclass(frozen=True)
class Tuned(Momentum):
    """Correct each gradient by how the last one differed from those around the image, then climb along the momentum.

    Args:
        neighbours: images around the current one at which gradients are taken (N).
        reach: of the neighbours, in multiples of eps (beta).
    """

    neighbours: Annotated[int, Field(ge=1)] = 20
    reach: Annotated[float, Field(gt=0)] = 1.5

    def variance(self, state: Moving, gradient: Images, slope: Slope, eps: Tensor, draw: Streams) -> Images:
        # around the image also where a look-ahead led elsewhere, as in the authors' code
        total = torch.zeros_like(state.x)
        for i in range(self.neighbours):
            noise = draw.uniform(f"neighbour {i}", *state.x.shape[1:], low=-1.0, high=1.0)
            total += slope(state.x + self.reach * eps * noise, replace(draw, condition=f"{draw.condition}/neighbour {i}"))
        return total / self.neighbours - gradient


@dataclass(frozen=True)
class Pipeline:
    """Stages at work together, from the clean image and without restarts."""

    access = WhiteBox

    stages: tuple[Stage, ...]

    @property
    def norms(self) -> tuple[str, ...]:
        return tuple(norm for norm in Stage.norms if all(norm in stage.norms for stage in self.stages))

    @property
    def steps(self) -> int:
        return int(self.shared("steps"))

    @property
    def spec(self) -> str:
        return "+".join(ATTACKS.spec_of(stage) for stage in self.stages)

    @property
    def cost(self) -> str:
        return "; ".join(f"{ATTACKS.spec_of(stage)}: {stage.cost}" for stage in self.stages)

    def shared(self, name: str) -> Any:
        """The value of a field that all stages have: what one of them is given holds for all, else what one has for a default of its own.

        Raises:
            BadSpec: two set different values.
        """
        values = {stage: getattr(stage, name) for stage in self.stages}
        told = {value: stage for stage, value in values.items() if value != type(stage).__dataclass_fields__[name].default}
        if len(told) > 1:
            (one, first), (other, second) = list(told.items())[:2]
            raise BadSpec(
                f"{ATTACKS.spec_of(first)} and {ATTACKS.spec_of(second)} contradict each other: {name} is {one} or {other}, not both"
            )
        usual = getattr(Stage, name)
        return next(iter(told), next((value for value in values.values() if value != usual), usual))

    @contextmanager
    def hooks(self, model: nn.Module, probe: Images) -> Iterator[None]:
        with ExitStack() as stack:
            for stage in self.stages:
                stack.enter_context(stage.hooks(model, probe))
            yield

    def start(self, oracle: WhiteBox, draw: Streams) -> Moving:
        still = torch.zeros_like(oracle.origin)
        return Moving.at(oracle.origin, momentum=still, variance=still.clone())

    def step(self, oracle: WhiteBox, state: Moving, draw: Streams) -> Moving:
        threat, share = oracle.threat, self.shared("step_size") or 1 / self.steps
        eps = per_sample(threat.eps, state.x)
        at, slope = state.x, partial(self._slope, oracle)
        for stage in self.stages:
            at = stage.ahead(at, state.momentum, share * eps)
        gradient = slope(at, draw, aside=at is not state.x)
        direction, variance = gradient, state.variance
        for stage in self.stages:
            direction = stage.direction(direction, state)
            variance = stage.variance(state, gradient, slope, eps, draw)
        x = threat.project(state.x + threat.ascent(direction, share, state.x), oracle.origin)
        return state.moved(x, momentum=direction, variance=variance)

    def _slope(self, oracle: WhiteBox, x: Images, draw: Streams, *, aside: bool = True) -> Images:
        """The mean gradient over all views of x (B, C, H, W), pulled back through their transforms and filtered."""
        loss = self.shared("loss")
        with torch.enable_grad():
            leaf = x[:, None].detach().requires_grad_()
            seen = leaf
            for stage in self.stages:
                seen = stage.views(seen, draw)
        if seen is leaf:
            _, gradient = oracle.gradient(x, loss, aside=aside)
        else:
            slopes = [oracle.gradient(view.detach(), loss, aside=True)[1] for view in seen.unbind(1)]
            (pulled,) = torch.autograd.grad(seen, leaf, torch.stack(slopes, 1) / len(slopes))
            gradient = pulled[:, 0]
        for stage in self.stages:
            gradient = stage.filtered(gradient)
        return gradient
