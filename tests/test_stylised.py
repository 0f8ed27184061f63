"""Style: AdaIN by its formula and against torchvision's network, repainting in closed form, and what is refused."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from shutil import copytree
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as some
from PIL import Image
from robustbench_lite.defenses.adain import Studio, Stylised, paintings
from robustbench_lite.defenses.mixing import partnered
from robustbench_lite.defenses.states import keep_state, kept_state
from robustbench_lite.defenses.style_statistics import StyleStatistics, with_amplitude, with_moments
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.functional import conv2d, interpolate, max_pool2d, pad
from torchvision.models.vgg import cfgs, make_layers
from training_fixture import digits, made, training

from robustbench_lite.data import load_data
from robustbench_lite.defending import About, Batch, Defenses
from robustbench_lite.errors import BadSpec, DataError, ModelError, RobustEvalError, RunMismatch, UsageError
from robustbench_lite.overlap import overlaps
from robustbench_lite.registry import DEFENSES
from robustbench_lite.streams import Streams
from robustbench_lite.style import EPS, MEAN, STD, WIDTHS, Encoder, adain, moments, read_decoder, read_encoder

CPU = torch.device("cpu")
CHANNELS = [width for group in WIDTHS for width in group]
AUTHORS = (0, 2, 5, 9, 12, 16, 19, 22, 25, 29)
"""Numbers of the convolutions in the authors' encoder, paddings and poolings between them."""
BACK = (1, 5, 8, 11, 14, 18, 21, 25, 28)
"""Of those in their decoder."""


def streams(count: int, epoch: int = 0) -> Streams:
    return Streams(0, "training", [(str(k), epoch) for k in range(count)], None, CPU)


def noise(count: int, channels: int = 3, side: int = 32, seed: int = 0) -> Tensor:
    return torch.rand(count, channels, side, side, generator=torch.Generator().manual_seed(seed))


def batch_of(images: Tensor) -> Batch:
    return Batch(images, torch.eye(4)[torch.arange(len(images)) % 4])


def about(channels: int = 3, side: int = 32) -> About:
    return About((5, 5, 5, 5), {}, CPU, (channels, side, side))


def passing(widths: list[int], numbers: tuple[int, ...]) -> dict[str, Tensor]:
    """Convolutions that hand on the first three channels as they are, and nothing else."""
    tensors: dict[str, Tensor] = {}
    for number, (before, after) in zip(numbers, pairwise(widths), strict=True):
        weight = torch.zeros(after, before, 3, 3)
        weight[torch.arange(3), torch.arange(3), 1, 1] = 1
        tensors |= {f"{number}.weight": weight, f"{number}.bias": torch.zeros(after)}
    return tensors


