"""Brightness, contrast, saturation, pixelation, JPEG and MedMNIST-C against what they were published with."""

import importlib
import io

import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance
from replayed import differences, photograph
from skimage.color import hsv2rgb, rgb2hsv
from torch import Tensor
from torchvision.transforms.functional import adjust_gamma, gaussian_blur

from robustbench_lite.corrupting import Member, draws
from robustbench_lite.errors import DataError
from robustbench_lite.hsv import to_hsv, to_rgb
from robustbench_lite.jpeg import by_integers, by_pillow, jpeg
from robustbench_lite.registry import CORRUPTIONS, SUITES

pixelate = importlib.import_module("robustbench_lite.corruptions.pixelate")

EXACT = ("brightness", "contrast", "saturate", "pixelate", "jpeg_compression")
MEDICAL = ("exposure", "tonal_contrast", "gamma", "kernel_blur", "black_corner")
SIZES = [(28, 28), (33, 33), (17, 45), (100, 100), (299, 299), (96, 72), (20, 50), (16, 16), (16, 23), (31, 47)]
QUALITIES = [1, 2, 3, 5, 7, 10, 15, 18, 25, 30, 40, 49, 50, 51, 60, 75, 85, 90, 95, 100]


def pictures(height: int, width: int) -> Tensor:
    """(3, 3, H, W) uint8: a photograph, noise, and black and white at random."""
    levels = (photograph(224)[0] * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()
    photo = torch.from_numpy(np.array(Image.fromarray(levels).resize((width, height)))).permute(2, 0, 1)
    random = torch.Generator().manual_seed(height * width)
    noise = torch.randint(0, 256, (3, height, width), generator=random, dtype=torch.uint8)
    return torch.stack([photo, noise, (noise > 127).to(torch.uint8) * 255])


def applied(name: str, images: Tensor, severity: int) -> Tensor:
    keys = [str(row) for row in range(len(images))]
    return Member(name, CORRUPTIONS.build(name))(images, severity, draws(0, name, severity, keys, images.device))


@pytest.mark.parametrize("size", [224, 32])
@pytest.mark.parametrize("name", EXACT)
def test_the_published_function_gives_the_same_bytes(name: str, size: int) -> None:
    for severity in range(1, 6):
        assert differences(size, name, severity, applied(name, photograph(size), severity)) == (0, 0.0)


@pytest.mark.parametrize("name", [*EXACT, *MEDICAL])
def test_batch_and_order_change_nothing(name: str) -> None:
    images = torch.cat([pictures(30, 26).float() / 255, torch.full((2, 3, 30, 26), 1.0), torch.full((2, 3, 30, 26), 77 / 255)])
    images = images.repeat(10, 1, 1, 1)[:64]
    together = applied(name, images, 2)
    assert torch.equal(together, torch.cat([applied(name, part, 2) for part in images.split(7)]))
    assert torch.equal(together, torch.cat([applied(name, image[None], 2) for image in images]))
    assert torch.equal(together.flip(0), applied(name, images.flip(0), 2))


@pytest.mark.parametrize("name", [*EXACT, *MEDICAL])
def test_grey_images_stay_grey_and_arguments_as_they_were(name: str) -> None:
    grey = pictures(20, 34)[:, :1].float() / 255
    before = grey.clone()
    out = applied(name, grey, 4)
    assert out.shape == grey.shape
    assert out.dtype == torch.uint8
    assert torch.equal(grey, before)
    assert not torch.equal(out, (grey * 255).round().to(torch.uint8))


def test_hsv_is_that_of_scikit_image_to_the_last_bit() -> None:
    x = torch.cat([pictures(48, 40).double() / 255, torch.linspace(0, 1, 48).double().expand(1, 3, 40, 48).mT])
    mine = torch.stack(to_hsv(x), -1)
    reference = rgb2hsv(x.numpy(), channel_axis=1)
    assert np.array_equal(mine.numpy(), reference.transpose(0, 2, 3, 1))
    back = to_rgb(*mine.unbind(-1))
    assert np.array_equal(back.numpy(), hsv2rgb(reference, channel_axis=1))


def test_a_constant_image_keeps_its_level_under_contrast() -> None:
    levels = torch.arange(256).view(256, 1, 1, 1).expand(-1, 1, 20, 27).to(torch.uint8)
    assert torch.equal(applied("contrast", levels / 255, 5), levels)


@pytest.mark.parametrize(("height", "width"), SIZES)
def test_jpeg_by_integers_is_pillows_to_the_byte(height: int, width: int) -> None:
    colour = pictures(height, width)[: 1 if height == 299 else 3]
    for quality in QUALITIES:
        for pixels in (colour, colour[:, :1]):
            assert torch.equal(by_integers(pixels, quality), by_pillow(pixels, quality)), quality


def test_storage_in_the_published_files_is_the_same_jpeg() -> None:
    pixels = pictures(64, 50)
    for image, stored in zip(pixels, jpeg(pixels, 85), strict=True):
        file = io.BytesIO()
        Image.fromarray(image.permute(1, 2, 0).contiguous().numpy()).save(file, "JPEG", quality=85, optimize=True)
        assert np.array_equal(np.asarray(Image.open(file)), stored.permute(1, 2, 0).numpy())


def test_jpeg_refuses_what_no_file_holds() -> None:
    with pytest.raises(DataError, match="1 or 3 channels, and these images have 2"):
        jpeg(torch.zeros(1, 2, 16, 16, dtype=torch.uint8), 50)


@pytest.mark.parametrize(("height", "width"), SIZES)
def test_pixelate_by_integers_is_pillows_to_the_byte(height: int, width: int) -> None:
    pixels = pictures(height, width)
    for share in (0.95, 0.9, 0.85, 0.8, 0.75, 0.7, 0.65, 0.6, 0.5, 0.4, 0.35, 0.3, 0.25, 0.2):
        mine = pixelate.by_integers(pixels, share)
        assert torch.equal(mine, pixelate.by_pillow(pixels, share)), share
        picture = Image.fromarray(pixels[0].permute(1, 2, 0).contiguous().numpy())
        small = picture.resize((int(width * share), int(height * share)), Image.Resampling.BOX)
        boxed = np.asarray(small.resize((width, height), Image.Resampling.BOX))
        assert np.array_equal(boxed, mine[0].permute(1, 2, 0).numpy())


def test_medical_suites_have_the_published_lists() -> None:
    sizes = {name: len(SUITES.get(f"medmnist-c-{name}")()) for name in ("pneumonia", "retina", "derma")}
    assert sizes == {"pneumonia": 13, "retina": 8, "derma": 14}
    for name in sizes:
        for member in SUITES.get(f"medmnist-c-{name}")():
            assert member.name.startswith(f"{name}/")
            assert member.through_colour == (name == "pneumonia")
            assert len({str(member.setting(severity, 224, 224)) for severity in range(1, 6)}) == 5


def medical(picture: Image.Image, name: str, setting: float) -> np.ndarray:
    """What the published functions call."""
    kind = name.removesuffix("_up").removesuffix("_down")
    if kind == "brightness":
        return np.asarray(ImageEnhance.Brightness(picture).enhance(setting))
    if kind == "contrast":
        return np.asarray(ImageEnhance.Contrast(picture).enhance(setting))
    if kind == "gamma_corr":
        return np.asarray(adjust_gamma(picture, setting))
    return np.asarray(gaussian_blur(picture, int(setting)))


@pytest.mark.parametrize("suite", ["pneumonia", "retina", "derma"])
def test_medical_corruptions_are_those_of_pillow_and_torchvision(suite: str) -> None:
    pixels = pictures(60, 44)
    covered = 0
    for member in SUITES.get(f"medmnist-c-{suite}")():
        name = member.name.partition("/")[2]
        if not name.startswith(("brightness", "contrast", "gamma", "gaussian_blur")):
            continue
        covered += 1
        for severity in range(1, 6):
            setting = member.settings[224][severity - 1]
            mine = levels_of(member, pixels, setting)
            for image, own in zip(pixels, mine, strict=True):
                theirs = medical(Image.fromarray(image.permute(1, 2, 0).contiguous().numpy()), name, setting)
                apart = np.abs(theirs.astype(int) - own.permute(1, 2, 0).numpy())
                if name == "gaussian_blur":  # theirs adds in float32
                    assert apart.max() <= 1, severity
                    assert (apart > 0).mean() < 1e-3, severity
                else:
                    assert apart.max() == 0, (name, severity)
    assert covered == {"pneumonia": 7, "retina": 2, "derma": 4}[suite]


def levels_of(member: Member, pixels: Tensor, setting: float) -> Tensor:
    return member.corruption(pixels.double() / 255, setting, draws(0, member.name, 1, ["a"] * len(pixels), pixels.device))


def test_grey_x_rays_are_corrupted_as_colour_images() -> None:
    (member,) = (member for member in SUITES.get("medmnist-c-pneumonia")() if member.name == "pneumonia/gaussian_noise")
    grey = torch.full((8, 1, 64, 64), 0.5)
    noisy = member(grey, 5, draws(0, member.name, 5, list("abcdefgh"), grey.device)).double() / 255
    independent = 0.08 * (0.299**2 + 0.587**2 + 0.114**2) ** 0.5  # luma of three independent draws
    assert noisy.std().item() == pytest.approx(independent, rel=0.02)


@pytest.mark.parametrize(("height", "width"), [(224, 224), (28, 41), (33, 32)])
def test_black_corner_keeps_the_disc_and_nothing_else(height: int, width: int) -> None:
    white = torch.ones(1, 1, height, width)
    for severity, share in enumerate((1.10, 1.05, 1.00, 0.90, 0.95), 1):
        radius = int(min(height // 2, width // 2) * share)
        kept = applied("black_corner", white, severity)[0, 0] == 255
        disc = [[(y - height // 2) ** 2 + (x - width // 2) ** 2 <= radius**2 for x in range(width)] for y in range(height)]
        assert torch.equal(kept, torch.tensor(disc))
