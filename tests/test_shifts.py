"""Corruptions, published sets of corrupted images and sequences as conditions of a run."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from replayed import photograph
from torch import nn

import robustbench_lite as rb
from robustbench_lite.corrupting import Member, draws
from robustbench_lite.errors import DataError, InvalidEvaluation, RunMismatch, UsageError
from robustbench_lite.labelled import LabelledImages, from_arrays
from robustbench_lite.registry import CORRUPTIONS

CPU = torch.device("cpu")


def images(count: int = 12) -> LabelledImages:
    """A photograph in different light; the label says how bright it is."""
    photo = photograph(32)[0]
    several = torch.stack([(photo * (0.3 + 1.2 * k / count)).clamp(0, 1) for k in range(count)])
    return from_arrays((several * 255).round() / 255, [k % 3 for k in range(count)], ids=[f"i{k}" for k in range(count)], classes=3)


class Sharp(nn.Module):
    """Its answer hangs on details, so that every corruption matters."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.weight = nn.Parameter(torch.randn(3, 3 * 32 * 32, generator=generator) / 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.flatten(1) @ self.weight.T


def net() -> nn.Module:
    return Sharp().eval()


def facts(result: Any) -> dict[tuple[str, str], tuple[Any, ...]]:
    return {(v.condition, v.sample_id): (v.prediction, v.broken, v.confidence, v.nll, v.brier) for v in result.verdicts}


def assert_same(some: dict[Any, tuple[Any, ...]], others: dict[Any, tuple[Any, ...]]) -> None:
    """Equal but for what sums of another order are rounded to."""
    assert some.keys() == others.keys()
    for key, values in some.items():
        assert values[:2] == others[key][:2], key
        assert values[2:] == pytest.approx(others[key][2:], rel=1e-4), key


def test_verdicts_are_those_of_a_plain_loop() -> None:
    data, model = images(), net()
    result = rb.evaluate(model, (), data, corruptions=["fog:severity=2", "gaussian_noise:severity=5"], batch_size=5)
    assert [(c.name, c.kind, c.corruption, c.severity) for c in result.conditions] == [
        ("clean", "clean", None, None),
        ("fog[2]", "corruption", "fog", 2),
        ("gaussian_noise[5]", "corruption", "gaussian_noise", 5),
    ]
    for name, severity in (("fog", 2), ("gaussian_noise", 5)):
        member = Member(name, CORRUPTIONS.build(name))
        for verdict, (image, label), key in zip(result.of(f"{name}[{severity}]"), data, data.ids, strict=True):
            x = member(image[None], severity, draws(0, name, severity, [key], CPU)).float() / 255
            probability = model(x).detach().double().softmax(1)[0]
            assert verdict.sample_id == key
            assert verdict.prediction == int(probability.argmax())
            assert verdict.broken == (verdict.prediction != label)
            assert verdict.broken_by == (f"{name}[{severity}]" if verdict.broken else None)
            assert verdict.confidence == pytest.approx(float(probability.max()), rel=1e-5)
            assert verdict.nll == pytest.approx(-math.log(probability[int(label)]), rel=1e-4)
            truth = torch.nn.functional.one_hot(torch.tensor(label), 3)
            assert verdict.brier == pytest.approx(float(((probability - truth) ** 2).sum()), rel=1e-4)
            assert verdict.clean_prediction == int(model(image[None]).argmax())


def test_batches_order_and_neighbours_do_not_matter() -> None:
    specs = ["shot_noise:severity=3", "glass_blur:severity=4", "jpeg_compression:severity=5"]
    whole = facts(rb.evaluate(net(), (), images(), corruptions=specs, batch_size=64))
    for size, order in ((1, 0), (7, 3)):
        assert_same(facts(rb.evaluate(net(), (), images(), corruptions=specs, batch_size=size, shuffle_seed=order)), whole)
    alone = facts(rb.evaluate(net(), (), images(), corruptions=specs[:1]))
    assert_same(alone, {key: values for key, values in whole.items() if key in alone})


