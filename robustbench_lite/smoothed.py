"""Votes of a classifier under Gaussian noise, and the ball that they prove (Cohen, Rosenfeld, Kolter, ICML 2019,
https://arxiv.org/abs/1902.02918).

The smoothed classifier g answers with the class that the classifier f gives most often to x + N(0, sigma^2 I). Where that class has a
probability p > 1/2, g answers the same within sigma * Phi^-1(p) of x in l2, whatever f is (theorem 1).
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from torch import Tensor

from .classifier import Classifier, Images, Logits, one_a_class
from .stats import clopper_pearson
from .streams import Streams, generator

UNCLEAR = 1e-4
"""Of an answer's largest logit: classes that are nearer than this could change places by how many images share a pass."""

ASKED_AGAIN = 4
"""How often a classifier is asked the same again, to see whether it draws numbers of its own."""


def votes(classifier: Classifier, images: Images, sigma: float, count: int, draw: Streams, stream: str, *, batch: int) -> Tensor:
    """(B, K) int64, how often each image is given each class under noise; an answer that is not finite is no vote.

    The noise of an image hangs on its keys and the stream alone, and so do its counts: neither on the other images nor on `batch`.

    Args:
        classifier: in eval mode, and not random itself.
        sigma: standard deviation of the noise, in units of a pixel's full range.
        count: noisy versions of every image.
        draw: one row an image.
        batch: noisy versions in one pass.
    """
    counts = []
    with torch.no_grad(), ThreadPoolExecutor(1) as ahead:
        for image, seed in zip(images, draw.seeds(stream), strict=True):
            # not clipped to [0, 1]: a classifier is trained on such noise as it is, and one with a clip before it would be another
            noisy = (noise.to(image).mul_(sigma).add_(image) for noise in _noise(seed, image.shape, count, batch, ahead))
            counts.append(torch.stack([_counted(classifier, part) for part in noisy]).sum(0))
    return torch.stack(counts)


def share_at_least(count: int, n: int, alpha: float) -> float:
    """A lower bound on a class's probability from `count` of n votes, exceeded by it with a probability of at least 1 - alpha."""
    return clopper_pearson(count, n, alpha)[0]


def certified_radius(share: float, sigma: float) -> float:
    """The l2 radius within which a class of at least this probability wins, 0 where it need not win at all."""
    from scipy.special import ndtri

    return float(sigma * ndtri(share)) if share > 0.5 else 0.0


def draws_itself(classifier: Classifier, images: Images) -> bool:
    """Whether a classifier answers otherwise to any of these images when it is asked again. Draws that a whole pass shares are not
    independent, and their counts prove nothing."""
    with torch.no_grad():
        first, *others = (classifier(images) for _ in range(1 + ASKED_AGAIN))
    return not all(_alike(first, other, 1e-5) for other in others)


def mixes_images(classifier: Classifier, images: Images) -> bool:
    """Whether an image is answered otherwise in company than alone, so that draws that share a pass are not independent."""
    with torch.no_grad():
        alone = torch.cat([classifier(images[row : row + 1]) for row in range(len(images))])
        return not _alike(alone, classifier(images), UNCLEAR)


def _alike(logits: Logits, others: Logits, share: float) -> bool:
    """Whether no logit differs by more than this share of the largest one of its image, or of a tenth of the largest one of all: what is
    left where large numbers cancel out is rounded as they are."""
    size = logits.abs().where(logits.isfinite(), 0).amax(1, keepdim=True)
    size = size.clamp(min=max(float(size.amax()) / 10, 1e-30))
    return torch.allclose(logits / size, others / size, rtol=0, atol=share, equal_nan=True)


def _noise(seed: int, shape: torch.Size, count: int, batch: int, ahead: ThreadPoolExecutor) -> Iterator[Tensor]:
    """Parts (at most `batch`, C, H, W) of one sequence of standard normal values; the next is drawn while one is used."""
    drawn = generator(seed, "noise")
    sizes = [min(batch, count - done) for done in range(0, count, batch)]

    def part(size: int) -> Tensor:
        return torch.from_numpy(drawn.standard_normal((size, *shape), np.float32))

    waiting = ahead.submit(part, sizes[0])
    for size in [*sizes[1:], 0]:
        ready = waiting.result()
        waiting = ahead.submit(part, size)
        yield ready


def _counted(classifier: Classifier, noisy: Images) -> Tensor:
    """(K,) how many of the images are given each class."""
    logits: Logits = one_a_class(classifier(noisy)).float()
    top = logits.topk(2, 1).values
    unclear = (top[:, 0] - top[:, 1] <= UNCLEAR * logits.abs().amax(1)) & (len(noisy) > 1)
    for row in unclear.nonzero()[:, 0].tolist():
        logits[row] = one_a_class(classifier(noisy[row : row + 1]))[0]
    return torch.bincount(logits.argmax(1)[logits.isfinite().all(1)], minlength=logits.shape[1])
