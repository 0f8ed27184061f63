"""The universal perturbation: what it learns, from whom, and what it does to images that it has not seen."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from distances import MODELS, digits
from torch import Tensor, nn
from torch.nn import functional

import robustbench_lite as rb
from robustbench_lite.classifier import Classifier
from robustbench_lite.conditions import Means
from robustbench_lite.errors import UsageError
from robustbench_lite.fitting import Lesson
from robustbench_lite.labelled import from_arrays
from robustbench_lite.passes import Passes
from robustbench_lite.registry import ATTACKS
from robustbench_lite.threat import BALLS, ball

CPU = torch.device("cpu")


class Linear(nn.Module):
    """Classes by one weight a class; or a single logit; or a finding for every class."""

    def __init__(self, form: str = "classes", scale: float = 1.0) -> None:
        super().__init__()
        self.form = form
        self.weight = nn.Parameter(scale * torch.randn(3, 48, generator=torch.Generator().manual_seed(5)))
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        logits = (x - 0.5).flatten(1) @ self.weight.T
        return logits[:, 1:2] if self.form == "single logit" else logits


def shown(model: nn.Module, size: int = 60, seed: int = 0, **more: Any) -> Any:
    """Images with the labels that the model gives them."""
    x = 0.3 + 0.4 * torch.rand(size, 3, 4, 4, generator=torch.Generator().manual_seed(seed))
    logits = model(x).detach()
    form = getattr(model, "form", "classes")
    labels = logits.argmax(1) if form == "classes" else (logits > 0).long().squeeze(1)
    return from_arrays(x, more.get("labels", labels), "shown")


def taught(model: nn.Module, spec: str = "universal", norm: str = "linf", eps: float = 0.1, target: Any = None, **more: Any) -> Tensor:
    images = more.get("images") or shown(model)
    lesson = Lesson(Passes(model), images, ball(norm, eps), target, CPU, 0, "universal[linf]", more.get("batch_size", 16))
    learnt: Tensor = ATTACKS.build(spec).fit(lesson)["perturbation"]
    return learnt


def row(result: Any) -> Any:
    return next(row for row in result.table.itertuples() if str(row.condition).startswith("universal"))


@pytest.mark.parametrize(("norm", "eps"), [("linf", 0.1), ("linf", 0.8), ("l2", 0.5), ("l2", 3.0)])
def test_towards_a_class_of_a_linear_model_it_is_the_closed_form(norm: str, eps: float) -> None:
    model = Linear()
    model.weight.data[2] = -model.weight.data[1]
    model.weight.data[0] = 0
    model.weight.data[1] *= 0.02  # so flat that the softmax weighs the other two classes alike
    model.weight.data[2] *= 0.02
    images = shown(model, labels=torch.zeros(60, dtype=torch.long))
    learnt = taught(model, "universal:epochs=40", norm, eps, 1, images=images).flatten()
    way = model.weight[1].detach()
    best = (eps * way.sign() if norm == "linf" else eps * way / way.norm()).clamp(-1, 1)
    assert float(learnt @ way) >= 0.98 * float(best @ way)
    assert float(learnt.abs().amax() if norm == "linf" else learnt.norm()) <= eps * 1.00001
    assert learnt.abs().amax() <= 1


@pytest.mark.parametrize("form", ["classes", "single logit", "findings"])
@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_it_breaks_more_of_other_images_than_noise_of_its_size(form: str, norm: str, tmp_path: Path) -> None:
    model, eps = Linear(form), {"linf": 0.1, "l2": 0.7}[norm]
    result = rb.evaluate(
        model,
        ["universal", "noise:queries=1"],
        shown(model),
        norm=norm,
        eps=eps,
        fit_data=shown(model, seed=1),
        out=tmp_path,
        witnesses="all",
    )
    noise = next(each for each in result.table.itertuples() if str(each.condition).startswith("noise"))
    assert row(result).n == 60
    assert row(result).accuracy < noise.accuracy - 0.2
    checked = rb.verify(tmp_path, model)
    assert checked.holding >= 12
    assert not checked.failures


def test_half_teach_and_are_left_out_and_the_batch_does_not_matter() -> None:
    model = Linear()
    runs = [rb.evaluate(model, "universal:epochs=3", shown(model), norm="linf", eps=0.1, batch_size=size) for size in (64, 7)]
    assert [row(run).n for run in runs] == [30, 30]
    broken = [{v.sample_id: v.broken for v in run.verdicts if v.condition.startswith("universal")} for run in runs]
    assert broken[0] == broken[1]
    assert any(broken[0].values())


def test_towards_a_class_all_images_are_driven_there() -> None:
    model = Linear()
    result = rb.evaluate(model, "universal", shown(model), norm="linf", eps=0.2, target=2, fit_data=shown(model, seed=1))
    tried = [v for v in result.verdicts if v.condition.startswith("universal")]
    assert sum(v.broken is True for v in tried) > 0.8 * len(tried) > 0
    assert all(v.prediction == 2 for v in tried if v.broken)


def test_it_learns_from_images_alone_that_the_model_gets_right() -> None:
    model, images = Linear(), shown(Linear())
    wrong = torch.stack([(label + 1) % 3 if place % 2 else label for place, label in enumerate(torch.tensor(list(images.labels)))])
    mixed = from_arrays(torch.stack(list(images.pictures)), wrong, "mixed")
    right = mixed.take([place for place in range(60) if not place % 2])
    # in one batch, so that the order of the images makes no difference but by rounding
    assert torch.allclose(*(taught(model, "universal:batch=64,epochs=3", images=each) for each in (mixed, right)), atol=1e-3)
    none = from_arrays(torch.stack(list(images.pictures)), (torch.tensor(list(images.labels)) + 1) % 3, "mislabelled")
    with pytest.raises(UsageError, match=r"no clean image to fit .* all 60 of mislabelled wrong .* --fit-data"):
        taught(model, images=none)


def test_it_learns_where_the_loss_is_beyond_the_clip_although_nothing_is_lost() -> None:
    """As it may be where the losses of many findings are added up."""
    learnt = taught(Linear("findings"), "universal:epochs=3,clip=0.01")
    assert learnt.abs().amax() > 0


def test_an_image_is_asked_about_once() -> None:
    images = shown(Linear(scale=0.0))  # all of them survive
    found = [
        v for v in rb.evaluate(Linear(scale=0.0), "universal:epochs=1", images, norm="linf", eps=0.1).verdicts if v.condition != "clean"
    ]
    assert {v.forwards for v in found if v.condition.startswith("universal")} == {1}


def test_what_the_model_cannot_answer_does_not_spoil_it() -> None:
    class Dumb(Linear):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x).masked_fill(x[:, 0, 0, 0, None] > 0.6, torch.nan)

    assert taught(Dumb(), images=shown(Linear())).isfinite().all()


def test_an_image_with_a_smaller_ball_of_its_own_gets_less_and_one_with_a_larger_not_more(pictures: Any) -> None:
    x, learnt = 0.3 + 0.4 * pictures(3), torch.full((1, 3, 8, 8), 0.1)
    made = ATTACKS.build("universal").fitted({"perturbation": learnt})

    class Door:
        origin, threat = x, BALLS["linf"](torch.tensor([0.05, 0.1, 0.2]))

    moved = made.start(Door(), None).x
    assert threat_distance(moved, x) == pytest.approx([0.05, 0.1, 0.1])

    class Other:
        origin, threat = x[:, :1], ball("linf", 0.1)

    with pytest.raises(UsageError, match="3x8x8 does not go onto images of 1x8x8"):
        made.start(Other(), None)


def threat_distance(moved: Tensor, x: Tensor) -> list[float]:
    distances: list[float] = ball("linf", 1.0).distance(moved, x).tolist()
    return distances


def test_made_on_a_twin_it_is_tried_once_on_the_model() -> None:
    model = Linear()
    means, data = [Means("universal", source="twin")], shown(model)
    twin = Classifier(Linear(scale=1.5), name="twin")
    result = rb.evaluate(model, means, data, norm="linf", eps=0.15, surrogates=[twin])
    tried = [v for v in result.verdicts if v.condition.startswith("universal")]
    assert sum(v.broken is True for v in tried) > 0.5 * len(tried) > 0


# --- beside others -----------------------------------------------------------------------------------------------------------


def plainly(model: nn.Module, x: Tensor, labels: Tensor, norm: str, eps: float) -> Tensor:
    """Adam on the whole batch's clipped loss, by autograd."""
    delta = torch.zeros_like(x[:1]).requires_grad_()
    optimizer = torch.optim.Adam([delta], lr=eps / 20 if norm == "linf" else eps / 40)
    for _ in range(60):
        loss = -functional.cross_entropy(model((x + delta).clamp(0, 1)), labels, reduction="none").clamp(max=9).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        delta.data = delta.data.clamp(-eps, eps) if norm == "linf" else delta.data * min(1.0, eps / float(delta.detach().norm()))
    return delta.detach()