def test_corruptions_and_attacks_are_rows_of_one_table() -> None:
    result = rb.evaluate(net(), "fgsm", images(), corruptions="contrast:severity=5", eps=0.001)
    table = result.table
    assert list(table.kind) == ["clean", "corruption", "attack", "worst"]
    row = table.iloc[1]
    assert (row.condition, row.severity, row.goal) == ("contrast[5]", 5, "first")
    right = {v.sample_id for v in result.of("clean") if v.broken is False}
    fallen = [v for v in result.of("contrast[5]") if v.broken and v.sample_id in right]
    assert row.success_correct == len(fallen) / len(right)
    assert row.success_all == sum(bool(v.broken) for v in result.of("contrast[5]")) / 12
    assert row.mean_forwards == 1
    worst = {v.sample_id: v.broken for v in result.of("worst[linf,0.001]")}
    assert worst == {v.sample_id: v.broken for v in result.of("fgsm[linf,0.001]")}  # a corruption is no attack of that size


def test_an_image_that_a_corruption_mends_is_correct() -> None:
    result = rb.evaluate(net(), (), images(), corruptions="all")
    wrong = {v.sample_id for v in result.of("clean") if v.broken}
    mended = [v for v in result.verdicts if v.condition != "clean" and v.sample_id in wrong and v.broken is False]
    assert mended
    assert all(v.prediction == v.label for v in mended)


def test_all_has_95_conditions_and_shows_one_image_under_each() -> None:
    result = rb.evaluate(net(), (), images(4), corruptions="all")
    assert len(result.conditions) == 1 + 95
    assert result.shown.keys() == {c.name for c in result.conditions}
    assert all(picture.startswith(b"\xff\xd8") for picture in result.shown.values())
    assert result.config["corruptions"] == {
        "published": None,
        "storage_jpeg": None,
        "frost": "procedural",
        "scaled_from": None,
        "size": [32, 32],
        "baseline": None,
    }


def test_a_broken_model_is_undecided_and_not_robust() -> None:
    class Fragile(Sharp):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x) / (x.flatten(1).std(1, keepdim=True) > 0.05).float()  # NaN on flat images

    result = rb.evaluate(Fragile().eval(), (), images(), corruptions="contrast:severity=5")
    row = result.table.iloc[1]
    assert row.undecided > 0
    assert row.correct + row.undecided <= row.n
    assert all(v.reason for v in result.of("contrast[5]") if v.broken is None)


def test_other_sizes_say_that_parameters_were_scaled() -> None:
    photo = torch.nn.functional.interpolate(photograph(32), size=(48, 60))
    model = nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(12, 3)).eval()
    result = rb.evaluate(model, (), from_arrays(photo, [0]), corruptions="fog:severity=1")
    assert result.config["notes"] == ["corruptions have no published parameters for images of 48x60: those for 64 pixels were scaled"]


def test_a_run_goes_on_and_refuses_other_settings(tmp_path: Path) -> None:
    class Dies(Exception):
        pass

    def stop(name: str, done: int, total: int, broken: int) -> None:
        if name == "10 corruptions" and done >= 4:
            raise Dies

    asked: dict[str, Any] = {"corruptions": ["fog", "impulse_noise"], "batch_size": 4}
    whole = rb.evaluate(net(), (), images(), **asked)
    with pytest.raises(Dies):
        rb.evaluate(net(), (), images(), **asked, out=tmp_path / "run", progress=stop)
    before = rb.read_run(tmp_path / "run")
    assert 0 < len(before.verdicts) < len(whole.verdicts)
    assert any("UNFINISHED" in note for note in before.config["notes"])
    with pytest.raises(RunMismatch, match="another storage_jpeg"):
        rb.evaluate(net(), (), images(), **asked, out=tmp_path / "run", storage_jpeg=85)
    resumed = rb.evaluate(net(), (), images(), **asked, out=tmp_path / "run")
    assert_same(facts(resumed), facts(whole))
    assert facts(rb.read_run(tmp_path / "run")) == facts(resumed)


