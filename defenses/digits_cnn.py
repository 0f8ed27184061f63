"""A small plain convolutional network for 32 x 32 images, and the undefended checkpoint of it that is bundled for the digits.

How the checkpoint was made is in docs/training.md; it was not trained against any attack.
"""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path

from torch import nn

from robustbench_lite.checkpoints import load_into, read_state_dict
from robustbench_lite.classifier import Classifier, Preprocess
from robustbench_lite.registry import architecture, model

CHECKPOINT = Path(__file__).with_suffix(".safetensors")

MEAN, STD = (0.305,) * 3, (0.323,) * 3  # of the pixels of the 897 training images


@architecture("digits_cnn")
def untrained(classes: int, channels: int = 3) -> nn.Module:
    """Three convolutions of stride 2 with BatchNorm and ReLU, and one linear layer; 32 x 32 images, 35 thousand weights for 10 classes."""
    layers: dict[str, nn.Module] = {
        "block1": _block(channels, 16, kernel=5),
        "block2": _block(16, 32, kernel=3),
        "block3": _block(32, 64, kernel=3),
        "flatten": nn.Flatten(),
        "head": nn.Linear(64 * 4 * 4, classes),
    }
    return nn.Sequential(OrderedDict(layers))


def _block(inputs: int, outputs: int, kernel: int) -> nn.Sequential:
    layers: dict[str, nn.Module] = {
        "convolution": nn.Conv2d(inputs, outputs, kernel, stride=2, padding=kernel // 2, bias=False),
        "norm": nn.BatchNorm2d(outputs),
        "relu": nn.ReLU(),
    }
    return nn.Sequential(OrderedDict(layers))


@model("digits_cnn")
def digits_cnn() -> Classifier:
    """A 140 kB network for the bundled digits, trained without any defense; 10 classes."""
    classifier = Classifier(
        untrained(classes=10).eval(),
        mean=MEAN,
        std=STD,
        preprocess=Preprocess(size=(32, 32), resize=None),
        classes=10,
        name="digits_cnn",
        data="digits",
    )
    classifier.trained_on = ("rotate", "translate")
    load_into(classifier.model, read_state_dict(CHECKPOINT), CHECKPOINT, "digits_cnn", classes=10)
    return classifier
