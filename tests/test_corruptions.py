"""The contract, over every registered corruption and suite: what it makes hangs on the image, the seed and the severity alone."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from replayed import photograph

from robustbench_lite.corrupting import SMALLEST, Member, draws, members
from robustbench_lite.errors import BadSpec, DataError, UnknownName, UsageError
from robustbench_lite.registry import CORRUPTIONS, SUITES

CPU = torch.device("cpu")
NAMES = CORRUPTIONS.names()
SUITE_NAMES = SUITES.names()


def member(name: str) -> Member:
    return Member(name, CORRUPTIONS.build(name))


def made(name: str, images: torch.Tensor, ids: list[str], severity: int = 3, seed: int = 0) -> torch.Tensor:
    return member(name)(images, severity, draws(seed, name, severity, ids, CPU))


def pictures(count: int, size: int = 32, channels: int = 3) -> torch.Tensor:
    """A photograph in different light, with white and black areas where truncation is delicate."""
    one = photograph(32)
    one = torch.nn.functional.interpolate(one, size=(size, size)) if size != 32 else one
    several = torch.stack([(one[0] * (0.5 + k / count)).clamp(0, 1) for k in range(count)])
    several[:, :, : size // 4, : size // 4] = 1
    several[-1] = 1
    return (several if channels == 3 else several[:, :channels]).contiguous()


def _numpy_state() -> str:
    return repr(np.random.get_state())  # noqa: NPY002 - what must be left alone


@pytest.mark.parametrize("name", NAMES)
def test_an_image_is_the_same_in_every_batch_and_order(name: str) -> None:
    images, ids = pictures(64), [str(k) for k in range(64)]
    whole = made(name, images, ids)
    assert whole.dtype == torch.uint8
    assert whole.shape == images.shape
    for row in (0, 5, 63):
        assert torch.equal(made(name, images[row : row + 1], ids[row : row + 1]), whole[row : row + 1]), row
    seven = [9, 3, 50, 63, 1, 0, 2]
    assert torch.equal(made(name, images[seven], [ids[k] for k in seven]), whole[seven])


@pytest.mark.parametrize("name", NAMES)
def test_nothing_given_is_changed_and_random_state_is_left_alone(name: str) -> None:
    images = pictures(2)
    before, torch_state, numpy_state = images.clone(), torch.get_rng_state(), _numpy_state()
    made(name, images, ["a", "b"])
    assert torch.equal(images, before)
    assert torch.equal(torch.get_rng_state(), torch_state)
    assert _numpy_state() == numpy_state


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("shape", [(SMALLEST, SMALLEST), (28, 28), (17, 45), (96, 72), (224, 224)])
@pytest.mark.parametrize("name", NAMES)
def test_any_size_any_severity_grey_or_in_colour(name: str, shape: tuple[int, int], channels: int) -> None:
    image = torch.nn.functional.interpolate(photograph(32), size=shape, mode="bilinear")[:, :channels]
    for severity in (1, 5):
        out = made(name, image, ["a"], severity)
        assert out.shape == image.shape
        assert out.dtype == torch.uint8


@pytest.mark.parametrize("size", [28, 32, 48, 96, 160])
@pytest.mark.parametrize("name", NAMES)
def test_every_severity_does_something(name: str, size: int) -> None:
    image = torch.nn.functional.interpolate(photograph(224), size=(size, size), mode="area")
    clean = (image * 255).round().to(torch.uint8)
    for severity in range(1, 6):
        assert not torch.equal(made(name, image, ["a"], severity), clean), severity


@pytest.mark.parametrize("size", [16, 28, 48, 100, 180])
@pytest.mark.parametrize("suite", SUITE_NAMES)
def test_no_severity_of_a_suite_is_next_to_nothing(suite: str, size: int) -> None:
    """A grey level on average is what truncation does: the accuracy would be that on clean images."""
    image = torch.nn.functional.interpolate(photograph(224), size=(size, size), mode="area").expand(4, -1, -1, -1)
    clean = (image * 255).round()
    for m, severity in members(suite):
        change = m(image, severity, draws(0, m.name, severity, list("abcd"), CPU)) - clean
        assert change.square().mean().sqrt() > 1, (m.name, severity)


@pytest.mark.parametrize(
    ("suite", "name"), [("medmnist-c-retina", "retina/defocus_blur"), ("medmnist-c-pneumonia", "pneumonia/gaussian_blur")]
)
@pytest.mark.parametrize("size", [28, 64, 128])
def test_severities_of_small_medical_images_differ(suite: str, name: str, size: int) -> None:
    image = torch.nn.functional.interpolate(photograph(224), size=(size, size), mode="area")
    (blur,) = {m.name: m for m, _ in members(suite) if m.name == name}.values()
    changes = [
        (blur(image, severity, draws(0, name, severity, ["a"], CPU)) - (image * 255).round()).square().mean().item()
        for severity in range(1, 6)
    ]
    assert len(set(changes)) >= 4  # of disks, two may cover the same pixels
    assert changes == sorted(changes)


@pytest.mark.parametrize("name", NAMES)
def test_settings_are_five_a_size(name: str) -> None:
    settings = CORRUPTIONS.build(name).settings
    assert set(settings) <= {32, 64, 224, 299}
    assert all(len(five) == 5 for five in settings.values())


@pytest.mark.parametrize("name", [name for name in NAMES if name in dict.fromkeys(m.name for m, _ in members("all"))])
def test_the_benchmark_has_its_four_sizes(name: str) -> None:
    assert {32, 64, 224, 299} <= set(CORRUPTIONS.build(name).settings)


def test_draws_hang_on_seed_sample_and_severity() -> None:
    image = photograph(32)
    first = made("gaussian_noise", image, ["a"])
    assert torch.equal(first, made("gaussian_noise", image, ["a"]))
    assert not torch.equal(first, made("gaussian_noise", image, ["b"]))
    assert not torch.equal(first, made("gaussian_noise", image, ["a"], seed=1))


def test_float_images_are_rounded_to_8_bits_before() -> None:
    image = photograph(32)
    off = (image + 0.4 / 255).clamp(0, 1)
    for name in ("gaussian_noise", "contrast", "jpeg_compression"):
        assert torch.equal(made(name, image, ["a"]), made(name, off, ["a"]))


@pytest.mark.parametrize("suite", SUITE_NAMES)
def test_suites_run(suite: str) -> None:
    found = members(f"{suite}:severity=2")
    assert len({m.name for m, _ in found}) == len(found)
    for m, severity in found:
        out = m(photograph(32), severity, draws(0, m.name, severity, ["a"], CPU))
        assert out.dtype == torch.uint8


def test_suites_hold_what_was_published() -> None:
    counts = {name: len(members(f"{name}:severity=1")) for name in ("imagenet-c", "cifar-c", "all", "extra", "c-bar", "cifar-c-bar")}
    assert counts == {"imagenet-c": 15, "cifar-c": 15, "all": 19, "extra": 4, "c-bar": 10, "cifar-c-bar": 10}


def test_specs() -> None:
    assert [severity for _, severity in members("fog")] == [1, 2, 3, 4, 5]
    assert [severity for _, severity in members("fog:severity=2-3")] == [2, 3]
    assert [(m.name, severity) for m, severity in members("fog:severity=5")] == [("fog", 5)]
    for spec in ("fog:severity=0", "fog:severity=6", "imagenet-c:severity=2-7", "fog:severity=-1"):
        with pytest.raises(UsageError, match=r"severity must be 1\.\.5, got"):
            members(spec)
    for spec in ("fog:severity=x", "fog:severity=3-2", "imagenet-c:colour=blue", "fog:colour=blue"):
        with pytest.raises(BadSpec):
            members(spec)
    with pytest.raises(UnknownName, match="did you mean 'fog'"):
        members("frog")


def test_too_small_is_one_clear_line() -> None:
    with pytest.raises(DataError, match=r"fog: images of 15x40 are too small, 16 pixels are the least"):
        made("fog", torch.zeros(1, 3, 15, 40), ["a"])


def test_colours_need_three_channels() -> None:
    with pytest.raises(DataError, match="snow needs colours, and these images have 4 channels"):
        made("snow", torch.zeros(1, 4, 32, 32), ["a"])


def test_jpeg_storage_is_applied_last() -> None:
    from robustbench_lite.jpeg import jpeg

    image = photograph(32)
    draw = draws(0, "fog", 3, ["a"], CPU)
    plain = member("fog")(image, 3, draw)
    assert torch.equal(member("fog")(image, 3, draw, storage_jpeg=85), jpeg(plain, 85))


def test_other_sizes_scale_from_the_nearest() -> None:
    blur = member("gaussian_blur")
    assert blur.setting(1, 168, 200) == pytest.approx(0.75)
    assert (blur.scaled_from(168, 200), blur.scaled_from(1000, 600), blur.scaled_from(300, 300)) == (224, 224, 224)
    assert (blur.scaled_from(28, 28), blur.scaled_from(48, 48), blur.scaled_from(96, 96)) == (32, 64, 64)
    assert blur.scaled_from(32, 40) is None
    assert blur.setting(1, 32, 40) == 0.4