def test_jpeg_storage_changes_what_is_evaluated() -> None:
    plain = rb.evaluate(net(), (), images(), corruptions="gaussian_noise:severity=5")
    stored = rb.evaluate(net(), (), images(), corruptions="gaussian_noise:severity=5", storage_jpeg=85)
    assert [v.nll for v in plain.of("gaussian_noise[5]")] != [v.nll for v in stored.of("gaussian_noise[5]")]
    with pytest.raises(UsageError, match=r"1\.\.100, got 101"):
        rb.evaluate(net(), (), images(), corruptions="fog", storage_jpeg=101)


def published(clean: bool) -> LabelledImages:
    base = images(6)
    pixels = torch.stack([image for image, _ in base])
    variants = {"fog[1]": pixels * 0.5, "fog[2]": pixels * 0.2, "snow[1]": 1 - pixels}
    return LabelledImages(
        pixels if clean else variants["fog[1]"], base.labels, base.ids, "stored-c", classes=3, variants=variants, has_clean=clean
    )


def test_a_published_set_is_read_whole_unless_chosen_from() -> None:
    model, data = net(), published(clean=False)
    result = rb.evaluate(model, None, data)
    assert [c.name for c in result.conditions] == ["fog[1]", "fog[2]", "snow[1]"]
    for name, pixels in data.variants.items():
        said = model(torch.stack([pixels[k] for k in range(6)])).argmax(1).tolist()
        assert [v.prediction for v in result.of(name)] == said
        assert [v.sample_id for v in result.of(name)] == list(data.ids)
    chosen = rb.evaluate(model, None, data, corruptions="fog:severity=2")
    assert [c.name for c in chosen.conditions] == ["fog[2]"]
    with pytest.raises(UsageError, match=r"stored-c does not hold fog\[3\]"):
        rb.evaluate(model, None, data, corruptions="fog")
    with pytest.raises(UsageError, match="holds corrupted images only"):
        rb.evaluate(model, "pgd", data, eps=0.1)


class Counted:
    """Pictures that count how often each is read; those in `broken` cannot be."""

    def __init__(self, pictures: torch.Tensor, broken: tuple[int, ...] = ()) -> None:
        self.pictures, self.broken, self.reads = pictures, broken, [0] * len(pictures)

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitem__(self, index: int, /) -> torch.Tensor:
        self.reads[index] += 1
        if index in self.broken:
            raise DataError(f"cannot read picture {index}")
        return self.pictures[index]


def test_conditions_of_a_published_set_do_not_read_each_others_files() -> None:
    data = published(clean=False)
    first = Counted(data.variants["fog[1]"])  # type: ignore[arg-type]  # a tensor here
    rb.evaluate(net(), None, replace(data, pictures=first, variants={**data.variants, "fog[1]": first}))
    # its own condition and the record of what it was, beside the probe and the picture's size
    assert max(first.reads) <= 4
    assert sum(first.reads) <= 2 * 6 + 4 + 1


def test_a_first_image_that_cannot_be_read_is_undecided_as_any_other() -> None:
    base = images(4)
    data = replace(base, pictures=Counted(base.pictures, (0,)))  # type: ignore[arg-type]  # a tensor here
    result = rb.evaluate(net(), (), data, corruptions="fog:severity=1", on_bad_image="quarantine")
    assert [v.broken is None for v in result.of("fog[1]")] == [True, False, False, False]


def test_options_of_corruptions_made_here_are_refused_for_a_published_set(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="stored-c was corrupted and stored by others"):
        rb.evaluate(net(), None, published(clean=False), storage_jpeg=85)
    with pytest.raises(UsageError, match="stored-c was corrupted and stored by others"):
        rb.evaluate(net(), None, published(clean=False), frost_dir=tmp_path)


