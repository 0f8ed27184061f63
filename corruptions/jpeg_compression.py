"""JPEG compression (Hendrycks and Dietterich, ICLR 2019, https://arxiv.org/abs/1903.12261)."""

from dataclasses import dataclass

import torch
from torch import Tensor

from robustbench_lite.classifier import Images
from robustbench_lite.jpeg import jpeg
from robustbench_lite.registry import corruption
from robustbench_lite.streams import Streams


@corruption("jpeg_compression", "jpeg")
@dataclass(frozen=True)
class JPEGCompression:
    """Store the image as a JPEG file and read it back; the setting is the quality, 1 to 100. Grey images become greyscale files."""

    settings = {
        32: (80, 65, 58, 50, 40),
        64: (65, 58, 50, 40, 25),
        224: (25, 18, 15, 10, 7),
        299: (23, 16, 13, 8, 5),
    }

    def __call__(self, x: Images, setting: int, draw: Streams) -> Tensor:
        return jpeg((x * 255).round().to(torch.uint8), setting)