@pytest.fixture(scope="module")
def atelier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights that hand on colours, so that an image is repainted in closed form, and three smooth paintings."""
    folder = tmp_path_factory.mktemp("atelier")
    colours = {"0.weight": torch.eye(3)[:, :, None, None], "0.bias": torch.zeros(3)}
    torch.save(colours | passing([3, *CHANNELS], AUTHORS[1:]), folder / "encoder.pth")
    save_file(passing([*CHANNELS[::-1], 3], BACK), folder / "decoder.safetensors")
    (folder / "paintings" / "old").mkdir(parents=True)
    ramp = np.linspace(0, 255, 64)
    for number, name in enumerate(("a.png", "b.jpg", "old/c.png")):
        pixels = np.stack([np.add.outer(ramp, ramp) / 2, np.subtract.outer(ramp, ramp) / 2 + 128, ramp[:, None] + 0 * ramp], 2)
        Image.fromarray(np.roll(pixels, number, 2).astype(np.uint8)).save(folder / "paintings" / name)
    (folder / "paintings" / "notes.txt").write_text("no picture")
    return folder


def stylised(folder: Path, **changed: Any) -> Stylised:
    files = {"encoder": folder / "encoder.pth", "decoder": folder / "decoder.safetensors", "styles": folder / "paintings"}
    return Stylised(**({name: str(file) for name, file in files.items()} | changed))


# --- AdaIN


def test_adain_by_hand() -> None:
    """0, 2, 4, 6 have the mean 3 and the unbiased variance 20/3; 1, 1, 1, 5 the mean 2 and the variance 4."""
    content, style = torch.tensor([0.0, 2, 4, 6]).view(1, 1, 2, 2), torch.tensor([1.0, 1, 1, 5]).view(1, 1, 2, 2)
    mean, std = moments(style)
    assert (float(mean), float(std)) == pytest.approx((2.0, (4 + EPS) ** 0.5), rel=1e-6)
    expected = [2 + 2 * x / (20 / 3) ** 0.5 for x in (-3, -1, 1, 3)]
    assert adain(content, mean, std).flatten().tolist() == pytest.approx(expected, rel=1e-5)


@given(seed=some.integers(0, 10**6), scale=some.floats(0.1, 10))
def test_features_get_the_styles_moments_each_channel_its_own(seed: int, scale: float) -> None:
    draw = torch.Generator().manual_seed(seed)
    content, style = (scale * torch.randn(2, 3, size, size, generator=draw, dtype=torch.float64) for size in (5, 7))
    found = adain(content, *moments(style)).numpy()
    assert np.allclose(found.mean((2, 3)), style.numpy().mean((2, 3)))
    assert np.allclose(found.std((2, 3), ddof=1), style.numpy().std((2, 3), ddof=1), rtol=1e-2)  # EPS under the root
    assert np.allclose(adain(content, *moments(content)).numpy(), content.numpy())


def test_a_flat_channel_becomes_the_styles_mean() -> None:
    assert torch.allclose(adain(torch.full((1, 1, 4, 4), 0.3), torch.full((1, 1, 1, 1), 0.7), torch.ones(1, 1, 1, 1)), torch.tensor(0.7))


# --- the networks


@pytest.fixture(scope="module")
def vgg() -> nn.Sequential:
    """torchvision's features, freshly drawn, up to conv4_2."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return make_layers(cfgs["E"])[:22].eval().requires_grad_(False)


