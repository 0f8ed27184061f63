"""Patches: their threat, how they are pasted, and the three attacks that use them."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import robustbench_lite as rb
from robustbench_lite.classifier import Classifier
from robustbench_lite.conditions import Means
from robustbench_lite.criteria import AnyFinding, Binary, Criterion, Misclassified, MultiLabel, Targeted, Towards
from robustbench_lite.errors import UsageError
from robustbench_lite.fitting import Lesson
from robustbench_lite.labelled import from_arrays
from robustbench_lite.passes import Passes
from robustbench_lite.pasting import Window, centre_square, holding_most, pasted
from robustbench_lite.registry import ATTACKS
from robustbench_lite.stamps import serves
from robustbench_lite.threat import ball

CPU = torch.device("cpu")


def smallest_window(x: Tensor, origin: Tensor) -> int:
    """The smallest side with which some window holds all that has changed; by trying all of them."""
    changed = (x != origin).any(0)
    height, width = changed.shape
    for side in range(max(height, width) + 1):
        for top in range(height):
            for left in range(width):
                outside = changed.clone()
                outside[top : top + side, left : left + side] = False
                if not outside.any():
                    return side
    raise AssertionError


@given(st.integers(0, 2**31), st.integers(1, 3), st.integers(2, 6), st.integers(2, 6), st.integers(0, 5))
def test_the_distance_is_the_smallest_windows_side(seed: int, channels: int, height: int, width: int, changes: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    origin = torch.rand(1, channels, height, width, generator=generator)
    x = origin.clone()
    for place in torch.randint(0, origin.numel(), (changes,), generator=generator):
        x.view(-1)[place] = 0.0
    side = smallest_window(x[0], origin[0])
    short = min(height, width)
    assert ball("patch", 1.0).distance(x, origin).item() == pytest.approx(side / short)
    for pixels in range(1, short + 1):
        assert ball("patch", pixels / short).contains(x, origin).tolist() == [side <= pixels]


@given(st.integers(0, 2**31), st.integers(3, 7), st.integers(3, 7), st.sampled_from((0.34, 0.5, 1.0)))
def test_the_projection_keeps_the_window_that_has_changed_most(seed: int, height: int, width: int, eps: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    origin = torch.rand(2, 2, height, width, generator=generator)
    x = origin + 0.5 * torch.randn(origin.shape, generator=generator)
    threat = ball("patch", eps)
    made, side = threat.project(x, origin), math.floor(eps * min(height, width) + 1e-4)
    assert threat.contains(made, origin).all()
    assert torch.equal(threat.project(made, origin), made)
    weight = (x.clamp(0, 1) - origin).abs().sum(1)
    places = [(top, left) for top in range(height - side + 1) for left in range(width - side + 1)]
    best = max(float(weight[0, top : top + side, left : left + side].sum()) for top, left in places)
    assert float((made - origin)[0].abs().sum()) == pytest.approx(best, rel=1e-5)
    kept = (made != origin).any(1, keepdim=True).expand_as(x)
    assert torch.equal(made[kept], x.clamp(0, 1)[kept])


def test_random_points_fill_a_window_and_steps_go_by_the_sign(pictures: Callable[..., Tensor], streams: Any) -> None:
    x, threat = pictures(30), ball("patch", 0.5)
    made = threat.random_point(x, streams(30))
    assert threat.contains(made, x).all()
    assert (threat.distance(made, x) == 0.5).all()
    assert torch.equal(threat.random_point(x[:4], streams(4)), made[:4])
    assert torch.equal(threat.ascent(torch.tensor([[[[-3.0, 0.0, 2.0]]]]), 0.1, x[:1]), 0.1 * torch.tensor([[[[-1.0, 0.0, 1.0]]]]))
    assert threat.contains(threat.surface_point(x, streams(30)), x).all()


@pytest.mark.parametrize(("eps", "message"), [(1.01, "a patch larger than the image"), (0.0, "must be positive")])
def test_what_is_no_patch_is_refused(eps: float, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        ball("patch", eps)


def test_a_patch_of_less_than_a_pixel_is_refused(pictures: Callable[..., Tensor]) -> None:
    with pytest.raises(UsageError, match=r"less than one pixel of 8: its eps must be 0\.125 or more"):
        ball("patch", 0.1).project(pictures(1), pictures(1))


def test_most_weight_is_found_at_the_edge_too() -> None:
    weight = torch.zeros(2, 4, 5)
    weight[0, 3, 4] = weight[1, 0, 0] = 1
    window = holding_most(weight, torch.tensor([2, 3]))
    inside = window.square(weight[:, None])
    assert inside.flatten(1).sum(1).tolist() == [4, 9]
    assert inside[0, 0, 3, 4]
    assert inside[1, 0, 0, 0]


@pytest.mark.parametrize("shape", [(3, 9, 12), (1, 12, 9)])
def test_pasting_changes_the_disc_and_nothing_outside(shape: tuple[int, ...], pictures: Callable[..., Tensor], streams: Any) -> None:
    x, patches = pictures(40, shape=shape), pictures(40, seed=1, shape=(shape[0], 9, 9))
    side = torch.arange(40) % 9 + 1
    window = Window.drawn(x, side, streams(40), "place")
    made = pasted(x, patches, window, torch.linspace(-3, 3, 40))
    disc = window.disc(x)
    assert torch.equal(made.where(~disc, 0), x.where(~disc, 0))
    assert (disc & ~window.square(x)).sum() == 0
    assert window.square(x).flatten(1).sum(1).tolist() == (side**2).tolist()
    assert ((disc.flatten(1).sum(1) / side**2 - math.pi / 4).abs() < 0.26).all()
    assert (ball("patch", 1.0).distance(made, x) <= side / 9 + 1e-6).all()


def test_a_square_fills_its_window_and_one_that_is_turned_stays_inside(pictures: Callable[..., Tensor], streams: Any) -> None:
    x, patches = pictures(40, shape=(3, 12, 12)), pictures(40, seed=1, shape=(3, 12, 12))
    side = torch.arange(40) % 12 + 1
    window = Window.drawn(x, side, streams(40), "place")
    upright = pasted(x, patches, window, torch.zeros(40), "square")
    assert torch.equal((upright != x).any(1, keepdim=True), window.square(x))
    made = pasted(x, patches, window, torch.linspace(-3, 3, 40), "square")
    assert not ((made != x).any(1, keepdim=True) & ~window.square(x)).any()
    whole, tilted = (
        pasted(x[:1], patches[:1], Window(*torch.tensor([[0], [0], [12]])), torch.tensor([a]), "square") for a in (0.0, math.pi / 4)
    )
    assert torch.allclose(whole, patches[:1], atol=1e-5)
    assert 0.4 < (tilted != x[:1]).any(1).float().mean() < 0.65  # its diagonals are the window's sides: half of the area


def test_an_unturned_patch_of_its_own_size_is_copied_and_a_quarter_turn_turns_it(pictures: Callable[..., Tensor]) -> None:
    x, patch = pictures(1, shape=(1, 7, 7)), pictures(1, seed=1, shape=(1, 7, 7))
    window = Window(torch.tensor([0]), torch.tensor([0]), torch.tensor([7]))
    disc = window.disc(x)
    assert torch.allclose(pasted(x, patch, window, torch.zeros(1))[disc], patch[disc], atol=1e-5)
    quarter = pasted(x, patch, window, torch.tensor([math.pi / 2]))
    assert torch.allclose(quarter[disc], patch.rot90(1, (2, 3))[disc], atol=1e-5)


def test_the_slope_through_pasting_is_that_of_finite_differences(pictures: Callable[..., Tensor]) -> None:
    x, patch = pictures(2, shape=(1, 6, 6)).double(), pictures(2, seed=1, shape=(1, 6, 6)).double().requires_grad_()
    window = Window(torch.tensor([1, 0]), torch.tensor([2, 0]), torch.tensor([4, 6]))
    assert torch.autograd.gradcheck(lambda p: pasted(x, p, window, torch.tensor([0.3, -0.2]).double()), (patch,))


def test_the_middle_of_an_image_is_square() -> None:
    assert torch.equal(centre_square(torch.arange(12.0).view(1, 1, 2, 6)), torch.tensor([[[[2.0, 3.0], [8.0, 9.0]]]]))


# --- a patch of an image's own -----------------------------------------------------------------------------------------------


def naive_patches(model: nn.Module, x: Tensor, labels: Tensor, side: int, steps: int) -> int:
    """How many images a plain loop breaks: one at a time, a disc at a random place, Adam on its pixels by autograd through the model."""
    generator, broken = torch.Generator().manual_seed(0), 0
    rows, columns = torch.meshgrid(torch.arange(x.shape[2]), torch.arange(x.shape[3]), indexing="ij")
    for image, label in zip(x, labels, strict=True):
        top, left = (int(torch.randint(0, size - side + 1, (1,), generator=generator)) for size in image.shape[1:])
        middle = (side - 1) / 2
        inside = ((rows - top - middle) ** 2 + (columns - left - middle) ** 2 <= (side / 2) ** 2).float()
        pixels = torch.full_like(image, 0.5).requires_grad_()
        optimizer = torch.optim.Adam([pixels], lr=0.1)
        for _ in range(steps):
            logits = model((image * (1 - inside) + pixels.clamp(0, 1) * inside)[None])
            optimizer.zero_grad()
            (-nn.functional.cross_entropy(logits, label[None])).backward()
            optimizer.step()
        broken += int(model((image * (1 - inside) + pixels.detach().clamp(0, 1) * inside)[None]).argmax() != label)
    return broken


def test_it_is_as_strong_as_a_plain_loop_and_stronger_with_more_places(attack: Any, net: Any, pictures: Any) -> None:
    model, x = net(), pictures(20)
    labels = model(x).argmax(1)
    found = attack(model, "own-patch:steps=15", x, norm="patch", eps=0.125)
    broken = sum(bool(f.broken) for f in found)
    assert broken >= naive_patches(model, x, labels, side=1, steps=15) - 2  # places are drawn at random in both
    several = attack(model, "own-patch:steps=15,restarts=4", x, norm="patch", eps=0.125)
    assert sum(bool(f.broken) for f in several) > broken
    noise = attack(model, "own-patch:steps=1,step_size=1e-6", x, norm="patch", eps=0.125)
    assert broken > 1.5 * sum(bool(f.broken) for f in noise)
    images = torch.stack([f.image for f in several])
    assert ball("patch", 0.125).contains(images, x).all()
    assert ((images != x).any(1).flatten(1).sum(1) <= 1).all()


# --- patches that serve for many images -------------------------------------------------------------------------------------


def halves(size: int = 80, seed: int = 0, **more: Any) -> Any:
    """Images whose left (class 0) or right half (class 1) is lighter, the same in both channels."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(size) % 2
    x = 0.4 * torch.rand(size, 1, 12, 12, generator=generator).expand(-1, 2, -1, -1).clone()
    x[labels == 0, :, :, :6] += 0.3
    x[labels == 1, :, :, 6:] += 0.3
    return from_arrays(x, more.pop("labels", labels), "halves", **more)


