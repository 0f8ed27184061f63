"""Knowledge distillation: its loss by hand-computed values, and a teacher that stays as it is and is not needed afterwards."""

from __future__ import annotations

import copy
import math
from pathlib import Path

import pytest
import torch
from robustbench_lite.defenses import distill
from robustbench_lite.defenses.distill import Distill
from robustbench_lite.defenses.job import save
from torch import Tensor, nn
from training_fixture import CPU, digits, made, training

from robustbench_lite.classifier import Classifier
from robustbench_lite.defending import About, Batch, Defenses, Step, soft_cross_entropy
from robustbench_lite.errors import BadSpec, ModelError, UsageError
from robustbench_lite.models import load_model
from robustbench_lite.streams import Streams

TEACHER = """
import torch
from torch import nn

class Fixed(nn.Module):
    def forward(self, x):
        return torch.tensor([LOGITS]).expand(len(x), -1) + 0 * x.flatten(1).sum(1, keepdim=True)

def build():
    return Fixed().eval()
"""


def teacher(folder: Path, *logits: float) -> str:
    """Spec of a model that answers so to every image."""
    file = folder / "teacher.py"
    file.write_text(TEACHER.replace("LOGITS", ", ".join(map(str, map(float, logits)))))
    return f"{file}:build"


class Learning(nn.Module):
    """Answers with its weights."""

    def __init__(self, *rows: tuple[float, ...]) -> None:
        super().__init__()
        self.rows = nn.Parameter(torch.tensor(rows))

    def forward(self, x: Tensor) -> Tensor:
        return self.rows


def step(*rows: tuple[float, ...], targets: Tensor | None = None) -> Step:
    classifier = Classifier(Learning(*rows).eval())
    count, classes = classifier.model.rows.shape
    y = torch.eye(classes)[torch.zeros(count, dtype=torch.int64)] if targets is None else targets
    return Step(classifier, Batch(torch.rand(count, 3, 8, 8), y), Streams(0, "training", [("a", 0)] * count, None, CPU))


def about(*counts: int, shape: tuple[int, int, int] = (3, 32, 32)) -> About:
    return About(counts, {}, CPU, shape)


def test_the_loss_is_the_divergence_of_the_student_from_the_teacher_by_hand(tmp_path: Path) -> None:
    # at T = 2 the teacher's logits (2 ln 3, 0) are (3/4, 1/4), and the student's rows (1/2, 1/2) and the teacher's own
    spec = teacher(tmp_path, 2 * math.log(3), 0)
    asked = step((0.0, 0.0), (2 * math.log(3) + 5, 5.0))
    loss = Distill(spec, temperature=2.0, weight=0.5).penalty(asked)
    forward = 0.75 * math.log(1.5) + 0.25 * math.log(0.5)
    backward = 0.5 * math.log(2 / 3) + 0.5 * math.log(2)
    assert abs(forward - backward) > 0.01  # the other direction would be seen
    torch.testing.assert_close(loss, torch.tensor([0.5 * 4 * forward, 0.0]))


def test_the_gradient_of_a_logit_is_the_temperature_times_the_gap(tmp_path: Path) -> None:
    logits, row, temperature = (1.0, -2.0, 0.5), (0.3, 0.1, -0.4), 4.0
    asked = step(row)
    torch.autograd.backward(Distill(teacher(tmp_path, *logits), temperature=temperature).penalty(asked).sum())
    taught, learnt = ((torch.tensor(values) / temperature).softmax(0) for values in (logits, row))
    torch.testing.assert_close(asked.classifier.model.rows.grad, temperature * (learnt - taught)[None])


def test_an_extreme_teacher_gives_a_finite_loss(tmp_path: Path) -> None:
    asked = step((0.0, 0.0), (-1000.0, 1000.0))
    loss = Distill(teacher(tmp_path, 1e4, -1e4), temperature=1.0).penalty(asked)
    torch.testing.assert_close(loss, torch.tensor([math.log(2), 2000.0]))