@pytest.fixture(scope="module")
def vgg_file(vgg: nn.Sequential, tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("vgg") / "vgg19.pth"
    torch.save({f"features.{name}": t for name, t in vgg.state_dict().items()} | {"classifier.0.weight": torch.ones(2, 2)}, file)
    return file


def test_the_encoder_is_torchvisions_up_to_relu4_1_but_for_the_padding(vgg: nn.Sequential, vgg_file: Path) -> None:
    found, x = read_encoder(vgg_file), noise(2, side=48)
    zeros = Encoder("zeros").eval()
    zeros.load_state_dict(found.state_dict())
    normalised = (x - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)
    expected = vgg[:21](normalised)
    assert expected.shape == (2, 512, 6, 6)
    assert torch.allclose(zeros(x), expected, rtol=1e-3, atol=1e-6)
    assert (expected.std() / (zeros(x) - expected).abs().max()) > 1e3  # the tolerance is far below what is compared
    assert not torch.allclose(found(x), expected, rtol=1e-3, atol=1e-6)
    for layer in vgg[:21]:  # once more with the padding of the paper
        normalised = (
            conv2d(pad(normalised, (1,) * 4, "reflect"), layer.weight, layer.bias) if hasattr(layer, "weight") else layer(normalised)
        )
    assert torch.allclose(found(x), normalised, rtol=1e-3, atol=1e-6)
    assert not any(parameter.requires_grad for parameter in found.parameters())


def test_the_decoder_is_nine_convolutions_with_doublings_after_the_first_fifth_and_seventh(tmp_path: Path) -> None:
    draw, widths = torch.Generator().manual_seed(1), [*CHANNELS[::-1], 3]
    tensors: dict[str, Tensor] = {}
    for number, (before, after) in zip(BACK, pairwise(widths), strict=True):
        tensors[f"{number}.weight"] = torch.randn(after, before, 3, 3, generator=draw) / (3 * before**0.5)
        tensors[f"{number}.bias"] = torch.randn(after, generator=draw)
    save_file(tensors, tmp_path / "decoder.safetensors")
    decoder, x = read_decoder(tmp_path / "decoder.safetensors"), torch.randn(2, 512, 3, 4, generator=draw)
    found = decoder(x)
    assert found.shape == (2, 3, 24, 32)
    for count, number in enumerate(BACK, 1):
        x = conv2d(pad(x, (1,) * 4, "reflect"), tensors[f"{number}.weight"], tensors[f"{number}.bias"])
        x = x.relu() if count < 9 else x
        x = interpolate(x, scale_factor=2, mode="nearest") if count in (1, 5, 7) else x
    assert torch.allclose(found, x, atol=1e-4)
    assert found.min() < 0, "the last convolution is not rectified"


def test_files_that_hold_another_network_are_refused_in_one_line(tmp_path: Path, vgg: nn.Sequential, atelier: Path) -> None:
    def refused(tensors: dict[str, Tensor], said: str, read: Any = read_encoder) -> None:
        torch.save(tensors, tmp_path / "wrong.pth")
        with pytest.raises(ModelError, match=said) as caught:
            read(tmp_path / "wrong.pth")
        assert "\n" not in str(caught.value)

    sixteen = dict(make_layers(cfgs["D"])[:22].state_dict())
    refused(sixteen, r"does not fit VGG-19: 17\.weight is \(512, 256, 3, 3\), where \(256, 256, 3, 3\) is needed")
    refused({"features.1.running_mean": torch.ones(3), **vgg.state_dict()}, "batch normalisation.*vgg19 and not vgg19_bn")
    refused(dict(vgg[:8].state_dict()), "it has 4 convolutions of the 9 that are needed")
    refused({"0.weight": torch.ones(3, 3)}, "it has no convolutions")
    refused({"0.weight": torch.ones(64, 3, 3, 3)}, r"0\.weight has no bias")
    refused({**vgg.state_dict(), "5.bias": torch.full((128,), torch.nan)}, r"5\.weight holds NaN or infinity")
    refused(torch.load(atelier / "encoder.pth"), "it has 10 convolutions, and the mirror image of VGG-19 9", read_decoder)
    refused({**passing([3, *CHANNELS], tuple(range(9)))}, r"0\.weight is \(64, 3, 3, 3\), where \(256, 512, 3, 3\)", read_decoder)
    with pytest.raises(ModelError, match=r"there is no weights file .*nowhere\.pth"):
        read_encoder(tmp_path / "nowhere.pth")


# --- repainting


def blocks(x: Tensor) -> Tensor:
    return max_pool2d(x, 8)


def closed_form(image: Tensor, painting: Tensor, alpha: float) -> Tensor:
    """(3, H, W): what weights that hand on colours make of an image."""
    own, other = blocks(image[None])[0].double().numpy(), blocks(painting[None])[0].double().numpy()

    def told(values: Any) -> Any:
        return values.mean((1, 2), keepdims=True), np.sqrt(values.var((1, 2), ddof=1, keepdims=True) + EPS)

    (mean, std), (to_mean, to_std) = told(own), told(other)
    features = alpha * ((own - mean) / std * to_std + to_mean) + (1 - alpha) * own
    features = np.maximum(features, 0)  # the decoder's ReLUs
    return torch.from_numpy(np.kron(features, np.ones((8, 8)))).clamp(0, 1).float()


@pytest.mark.parametrize("alpha", [0.0, 0.4, 1.0])
def test_images_are_repainted_in_closed_form(atelier: Path, alpha: float) -> None:
    made, images = stylised(atelier, alpha=alpha).informed(about()), noise(6)
    before, state = images.clone(), torch.get_rng_state()
    found = made.augment(batch_of(images), streams(6))
    chances = streams(6).uniform("stylised", 2)
    which = (chances[:, 1] * 3).long().tolist()
    assert len(set(which)) > 1
    for image, repainted, style in zip(images, found.images, which, strict=True):
        assert torch.allclose(repainted, closed_form(image, made.studio.painting(style, 32, 32), alpha), atol=1e-5)
    assert torch.equal(images, before)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(found.targets, batch_of(images).targets)
    assert found.images.min() >= 0
    assert found.images.max() <= 1


def test_share_says_how_many_and_an_image_hangs_on_its_own_key_alone(atelier: Path) -> None:
    made, images = stylised(atelier, share=0.25).informed(about()), noise(64)
    found = made.augment(batch_of(images), streams(64)).images
    changed = (found != images).flatten(1).any(1)
    assert torch.equal(changed, streams(64).uniform("stylised", 2)[:, 0] < 0.25)
    assert 0 < int(changed.sum()) < 32
    part = slice(20, 40)
    assert changed[part].any()
    alone = stylised(atelier, share=0.25).augment(batch_of(images[part]), streams(64).take(part)).images
    assert torch.allclose(alone, found[part], atol=1e-6)
    assert not torch.equal(made.augment(batch_of(images), streams(64, epoch=1)).images, found)


def test_grey_images_stay_grey_and_odd_sizes_keep_their_size(atelier: Path) -> None:
    made = stylised(atelier).informed(about(1, 28))
    images, coloured = noise(2, 1, 28), noise(2, 1, 28).expand(-1, 3, -1, -1)
    found = made.augment(batch_of(images), streams(2)).images
    assert found.shape == (2, 1, 28, 28)
    assert torch.allclose(found[:, 0], made.augment(batch_of(coloured), streams(2)).images.mean(1))


def test_a_large_batch_is_repainted_as_its_parts_are(atelier: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made, images = stylised(atelier).informed(about()), noise(5)
    whole = made.augment(batch_of(images), streams(5)).images
    monkeypatch.setattr("robustbench_lite.defenses.adain.PIXELS", 2 * 32 * 32)
    assert torch.allclose(made.augment(batch_of(images), streams(5)).images, whole, atol=1e-6)


def test_paintings_that_cannot_be_used_are_named(tmp_path: Path, atelier: Path) -> None:
    with pytest.raises(DataError, match=r"there is no folder of paintings .*nowhere"):
        paintings(tmp_path / "nowhere")
    (tmp_path / "notes.txt").write_text("no picture")
    with pytest.raises(DataError, match=r"has no pictures \(looked for .*\): put the paintings there"):
        stylised(atelier, styles=str(tmp_path)).informed(about())
    (tmp_path / "torn.png").write_bytes((atelier / "paintings" / "a.png").read_bytes()[:200])
    with pytest.raises(DataError, match=r"cannot read the image .*torn\.png"):
        stylised(atelier, styles=str(tmp_path)).informed(about())
    assert [path.name for path in paintings(atelier / "paintings")] == ["a.png", "b.jpg", "c.png"]


def test_every_painting_that_cannot_be_read_is_named_before_the_first_step(tmp_path: Path, atelier: Path) -> None:
    """Also those that the decoder is not tried on: sets of paintings are known to hold a few."""
    whole = (atelier / "paintings" / "a.png").read_bytes()
    for number in range(8):
        (tmp_path / f"{number}.png").write_bytes(whole[:200] if number in (5, 7) else whole)
    with pytest.raises(DataError, match=r"^2 of 8 paintings must be taken away: cannot read the image .*5\.png: .*; .*7\.png: ") as refused:
        stylised(atelier, styles=str(tmp_path)).informed(about())
    assert "\n" not in str(refused.value)


def test_images_that_cannot_be_repainted_and_a_decoder_of_another_encoder_are_refused(atelier: Path) -> None:
    for channels, side in ((4, 32), (3, 8)):
        with pytest.raises(UsageError, match=f"images of {channels} channels and {side} x {side} pixels cannot be repainted"):
            stylised(atelier).informed(about(channels, side))
    other = stylised(atelier)
    layer = next(layer for layer in other.studio.decoder.modules() if isinstance(layer, nn.Conv2d))
    layer.weight.mul_(-1)
    with pytest.raises(ModelError, match=r"mean square error of 0\..* name the decoder that was trained for this encoder"):
        other.informed(about())


def test_a_training_repaints_and_its_checkpoint_needs_neither_weights_nor_paintings(atelier: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    repainted = Studio.repainted
    monkeypatch.setattr(Studio, "repainted", lambda self, x, styles, alpha: (seen.append(len(x)), repainted(self, x, styles, alpha))[1])
    spec = DEFENSES.spec_of(stylised(atelier, share=0.5))
    training(digits(32), what=made(defense=spec), epochs=1).run()
    assert seen[0] == 3, "tried on the paintings"
    assert 0 < sum(seen[1:]) < 32
    elsewhere = Defenses.parse("stylised:encoder=/nowhere/a.pth,decoder=/nowhere/b.pth,styles=/nowhere,share=0.5")
    assert elsewhere.trained_on == ("stylise",)
    with pytest.raises(RobustEvalError, match=r"there is no weights file /nowhere/a\.pth"):
        elsewhere.informed(about())


def test_a_training_does_not_go_on_with_other_weights_or_paintings(atelier: Path, tmp_path: Path) -> None:
    folder, state = Path(copytree(atelier, tmp_path / "atelier")), tmp_path / "state"
    what = made(defense=DEFENSES.spec_of(stylised(folder)))
    keep_state(state, training(digits(8), what=what, epochs=1).identity, {})

    def identity() -> Any:
        found = kept_state(state, training(digits(8), what=what, epochs=1).identity)
        return None if found is None else "the same"

    assert identity() == "the same"
    (folder / "paintings" / "notes.txt").write_text("still no picture")
    assert identity() == "the same"
    decoder = load_file(folder / "decoder.safetensors")
    encoder = torch.load(folder / "encoder.pth", weights_only=True)
    changes = [
        lambda: save_file({name: value * 1.001 for name, value in decoder.items()}, folder / "decoder.safetensors"),
        lambda: torch.save({name: value * 1.001 for name, value in encoder.items()}, folder / "encoder.pth"),
        lambda: (folder / "paintings" / "a.png").rename(folder / "paintings" / "z.png"),
        lambda: (folder / "paintings" / "z.png").write_bytes((folder / "paintings" / "z.png").read_bytes() + b"more"),
    ]
    for change in changes:
        change()
        with pytest.raises(RunMismatch, match=r"is of a training with files of stylised \w+, not stylised \w+"):
            identity()
        keep_state(state, training(digits(8), what=what, epochs=1).identity, {})


# --- statistics of pixels


def test_amplitudes_are_the_styles_and_phases_the_images_own() -> None:
    images, styles = noise(3).double(), noise(3, seed=1).double()
    made = with_amplitude(images, styles, torch.zeros(3, 1, 1, 1, dtype=torch.float64)).numpy()
    found, own, other = (np.fft.fft2(x) for x in (made, images.numpy(), styles.numpy()))
    assert np.allclose(np.abs(found), np.abs(other))
    assert np.allclose(found / np.abs(found), own / np.abs(own), atol=1e-6)
    assert np.allclose(made.mean((2, 3)), styles.numpy().mean((2, 3))), "the amplitudes hold the moments too"
    assert np.allclose(made.std((2, 3)), styles.numpy().std((2, 3)))


def test_amplitudes_of_odd_sides_too() -> None:
    images = noise(2, side=9).double()
    for kept in (0.0, 1.0):
        assert torch.allclose(with_amplitude(images, images, torch.full((2, 1, 1, 1), kept).double()), images)


@pytest.mark.parametrize("change", [with_moments, with_amplitude])
def test_what_is_kept_is_a_share_of_the_statistics(change: Any) -> None:
    images, styles = noise(2).double(), noise(2, seed=1).double() / 2
    kept = torch.tensor([1.0, 0.25], dtype=torch.float64).view(2, 1, 1, 1)
    made = change(images, styles, kept)
    assert torch.allclose(made[0], images[0], atol=1e-9)
    assert torch.allclose(made[1].mean((1, 2)), 0.25 * images[1].mean((1, 2)) + 0.75 * styles[1].mean((1, 2)))
    if change is with_moments:
        std = torch.stack([images[1].std((1, 2)), styles[1].std((1, 2))])
        assert torch.allclose(made[1].std((1, 2)), 0.25 * std[0] + 0.75 * std[1], rtol=1e-3)
    else:
        assert torch.allclose(
            torch.fft.fft2(made[1]).abs(), 0.25 * torch.fft.fft2(images[1]).abs() + 0.75 * torch.fft.fft2(styles[1]).abs()
        )


@pytest.mark.parametrize("how", ["moments", "fourier", "both"])
@pytest.mark.parametrize("alpha", [None, 0.1])
def test_an_image_gets_its_partners_statistics(how: Any, alpha: float | None) -> None:
    images = load_data("cifar10", limit=10)
    x = torch.stack([image for image, _ in images]).repeat(5, 1, 1, 1)
    before, state, draw = x.clone(), torch.get_rng_state(), streams(50)
    found = StyleStatistics(how=how, share=0.6, alpha=alpha).augment(batch_of(x), draw).images
    chances, (partner, kept) = draw.uniform("style statistics", 2), partnered(draw, alpha or 1.0, "style")
    taken = set()
    for i in range(50):
        keeps = kept[i].view(1, 1, 1, 1) if alpha else torch.zeros(1, 1, 1, 1)
        change = with_moments if how == "moments" or (how == "both" and chances[i, 1] >= 0.5) else with_amplitude
        made = change(x[i : i + 1], x[partner[i]][None], keeps)[0].clamp(0, 1) if chances[i, 0] < 0.6 else x[i]
        assert torch.allclose(found[i], made, atol=1e-5)
        taken.add(change.__name__ if chances[i, 0] < 0.6 else "as it was")
    assert len(taken) == (3 if how == "both" else 2)
    assert torch.equal(x, before)
    assert torch.equal(torch.get_rng_state(), state)
    assert found.min() >= 0
    assert found.max() <= 1


def test_the_order_of_a_batch_changes_nothing() -> None:
    images, order = noise(16), torch.randperm(16, generator=torch.Generator().manual_seed(3))
    turned = Streams(0, "training", [(str(k), 0) for k in order.tolist()], None, CPU)
    defense = StyleStatistics(share=0.7)
    found = defense.augment(batch_of(images), streams(16)).images
    assert torch.allclose(defense.augment(batch_of(images[order]), turned).images, found[order], atol=1e-6)


def test_partners_are_not_those_of_mixup() -> None:
    assert not torch.equal(partnered(streams(64), 1.0, "style")[0], partnered(streams(64), 1.0)[0])


def test_black_images_and_a_batch_of_one_are_no_trouble() -> None:
    black = torch.zeros(4, 3, 8, 8)
    assert torch.equal(StyleStatistics(share=1.0).augment(batch_of(black), streams(4)).images, black)
    one = noise(1)
    assert torch.allclose(StyleStatistics(share=1.0).augment(batch_of(one), streams(1)).images, one, atol=1e-5)


@pytest.mark.parametrize("spec", ["style-statistics:share=0", "style-statistics:how=hue", "style-statistics:alpha=0", "stylised:alpha=2"])
def test_parameters_out_of_range_are_refused(spec: str) -> None:
    files = ",encoder=a,decoder=b,styles=c" if spec.startswith("stylised") else ""
    with pytest.raises(BadSpec, match=spec.partition(":")[2].replace("=", ".")):
        Defenses.parse(spec + files)


def test_what_was_trained_on_is_said() -> None:
    met = overlaps(
        DEFENSES.build("style-statistics").trained_on, ["contrast", "fog", "brightness", "saturate", "gaussian_noise", "pixelate"]
    )
    assert len(met) == 3
    assert all(any(name in sentence for sentence in met) for name in ("contrast", "fog", "brightness", "saturate"))
    assert not any(name in sentence for sentence in met for name in ("gaussian_noise", "pixelate"))
