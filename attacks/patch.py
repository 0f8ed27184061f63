"""Adversarial patch (Brown et al., NIPS workshop 2017, https://arxiv.org/abs/1712.09665)."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from robustbench_lite.criteria import Criterion
from robustbench_lite.fitting import Lesson
from robustbench_lite.oracle import WhiteBox
from robustbench_lite.pasting import Shape, Window, pasted
from robustbench_lite.registry import attack
from robustbench_lite.stamps import Stamps, aimed, most_wanted, serves, turned
from robustbench_lite.streams import Streams


@dataclass
class Draft:
    """A patch (1, C, S, S) that is being learnt, and how often it has done its work in this epoch."""

    patch: Tensor
    optimizer: torch.optim.Optimizer
    tried: int = 0
    worked: int = 0


@attack("patch")
@dataclass(frozen=True)
class AdversarialPatch:
    """Learn a patch for each class that is wanted, over random places, sizes and rotations; then paste it, once, onto other images.

    Finlayson et al. (Science 2019, https://arxiv.org/abs/1804.05296) attack medical models with it. It breaks fewer images than an
    `own-patch` of each image, but is made before anybody has seen them. With --target there is a patch for that class alone; multi-label
    models get one patch against all findings.

    Args:
        epochs: how often every image to learn from is gone through.
        images: to learn from, at most.
        batch: images of a step.
        step_size: of Adam, as a share of a pixel's range.
        at_most: classes that patches are learnt for, those that most images can be driven to.
        placements: places that are tried on an image.
        shape: disc or square. A square that is turned is made so small that it still fits its window.
        turn: degrees that it is turned by at most, to either side, when it is learnt and when it is pasted; 0 keeps it upright.
        smallest: the smallest size that it is learnt at, as a share of the shorter side of the image; the largest fills it.
    """

    # two deviations: a hard disc, where the paper's fades over the last pixels, for outside it nothing may change; and Adam, where it takes
    # plain gradient steps of length 5
    access = WhiteBox
    norms = ("patch",)
    usual_eps = {"patch": 0.4}
    steps = 1
    cost = "1 forward a placement, after learning"

    epochs: Annotated[int, Field(ge=1)] = 7
    images: Annotated[int, Field(ge=1)] = 1000
    batch: Annotated[int, Field(ge=1)] = 8
    step_size: Annotated[float, Field(gt=0)] = 0.05
    at_most: Annotated[int, Field(ge=1)] = 10
    placements: Annotated[int, Field(ge=1)] = 1
    shape: Shape = "disc"
    turn: Annotated[float, Field(ge=0, le=180)] = 22.5
    smallest: Annotated[float, Field(gt=0, le=1)] = 0.1

    @property
    def restarts(self) -> int:
        return self.placements

    def fit(self, lesson: Lesson) -> dict[str, Tensor]:
        lesson = replace(lesson, batch_size=self.batch)
        drafts: dict[int, Draft] = {}
        wanted = most_wanted(lesson, self.at_most)
        for epoch in range(self.epochs):
            for draft in drafts.values():
                draft.tried = draft.worked = 0
            for pupils, draw in lesson.batches(epoch, self.images):
                useful = serves(pupils.criterion, pupils.logits.shape[1])
                for each in wanted:
                    drafts.setdefault(each, self._blank(pupils.x))
                    rows = useful[:, each].nonzero()[:, 0].to(pupils.x.device)
                    if len(rows):
                        some = replace(draw, rows=[draw.rows[row] for row in rows.tolist()])
                        rule = aimed(pupils.criterion.take(rows), each, len(rows), pupils.x.device)
                        self._learn(drafts[each], lesson, pupils.x[rows], rule, some, f"for {each}")
        return {
            "patches": torch.cat([drafts[each].patch.detach() for each in wanted]),
            "classes": torch.tensor(wanted),
            "worth": torch.tensor([drafts[each].worked / max(1, drafts[each].tried) for each in wanted]),
        }

    def fitted(self, tensors: Mapping[str, Tensor]) -> Stamps:
        return Stamps.of(self.access, self.placements, self.shape, self.turn, tensors)

    def _blank(self, x: Tensor) -> Draft:
        """Grey, as large as an image can hold."""
        side = min(x.shape[-2:])
        patch = torch.full((1, x.shape[1], side, side), 0.5, device=x.device, dtype=x.dtype, requires_grad=True)
        return Draft(patch, torch.optim.Adam([patch], lr=self.step_size, maximize=True))

    def _learn(self, draft: Draft, lesson: Lesson, x: Tensor, rule: Criterion, draw: Streams, stream: str) -> None:
        """One step of the patch, on these images."""
        short = min(x.shape[-2:])
        scale = draw.uniform(f"scale {stream}", 1, low=self.smallest)[:, 0]
        window = Window.drawn(x, (scale * short).round().long().clamp(min=1), draw, f"place {stream}")
        with torch.enable_grad():
            images = pasted(x, draft.patch.expand(len(x), -1, -1, -1), window, turned(draw, f"turn {stream}", self.turn), self.shape)
        logits, gradient = lesson.gradient(images.detach(), rule, "ce")
        draft.tried, draft.worked = draft.tried + len(x), draft.worked + int((rule.margin(logits) > 0).sum())
        # an answer that is no number teaches nothing, and must not spoil the patch for others
        (draft.patch.grad,) = torch.autograd.grad(images, draft.patch, gradient.nan_to_num(0, 0, 0))
        draft.optimizer.step()
        draft.patch.data.clamp_(0, 1)
