"""Measures that are not accuracies."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from .classifier import Images


def ssim(x: Images, y: Images) -> Tensor:
    """(B,) structural similarity of images in [0, 1] (Wang et al., IEEE TIP 2004, https://doi.org/10.1109/TIP.2003.819861).

    Gaussian windows of 11 pixels and sigma 1.5, population covariances, the mean over windows that lie inside the image and over channels,
    as in the paper. An image smaller than a window is one window.
    """
    channels, size = x.shape[1], min(11, *x.shape[2:])
    place = torch.arange(size, device=x.device, dtype=x.dtype) - (size - 1) / 2
    bell = torch.exp(-(place**2) / (2 * 1.5**2))
    window = (bell[:, None] * bell / bell.sum() ** 2).expand(channels, 1, size, size)

    def mean(values: Images) -> Images:
        return functional.conv2d(values, window, groups=channels)

    c1, c2 = 0.01**2, 0.03**2  # the paper's constants for values in [0, 1]
    mean_x, mean_y = mean(x), mean(y)
    var_x, var_y, both = mean(x * x) - mean_x**2, mean(y * y) - mean_y**2, mean(x * y) - mean_x * mean_y
    similarity = (2 * mean_x * mean_y + c1) * (2 * both + c2) / ((mean_x**2 + mean_y**2 + c1) * (var_x + var_y + c2))
    return similarity.flatten(1).mean(1)
