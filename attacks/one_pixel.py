"""One pixel attack (Su et al., IEEE TEVC 2019, https://arxiv.org/abs/1710.08864)."""

from dataclasses import dataclass
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from robustbench_lite.classifier import Images
from robustbench_lite.errors import UsageError
from robustbench_lite.oracle import Scores
from robustbench_lite.plan import State
from robustbench_lite.registry import attack
from robustbench_lite.rows import per_sample
from robustbench_lite.streams import Streams


@dataclass(frozen=True)
class Evolving(State):
    members: Tensor  # (B, P, pixels, 2 + C) in [0, 1]: of every pixel its place, down and across, and its colour
    worth: Tensor  # (B, P) the margin of each, -inf before it was asked about


@attack("one-pixel")
@dataclass(frozen=True)
class OnePixel:
    """Set one pixel, or eps of them at once, to where and what differential evolution finds: a population of places and colours.

    Where more than a few pixels may change, `sparse-rs` is stronger.

    Args:
        generations: how often every member may be replaced, after the first population.
        population: members; the paper has 400.
        at_once: members that are asked about in one step, at most.
        weight: of the difference of two members that a third is moved by, F in the paper.
    """

    access = Scores
    norms = ("pixels",)
    usual_eps = {"pixels": 1.0}
    cost = "population x (generations + 1) + 1 forwards"

    generations: Annotated[int, Field(ge=1)] = 100
    population: Annotated[int, Field(ge=4)] = 400
    at_once: Annotated[int, Field(ge=1)] = 40
    weight: Annotated[float, Field(gt=0, le=2)] = 0.5

    @property
    def steps(self) -> int:
        return self._parts * (self.generations + 1)

    @property
    def _parts(self) -> int:
        """Of a generation."""
        return -(-self.population // self.at_once)

    def start(self, oracle: Scores, draw: Streams) -> Evolving:
        """Nothing is asked yet.

        Raises:
            UsageError: images have an eps of their own each.
        """
        origin, eps = oracle.origin, oracle.threat.eps
        if eps.dim():
            raise UsageError(
                "one-pixel changes as many pixels in every image, so that images cannot have an eps of their own: use sparse-rs"
            )
        size = (self.population, min(int(eps), origin[0, 0].numel()))
        places = draw.uniform("places", *size, 2)
        colours = 0.5 + 0.5 * draw.normal("colours", *size, origin.shape[1])  # many of them black or white, as in the paper
        members = torch.cat([places, colours], -1).clamp(0, 1).to(origin)
        return Evolving.at(origin, members=members, worth=torch.full_like(members[:, :, 0, 0], -torch.inf))

    def step(self, oracle: Scores, state: Evolving, draw: Streams) -> Evolving:
        turn = state.t % self._parts
        asked = -(-self.population // self._parts)
        # the last part may begin anew with the first members, so that all parts are of one size
        chosen = (turn[:, None] * asked + torch.arange(asked, device=turn.device)) % self.population
        rows = torch.arange(len(chosen), device=turn.device)[:, None]
        child = torch.where(
            per_sample(state.t < self._parts, state.members), state.members[rows, chosen], self._children(state, draw, asked)
        )
        tried = painted(oracle.origin, child)
        worth = torch.stack([oracle.criterion.margin(logits) for logits in oracle.logits(tried).unbind(1)], 1)
        better = worth > state.worth[rows, chosen]
        members, known = state.members.clone(), state.worth.clone()
        members[rows, chosen] = torch.where(better[..., None, None], child, state.members[rows, chosen])
        known[rows, chosen] = torch.where(better, worth, state.worth[rows, chosen])
        return state.moved(tried[rows[:, 0], worth.argmax(1)], members=members, worth=known)

    def _children(self, state: Evolving, draw: Streams, count: int) -> Tensor:
        """(B, count, pixels, 2 + C) of three parents each; the paper has no crossover."""
        parents = draw.integers("parents", 0, self.population, count, 3).to(state.t.device)
        first, second, third = (
            state.members[torch.arange(len(parents), device=parents.device)[:, None], parents[..., p]] for p in range(3)
        )
        return (first + self.weight * (second - third)).clamp(0, 1)


def painted(origin: Images, members: Tensor) -> Tensor:
    """(B, Q, C, H, W) the images with the pixels of members (B, Q, pixels, 2 + C) in them; of two at one place, the later."""
    height, width = origin.shape[-2:]
    images = origin[:, None].expand(-1, members.shape[1], -1, -1, -1).flatten(3).clone()
    down, across = (members[..., 0] * height).long().clamp(max=height - 1), (members[..., 1] * width).long().clamp(max=width - 1)
    place = (down * width + across)[:, :, None].expand(-1, -1, origin.shape[1], -1)
    for pixel in range(members.shape[2]):
        images.scatter_(3, place[..., pixel : pixel + 1], members[:, :, pixel, 2:, None])
    return images.view(*images.shape[:3], height, width)