def from_art(model: nn.Module, x: Tensor, labels: Tensor, norm: str, eps: float) -> Tensor:
    pytest.importorskip("art")
    import numpy as np
    from art.attacks.evasion import UniversalPerturbation
    from art.estimators.classification import PyTorchClassifier

    order = np.inf if norm == "linf" else 2
    wrapped = PyTorchClassifier(model, nn.CrossEntropyLoss(), x.shape[1:], 10, clip_values=(0, 1), device_type="cpu")
    inner = {"eps": eps, "eps_step": eps / 10, "norm": order, "max_iter": 20}
    made = UniversalPerturbation(wrapped, attacker="pgd", attacker_params=inner, eps=eps, norm=order, max_iter=4, verbose=False)
    made.generate(x.numpy(), labels.numpy())
    return torch.as_tensor(made.noise, dtype=x.dtype).view_as(x[:1])


@pytest.mark.peers
@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize(("norm", "eps"), [("linf", 0.1), ("l2", 4.0)])
@pytest.mark.parametrize("peer", [plainly, from_art])
def test_on_digits_it_breaks_as_many_unseen_images_as_others(name: str, norm: str, eps: float, peer: Any) -> None:
    model, x, labels = digits(name, 200)
    ours = taught(model, norm=norm, eps=eps, images=from_arrays(x[:100], labels[:100], "digits"))
    theirs = peer(model, x[:100], labels[:100], norm, eps)
    broken = [int((model(ball(norm, eps).project(x[100:] + each, x[100:])).argmax(1) != labels[100:]).sum()) for each in (ours, theirs)]
    assert broken[0] >= broken[1]