class Sides(nn.Module):
    """Tells the halves apart, and takes any spot with much of the first channel for class 1, of the second for class 0."""

    def __init__(self, form: str = "classes") -> None:
        super().__init__()
        self.form, self.scale = form, nn.Parameter(torch.tensor(6.0))
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        side = (x[..., 6:].mean((1, 2, 3)) - x[..., :6].mean((1, 2, 3))) * self.scale
        score = side + 0.5 * (x[:, 0] ** 6 - x[:, 1] ** 6).sum((1, 2))
        if self.form == "single logit":
            return score[:, None]
        if self.form == "findings":
            return torch.stack([-score, score, torch.full_like(score, -9.0)], 1)
        return torch.stack([-score, score], 1)


def taught(spec: str, model: nn.Module, images: Any, target: Any = None, batch_size: int = 16) -> dict[str, Tensor]:
    made: dict[str, Tensor] = ATTACKS.build(spec).fit(
        Lesson(Passes(model), images, ball("patch", 0.4), target, CPU, 0, "a patch", batch_size)
    )
    return made


def rows(result: Any) -> dict[str, Any]:
    return {str(row.condition).partition("[")[0].partition(":")[0]: row for row in result.table.itertuples()}


def test_what_is_learnt_is_what_the_model_falls_for_whatever_the_batch() -> None:
    learnt = taught("patch", Sides(), halves(), batch_size=16)
    assert learnt["classes"].tolist() == [0, 1]
    middle = learnt["patches"][:, :, 3:9, 3:9].mean((2, 3))
    assert (middle[1, 0] - middle[1, 1]) > 0.8
    assert (middle[0, 1] - middle[0, 0]) > 0.8
    assert (learnt["worth"] > 0.4).all()
    again = taught("patch", Sides(), halves(), batch_size=80)
    assert all(torch.equal(value, again[name]) for name, value in learnt.items())


