"""Transfer: made on a surrogate, judged by the model once, and told over every image, source and target."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import robustbench_lite as rb
from robustbench_lite.classifier import Classifier
from robustbench_lite.errors import ModelError, UsageError
from robustbench_lite.metrics import ssim
from robustbench_lite.oracle import Surrogate
from robustbench_lite.results import Result


class Weighted(nn.Module):
    """Two classes, parted where a weighted mean of the pixels is one half. It counts what it is asked about."""

    def __init__(self, *weights: float) -> None:
        super().__init__()
        self.weights = nn.Parameter(torch.tensor(weights), requires_grad=False)
        self.rows = 0

    def forward(self, x: Tensor) -> Tensor:
        self.rows += len(x)
        over = 10 * (x.flatten(1) @ self.weights - 0.5)
        return torch.stack([-over, over], 1)


def model(name: str, *weights: float) -> Classifier:
    return Classifier(Weighted(*weights).eval(), name=name)


def data() -> tuple[Tensor, Tensor]:
    """Ten grey images of class 0, the last of which is brighter than the class allows."""
    values = torch.tensor([0.05, 0.1, 0.2, 0.3, 0.35, 0.4, 0.42, 0.44, 0.46, 0.55])
    return values.view(-1, 1, 1, 1).expand(-1, 1, 2, 2).contiguous(), torch.zeros(10, dtype=torch.long)


def evaluated(attack: str = "pgd:steps=5", *surrogates: Classifier, **more: Any) -> Result:
    surrogates = surrogates or (model("twin", 0.25, 0.25, 0.25, 0.25),)
    return rb.evaluate(
        more.pop("target_model", model("victim", 1.0, 0.0, 0.0, 0.0)), attack, data(), eps=0.1, surrogates=surrogates, **more
    )


def test_success_is_told_over_all_and_over_those_that_were_right() -> None:
    result = evaluated()
    cells = {(row.source, row.target): row for row in result.transfer}
    assert set(cells) == {("twin", "victim"), ("twin", "twin")}
    for row in cells.values():  # the images above 0.4 cross one half; the brightest was wrong before
        assert (row.n, row.n_correct) == (10, 9)
        assert row.success_all == pytest.approx(0.4)
        assert row.success_correct == pytest.approx(3 / 9)
    assert [row.white_box for row in cells.values()] == [False, True]
    (row,) = [row for row in result.table.to_dict("records") if row["kind"] == "attack"]
    assert (row["condition"], row["goal"]) == ("pgd:steps=5[linf,0.1,from=twin]", "full")
    assert (row["correct"], row["n"]) == (6, 10)
    assert row["success_correct"] == pytest.approx(3 / 9)


def test_what_the_surrogate_does_not_look_at_does_not_transfer() -> None:
    result = evaluated("pgd:steps=5", model("blind", 0.0, 0.5, 0.5, 0.0))
    cells = {row.target: row for row in result.transfer}
    # the first pixel keeps its random start: the victim sees noise of at most eps there and no attack
    assert cells["blind"].success_correct == pytest.approx(3 / 9)
    assert cells["victim"].success_correct < 2 / 9


def test_the_target_answers_once_an_image_and_never_gives_a_gradient() -> None:
    victim = model("victim", 1.0, 0.0, 0.0, 0.0)
    counted: dict[int, int] = {}
    for steps in (1, 50):
        victim.model.rows = 0
        evaluated(f"pgd:steps={steps}", target_model=victim)
        counted[steps] = victim.model.rows
    assert counted[1] == counted[50]


def test_early_success_on_the_surrogate_does_not_end_the_search() -> None:
    (row,) = [row for row in evaluated("pgd:steps=7").table.to_dict("records") if row["kind"] == "attack"]
    assert (row["mean_forwards"], row["mean_backwards"]) == (8, 7)  # seven on the surrogate, one on the target


def test_several_surrogates_are_sources_alone_and_together() -> None:
    result = evaluated(
        "bim", model("left", 1.0, 0.0, 0.0, 0.0), model("right", 0.0, 0.0, 0.0, 1.0), target_model=model("both", 0.5, 0, 0, 0.5)
    )
    cells = {(row.source, row.target): row.success_correct for row in result.transfer}
    assert {source for source, _ in cells} == {"left", "right", "left+right"}
    assert {target for _, target in cells} == {"both", "left", "right"}
    assert cells["left", "right"] == 0
    assert cells["left", "both"] == pytest.approx(1 / 9)  # half the change: 0.46 only
    assert cells["left+right", "both"] == cells["left+right", "left"] == pytest.approx(3 / 9)
    assert [row.white_box for row in result.transfer if row.source == "left+right"] == [False, True, True]


def test_eight_bit_rounding_can_undo_a_success() -> None:
    x = torch.full((4, 1, 2, 2), 100 / 255)
    result = rb.evaluate(
        Classifier(Threshold(100.4 / 255).eval(), name="victim"),
        "bim",
        (x, torch.zeros(4, dtype=torch.long)),
        eps=0.45 / 255,
        surrogates=[Classifier(Threshold(100.3 / 255).eval(), name="twin")],
    )
    for row in result.transfer:
        assert (row.success_all, row.success_all_8bit) == (1.0, 0.0)


class Threshold(nn.Module):
    def __init__(self, at: float) -> None:
        super().__init__()
        self.register_buffer("at", torch.tensor(at))

    def forward(self, x: Tensor) -> Tensor:
        over = 1000 * (x.flatten(1).mean(1) - self.at)
        return torch.stack([-over, over], 1)


def test_a_broken_off_run_has_the_same_matrix(tmp_path: Path) -> None:
    whole = evaluated(batch_size=3)
    victim = model("victim", 1.0, 0.0, 0.0, 0.0)
    seen: list[int] = []

    def stop(name: str, done: int, total: int, broken: int) -> None:
        seen.append(done)
        if name.startswith("pgd") and done >= 6:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        evaluated(batch_size=3, out=tmp_path / "run", target_model=victim, progress=stop)
    resumed = evaluated(batch_size=3, out=tmp_path / "run", target_model=victim)
    assert resumed.transfer == whole.transfer


def test_witnesses_of_transfer_are_verified(tmp_path: Path) -> None:
    victim = model("victim", 1.0, 0.0, 0.0, 0.0)
    evaluated(out=tmp_path / "run", target_model=victim)
    assert rb.verify(tmp_path / "run", victim).holding == 3


def test_a_door_to_a_surrogate_does_not_judge(net: Callable[..., nn.Module]) -> None:
    assert "gradient" in dir(Surrogate)
    result = evaluated("pgd:steps=3,step_size=1e-6,loss=margin")
    assert all(v.restart == 0 for v in result.verdicts)


@pytest.mark.parametrize(
    ("attack", "said"),
    [
        ("square", "square asks the model that it attacks"),
        ("noise", "noise asks the model that it attacks"),
        ("foolbox:LinfPGD", "foolbox:LinfPGD asks the model that it attacks"),
        ("pgd:restarts=3", "a transfer attack has one try"),
        ("apgd-t", "a transfer attack has one try"),
        ("autoattack", "asks the model that it attacks|has one try"),
    ],
)
def test_what_cannot_be_made_on_a_surrogate_is_refused(attack: str, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        evaluated(attack)


def test_surrogates_that_do_not_fit_are_refused() -> None:
    three = Classifier(nn.Sequential(nn.Flatten(), nn.Linear(4, 3)).eval(), name="three")
    with pytest.raises(UsageError, match="the surrogate three has 3 classes and victim 2"):
        evaluated("pgd", three)
    with pytest.raises(UsageError, match="the surrogate other is the model itself"):
        evaluated("pgd", model("other", 1.0, 0.0, 0.0, 0.0))
    with pytest.raises(UsageError, match="two of the models are called victim"):
        evaluated("pgd", model("victim", 0.25, 0.25, 0.25, 0.25))
    with pytest.raises(UsageError, match="leave --query-budget out"):
        evaluated("pgd", query_budget=10)
    with pytest.raises(ModelError, match="wide does not take 1x2x2 images"):
        evaluated("pgd", Classifier(nn.Sequential(nn.Flatten(), nn.Linear(9, 2)).eval(), name="wide"))


@pytest.mark.parametrize("shape", [(3, 32, 32), (1, 40, 24), (3, 7, 9)])
def test_ssim_agrees_with_scikit_image(shape: tuple[int, int, int]) -> None:
    from skimage import metrics

    x = torch.rand(3, *shape, generator=torch.Generator().manual_seed(0))
    y = (x + 0.1 * torch.randn(3, *shape, generator=torch.Generator().manual_seed(1))).clamp(0, 1)
    ours = ssim(x, y)
    assert torch.allclose(ssim(x, x), torch.ones(3))
    if min(shape[1:]) >= 11:
        for row in range(3):
            a, b = x[row].numpy(), y[row].numpy()
            whole = metrics.structural_similarity(
                a, b, gaussian_weights=True, sigma=1.5, use_sample_covariance=False, data_range=1.0, channel_axis=0, full=True
            )[1]
            assert float(ours[row]) == pytest.approx(whole[:, 5:-5, 5:-5].mean(), abs=1e-5)
    assert ((ours > 0) & (ours < 0.999)).all()


# --- what must not flatter -------------------------------------------------------------------------------------------------


class Holes(nn.Module):
    """No number wherever the image is not exactly one of these greys."""

    def __init__(self, inner: nn.Module, *greys: float) -> None:
        super().__init__()
        self.inner, self.greys = inner, torch.tensor(greys)

    def forward(self, x: Tensor) -> Tensor:
        known = (x.flatten(1)[:, :1] - self.greys).abs().amin(1) < 1e-6
        known &= x.flatten(1).amax(1) == x.flatten(1).amin(1)
        return self.inner(x).masked_fill(~known[:, None], torch.nan)


def test_an_answer_to_the_made_image_that_is_no_number_is_not_right() -> None:
    victim = Classifier(Holes(Weighted(1.0, 0.0, 0.0, 0.0), *data()[0][:, 0, 0, 0].tolist()).eval(), name="victim")
    result = evaluated("bim:steps=3,step_size=0.01", target_model=victim)
    cells = {row.target: row for row in result.transfer}
    assert cells["victim"].success_all == cells["victim"].success_correct == 1.0
    assert cells["twin"].success_correct == 0  # its own figure is what it is without the victim's holes
    assert cells["victim"].ssim < 1
    (row,) = [row for row in result.table.to_dict("records") if row["kind"] == "attack"]
    assert (row["correct"], row["undecided"]) == (0, 9)


def test_what_a_source_cannot_make_is_left_out_of_the_matrix_and_said() -> None:
    surrogate = Classifier(Holes(Weighted(0.25, 0.25, 0.25, 0.25), *data()[0][:, 0, 0, 0].tolist()).eval(), name="twin")
    result = evaluated("pgd:steps=3", surrogate)
    assert result.transfer == []
    assert any("of 10 images nothing could be made" in note for note in result.config["notes"])
    assert {v.reason for v in result.verdicts if v.broken is None} == {"the surrogate's logits or gradient were NaN or infinite"}


class Three(nn.Module):
    """Class 0 below 0.4, class 1 to 0.8, class 2 above, by the mean."""

    def __init__(self, shift: float = 0.0) -> None:
        super().__init__()
        self.register_buffer("shift", torch.tensor(shift))

    def forward(self, x: Tensor) -> Tensor:
        mean = x.flatten(1).mean(1) + self.shift
        return torch.stack([0.4 - mean, 0.2 - (mean - 0.6).abs(), mean - 0.8], 1) * 10


def test_an_image_that_a_targets_wrong_about_is_not_among_the_right_ones_of_a_targeted_attack() -> None:
    x = torch.tensor([0.1, 0.6, 0.78]).view(-1, 1, 1, 1).expand(-1, 1, 2, 2).contiguous()
    labels = torch.tensor([0, 0, 1])  # the second is wrong when clean, and not the target either
    victim, twin = Classifier(Three().eval(), name="victim"), Classifier(Three(0.001).eval(), name="twin")
    result = rb.evaluate(victim, "bim", (x, labels), eps=0.05, target=2, surrogates=[twin])
    cell = next(row for row in result.transfer if row.target == "victim")
    assert (cell.n, cell.n_correct) == (3, 2)
    assert cell.success_correct == 0.5


def test_a_plus_in_a_name_does_not_decide_what_is_a_white_box() -> None:
    result = evaluated("bim", model("wrn+aug", 0.25, 0.25, 0.25, 0.25), target_model=model("aug", 1.0, 0, 0, 0))
    assert {row.target: row.white_box for row in result.transfer} == {"aug": False, "wrn+aug": True}


def test_in_bf16_too_the_target_is_asked_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("robustbench_lite.engines.local.bfloat16_here", lambda _: True)
    counted = []
    for precision in ("fp32", "bf16"):
        victim = model("victim", 1.0, 0.0, 0.0, 0.0)
        evaluated("pgd:steps=3", target_model=victim, precision=precision)
        counted.append(victim.model.rows)
    assert counted[0] == counted[1]


def test_what_does_not_work_on_a_surrogate_is_refused_before_anything_is_evaluated(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="residual"):
        rb.evaluate(model("victim", 1.0, 0, 0, 0), ["pgd", "sgm"], data(), eps=0.1, out=tmp_path / "run")
    assert not (tmp_path / "run" / "run.json").exists()
