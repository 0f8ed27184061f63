"""Scenarios that are run: who plays which part, what each row is made on, what counts for a goal, and what is refused."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from robustbench_lite import scenario_running
from robustbench_lite.backbones import logistic, with_head
from robustbench_lite.classifier import Classifier, Preprocess
from robustbench_lite.conditions import jobs
from robustbench_lite.data import from_arrays
from robustbench_lite.errors import ModelError, UsageError
from robustbench_lite.labelled import LabelledImages
from robustbench_lite.registry import ATTACKS
from robustbench_lite.scenario_cast import _learn_from, structure
from robustbench_lite.scenario_running import _unfit, run_all, run_scenario
from robustbench_lite.scenarios import Row, Scenario, ScenarioReport, scenario_named

SIDE = 16
PGD = "pgd:steps=4"


@dataclass(frozen=True)
class Every(Scenario):
    """A row of each kind of knowledge."""

    title = "Every kind"
    domain = "spots"
    who = can = happens = "Somebody."
    rows = (
        Row("white", "white box", PGD, "linf", 0.3),
        Row("twin", "same architecture", PGD, "linf", 0.3),
        Row("stranger", "other architecture", PGD, "linf", 0.3),
        Row("public", "public backbone", PGD, "linf", 0.3),
        Row("scores", "scores", "square:queries=20", "linf", 0.3),
        Row("decisions", "decisions", "foolbox:HopSkipJumpAttack:steps=1,max_gradient_eval_steps=10", "l2", 3.0),
        Row("accident", "nothing", "extra:severity=1"),
        Row("one accident", "nothing", "fog:severity=5"),
    )


@dataclass(frozen=True)
class Few(Scenario):
    """What can be run at once."""

    title = "Few"
    domain = "spots"
    who = can = happens = "Somebody."
    rows = Every.rows[:4]


@dataclass(frozen=True)
class Eligible(Scenario):
    """Towards class 1."""

    title = "Eligible"
    domain = "spots"
    who = can = happens = "Somebody."
    goal = "trial-eligibility"
    rows = (Row("white", "white box", PGD, "linf", 0.3),)


def spots(count: int = 24, channels: int = 1, classes: int = 2, seed: int = 0) -> LabelledImages:
    """The brighter the middle, the higher the class."""
    draw = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % classes
    images = 0.3 + 0.1 * torch.rand(count, channels, SIDE, SIDE, generator=draw)
    images[:, :, 4:12, 4:12] += 0.3 * (labels / (classes - 1)).view(-1, 1, 1, 1)
    return replace(from_arrays(images, labels, "spots", classes=classes), task="binary" if classes == 2 else "ordinal")


def looking(name: str, seed: int = 0, channels: int = 1, outputs: int = 2) -> Classifier:
    """Two classes or one logit by the brightness of the middle."""
    layer = nn.Linear(channels * SIDE * SIDE, outputs)
    draw = torch.Generator().manual_seed(seed)
    middle = torch.zeros(channels, SIDE, SIDE)
    middle[:, 4:12, 4:12] = 1 / (64 * channels)
    middle += 0.002 * torch.randn(middle.shape, generator=draw)
    with torch.no_grad():
        layer.weight.copy_(torch.stack([-middle.flatten(), middle.flatten()] * outputs)[-outputs:] * 20)
        layer.bias.copy_(torch.tensor([10.0, -10.0] * outputs)[-outputs:])
    preprocess = Preprocess(size=None, resize=None, channels=channels)
    return Classifier(nn.Sequential(nn.Flatten(), layer).eval(), name=name, classes=2, preprocess=preprocess).requires_grad_(False)


class Deep(nn.Module):
    """Something of another architecture, with a last linear layer; of 20 pixels and three colours."""

    def __init__(self) -> None:
        super().__init__()
        torch.nn.init.orthogonal_((first := nn.Conv2d(3, 8, 4, 4)).weight, generator=torch.Generator().manual_seed(0))
        nn.init.zeros_(first.bias)  # type: ignore[arg-type]  # it has one
        self.features, self.head = nn.Sequential(first, nn.ReLU(), nn.Flatten()), nn.Linear(200, 5)
        nn.init.zeros_(self.head.weight)

    def forward(self, x: Tensor) -> Tensor:
        answer: Tensor = self.head(self.features(x))
        return answer


def deep() -> Classifier:
    return Classifier(Deep().eval(), name="deep", preprocess=Preprocess(size=(20, 20), resize=None)).requires_grad_(False)


@pytest.fixture(scope="module")
def report() -> ScenarioReport:
    stranger = with_head(deep(), spots(seed=2), 2, torch.device("cpu"))
    stranger.name = "stranger"
    return run_scenario(
        Every(), looking("attacked"), spots(12), surrogates=[looking("twin", 1), stranger], backbone=deep(), fit_data=spots(seed=3), seed=1
    )


def test_every_row_is_made_on_what_its_attacker_has(report: ScenarioReport) -> None:
    conditions = {each.name: each for each in report.result.conditions}
    by_row = {each.row.name.partition(":")[0]: each for each in report.rows}
    assert report.rows[0].condition == "clean"
    assert list(by_row) == ["clean images", *(row.name for row in Every.rows)]
    made_on = {name: conditions[each.condition].source for name, each in by_row.items() if each.condition is not None}
    assert made_on == dict.fromkeys(by_row, None) | {"twin": "twin", "stranger": "stranger", "public": "deep+head"}
    assert report.models == {
        "model": "attacked", "same architecture": "twin", "other architecture": "stranger", "public backbone": "deep+head"
    }  # fmt: skip
    assert all(each.missing is None and each.figures is not None for each in report.rows)
    assert conditions[str(by_row["white"].condition)].goal == "full"
    assert {each.eps for each in conditions.values() if each.norm == "l2"} == {3.0}


def test_figures_are_those_of_the_rows_own_verdicts(report: ScenarioReport) -> None:
    for each in report.rows:
        verdicts = report.result.of(str(each.condition))
        assert each.figures is not None
        assert all(verdict.outputs is not None for verdict in verdicts)
        assert each.figures.accuracy.value == pytest.approx(sum(v.prediction == v.label for v in verdicts) / len(verdicts))
    accuracy = {each.row.name: each.figures.accuracy.value for each in report.rows if each.figures}
    assert accuracy["clean images"] == 1.0
    assert accuracy["white"] == accuracy["twin"] == 0.0


def test_of_a_suite_the_worst_corruption_counts_and_is_named(report: ScenarioReport) -> None:
    (accident,) = (each for each in report.rows if each.row.name.startswith("accident"))
    (single,) = (each for each in report.rows if each.row.name == "one accident")
    suite = [c.name for c in report.result.conditions if c.kind == "corruption" and c.name != "fog[5]"]
    right = {name: sum(v.broken is False for v in report.result.of(name)) for name in suite}
    assert accident.condition is not None
    assert right[accident.condition] == min(right.values())
    assert accident.row.name == f"accident: {accident.condition}"
    assert any("of the 4 corruptions of extra:severity=1 that which costs most" in note for note in report.notes)
    assert single.condition == "fog[5]"


def test_what_nobody_gave_is_asked_for_and_the_rest_is_run() -> None:
    found = run_scenario(Few(), looking("attacked"), spots(), backbone=deep())
    missing = {each.row.name: each.missing for each in found.rows if each.missing}
    assert set(missing) == {"twin", "stranger", "public"}
    assert "give one with --surrogate" in str(missing["twin"])
    assert "give them with --fit-data" in str(missing["public"])
    assert all((each.condition is None) == (each.missing is not None) == (each.figures is None) for each in found.rows)


def test_two_surrogates_of_one_kind_are_told_and_the_first_is_used() -> None:
    found = run_scenario(Few(), looking("attacked"), spots(8), surrogates=[looking("one", 1), looking("two", 2)])
    assert found.models["same architecture"] == "one"
    assert any("one and two are both of the same architecture: two is not used" in note for note in found.notes)


@pytest.mark.parametrize("outputs", [1, 2])
def test_only_the_goals_direction_is_success(outputs: int) -> None:
    found = run_scenario(Eligible(), looking("attacked", outputs=outputs), spots())
    clean, white = found.rows
    assert clean.figures is not None
    assert white.figures is not None
    assert (clean.figures.n, white.figures.n) == (24, 24)  # whoever offers nothing is left as he is
    assert {v.label for v in found.result.of(str(white.condition))} == {0}
    assert white.figures.success is not None
    assert white.figures.success.value == 1.0
    assert white.figures.attacked == 12


def test_the_same_run_goes_on(tmp_path: Path) -> None:
    first = run_scenario(Eligible(), looking("attacked"), spots(), out=tmp_path / "run")
    again = run_scenario(Eligible(), looking("attacked"), spots(), out=tmp_path / "run")
    assert len(again.result.config["sessions"]) == 2
    assert [v.prediction for v in again.result.verdicts] == [v.prediction for v in first.result.verdicts]


def test_one_class_alone_has_no_auroc_and_the_run_goes_on() -> None:
    images = spots()
    found = run_scenario(Few(), looking("attacked"), images.take([i for i, label in enumerate(images.labels) if label == 0]))
    assert found.rows[0].figures is not None
    assert found.rows[0].figures.auroc.value is None
    assert found.rows[0].figures.auroc.reason


@pytest.mark.parametrize(
    ("scenario", "options", "said"),
    [
        (Eligible(), {"data": spots(9, classes=3)}, "attacked has 2 outputs and spots 3 classes: clinical figures need a model"),
        (Eligible(), {"surrogates": [looking("attacked")]}, "the surrogate attacked is the model itself"),
        (Eligible(), {"data": spots().take([1, 3, 5])}, "Eligible does not fit spots: none of the 3 images offers the attacker anything"),
        (Eligible(), {"model": None}, "say which model is attacked, with --model"),
        (Eligible(), {"model": None, "data": "phantom:kidney"}, "only phantom:chest, phantom:derm, phantom:fundus bring one"),
        (Eligible(), {"model": None, "data": None}, "say what is attacked, with --model and --data"),
        ("upcodin", {}, "unknown scenario 'upcodin': did you mean 'upcoded-retina'"),
    ],
)  # fmt: skip
def test_bad_input_is_one_line(scenario: Any, options: dict[str, Any], said: str) -> None:
    asked = {"model": looking("attacked"), "data": spots()} | options
    with pytest.raises(UsageError) as error:
        run_scenario(scenario, **asked)
    assert said in str(error.value)
    assert "\n" not in str(error.value)


def test_a_model_that_does_not_take_the_images_is_told_so() -> None:
    with pytest.raises(ModelError, match="attacked does not take 3x16x16 images"):
        run_scenario(Few(), looking("attacked"), spots(channels=3))


def test_what_does_not_fit_is_left_out_for_a_reason() -> None:
    grades = spots(10, classes=5)
    model = looking("attacked")
    assert _unfit(Eligible(), model, grades) == "it is for binary labels, and those of spots are ordinal"
    assert _unfit(Eligible(), model, spots()) is None
    phantoms = replace(spots(), name="phantom:derm", synthetic=True)
    assert _unfit(scenario_named("finlayson-cxr"), model, phantoms) == "it is about chest X-ray, and phantom:derm is not"
    assert _unfit(scenario_named("finlayson-derm"), model, phantoms) is None
    assert "say which of the 5 classes a study takes in" in str(_unfit(Eligible(), looking("five", outputs=5), replace(grades, task=None)))


@pytest.mark.parametrize(
    ("data", "learnt"),
    [
        ("digits", "digits:split=train"),
        ("digits:split=train", None),
        (None, None),
        ("phantom:chest,n=7,seed=3", "phantom:chest,seed=3,split=val"),
        ("phantom:chest,split=val", "phantom:chest,split=train"),
        ("cifar10:/x", "cifar10:/x,split=train"),
    ],
)
def test_attackers_learn_from_another_split(data: Any, learnt: str | None) -> None:
    assert _learn_from(data) == learnt


def test_the_same_architecture_is_known_by_its_layers() -> None:
    assert structure(looking("a", 1)) == structure(looking("b", 2))
    assert structure(looking("a")) != structure(looking("a", outputs=1))
    assert structure(nn.Sequential(nn.Conv2d(1, 4, 3))) != structure(nn.Sequential(nn.ConvTranspose2d(4, 1, 3)))


def test_a_scenario_alone_is_a_cascade_of_what_needs_no_surrogate() -> None:
    scenario = Every()
    assert scenario.norms == ("linf", "l2")
    assert list(scenario.parts("linf")) == ["white", "scores"]
    assert scenario.usual_eps == {"linf": 0.3, "l2": 3.0}
    assert scenario_named("missed-tumour").target == "missed-disease"
    assert len(ATTACKS.build("missed-tumour").parts("linf")) == 2  # the same attack at half the eps is not another one


def test_all_that_fit_are_run_each_in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    known: dict[str, Scenario] = {"few": Few(), "eligible": Eligible(), "grades": scenario_named("shifted-grades")}
    monkeypatch.setattr(scenario_running, "scenario_names", lambda: list(known))
    monkeypatch.setattr(scenario_running, "scenario_named", known.__getitem__)
    told: list[str] = []
    found = run_all(looking("attacked"), spots(8), out=tmp_path, done=lambda report: told.append(report.name))
    assert found.left_out == {"grades": "it is for ordinal labels, and those of spots are binary"}
    assert [type(each.scenario) for each in found.reports] == [Few, Eligible]
    assert [each.result.folder for each in found.reports] == [tmp_path / "few", tmp_path / "eligible"]
    assert [each.name for each in found.reports] == told == ["few", "eligible"]
    with pytest.raises(UsageError, match="no scenario fits: few: it is for binary labels"):
        run_all(looking("attacked"), replace(spots(8), task="multi-label"))


# ------------------------------------------------------------------ a public backbone with a new head


def test_the_head_is_scikit_learns_logistic_regression() -> None:
    sklearn: Any = pytest.importorskip("sklearn.linear_model")
    draw = torch.Generator().manual_seed(0)
    features = torch.randn(90, 4, generator=draw, dtype=torch.float64) * torch.tensor([1.0, 5, 0.1, 1], dtype=torch.float64) + 3
    labels = (features[:, 0] + features[:, 1] + torch.randn(90, generator=draw) > 6).long() + (features[:, 0] > 3.5).long()
    weight, bias = logistic(features, labels, 3)
    scaled = (features - features.mean(0)) / features.std(0, unbiased=False)
    theirs = sklearn.LogisticRegression(C=1 / (90 * 1e-2), tol=1e-10, max_iter=2000).fit(scaled.numpy(), labels.numpy())
    ours = (features @ weight.T + bias).softmax(1)
    assert torch.allclose(ours, torch.from_numpy(theirs.predict_proba(scaled.numpy())), atol=1e-4)


@pytest.mark.parametrize("outputs", [1, 2, 3])
def test_a_backbone_gets_a_head_for_the_models_classes(outputs: int) -> None:
    images, backbone = spots(30, classes=max(2, outputs)), deep()
    before = {key: value.clone() for key, value in backbone.state_dict().items()}
    fitted = with_head(backbone, images, outputs, torch.device("cpu"))
    x = torch.stack([images[row][0] for row in range(len(images))])
    logits = fitted(x)
    assert logits.shape == (30, outputs)
    said = (logits[:, 0] > 0).long() if outputs == 1 else logits.argmax(1)
    assert (said == torch.tensor(list(images.labels))).float().mean() > 0.9
    assert all(torch.equal(value, before[key]) for key, value in backbone.state_dict().items())
    assert torch.equal(fitted(x), with_head(deep(), images, outputs, torch.device("cpu"))(x))
    x.requires_grad_()
    assert torch.autograd.grad(fitted(x)[:, 0].sum(), x)[0].abs().sum() > 0


def test_findings_get_a_logit_each() -> None:
    images = spots(20)
    labelled = replace(images, labels=[(float(label), 1 - float(label), 1.0) for label in images.labels], classes=3, task="multi-label")
    fitted = with_head(deep(), labelled, 3, torch.device("cpu"))
    x = torch.stack([images[row][0] for row in range(20)])
    assert torch.equal((fitted(x) > 0).float(), torch.tensor(labelled.labels))


def test_a_backbone_must_end_in_a_linear_layer() -> None:
    for module in (nn.Sequential(nn.Conv2d(1, 2, SIDE), nn.Flatten()), nn.Sequential(nn.Linear(SIDE, 3), nn.Flatten())):
        backbone = Classifier(module.eval(), name="odd", preprocess=Preprocess(size=None, resize=None, channels=1))
        with pytest.raises(ModelError, match="odd has no linear layer at its end"):
            with_head(backbone, spots(), 2, torch.device("cpu"))
    twice = nn.Sequential(nn.Flatten(), nn.Linear(SIDE * SIDE, 3), nn.Softmax(1), nn.AvgPool1d(2))
    backbone = Classifier(twice.eval(), name="odd", preprocess=Preprocess(size=None, resize=None, channels=1))
    with pytest.raises(ModelError, match="odd does something to what its last linear layer says"):
        with_head(backbone, spots(), 2, torch.device("cpu"))


@pytest.mark.parametrize(("name", "target"), [("finlayson-cxr", None), ("missed-tumour", "missed-disease:positive=1")])
def test_a_scenario_as_an_attack_seeks_any_witness_of_what_its_attacker_wants(name: str, target: str | None) -> None:
    """Its `goal` is a target, and not what an attack calls so."""
    planned = jobs([name], norm=None, eps=None, default_eps={}, data="x", disease=[1])
    assert [(job.condition.goal, job.condition.target) for job in planned] == [("first", target)]
