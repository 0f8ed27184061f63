"""Corruptions: what one is, which parameters it has at an image size, and how it is applied to a batch at a severity."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import log
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor

from .classifier import Images
from .errors import BadSpec, DataError, UnknownName, UsageError
from .jpeg import jpeg
from .registry import CORRUPTIONS, SUITES, Spec
from .streams import Streams

Pixels = Tensor
"""(B, C, H, W) uint8."""

Settings = Mapping[int, Sequence[Any]]
"""Five parameters, for severities 1 to 5, under each image size that a benchmark was published for."""

SMALLEST = 16
"""Pixels on the shorter side, below which no published corruption means anything."""

ORIGINS = (224, 64, 32)
"""Image sizes whose parameters others are scaled from: the nearest as a ratio. Those of 224 would do nothing to an image of 28 pixels."""

TOGETHER = 2**19
"""Values of a batch that are corrupted together on a CPU: in float64 so many stay in its caches, measured to save a tenth to two fifths."""


class Corruption(Protocol):
    """What is registered as a corruption: a frozen dataclass that is called with a batch.

    `settings` has five parameters an image size. A corruption that needs colours says `colour = True` and never sees another number of
    channels than three: of a grey image it gets three equal ones. One whose parameters are lengths has `scaled(setting, factor)`, the
    setting for images that are `factor` times as large. `label` is its name in tables where that is not the registered one.
    """

    settings: ClassVar[Settings]

    def __call__(self, x: Images, setting: Any, draw: Streams) -> Tensor:
        """The images, corrupted.

        Args:
            x: (B, C, H, W) in [0, 1], whole 255ths, in float64 (float32 where the device has no other).
            setting: one of `settings`.
            draw: keyed by the seed, the sample, the corruption and the severity.

        Returns:
            (B, C, H, W) in [0, 1], values outside are clipped, and then truncated to 8 bits as the published data were; or finished uint8.
        """
        ...


@dataclass(frozen=True)
class Member:
    """A corruption as a suite has it: under the suite's name for it, with the suite's parameters.

    Args:
        name: in conditions and tables.
        corruption: what is done.
        settings: the suite's parameters; None takes the corruption's own.
        through_colour: a grey image is always treated as three equal channels whose luma is kept, also where one channel would do.
    """

    name: str
    corruption: Corruption
    settings: Settings | None = None
    through_colour: bool = False

    def setting(self, severity: int, height: int, width: int) -> Any:
        """The parameter at a severity, for images of this size.

        Raises:
            UsageError: no such severity.
            DataError: the images are too small.
        """
        if severity not in range(1, 6):
            raise UsageError(f"severity must be 1..5, got {severity}")
        side = min(height, width)
        if side < SMALLEST:
            raise DataError(
                f"{self.name}: images of {height}x{width} are too small, {SMALLEST} pixels are the least that a corruption is defined for"
            )
        known = self.settings or self.corruption.settings
        if side in known:
            return known[side][severity - 1]
        base = _origin(known, side)
        scaled = getattr(self.corruption, "scaled", lambda setting, _: setting)
        return scaled(known[base][severity - 1], side / base)

    @property
    def frost(self) -> str | None:
        """Where frost comes from: a folder of pictures, or `procedural`; None for other corruptions."""
        corruption: Any = self.corruption
        return (corruption.folder or "procedural") if hasattr(corruption, "folder") else None

    def scaled_from(self, height: int, width: int) -> int | None:
        """The image size whose parameters are scaled for this one; None where it has its own parameters."""
        known, side = self.settings or self.corruption.settings, min(height, width)
        return None if side in known else _origin(known, side)

    def __call__(self, images: Images, severity: int, draw: Streams, *, storage_jpeg: int | None = None) -> Pixels:
        """The images, rounded to 8 bits and corrupted.

        Args:
            images: (B, C, H, W) in [0, 1].
            storage_jpeg: quality of the JPEG file that they are to have gone through, as those of the published ImageNet-C have.
        """
        setting = self.setting(severity, *images.shape[2:])
        at_once = max(1, TOGETHER // images[0].numel()) if images.device.type == "cpu" else len(images)
        rows = [slice(start, start + at_once) for start in range(0, len(images), at_once)]
        pixels = torch.cat([self._corrupted(images[some], setting, draw.take(some)) for some in rows])
        return pixels if storage_jpeg is None else jpeg(pixels, storage_jpeg)

    def _corrupted(self, images: Images, setting: Any, draw: Streams) -> Pixels:
        channels = images.shape[1]
        colour = getattr(self.corruption, "colour", False)
        if colour and channels not in (1, 3):
            raise DataError(f"{self.name} needs colours, and these images have {channels} channels")
        x = exact(images)
        if channels == 1 and (colour or self.through_colour):
            return luma(levels(self.corruption(x.expand(-1, 3, -1, -1), setting, draw)))
        return levels(self.corruption(x, setting, draw))


def _origin(known: Settings, side: int) -> int:
    """The size whose parameters are scaled for images of another size."""
    return min((size for size in ORIGINS if size in known), key=lambda size: abs(log(side / size)))


def exact(images: Images) -> Images:
    """Whole 255ths in float64, which published corruptions start from; float32 where the device (MPS) has no float64."""
    whole = (images * 255).round_()
    return (whole if images.device.type == "mps" else whole.double()).div_(255)


def levels(x: Tensor) -> Pixels:
    """Images in [0, 1] as uint8, truncated as the published data were; uint8 stays as it is."""
    return x if x.dtype == torch.uint8 else x.clamp(0, 1).mul_(255).to(torch.uint8)


def luma(pixels: Pixels) -> Pixels:
    """(B, 1, H, W), the grey that Pillow makes of a colour picture."""
    red, green, blue = pixels.int().unbind(1)
    return ((19595 * red + 38470 * green + 7471 * blue + 0x8000) >> 16).to(torch.uint8)[:, None]


def draws(seed: int, member: str, severity: int, ids: Sequence[str], device: torch.device) -> Streams:
    """The draws of a corruption at a severity, for the samples with these ids."""
    return Streams(seed, f"{member}[{severity}]", [(key, 0) for key in ids], None, device)


def members(spec: str, frost: str | None = None) -> list[tuple[Member, int]]:
    """What `fog`, `fog:severity=1-3` or `imagenet-c:severity=5` asks for: corruptions, each at a severity; all five unless said otherwise.

    Args:
        frost: the folder of the frost pictures of the benchmark.

    Raises:
        UnknownName, BadSpec: no such corruption, suite or parameter.
        UsageError: a severity that is not in 1..5.
    """
    parsed = Spec.parse(spec)
    given = dict(parsed.options)
    severities = _severities(given.pop("severity", "1-5"))
    name = parsed.name
    if name in (*SUITES.names(), *SUITES.aliases):
        if given or parsed.first is not None:
            raise BadSpec(f"{name} takes severity=N or severity=N-M and nothing else")
        found = list(SUITES.get(name)())
    elif name in (*CORRUPTIONS.names(), *CORRUPTIONS.aliases):
        options = [*([parsed.first] if parsed.first is not None else []), *(f"{key}={value}" for key, value in given.items())]
        built = CORRUPTIONS.build(":".join([name, ",".join(options)]) if options else name)
        found = [Member(CORRUPTIONS.aliases.get(name, name), built)]
    else:
        raise UnknownName("corruption", name, [*SUITES.names(), *CORRUPTIONS.names()], "see `robust-eval list corruptions`")
    placed = [_with_frost(member, frost) for member in found]
    return [(member, severity) for member in placed for severity in severities]


def _with_frost(member: Member, folder: str | None) -> Member:
    corruption: Any = member.corruption
    if folder is not None and hasattr(corruption, "folder"):
        corruption = replace(corruption, folder=folder)
    return replace(member, name=getattr(corruption, "label", member.name), corruption=corruption)


def _severities(text: str) -> range:
    match = re.fullmatch(r"(-?\d{1,9})(?:-(\d{1,9}))?", text)
    if match is None:
        raise BadSpec(f"severity={text}: write a number from 1 to 5, or two with a dash between them, such as 1-5")
    first = int(match[1])
    last = int(match[2] or first)
    for severity in (first, last):
        if severity not in range(1, 6):
            raise UsageError(f"severity must be 1..5, got {severity}")
    if last < first:
        raise BadSpec(f"severity={text}: the smaller number comes first")
    return range(first, last + 1)
