"""Test images that the model has learnt from: near-duplicates among its training images.

An image is 8 x 8 grey cells, less their mean and of length 1, so that brightness and contrast do not count. Two images are near-duplicates
where these agree to a cosine of ALIKE at one of nine shifts by up to a 32nd of the side. Measured on the 900 and 897 handwritten digits,
which are as like each other as images come: the nearest strangers reach 0.9965, and every copy is found that is stored as JPEG
(quality 30), shifted by a 32nd, darkened, or has noise of 0.05. Twenty photographs reach 0.86 among each other. Copies that are cropped,
mirrored or brightened until they clip may be missed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from robustbench_lite.diagnostics import Evidence, Finding, Look
from robustbench_lite.registry import diagnostic

if TYPE_CHECKING:
    from torch import Tensor

    from robustbench_lite.labelled import LabelledImages

ALIKE = 0.997

CELLS = 8

SIDE = 32
"""What images are brought to before they are shifted by one."""

FLAT = 1e-3
"""Spread of an image's cells, below which it is of one grey and like every other such image."""

AT_ONCE = 256
"""Training images in memory; against 50,000 test images that is 50 MB of cosines."""

SHARE = 0.01
"""Of the test images, from which on every row is doubted; fewer change it by less than a point."""


@diagnostic("seen-in-training")
@dataclass(frozen=True)
class SeenInTraining:
    """Near-duplicates of training images among the test images. Every training image is read, once, so it waits for `--doubt`."""

    dear: ClassVar[bool] = True

    def observe(self, look: Look) -> Mapping[str, Any]:
        training = [look.training] if look.training is not None else list(_own(look.model))
        ids = [v.sample_id for v in look.result.of("clean") if v.broken is not None]
        if not training or not ids:
            return {}
        each = [near_duplicates(look, ids, images) for images in training]
        found = {key for like, _ in each for key in like}
        return {
            "ids": [key for key in ids if key in found],
            "n": len(ids),
            "training": sum(map(len, training)),
            "unread": sum(unread for _, unread in each),
        }

    def findings(self, evidence: Evidence) -> Iterator[Finding]:
        seen = evidence.observed("seen-in-training")
        if seen and (seen["ids"] or seen["unread"]):
            count, n = len(seen["ids"]), seen["n"]
            text = f"{count} of {n} images ({count / n:.1%}) are near-duplicates of one of the {seen['training']} training images"
            yield Finding(
                "seen-in-training",
                "doubts" if count >= SHARE * n else "notes",
                tuple(c.name for c in evidence.result.conditions if c.kind != "doubt"),
                text + (f"; {seen['unread']} training images could not be read" if seen["unread"] else ""),
                "the model may know these images by heart, so figures over them may be too high",
                figures={"seen": count, "n": n, "training": seen["training"], "unread": seen["unread"]},
                samples=tuple(seen["ids"]),
            )


def near_duplicates(look: Look, ids: Sequence[str], training: LabelledImages) -> tuple[list[str], int]:
    """The ids, of `ids`, of images that are like a training image; and how many training images could not be read."""
    import torch

    parts = [cells(look.batch(ids[start : start + AT_ONCE])[0].cpu())[0] for start in range(0, len(ids), AT_ONCE)]
    tested, nearest, unread = torch.cat(parts), torch.full((len(ids),), -1.0), 0
    for start in range(0, len(training), AT_ONCE):
        pictures, missing = _read(training, range(start, min(start + AT_ONCE, len(training))))
        unread += missing
        if pictures is not None:
            for shifted in cells(pictures, shifts=True):
                nearest = nearest.maximum((shifted @ tested.T).amax(0))
    return [key for key, like in zip(ids, (nearest >= ALIKE).tolist(), strict=True) if like], unread


def cells(images: Tensor, *, shifts: bool = False) -> list[Tensor]:
    """(B, 64) of images (B, C, H, W), as they are or at nine shifts; zeros, which are like nothing, where an image is of one grey."""
    import torch
    from torch.nn.functional import adaptive_avg_pool2d, pad

    grey = adaptive_avg_pool2d(images.mean(1, keepdim=True), SIDE)
    moved = [grey]
    if shifts:
        wider = pad(grey, (1, 1, 1, 1), mode="replicate")
        moved = [wider[:, :, top : top + SIDE, left : left + SIDE] for top in range(3) for left in range(3)]
    made = []
    for each in moved:
        small = adaptive_avg_pool2d(each, CELLS).flatten(1)
        small = small - small.mean(1, keepdim=True)
        made.append(torch.where(small.std(1, keepdim=True) > FLAT, small / small.norm(dim=1, keepdim=True).clamp(min=1e-12), 0.0))
    return made


def _read(training: LabelledImages, places: Sequence[int]) -> tuple[Tensor | None, int]:
    """(B, 1, SIDE, SIDE) what can be read of these, and how many cannot. They need not be of one size."""
    import torch
    from torch.nn.functional import adaptive_avg_pool2d

    from robustbench_lite.errors import DataError

    read = []
    for place in places:
        with suppress(DataError):  # it is counted by being absent
            read.append(adaptive_avg_pool2d(training.pictures[place].float().mean(0, keepdim=True), SIDE))
    return (torch.stack(read) if read else None), len(places) - len(read)


def _own(model: Any) -> Iterator[LabelledImages]:
    """What the model, or any member of it, says that it learnt from, as far as that can be read here."""
    from robustbench_lite.data import load_data
    from robustbench_lite.errors import RobustEvalError

    for spec in getattr(model, "learnt_from", ()):
        with suppress(RobustEvalError):  # a checkpoint from elsewhere: its data are not on this machine
            yield load_data(spec, preprocess=model.preprocess)