@pytest.mark.parametrize("form", ["classes", "single logit", "findings"])
def test_it_breaks_other_images_where_the_control_does_not(form: str, tmp_path: Path) -> None:
    labels = torch.arange(80) % 2
    told = torch.stack([1 - labels, labels, 0 * labels], 1) if form == "findings" else labels
    result = rb.evaluate(
        Sides(form), ["patch", "natural-patch"], halves(labels=told), eps=0.5, fit_data=halves(seed=1, labels=told), out=tmp_path,
        witnesses="all",
    )  # fmt: skip
    found = rows(result)
    assert found["patch"].n == found["natural-patch"].n == 80
    assert found["clean"].accuracy == 1
    assert found["natural-patch"].accuracy > 0.6
    # findings have one patch, and what raises one lowers the other: it serves half of the images
    assert found["patch"].accuracy < (0.6 if form == "findings" else 0.1)
    checked = rb.verify(tmp_path, Sides(form))
    assert checked.holding >= 32
    assert not checked.failures


def test_half_of_the_images_teach_and_are_left_out_and_the_batch_does_not_matter() -> None:
    runs = [rb.evaluate(Sides(), "patch:epochs=3", halves(), eps=0.5, batch_size=size) for size in (64, 7)]
    assert [rows(run)["patch"].n for run in runs] == [40, 40]
    broken = [{v.sample_id: v.broken for v in run.verdicts if v.condition.startswith("patch")} for run in runs]
    assert broken[0] == broken[1]