class Altered(Sharp):
    """The same weights, and so the same digest, with other code around them."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return -super().forward(x)


def test_a_published_set_without_clean_images_does_not_go_on_with_a_model_that_answers_otherwise(tmp_path: Path) -> None:
    data = published(clean=False)
    whole = rb.evaluate(net(), None, data, out=tmp_path / "run")
    assert facts(rb.evaluate(net(), None, data, out=tmp_path / "run")) == facts(whole)
    Altered.__name__ = Altered.__qualname__ = "Sharp"
    with pytest.raises(RunMismatch, match=r"said .* when this run began"):
        rb.evaluate(Altered().eval(), None, data, out=tmp_path / "run")


def test_an_image_that_several_conditions_cannot_read_is_one_image() -> None:
    data = published(clean=False)
    variants = {name: Counted(pixels, (2,) if name != "fog[1]" else ()) for name, pixels in data.variants.items()}  # type: ignore[arg-type]
    with pytest.raises(InvalidEvaluation, match=r"1 of 6 images cannot be used: i2 \(cannot read picture 2\); mend"):
        rb.evaluate(net(), None, replace(data, pictures=variants["fog[1]"], variants=variants))


def test_a_published_set_with_its_clean_images() -> None:
    result = rb.evaluate(net(), "fgsm", published(clean=True), eps=0.01)
    assert [c.kind for c in result.conditions] == ["clean", "corruption", "corruption", "corruption", "attack", "worst"]


def test_sequences_are_counted_frame_by_frame() -> None:
    model, data = net(), images(3)
    result = rb.evaluate(model, (), data, corruptions=["p:brightness", "p:gaussian_noise@2"])
    assert [c.name for c in result.conditions] == ["clean"]
    assert [row.condition for row in result.sequences] == ["p:brightness", "p:gaussian_noise@2"]
    for v in result.sequenced:
        pairs = zip(v.predictions, v.predictions[1:], strict=False)
        flips = sum(a != b for a, b in pairs) if "brightness" in v.condition else sum(p != v.predictions[0] for p in v.predictions[1:])
        assert (v.flips, v.pairs) == (flips, len(v.predictions) - 1)
    first = {v.sample_id: v.predictions[0] for v in result.sequenced if "noise" in v.condition}
    assert first == {v.sample_id: v.prediction for v in result.of("clean")}  # the first frame is the clean one


def test_sequences_go_on_and_come_back_from_disk(tmp_path: Path) -> None:
    whole = rb.evaluate(net(), (), images(4), corruptions="p:translate")
    again = rb.evaluate(net(), (), images(4), corruptions="p:translate", out=tmp_path / "run")
    assert again.sequenced == whole.sequenced
    assert rb.read_run(tmp_path / "run").sequenced == whole.sequenced
    assert rb.evaluate(net(), (), images(4), corruptions="p:translate", out=tmp_path / "run").sequenced == whole.sequenced


def test_sequences_of_a_model_with_one_output() -> None:
    class Sign(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.mean((1, 2, 3))[:, None] - 0.3

    data = from_arrays(photograph(32), [1])
    (verdict,) = rb.evaluate(Sign().eval(), (), data, corruptions="p:brightness").sequenced
    assert set(verdict.predictions) == {0, 1}
    assert verdict.flips == 1


def test_sequences_of_a_model_that_answers_nan_are_no_result() -> None:
    class Fragile(Sharp):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x) / (x.mean((1, 2, 3))[:, None] < 0.2).float()

    with pytest.raises(InvalidEvaluation, match="NaN"):
        rb.evaluate(Fragile().eval(), (), images(1), corruptions="p:brightness")


def test_the_same_condition_twice_is_refused() -> None:
    with pytest.raises(UsageError, match=r"fog\[3\] is asked for twice"):
        rb.evaluate(net(), (), images(1), corruptions=["fog", "fog:severity=3"])
    with pytest.raises(UsageError, match="p:scale is asked for twice"):
        rb.evaluate(net(), (), images(1), corruptions=["p:scale", "imagenet-p"])


def test_pgd_is_what_is_done_when_nothing_is_asked_for() -> None:
    assert [c.attack for c in rb.evaluate(net(), None, images(2), eps=0.01).conditions] == [None, "pgd", None]
    assert [c.kind for c in rb.evaluate(net(), None, images(2), corruptions="fog:severity=1").conditions] == ["clean", "corruption"]
