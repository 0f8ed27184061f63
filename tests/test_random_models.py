"""Randomised models: judged by votes under fixed random state, attacked on averages; and gradients past what has none (BPDA)."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import robustbench_lite as rb
from robustbench_lite.bpda import straight_through
from robustbench_lite.checks import first_answer
from robustbench_lite.classifier import Classifier
from robustbench_lite.criteria import Misclassified
from robustbench_lite.errors import UsageError
from robustbench_lite.judge import Judge
from robustbench_lite.passes import Passes
from robustbench_lite.streams import seeded


class Noisy(nn.Module):
    """Class 1 where the mean plus noise exceeds one half."""

    def __init__(self, scale: float) -> None:
        super().__init__()
        self.scale = scale

    def forward(self, x: Tensor) -> Tensor:
        over = x.flatten(1).mean(1) - 0.5 + self.scale * torch.randn(len(x), device=x.device)
        return torch.stack([-over, over], 1)


class Rounding(nn.Module):
    """Eight levels of grey."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.round(x * 8) / 8


class Declared(Rounding):
    """The same, with a stand-in for its gradient."""

    def surrogate_backward(self, x: Tensor) -> Tensor:
        return x


def greys(*values: float) -> Tensor:
    return torch.tensor(values).view(-1, 1, 1, 1).expand(-1, 1, 4, 4).contiguous()


def data(*values: float) -> tuple[Tensor, Tensor]:
    return greys(*values), torch.tensor([int(value > 0.5) for value in values])


def test_a_verdict_by_votes_is_the_majoritys_and_depends_on_the_image_alone() -> None:
    model = Noisy(0.05).eval()
    x = greys(0.3, 0.47, 0.5, 0.53, 0.7)
    labels = torch.zeros(5, dtype=torch.long)
    judge, ids = Judge(Passes(model), votes=11, seed=3), list("abcde")
    together = judge.logits(x, Misclassified(labels), ids)
    alone = torch.cat([judge.logits(x[i : i + 1], Misclassified(labels[:1]), [ids[i]]) for i in range(5)])
    assert torch.equal(together, alone)
    votes = []
    for i in range(5):
        counted = 0
        for vote in range(11):
            with seeded(3, ids[i], "vote", vote):
                counted += int(model(x[i : i + 1]).argmax())
        votes.append(counted)
    assert (together.argmax(1) == 1).tolist() == [count > 5 for count in votes]
    assert 0 < votes[1] < votes[3] < 11


@pytest.mark.parametrize(("votes", "needed"), [(1, 1), (2, 1), (5, 3), (10, 5)])
def test_an_image_is_broken_where_at_least_half_of_the_votes_are(votes: int, needed: int) -> None:
    class Scripted(nn.Module):
        """Answers wrongly the first `wrong` times."""

        def __init__(self, wrong: int) -> None:
            super().__init__()
            self.wrong, self.asked = wrong, 0

        def forward(self, x: Tensor) -> Tensor:
            self.asked += 1
            side = 1.0 if self.asked <= self.wrong else -1.0
            return torch.tensor([[-side, side]])

    for wrong in range(votes + 1):
        judge = Judge(Passes(Scripted(wrong).eval()), votes=votes)
        logits = judge.logits(greys(0.4), Misclassified(torch.tensor([0])), ["a"])
        assert bool(logits.argmax(1)[0] == 1) == (wrong >= needed)