def test_made_on_a_twin_it_is_tried_once_on_the_model() -> None:
    other = Sides()
    other.scale.data.mul_(1.5)
    twin = Classifier(other, name="twin")
    means = [Means("patch", source="twin"), Means("patch"), Means("own-patch:steps=20", source="twin")]
    result = rb.evaluate(Sides(), means, halves(), eps=0.5, surrogates=[twin])
    transferred = [v for v in result.verdicts if v.condition.startswith("patch") and "from=twin" in v.condition]
    assert sum(v.broken is True for v in transferred) > 0.8 * len(transferred) > 0
    with pytest.raises(UsageError, match="one try"):
        rb.evaluate(Sides(), [Means("patch:placements=2", source="twin")], halves(), eps=0.5, surrogates=[twin])


def test_more_places_break_no_less() -> None:
    one, four = (rows(rb.evaluate(Sides(), f"patch:placements={count},epochs=2", halves(), eps=0.3))["patch"] for count in (1, 4))
    assert four.accuracy <= one.accuracy


def test_towards_a_class_the_others_learn_one_patch() -> None:
    learnt = taught("patch:epochs=1", Sides(), halves(), "missed-disease")
    assert learnt["classes"].tolist() == [0]
    # what shows health best is among the healthy, of whom the attacker wants nothing
    natural = taught("natural-patch", Sides(), halves(), "missed-disease")
    images = halves()
    healthy = [centre_square(picture[None]) for picture, label in zip(images.pictures, images.labels, strict=True) if label == 0]
    assert any(torch.equal(natural["patches"], each) for each in healthy)
    with pytest.raises(UsageError, match="offers the attacker anything"):
        taught("patch", Sides(), halves(labels=torch.zeros(80, dtype=torch.long)), "missed-disease")


def test_an_answer_that_is_no_number_does_not_choose_the_natural_patch() -> None:
    class Dumb(Sides):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x).masked_fill(x[:, 0, 0, 0, None] == bad[0, 0, 0], torch.nan)

    images = halves()
    bad = images.pictures[0]
    learnt = taught("natural-patch", Dumb(), images, batch_size=80)
    assert learnt["patches"].shape[0] == len(learnt["classes"]) == 2
    assert learnt["worth"].isfinite().all()