def test_it_is_added_to_the_cross_entropy_of_the_labels(tmp_path: Path) -> None:
    spec, asked = f"distill:teacher=({teacher(tmp_path, 1, 2)}),temperature=3", step((0.4, 0.1), targets=torch.tensor([[0.2, 0.8]]))
    defenses = Defenses.parse(spec)
    assert defenses.spec == f"distill:teacher=({tmp_path / 'teacher.py'}:build),temperature=3.0"
    assert Defenses.parse(defenses.spec) == defenses
    alone = defenses.parts[0].penalty(asked)
    torch.testing.assert_close(defenses.losses(asked), soft_cross_entropy(asked.logits, asked.batch.targets) + alone)


def test_the_usual_temperature_and_weight() -> None:
    assert Defenses.parse("distill:digits_cnn").parts == (Distill("digits_cnn", temperature=20.0, weight=1.0),)


# --- the teacher


def test_the_teacher_is_frozen_and_asked_in_eval_mode() -> None:
    run = training(digits(32), what=made("small_cnn", "distill:digits_cnn"), epochs=1)
    network = run.defenses.parts[0].network
    before = copy.deepcopy(network.state_dict())
    run.run()
    assert not any(module.training for module in network.modules())
    assert not any(weights.requires_grad or weights.grad is not None for weights in network.parameters())
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())  # statistics too
    assert not any(weights is theirs for weights in run.classifier.parameters() for theirs in network.parameters())


def test_what_is_learnt_comes_from_the_teacher(tmp_path: Path) -> None:
    lesson = teacher(tmp_path, 0, 0, 0, 8, 0, 0, 0, 0, 0, 0)  # every image is a three
    run = training(digits(64), what=made("small_cnn", f"distill:teacher=({lesson}),temperature=1,weight=5"), epochs=6, lr=0.01, clip=1.0)
    images = torch.stack([image for image, _ in digits(64)])
    assert (run.run()(images).argmax(1) == 3).all()


def test_a_checkpoint_needs_no_teacher(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    what = made("small_cnn", f"distill:teacher={tmp_path / 'long gone.safetensors'}")
    save(what.untrained(), tmp_path / "student.safetensors", what, {})
    monkeypatch.setattr(distill, "load_model", lambda spec: pytest.fail("the teacher was asked for"))
    student = load_model(str(tmp_path / "student.safetensors"))
    assert student(torch.zeros(1, 3, 32, 32)).shape == (1, 10)


def test_a_checkpoint_can_teach(tmp_path: Path) -> None:
    what = made("small_cnn", classes=4)
    save(what.untrained(), tmp_path / "teacher.safetensors", what, {})
    defense = Distill(str(tmp_path / "teacher.safetensors")).informed(about(1, 1, 1, 1))
    assert defense.network.name == "teacher"


# --- bad input


def test_a_teacher_of_other_classes_is_refused_in_one_line(tmp_path: Path) -> None:
    expected = r"^distill: the teacher \S+ has 3 classes, and the data 10: name a teacher that was trained on the same classes$"
    with pytest.raises(ModelError, match=expected):
        training(digits(32), what=made("small_cnn", f"distill:teacher=({teacher(tmp_path, 1, 2, 3)})"))


def test_a_teacher_of_other_images_is_refused_in_one_line() -> None:
    with pytest.raises(ModelError, match=r"^digits_cnn does not take 1x32x32 images: it is normalised for 3 channels$"):
        Distill("digits_cnn").informed(about(*[1] * 10, shape=(1, 32, 32)))
    with pytest.raises(ModelError, match=r"^digits_cnn does not take 3x64x64 images: [^\n]+$"):
        Distill("digits_cnn").informed(about(*[1] * 10, shape=(3, 64, 64)))


@pytest.mark.parametrize(
    ("spec", "error"),
    [
        ("distill", "distill needs teacher: write distill:teacher=..."),
        ("distill:digits_cnn,temperature=0", "distill:temperature=0: input should be greater than 0"),
        ("distill:digits_cnn,weight=-1", "distill:weight=-1: input should be greater than 0"),
    ],
)
def test_parameters_out_of_range_are_refused(spec: str, error: str) -> None:
    with pytest.raises(BadSpec) as raised:
        Defenses.parse(spec)
    assert str(raised.value) == error


def test_a_lesson_cannot_be_put_on_a_model() -> None:
    with pytest.raises(
        UsageError, match=r"^distill is learnt, and cannot be put on a model: robust-train --defense distill:teacher=digits_cnn$"
    ):
        load_model("digits_cnn", defense="distill:digits_cnn")
