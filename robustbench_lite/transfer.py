"""Transfer: adversarial images made on surrogates, and what every model says of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from .classifier import Classifier, Images, Logits
from .criteria import Criterion
from .judge import Judge
from .matrix import TransferVerdict
from .metrics import ssim
from .ways import Ways


class Ensemble(nn.Module):
    """Mean of the members' logits (Dong et al., CVPR 2018, section 3.4)."""

    def __init__(self, members: Sequence[nn.Module]) -> None:
        super().__init__()
        self.members = nn.ModuleList(members)
        self.training = self.members.training = False  # a container is born in training mode; the members are as they were checked

    def forward(self, images: Images) -> Logits:
        return torch.stack([member(images) for member in self.members]).mean(0)


@dataclass(frozen=True)
class Source:
    """What adversarial images are made on: one surrogate, or several together. `members` are their names."""

    name: str
    members: Sequence[str]
    model: nn.Module
    ways: Ways


@dataclass
class Targets:
    """The models that are asked about every image: the one that is evaluated, and the surrogates."""

    judges: Mapping[str, Judge]
    clean: dict[tuple[str, str], bool] = field(default_factory=dict)  # whether a model was wrong on a clean image

    def say(
        self,
        condition: str,
        source: Source,
        ids: Sequence[str],
        origin: Images,
        images: Images,
        rule: Criterion,
        clean_rule: Criterion,
    ) -> list[TransferVerdict]:
        """What every model says of the images (B, C, H, W) that were made from `origin`.

        Args:
            rule: what counts as broken. clean_rule: as wrong; of a targeted attack the two differ.
        """
        similar = ssim(origin, images).tolist()
        rounded = (images * 255).round() / 255
        verdicts = []
        for name, judge in self.judges.items():
            unknown = [row for row, key in enumerate(ids) if (name, key) not in self.clean]
            if unknown:
                index = torch.tensor(unknown, device=origin.device)
                some = [ids[row] for row in unknown]
                wrong = self._broken(judge, origin[index], clean_rule.take(index), some)
                wrong |= self._broken(judge, origin[index], rule.take(index), some)
                self.clean |= {(name, key): bool(was) for key, was in zip(some, wrong, strict=True)}
            broken, in_8bit = (self._broken(judge, x, rule, ids).tolist() for x in (images, rounded))
            white_box = name in source.members
            verdicts += [
                TransferVerdict(
                    condition, key, source.name, name, white_box, self.clean[name, key], broken[row], in_8bit[row], similar[row]
                )
                for row, key in enumerate(ids)
            ]
        return verdicts

    def _broken(self, judge: Judge, x: Images, rule: Criterion, ids: Sequence[str]) -> Tensor:
        """(B,) an answer that is no number counts as broken: it is not right."""
        logits = judge.logits(x, rule, ids)
        return (rule.margin(logits) > 0) | ~logits.isfinite().all(1)


def sources(surrogates: Sequence[Classifier]) -> dict[str, tuple[Classifier, ...]]:
    """Every surrogate alone and, where there are several, all of them together; by name."""
    alone: dict[str, tuple[Classifier, ...]] = {s.name: (s,) for s in surrogates}
    return alone if len(alone) < 2 else alone | {"+".join(alone): tuple(surrogates)}