def test_one_vote_that_is_no_number_leaves_the_image_undecided() -> None:
    class Sometimes(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.where(torch.rand(len(x), 1) < 0.5, torch.nan, torch.tensor([[1.0, 0.0]]))

    logits = Judge(Passes(Sometimes().eval()), votes=10).logits(greys(0.4), Misclassified(torch.tensor([0])), ["a"])
    assert not logits.isfinite().all()


def test_a_randomised_model_is_evaluated_by_votes_and_the_same_again(tmp_path: Path) -> None:
    values = (0.1, 0.2, 0.3, 0.42, 0.44, 0.56, 0.58, 0.8, 0.9)
    before = torch.get_rng_state()
    results = [
        rb.evaluate(Noisy(0.02).eval(), "pgd:steps=5", data(*values), eps=0.1, out=tmp_path / name, **more)
        for name, more in (("a", {}), ("b", {"shuffle_seed": 5, "batch_size": 2}))
    ]
    assert torch.equal(before, torch.get_rng_state())
    for result in results:
        table = result.table.set_index("condition")
        assert table.loc["clean", "correct"] == 9
        assert table.loc["pgd:steps=5[linf,0.1]", "correct"] == 5  # those that are further than 0.1 from one half
        assert any("randomised: verdicts by 10 votes" in note for note in result.config["notes"])
    assert rb.verify(tmp_path / "a", Noisy(0.02).eval()).holding == 4


def test_votes_are_not_the_luckiest_draw() -> None:
    # each answer is wrong with probability 0.16; PGD asks ten times and some answer is bound to be
    result = rb.evaluate(Noisy(0.1).eval(), "pgd:steps=10", data(*[0.4] * 20), eps=1e-4, votes=25)
    assert result.table.set_index("condition").loc["pgd:steps=10[linf,0.0001]", "correct"] >= 18


class Scaled(nn.Module):
    """Ten logits of an image's brightness with some noise, or none, as they are or otherwise scaled and moved."""

    def __init__(self, noise: float, scale: float, constant: float, masked: bool) -> None:
        super().__init__()
        self.noise, self.scale, self.constant, self.masked = noise, scale, constant, masked

    def forward(self, x: Tensor) -> Tensor:
        logits = x.flatten(1).mean(1, keepdim=True) * torch.linspace(-5, 5, 10)
        logits = self.scale * (logits + self.noise * torch.randn(logits.shape)) + self.constant
        return torch.cat([logits[:, :9], torch.full_like(logits[:, :1], -torch.inf)], 1) if self.masked else logits


@pytest.mark.parametrize(("scale", "constant", "masked"), [(1, 0, False), (1e-6, 0, False), (1e3, 0, False), (1, 1e3, False), (1, 0, True)])
def test_neither_the_scale_of_the_logits_nor_a_constant_hides_that_a_model_is_random(scale: float, constant: float, masked: bool) -> None:
    x, y = greys(0.3, 0.6), torch.tensor([0, 0])
    for noise, random in ((0.1, True), (1e-7, False)):
        model = Classifier(Scaled(noise, scale, constant, masked).eval(), name="scaled")
        assert first_answer(model, x, y)[1] == random


class Skewed(nn.Module):
    """Beyond 0.45, wrong by a little in seven draws of ten and right by far in the others: the mean of its answers is right."""

    def forward(self, x: Tensor) -> Tensor:
        beyond = x.flatten(1).mean(1) > 0.45
        draw = torch.rand(len(x), device=x.device)
        over = (
            torch.where(beyond & (draw < 0.7), 0.1, torch.where(beyond, -20.0, -5.0)) + x.flatten(1).mean(1) - x.flatten(1).mean(1).detach()
        )
        return torch.stack([-over, over], 1)


def test_what_the_mean_does_not_show_is_put_to_the_vote_as_well() -> None:
    result = rb.evaluate(Skewed().eval(), "pgd:steps=10", data(*[0.4] * 12), eps=0.1, votes=11)
    assert result.table.set_index("condition").loc["pgd:steps=10[linf,0.1]", "correct"] <= 2


def test_attacks_average_the_answers_and_count_each(tmp_path: Path) -> None:
    cost = {}
    for eot in (None, 3):
        result = rb.evaluate(Noisy(0.001).eval(), "pgd:steps=4", data(0.1, 0.9), eps=0.01, eot=eot, votes=3)
        (row,) = [row for row in result.table.to_dict("records") if row["kind"] == "attack"]
        cost[eot] = (row["mean_forwards"], row["mean_backwards"])
    assert cost[None] == (20 * 4 + 1, 20 * 4)  # the last image is only judged
    assert cost[3] == (3 * 4 + 1, 3 * 4)


def test_averaging_a_model_that_always_answers_alike_is_pointless_and_said() -> None:
    result = rb.evaluate(Noisy(0.0).eval(), "fgsm", data(0.1, 0.9), eps=0.01, eot=5)
    assert any("always answers alike" in note for note in result.config["notes"])


@pytest.mark.parametrize("more", [{"eot": 0}, {"votes": 0}])
def test_numbers_below_one_are_refused(more: dict[str, int]) -> None:
    with pytest.raises(UsageError, match="must be 1 or more, got 0"):
        rb.evaluate(Noisy(0.1).eval(), "fgsm", data(0.1, 0.9), eps=0.1, **more)


# --- BPDA ------------------------------------------------------------------------------------------------------------------


def guarded(guard: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(guard, nn.Flatten(), nn.Linear(16, 2)).eval().requires_grad_(False)


def test_the_answers_stay_and_the_gradient_is_the_stand_ins() -> None:
    model, x = guarded(Declared()), torch.rand(3, 1, 4, 4, generator=torch.Generator().manual_seed(1)).requires_grad_()
    plain = model(x)
    with straight_through(model) as names:
        assert names == ["0"]
        seen = model(x)
        (slope,) = torch.autograd.grad(seen[:, 0].sum(), x)
    assert torch.equal(plain, seen)
    assert torch.allclose(slope, model[2].weight[0].view(1, 1, 4, 4).expand_as(slope))
    assert not any(module._forward_hooks for module in model.modules())


def test_a_rounding_model_is_broken_once_it_declares_a_stand_in() -> None:
    x = torch.rand(30, 1, 4, 4, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        labels = guarded(Declared())(x).argmax(1)
    stopped = rb.evaluate(guarded(Rounding()), "pgd", (x, labels), eps=0.4)
    assert {v.gradient for v in stopped.of("pgd[linf,0.4]")} == {0.0}
    assert stopped.trust["worst[linf,0.4]"].level == "doubtful"
    result = rb.evaluate(guarded(Declared()), "pgd", (x, labels), eps=0.4)
    assert result.table.set_index("condition").loc["pgd[linf,0.4]", "accuracy"] < 0.5
    assert any("gradients pass 0 by the stand-in" in note.replace("model.", "") for note in result.config["notes"])


def test_an_attack_that_also_needs_no_gradients_goes_on_and_says_which_images_it_could_not_move() -> None:
    x = torch.rand(6, 1, 4, 4, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        labels = guarded(Rounding())(x).argmax(1)
    result = rb.evaluate(guarded(Rounding()), "autoattack", (x, labels), eps=0.02, query_budget=800)
    assert [row.stage for row in result.cascade][:1] == ["apgd-ce"]
    survivors = [v for v in result.verdicts if v.broken is False and v.condition.startswith("autoattack")]
    assert survivors
    assert {v.reason for v in survivors} == {"every gradient was exactly zero"}
    (finding,) = (each for each in result.findings if each.check == "gradients" and each.conditions[0].startswith("autoattack"))
    assert (finding.weight, set(finding.samples)) == ("doubts", {v.sample_id for v in survivors})
