"""A classifier: images in [0, 1] in, logits out. Normalisation lives in here and nowhere else."""

from __future__ import annotations

import hashlib
import inspect
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    import numpy as np
    from PIL.Image import Image

    Levels = np.ndarray[Any, np.dtype[np.float32]]
    """(H, W) grey or (H, W, 3) RGB, float32 in [0, 1]: a picture of more than 8 bits a channel."""

Images = Tensor
"""(B, C, H, W) float32 in [0, 1]."""
Logits = Tensor
"""(B, K) raw scores, before any softmax."""
Labels = Tensor
"""(B,) int64 class indices, or (B, K) float 0/1 for a multi-label model."""


def one_a_class(logits: Logits) -> Logits:
    """(B, K), of a model with one output, whose sign tells the classes 0 and 1 apart, (B, 2)."""
    return logits if logits.shape[1] > 1 else torch.cat([torch.zeros_like(logits), logits], 1)


Interpolation = Literal["nearest", "bilinear", "bicubic", "lanczos"]


@dataclass(frozen=True)
class Preprocess:
    """How a picture becomes a model's input: resized, cropped in the centre, scaled to [0, 1]; normalising is the classifier's.

    Args:
        size: height and width of the model's input; None takes pictures as they are.
        resize: length of the shorter side before the crop; None resizes nothing unless the picture has another size than `size`.
        interpolation: of the resize, Pillow's, with its antialiasing.
        channels: 3 (RGB) or 1 (grey).
    """

    size: tuple[int, int] | None = (224, 224)
    resize: int | None = 256
    interpolation: Interpolation = "bilinear"
    channels: int = 3

    def __call__(self, picture: Image) -> Tensor:
        """(C, H, W) float32 in [0, 1]; every value is a whole number of 255ths."""
        import numpy as np

        pixels = np.asarray(self._framed(picture.convert("RGB" if self.channels == 3 else "L")), dtype=np.uint8)
        pixels = pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)
        # by numpy, which starts no threads: torch would start its own in every thread that reads pictures
        return torch.from_numpy(pixels.astype(np.float32, order="C") / np.float32(255))

    def of_levels(self, levels: Levels) -> Tensor:
        """(C, H, W) float32 in [0, 1]: the same without rounding to 255ths, and clipped at the end alone.

        Bytes are clipped after each of Pillow's two passes, which differs beside hard edges where the filter has negative lobes.
        """
        import numpy as np
        from PIL import Image

        if self.channels == 1 and levels.ndim == 3:
            levels = levels @ np.array([0.299, 0.587, 0.114], dtype=np.float32)  # Pillow's grey, ITU-R 601-2
        planes = [levels] if levels.ndim == 2 else [levels[..., channel] for channel in range(3)]
        framed = [np.asarray(self._framed(Image.fromarray(np.ascontiguousarray(plane)))) for plane in planes]
        pixels = np.stack(framed * (self.channels // len(framed)))
        return torch.from_numpy(pixels).clamp(0, 1)

    def _framed(self, picture: Image) -> Image:
        """The picture, resized and cropped."""
        from PIL.Image import Resampling

        method = Resampling[self.interpolation.upper()]
        if self.resize is not None:
            width, height = picture.size
            short = min(width, height)
            # torchvision's rule, so that published accuracies hold: the longer side is truncated, not rounded
            picture = picture.resize((int(self.resize * width / short), int(self.resize * height / short)), method)
        if self.size is None:
            return picture
        height, width = self.size
        if self.resize is None and picture.size != (width, height):
            picture = picture.resize((width, height), method)
        left, top = round((picture.width - width) / 2), round((picture.height - height) / 2)
        return picture.crop((left, top, left + width, top + height))


class Classifier(nn.Module):
    """A model together with what it expects: `classifier(images)` takes images in [0, 1] and returns logits.

    Args:
        model: a module in eval mode that takes normalised images (B, C, H, W) and returns logits (B, K).
        mean, std: per channel, in [0, 1] units; the model sees `(images - mean) / std`. None: it takes [0, 1] images as they are.
        preprocess: how pictures become its input.
        classes: K; None where only a forward pass can tell.
        name: what tables call it.
        data: the data set it is evaluated on unless another is asked for; None lets the class count choose.
        differentiable: False where no gradient can be had, so that a white-box attack is refused before it starts.

    Raises:
        ModelError: the model is in training mode.
    """

    mean: Tensor | None
    std: Tensor | None

    def __init__(
        self,
        model: nn.Module,
        *,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        preprocess: Preprocess | None = None,
        classes: int | None = None,
        name: str = "model",
        data: str | None = None,
        differentiable: bool = True,
    ) -> None:
        from .errors import ModelError

        super().__init__()
        if model.training:
            raise ModelError(f"{name} is in training mode, where dropout and batch statistics change its answers: call .eval() on it first")
        self.model = model
        self.preprocess = preprocess or Preprocess(size=None, resize=None)
        self.classes, self.name, self.data, self.differentiable = classes, name, data, differentiable
        self.trained_on: tuple[str, ...] = ()  # augmentations, for a warning where a test corruption does the same
        self.stated: tuple[float, str] | None = None  # clean accuracy that it was published with, and on which data
        self.learnt_from: tuple[str, ...] = ()  # specs of its training images; those of all members of an ensemble
        self.recipe: dict[str, Any] | None = None  # what `load_model` was called with, so that a run's model can be had again
        self.allow_pickle = False  # whether it was told to trust the files that it read
        self.register_buffer("mean", None if mean is None else torch.tensor(mean, dtype=torch.float32).view(-1, 1, 1))
        self.register_buffer("std", None if std is None else torch.tensor(std, dtype=torch.float32).view(-1, 1, 1))
        self.training = False  # not .eval(): an exported program refuses it, and the model was just checked

    def forward(self, images: Images) -> Logits:
        if self.mean is not None:
            images = images - self.mean
        if self.std is not None:
            images = images / self.std
        logits: Logits = self.model(images)
        return logits

    @property
    def device(self) -> torch.device:
        """Where the model's first tensor lives."""
        tensors = [*self.parameters(), *self.buffers()]
        return tensors[0].device if tensors else torch.device("cpu")

    @property
    def digest(self) -> str:
        """SHA-256 over the weights, the layers and their settings, the normalisation and the preprocessing: where no code and no function
        that a module was given differs, equal digests answer alike."""
        described = re.sub(r" at 0x[0-9a-f]+", "", repr(self.model))  # an address is not part of what a model is
        settings = "".join(f"{path}.{key}={value!r};" for path, each in self.model.named_modules() for key, value in untold(each))
        total = hashlib.sha256(f"{described}{settings}{self.preprocess}".encode())
        # the state dict alone would miss buffers that are not saved with it
        for key, tensor in sorted((self.state_dict(keep_vars=True) | dict(self.named_buffers())).items()):
            if isinstance(tensor, Tensor):
                total.update(f"{key}{tuple(tensor.shape)}{tensor.dtype}".encode())
                total.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
        return total.hexdigest()


def untold(module: nn.Module) -> Iterator[tuple[str, Any]]:
    """What a module was made with, under the names of its constructor's arguments, where its description leaves it out and it is not the
    default. Other attributes may be of the last call, and a digest of them would change."""
    if isinstance(module, Classifier):  # its name and the like are no part of what it answers
        return
    defaults: dict[str, Any] = {}
    for kind in type(module).__mro__:
        if "__init__" in vars(kind):
            defaults = {key: each.default for key, each in inspect.signature(kind).parameters.items()} | defaults
        if kind.__module__.startswith("torch."):  # what these hand down to their own bases is part of their type
            break
    for key, value in sorted(vars(module).items()):
        if key in defaults and _is_plain(value) and value != defaults[key] and not _tells(module, key, value):
            yield key, value


def _is_plain(value: Any) -> bool:
    """Whether a value is written alike in every process."""
    return isinstance(value, (int, float, str)) or value is None or (isinstance(value, (tuple, list)) and all(map(_is_plain, value)))


def _tells(module: nn.Module, key: str, value: Any) -> bool:
    """Whether a module of another value would be described otherwise."""
    other = not value if isinstance(value, bool) else (*value, "") if isinstance(value, (tuple, list)) else f"{value}0"
    twin = object.__new__(type(module))
    twin.__dict__.update(vars(module) | {key: other})
    try:
        return twin.extra_repr() != module.extra_repr()
    except Exception:  # it reads the value, and makes nothing of another kind
        return True
