"""MedMNIST: files in its format made here, read as published, evaluated, and refused where they are not what they should be."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from robustbench_lite.defenses.splitting import splits
from torch import nn

from robustbench_lite.classifier import Classifier, Preprocess
from robustbench_lite.data import load_data
from robustbench_lite.errors import BadSpec, DataError, RobustEvalError, UnknownName
from robustbench_lite.evaluation import evaluate
from robustbench_lite.goals import meant
from robustbench_lite.medmnist import SETS

SHAPES = {
    "binary": ("pneumoniamnist", (), 2, 1),
    "ordinal": ("retinamnist", (3,), 5, 1),
    "multi-label": ("chestmnist", (), 2, 14),
    "multi-class": ("bloodmnist", (3,), 8, 1),
}


def pictures(count: int, *shape: int, seed: int = 0) -> np.ndarray[Any, Any]:
    return np.random.default_rng(seed).integers(0, 256, (count, *shape), dtype=np.uint8)


def arrays_of(colour: tuple[int, ...] = (), classes: int = 2, columns: int = 1, side: int = 8, count: int = 12) -> dict[str, Any]:
    """Keys, shapes and dtypes as published; every class occurs."""
    made: dict[str, Any] = {}
    for number, split in enumerate(("train", "val", "test")):
        labels = np.arange(count)[:, None] + 3 * np.arange(columns) ** 2
        made[f"{split}_images"] = pictures(count, side, side, *colour, seed=number)
        made[f"{split}_labels"] = (labels % classes if columns == 1 else labels % 3 % 2).astype(np.uint8)
    return made


def saved(path: Path, arrays: dict[str, Any]) -> Path:
    np.savez(path, **arrays)
    return path


# --- reading -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("task", SHAPES)
@pytest.mark.parametrize("suffix", ["", "_224"])
def test_sets_are_read_as_they_were_published(task: str, suffix: str, tmp_path: Path) -> None:
    flag, colour, classes, columns = SHAPES[task]
    arrays = arrays_of(colour, classes, columns)
    file = saved(tmp_path / f"{flag}{suffix}.npz", arrays)
    for split in ("test", "val", "train"):
        images = load_data(f"medmnist:{file},split={split}")
        assert (images.name, images.task, images.classes) == (flag, task, columns if columns > 1 else classes)
        assert (images.default_eps, images.groups, images.synthetic) == ({"linf": pytest.approx(2.55 / 255)}, None, False)
        assert list(images.class_names or ()) == list(SETS[flag].class_names)
        labels = arrays[f"{split}_labels"]
        assert images.labels == ([tuple(map(float, row)) for row in labels] if columns > 1 else labels[:, 0].tolist())
        wanted = torch.from_numpy(arrays[f"{split}_images"])
        wanted = wanted.permute(0, 3, 1, 2) if colour else wanted[:, None]
        assert torch.equal(torch.stack([image for image, _ in images]) * 255, wanted.float())
        assert f"the {split} split of {file}, 8 x 8 pixels" in images.source
    assert "CC BY 4.0" in images.source


def test_all_twelve_sets_are_known() -> None:
    counts = {flag: len(known.class_names) for flag, known in SETS.items()}
    organs = {f"organ{plane}mnist": 11 for plane in "acs"}
    assert counts == organs | {
        "pathmnist": 9,
        "chestmnist": 14,
        "dermamnist": 7,
        "octmnist": 4,
        "pneumoniamnist": 2,
        "retinamnist": 5,
        "breastmnist": 2,
        "bloodmnist": 8,
        "tissuemnist": 8,
    }
    assert all(len(set(known.class_names)) == len(known.class_names) for known in SETS.values())
    assert [flag for flag, known in SETS.items() if known.licence != "CC BY 4.0"] == ["dermamnist"]
    assert SETS["breastmnist"].class_names[0] == "malignant"


def test_images_have_the_ids_that_npz_gives_them(tmp_path: Path) -> None:
    file = saved(tmp_path / "pneumoniamnist.npz", arrays_of())
    ours, theirs = load_data(f"medmnist:{file}"), load_data(f"npz:{file}")
    assert (ours.ids, ours.labels, ours.digest) == (theirs.ids, theirs.labels, theirs.digest)
    assert not set(ours.ids) & set(load_data(f"medmnist:{file},split=train").ids)


def test_grey_stays_grey_unless_the_model_wants_colour(tmp_path: Path) -> None:
    file = saved(tmp_path / "pneumoniamnist.npz", arrays_of() | {"test_images": pictures(12, 8, 8, 1)})
    assert load_data(f"medmnist:{file}")[0][0].shape == (1, 8, 8)
    colour = load_data(f"medmnist:{file}", preprocess=Preprocess(size=(16, 16), resize=None))[0][0]
    assert colour.shape == (3, 16, 16)
    assert load_data(f"medmnist:{file}", preprocess=Preprocess(size=None, resize=None, channels=1))[0][0].shape == (1, 8, 8)


def test_only_the_split_that_is_asked_for_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read = []
    file = saved(tmp_path / "pneumoniamnist.npz", arrays_of())
    lazily = np.lib.npyio.NpzFile.__getitem__
    monkeypatch.setattr(np.lib.npyio.NpzFile, "__getitem__", lambda self, key: read.append(key) or lazily(self, key))
    load_data(f"medmnist:{file},split=val")
    assert [key for key in read if "images" in key] == ["val_images"]


def test_a_set_is_found_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / ".medmnist").mkdir()
    saved(tmp_path / ".medmnist" / "breastmnist.npz", arrays_of())
    saved(tmp_path / "breastmnist_64.npz", arrays_of(side=16))
    assert load_data("medmnist:breastmnist")[0][0].shape == load_data("medmnist:breastmnist,size=28")[0][0].shape == (1, 8, 8)
    found = load_data(f"medmnist:breastmnist,size=64,root={tmp_path}")
    assert found[0][0].shape == (1, 16, 16)
    assert "class 0 is the disease" in found.source


@pytest.mark.parametrize(
    ("arrays", "options", "task", "classes", "said"),
    [
        (arrays_of(), "", "binary", 2, "binary by its labels"),
        (arrays_of(classes=4), "", "multi-class", 4, "multi-class by its labels"),
        (arrays_of(classes=4), ",task=ordinal", "ordinal", 4, "format, ordinal,"),
        (arrays_of(columns=3), "", "multi-label", 3, "multi-label by its labels"),
        (arrays_of(classes=4) | {"test_labels": np.ones((12, 1), np.uint8)}, "", "multi-class", 4, "multi-class by its labels"),
        (arrays_of(classes=1), "", "binary", 2, "binary by its labels"),
    ],
)
def test_files_of_ones_own(arrays: dict[str, Any], options: str, task: str, classes: int, said: str, tmp_path: Path) -> None:
    images = load_data(f"medmnist:{saved(tmp_path / 'ward_28.npz', arrays)}{options}")
    assert (images.name, images.task, images.classes, images.class_names) == ("ward", task, classes, None)
    assert said in images.source


def test_synthetic_images_are_never_called_a_published_set(tmp_path: Path) -> None:
    file = saved(tmp_path / "pneumoniamnist.npz", arrays_of() | {"synthetic": "phantom:chest"})
    images = load_data(f"medmnist:{file}")
    assert (images.name, images.synthetic, images.task, images.class_names) == ("phantom:chest", True, "binary", None)
    assert images.source.startswith("SYNTHETIC, not of patients; a file in MedMNIST's format")
    assert not re.search("PneumoniaMNIST|CC BY|published", images.source)
    grades = load_data(f"medmnist:{saved(tmp_path / 'retinamnist.npz', arrays_of((3,), 5) | {'synthetic': 'phantom:fundus'})}")
    assert (grades.name, grades.task, grades.classes) == ("phantom:fundus", "ordinal", 5)
    assert (load_data(f"npz:{file}").name, load_data(f"npz:{file}").synthetic) == ("phantom:chest", True)


# --- patients ----------------------------------------------------------------------------------------------------------------


def test_patients_of_the_file_or_of_a_table(tmp_path: Path) -> None:
    known = {"train_patients": np.arange(12), "test_patients": np.repeat([20, 21, 22], 4)[:, None]}
    file = saved(tmp_path / "pneumoniamnist.npz", arrays_of() | known)
    assert load_data(f"medmnist:{file}").groups == load_data(f"npz:{file}").groups == ["20"] * 4 + ["21"] * 4 + ["22"] * 4
    assert load_data(f"medmnist:{file},split=train").groups == [str(number) for number in range(12)]
    assert load_data(f"medmnist:{file},split=val").groups is None
    rows = [f"{split},{index},{split}-{index // 2}" for split in ("train", "test") for index in range(12)]
    (tmp_path / "p.csv").write_text("\n".join(["split,index,patient", *rows]))
    bare = saved(tmp_path / "breastmnist.npz", arrays_of())
    assert load_data(f"medmnist:{bare},patients={tmp_path / 'p.csv'}").groups == [f"test-{index // 2}" for index in range(12)]
    (tmp_path / "p.csv").write_text("\n".join(["split,index,patient", *rows, "val,0,test-3"]))
    with pytest.raises(DataError, match=r"1 patient is in the val split as well as in the test split of .*p\.csv \(test-3\)"):
        load_data(f"medmnist:{bare},patients={tmp_path / 'p.csv'}")


@pytest.mark.parametrize("earlier", ["train", "val"])
def test_a_patient_in_two_splits_is_named(earlier: str, tmp_path: Path) -> None:
    known = {f"{earlier}_patient": np.array([f"p{number}" for number in range(12)]), "test_patients": np.array(["p3", "q"] * 6)}
    file = saved(tmp_path / "pneumoniamnist.npz", arrays_of() | known)
    for source in ("medmnist", "npz"):
        with pytest.raises(DataError) as refused:
            load_data(f"{source}:{file}")
        assert str(refused.value) == (
            f"1 patient is in the {earlier} split as well as in the test split of {file} (p3), and the figures would flatter: "
            "put all images of a patient on one side"
        )
    assert load_data(f"medmnist:{file},split={earlier}").groups == [f"p{number}" for number in range(12)]


# --- refusals ----------------------------------------------------------------------------------------------------------------

WRONG = [
    ({"test_images": None, "test_labels": None}, "has no test split: write split=val, it has train and val"),
    ({"test_labels": None}, "has no array test_labels, it holds train_images"),
    ({"test_images": np.zeros((12, 8, 8))}, "test_images must be uint8 (N, S, S) or (N, S, S, 3), got float64 (12, 8, 8)"),
    ({"test_images": pictures(12, 3, 8, 8)}, "got uint8 (12, 3, 8, 8)"),
    ({"test_images": pictures(12, 8)}, "got uint8 (12, 8)"),
    ({"test_images": pictures(0, 8, 8), "test_labels": np.zeros((0, 1), np.uint8)}, "has no images in its test split"),
    ({"test_labels": np.arange(12) % 2}, "test_labels must be whole numbers (N, 1), or (N, L) for L findings, got int64 (12,)"),
    ({"test_labels": np.zeros((12, 1))}, "got float64 (12, 1)"),
    ({"test_labels": np.zeros((12, 0), int)}, "got int64 (12, 0)"),
    ({"test_labels": np.full((12, 1), 2)}, "label 0 of pneumoniamnist is 2: class indices are 0..1"),
    ({"test_labels": np.full((12, 1), -1)}, "label 0 of pneumoniamnist is -1: class indices are 0..1"),
    ({"test_labels": np.zeros((12, 2), int)}, "test_labels has the shape (12, 2), which is not binary: (N, 1) is one class an image"),
    ({"test_labels": np.zeros((11, 1), int)}, "has 12 images and 11 labels"),
    ({"test_labels": np.array([[0]] * 11 + [[None]])}, "holds pickled objects, which could run code"),
]


@pytest.mark.parametrize(("change", "said"), WRONG)
def test_files_that_are_not_what_they_should_be_are_refused(change: dict[str, Any], said: str, tmp_path: Path) -> None:
    arrays = {key: value for key, value in (arrays_of() | change).items() if value is not None}
    file = saved(tmp_path / "pneumoniamnist.npz", arrays)
    with pytest.raises(DataError, match=re.escape(said)) as refused:
        load_data(f"medmnist:{file}")
    assert "\n" not in str(refused.value)


def test_findings_are_0_or_1_and_as_many_as_there_are(tmp_path: Path) -> None:
    arrays = arrays_of(columns=14)
    with pytest.raises(DataError, match="label 0 of chestmnist has 13 entries, but there are 14 classes"):
        load_data(f"medmnist:{saved(tmp_path / 'chestmnist.npz', arrays | {'test_labels': arrays['test_labels'][:, 1:]})}")
    with pytest.raises(DataError, match="the entries of a multi-label label are 0 or 1"):
        load_data(f"medmnist:{saved(tmp_path / 'chestmnist.npz', arrays | {'test_labels': arrays['test_labels'] + 1})}")
    with pytest.raises(DataError, match="which is not multi-label"):
        load_data(f"medmnist:{saved(tmp_path / 'ward.npz', arrays_of())},task=multi-label")


def test_damaged_and_foreign_files_are_refused(tmp_path: Path) -> None:
    arrays = arrays_of()
    file = saved(tmp_path / "pneumoniamnist.npz", arrays)
    whole, rows = file.read_bytes(), arrays["test_images"][0].tobytes()
    for content in (b"", b"no archive", whole[: len(whole) // 2], whole.replace(rows, b"\0" * len(rows))):
        file.write_bytes(content)
        with pytest.raises(DataError, match=r"is damaged or no|holds pickled objects"):
            load_data(f"medmnist:{file}")
    with pytest.raises(DataError, match=r"has no array test_images, it holds images, labels: .* and npz:FILE reads others"):
        load_data(f"medmnist:{saved(tmp_path / 'own.npz', {'images': pictures(2, 4, 4), 'labels': np.zeros(2)})}")


@pytest.mark.parametrize(
    ("spec", "error", "said"),
    [
        ("medmnist:pneumonia", UnknownName, "unknown MedMNIST set 'pneumonia': did you mean 'pneumoniamnist'"),
        ("medmnist:pneumoniamnist,size=32", BadSpec, "size must be 28, 64, 128 or 224, got 32"),
        ("medmnist:pneumoniamnist,split=validation", BadSpec, "split=validation"),
        ("medmnist:x.npz,size=64", BadSpec, "size and root are for a set that is named"),
        ("medmnist:x.npz", DataError, "there is no file x.npz: download it from https://zenodo.org/records/10519652"),
        ("medmnist:octmnist,size=64,root=scans", DataError, "`python -m medmnist download --size=64 --root=scans`"),
        ("medmnist", BadSpec, "medmnist needs path"),
    ],
)
def test_specs_that_lead_nowhere_are_refused(spec: str, error: type[RobustEvalError], said: str) -> None:
    with pytest.raises(error, match=re.escape(said)):
        load_data(spec)


def test_a_known_set_has_one_task(tmp_path: Path) -> None:
    file = saved(tmp_path / "retinamnist.npz", arrays_of((3,), 5))
    assert load_data(f"medmnist:{file},task=ordinal").task == "ordinal"
    with pytest.raises(DataError, match="retinamnist is ordinal: leave task out"):
        load_data(f"medmnist:{file},task=binary")


# --- evaluating --------------------------------------------------------------------------------------------------------------


def knowing(images: Any, outputs: int) -> Classifier:
    """A linear model that is right about nearly all images, at margins that a small eps can undo in part."""
    torch.manual_seed(0)
    x = torch.stack([image for image, _ in images])
    layer = nn.Linear(x[0].numel(), outputs)
    y = torch.tensor(images.labels)
    if outputs == 1 or y.dim() == 2:
        wanted = (y if y.dim() == 2 else y[:, None]).float() * 2 - 1
    else:
        wanted = nn.functional.one_hot(y, outputs).float() * 2 - 1
    flat = torch.cat([x.flatten(1), torch.ones(len(x), 1)], 1)
    solved = torch.linalg.lstsq(flat, wanted, driver="gelsd").solution
    with torch.no_grad():
        layer.weight.copy_(solved[:-1].T)
        layer.bias.copy_(solved[-1])
    preprocess = Preprocess(size=None, resize=None, channels=x.shape[1])
    return Classifier(nn.Sequential(nn.Flatten(), layer).eval(), preprocess=preprocess, classes=outputs)


@pytest.mark.parametrize(("task", "outputs"), [("binary", 2), ("binary", 1), ("multi-label", 14), ("ordinal", 5), ("multi-class", 8)])
def test_every_kind_of_set_is_attacked(task: str, outputs: int, tmp_path: Path) -> None:
    flag, colour, classes, columns = SHAPES[task]
    file = saved(tmp_path / f"{flag}.npz", arrays_of(colour, classes, columns))
    images = load_data(f"medmnist:{file}")
    result = evaluate(knowing(images, outputs), ["pgd:steps=5", "apgd:steps=5"], f"medmnist:{file}", eps=[1e-6, 0.5], device="cpu")
    data = result.config["data"]
    assert (data["name"], data["task"], data["synthetic"]) == (flag, task, False)
    rows = {row: [each.broken for each in result.of(row)] for row in {each.condition for each in result.verdicts}}
    assert not any(rows["clean"])
    for attack in ("pgd:steps=5", "apgd:steps=5"):
        assert not any(rows[f"{attack}[linf,1e-06]"]), "a linear model with margins of 1 stands this"
        assert all(rows[f"{attack}[linf,0.5]"]), "and not this"


@pytest.mark.parametrize(
    ("task", "outputs", "target", "gains"),
    [
        ("binary", 2, "missed-disease", lambda label: label == 1),
        ("binary", 1, "missed-disease", lambda label: label == 1),
        ("binary", 1, "trial-eligibility", lambda label: label == 0),
        ("binary", 2, "upcoding", lambda label: label == 0),
        ("ordinal", 5, "grade-shift:steps=3", lambda label: label != 2),
        ("ordinal", 5, "upcoding", lambda label: label < 4),
        ("multi-class", 8, "trial-eligibility:eligible=0+3", lambda label: label not in (0, 3)),
        ("multi-label", 14, "missed-disease:positive=2", lambda label: label[2] == 1),
        ("multi-label", 14, "upcoding", lambda label: min(label) == 0),
    ],
)
def test_goals_reach_who_they_are_about(task: str, outputs: int, target: str, gains: Callable[[Any], bool], tmp_path: Path) -> None:
    flag, colour, classes, columns = SHAPES[task]
    images = load_data(f"medmnist:{saved(tmp_path / f'{flag}.npz', arrays_of(colour, classes, columns))}")
    result = evaluate(knowing(images, outputs), "pgd:steps=10", images, eps=0.5, target=target, device="cpu")
    row = next(each.condition for each in result.verdicts if each.condition.startswith("pgd"))
    wanted = {key for key, label in zip(images.ids, images.labels, strict=True) if gains(label)}
    assert {each.sample_id for each in result.of(row)} == wanted
    assert all(each.broken for each in result.of(row))


@pytest.mark.slow
@pytest.mark.parametrize(("task", "outputs"), [("binary", 2), ("binary", 1), ("multi-label", 14), ("ordinal", 5)])
def test_autoattack_takes_grey_single_logit_and_multi_label_models(task: str, outputs: int, tmp_path: Path) -> None:
    flag, colour, classes, columns = SHAPES[task]
    images = load_data(f"medmnist:{saved(tmp_path / f'{flag}.npz', arrays_of(colour, classes, columns))}").take(range(2))
    result = evaluate(knowing(images, outputs), "autoattack", images, eps=[1e-6, 0.5], device="cpu")
    assert not any(each.broken for each in result.of("autoattack[linf,1e-06]"))
    assert all(each.broken for each in result.of("autoattack[linf,0.5]"))


def test_a_twin_can_be_trained_on_the_training_split(tmp_path: Path) -> None:
    made = splits(f"medmnist:{saved(tmp_path / 'pneumoniamnist.npz', arrays_of())}")
    assert (len(made.train), len(made.test), made.preprocess.channels, made.train[0][0].shape) == (12, 12, 1, (1, 8, 8))
    assert not set(made.train.ids) & set(made.test.ids)


def test_where_another_class_is_the_disease_goals_mean_that(tmp_path: Path) -> None:
    assert meant("missed-disease", (0,)) == "missed-disease:positive=0"
    assert meant("upcoding", (0,)) == "upcoding:order=1+0"
    assert meant("trial-eligibility", (0,)) == "trial-eligibility:eligible=0"
    for said in ("missed-disease:positive=1", "upcoding:order=0+1", "grade-shift"):
        assert meant(said, (0,)) == said