def test_a_broken_off_run_goes_on_with_the_patch_that_it_had(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    learner = ATTACKS.get("patch")
    whole = rb.evaluate(Sides(), "patch:epochs=2", halves(), eps=0.5, out=tmp_path / "whole")
    images, asked = halves(), 0
    stamped = ATTACKS.build("patch").fitted(taught("patch:epochs=1", Sides(), images)).__class__
    start = stamped.start

    def interrupted(self: Any, oracle: Any, draw: Any) -> Any:
        nonlocal asked
        asked += 1
        if asked == 2:
            raise KeyboardInterrupt
        return start(self, oracle, draw)

    monkeypatch.setattr(stamped, "start", interrupted)
    with pytest.raises(KeyboardInterrupt):
        rb.evaluate(Sides(), "patch:epochs=2", halves(), eps=0.5, out=tmp_path / "part", batch_size=8)
    monkeypatch.setattr(stamped, "start", start)
    monkeypatch.setattr(learner, "fit", lambda *_: pytest.fail("it learnt again"))
    resumed = rb.evaluate(Sides(), "patch:epochs=2", halves(), eps=0.5, out=tmp_path / "part", batch_size=8)
    broken = [{v.sample_id: (v.broken, v.prediction) for v in run.verdicts} for run in (whole, resumed)]
    assert broken[0] == broken[1]


def test_a_patch_of_other_channels_is_refused() -> None:
    made = ATTACKS.build("natural-patch").fitted(taught("natural-patch", Sides(), halves()))

    class Grey:
        origin = torch.zeros(1, 1, 8, 8)
        threat = ball("patch", 0.5)

    with pytest.raises(UsageError, match="2 channels does not go onto images of 1"):
        made.start(Grey(), None)


@pytest.mark.parametrize(
    ("rule", "outputs", "expected"),
    [
        (Misclassified(torch.tensor([0, 2])), 3, [[0, 1, 1], [1, 1, 0]]),
        (Targeted(torch.tensor([0, 1]), torch.tensor([2, 0])), 3, [[0, 0, 1], [1, 0, 0]]),
        (Towards(torch.tensor([[False, True, True], [False, False, True]])), 3, [[0, 1, 1], [0, 0, 1]]),
        (Binary(torch.tensor([1, 0])), 1, [[1, 0], [0, 1]]),
        (MultiLabel(torch.tensor([[1.0, 0.0], [0.0, 0.0]])), 2, [[1], [1]]),
        (AnyFinding(torch.tensor([[1.0, 0.0]]), among=torch.tensor([[True, False]])), 2, [[1]]),
    ],
)
def test_which_patches_serve_an_image(rule: Criterion, outputs: int, expected: list[list[int]]) -> None:
    assert serves(rule, outputs).int().tolist() == expected


@pytest.mark.parametrize("shape", ["disc", "square"])
def test_a_patch_of_either_shape_drives_to_a_class(shape: str) -> None:
    spec = f"patch:shape={shape},turn=45,epochs=4"
    found = rows(rb.evaluate(Sides(), spec, halves(), eps=0.5, target=1, fit_data=halves(seed=1)))["patch"]
    assert found.n == 40
    assert found.accuracy < 0.2


def test_an_own_square_holds_the_whole_window(attack: Any, net: Any, pictures: Any) -> None:
    x = pictures(10)
    found = attack(net(), "own-patch:steps=3,shape=square", x, norm="patch", eps=0.5, goal="full")
    assert ((torch.stack([f.image for f in found]) != x).any(1).flatten(1).sum(1) == 16).all()


@pytest.mark.slow
def test_on_digits_it_breaks_far_more_than_the_control_and_doubting_it_works() -> None:
    asked = ["patch:step_size=0.1,at_most=3", "natural-patch:at_most=3"]
    found = rows(rb.evaluate("digits_standard", asked, data="digits", limit=200, eps=0.65, doubt=True))
    assert found["patch"].accuracy < found["natural-patch"].accuracy - 0.15
