"""Style as statistics of features: adaptive instance normalisation (Huang & Belongie, ICCV 2017, https://arxiv.org/abs/1703.06868).

The encoder is VGG-19 up to relu4_1, the decoder its mirror image. Both are built here, and their weights are the user's.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from .checkpoints import read_state_dict
from .classifier import Images
from .errors import ModelError

EPS = 1e-5
"""Added to every variance, as in the authors' code: a channel without any variation is not divided by 0."""

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Normalisation that torchvision's weights want."""

WIDTHS: tuple[tuple[int, ...], ...] = ((64, 64), (128, 128), (256, 256, 256, 256), (512,))
"""Channels of VGG-19's convolutions up to conv4_1; between the groups, height and width are halved."""

SMALLEST = 16
"""Height and width below which relu4_1 has less than 2 x 2 places, and no standard deviation."""

Padding = Literal["reflect", "zeros"]


def moments(features: Tensor) -> tuple[Tensor, Tensor]:
    """(B, C, 1, 1) mean and standard deviation of every channel over its places, the latter unbiased and with EPS."""
    variance, mean = torch.var_mean(features, (2, 3), keepdim=True)
    return mean, (variance + EPS).sqrt()


def adain(features: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """(B, C, H, W) features whose channels have been given these moments (B, C, 1, 1), equation 8."""
    own_mean, own_std = moments(features)
    return std * (features - own_mean) / own_std + mean


class Encoder(nn.Module):
    """Images (B, 3, H, W) in [0, 1] to the features (B, 512, H/8, W/8) of relu4_1, sizes rounded up.

    Args:
        padding: of every convolution; `zeros` is that of the network that was trained on ImageNet, `reflect` leaves no frame in pictures.
    """

    def __init__(self, padding: Padding = "reflect") -> None:
        super().__init__()
        self.colours = nn.Conv2d(3, 3, 1)
        layers: list[nn.Module] = []
        channels = 3
        for group in WIDTHS:
            if layers:
                layers.append(nn.MaxPool2d(2, ceil_mode=True))
            for width in group:
                layers += [nn.Conv2d(channels, width, 3, padding=1, padding_mode=padding), nn.ReLU()]
                channels = width
        self.layers = nn.Sequential(*layers)

    def forward(self, images: Images) -> Tensor:
        features: Tensor = self.layers(self.colours(images))
        return features


class Decoder(nn.Module):
    """Features (B, 512, H/8, W/8) to pictures (B, 3, H, W), which may leave [0, 1]."""

    def __init__(self) -> None:
        super().__init__()
        widths = [width for group in WIDTHS for width in group]
        after = {sum(map(len, WIDTHS[index:])) for index in range(1, len(WIDTHS))}  # convolutions before each doubling of the size
        layers: list[nn.Module] = []
        for number, (channels, width) in enumerate(zip(widths[::-1], [*widths[-2::-1], 3], strict=True), 1):
            layers += [nn.Conv2d(channels, width, 3, padding=1, padding_mode="reflect"), nn.ReLU()]
            if number in after:
                layers.append(nn.Upsample(scale_factor=2))
        self.layers = nn.Sequential(*layers[:-1])  # a picture is not rectified

    def forward(self, features: Tensor) -> Images:
        pictures: Images = self.layers(features)
        return pictures


def read_encoder(file: str | Path) -> Encoder:
    """The encoder with the weights of a file: torchvision's `vgg19` state dict, or VGG-19 that begins with a 1 x 1 convolution of the
    colours in place of torchvision's normalisation, as AdaIN's authors have it. What lies beyond conv4_1 is left out.

    Raises:
        ModelError: the file cannot be read, or holds no such network.
    """
    found, encoder = _convolutions(file), Encoder()
    if found[0][1].shape[2:] == (1, 1):
        _fill([encoder.colours], found[:1], file, "VGG-19")
        found = found[1:]
    else:
        with torch.no_grad():
            encoder.colours.weight.copy_(torch.diag(1 / torch.tensor(STD))[:, :, None, None])
            encoder.colours.bias.copy_(-torch.tensor(MEAN) / torch.tensor(STD))  # type: ignore[union-attr]  # it has one
    _fill(_layers(encoder), found, file, "VGG-19")
    return encoder.eval().requires_grad_(False)


def read_decoder(file: str | Path) -> Decoder:
    """The decoder with the weights of a file, whose convolutions are taken in the order of the numbers in their names.

    Raises:
        ModelError: the file cannot be read, or holds no such network.
    """
    found, decoder = _convolutions(file), Decoder()
    wanted = _layers(decoder)
    if len(found) > len(wanted):
        raise ModelError(f"{file} does not fit the decoder: it has {len(found)} convolutions, and the mirror image of VGG-19 {len(wanted)}")
    _fill(wanted, found, file, "the decoder")
    return decoder.eval().requires_grad_(False)


Weights = tuple[str, Tensor, Tensor]
"""The name of a convolution, its weight and its bias."""


def _convolutions(file: str | Path) -> list[Weights]:
    tensors = read_state_dict(file)
    if any(name.endswith("running_mean") for name in tensors):
        raise ModelError(f"{file} holds a network with batch normalisation: save VGG-19 without it, torchvision's vgg19 and not vgg19_bn")
    weights = {name: tensor for name, tensor in tensors.items() if name.endswith("weight") and tensor.dim() == 4}
    names = sorted(weights, key=lambda name: [int(part) for part in re.findall(r"\d+", name)])
    missing = [name for name in names if _bias(name) not in tensors]
    if not names or missing:
        raise ModelError(
            f"{file} holds no VGG-19 or decoder of one: {f'{missing[0]} has no bias' if missing else 'it has no convolutions'}"
        )
    return [(name, weights[name], tensors[_bias(name)]) for name in names]


def _bias(name: str) -> str:
    return f"{name.removesuffix('weight')}bias"


def _layers(network: nn.Module) -> list[nn.Conv2d]:
    return [layer for layer in network.get_submodule("layers").modules() if isinstance(layer, nn.Conv2d)]


def _fill(layers: Sequence[nn.Conv2d], found: Sequence[Weights], file: str | Path, what: str) -> None:
    """Copy weights in their order.

    Raises:
        ModelError: too few, of another shape, or no numbers.
    """
    if len(found) < len(layers):
        raise ModelError(f"{file} does not fit {what}: it has {len(found)} convolutions of the {len(layers)} that are needed")
    for layer, (name, weight, bias) in zip(layers, found, strict=False):
        if weight.shape != layer.weight.shape or len(bias) != layer.out_channels:
            raise ModelError(f"{file} does not fit {what}: {name} is {tuple(weight.shape)}, where {tuple(layer.weight.shape)} is needed")
        if not bool(weight.isfinite().all() and bias.isfinite().all()):
            raise ModelError(f"{file} is of no use: {name} holds NaN or infinity")
        with torch.no_grad():
            layer.weight.copy_(weight)
            layer.bias.copy_(bias)  # type: ignore[union-attr]  # every layer here has one
