"""Phantoms: the same wherever they are drawn, in MedMNIST's form, sick only as far as they are told to be, and synthetic by name."""

from __future__ import annotations

import json
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest
import torch
from robustbench_lite.defenses.phantoms import FOLDER
from robustbench_lite.defenses.phantoms.make import ENTRIES

import robustbench_lite as rb
from robustbench_lite.data import load_data
from robustbench_lite.errors import UsageError
from robustbench_lite.phantoms import DOMAINS, write_npz

KINDS = list(DOMAINS)
SHIPPED = sorted(file.stem for file in FOLDER.glob("*.json"))


def pixels(spec: str) -> torch.Tensor:
    images = load_data(spec)
    return torch.stack([images.pictures[row] for row in range(len(images))])


@pytest.mark.parametrize("kind", KINDS)
def test_an_image_is_the_same_however_many_there_are(kind: str) -> None:
    few, more = pixels(f"phantom:{kind},n=4,size=28"), pixels(f"phantom:{kind},n=9,size=28")
    assert torch.equal(few, more[:4])
    assert few.shape == (4, 1 if kind.startswith("chest") else 3, 28, 28)
    assert 0 <= few.min() < 0.1 or kind == "derm"
    assert len({image.numpy().tobytes() for image in more}) == 9


@pytest.mark.parametrize("kind", KINDS)
def test_they_say_that_they_are_synthetic_and_what_their_labels_mean(kind: str) -> None:
    images = load_data(f"phantom:{kind},n=12,size=28")
    assert images.synthetic
    assert images.source.startswith("SYNTHETIC phantoms, not patients' images")
    assert (images.task, len(images.class_names or ())) == (DOMAINS[kind].task, images.classes)  # type: ignore[index]  # of KINDS
    assert images.groups is not None
    assert all(group.startswith("phantom-patient-") for group in images.groups)


def test_no_patient_is_in_two_splits_and_the_images_of_one_have_one_label() -> None:
    splits = [load_data(f"phantom:chest,split={split},n=40,size=16") for split in ("train", "val", "test")]
    people = [set(images.groups or ()) for images in splits]
    assert not people[0] & people[1]
    assert not people[0] & people[2]
    assert not people[1] & people[2]
    labels = dict(zip(splits[0].groups or (), splits[0].labels, strict=True))
    assert all(labels[group] == label for group, label in zip(splits[0].groups or (), splits[0].labels, strict=True))
    assert len(people[0]) == 16  # two images of one and three of the next


def test_another_seed_is_other_patients() -> None:
    assert not torch.equal(pixels("phantom:chest,n=2,size=28"), pixels("phantom:chest,n=2,size=28,seed=1"))


@pytest.mark.parametrize("kind", ["chest", "derm", "fundus"])
def test_disease_is_as_visible_as_it_is_told_to_be(kind: str) -> None:
    none, usual, strong = (pixels(f"phantom:{kind},n=30,size=28,lesion={lesion}") for lesion in (0, 1, 2))
    sick = torch.tensor([label != 0 for label in load_data(f"phantom:{kind},n=30,size=28").labels])  # type: ignore[comparison-overlap]
    assert torch.equal(none[~sick], strong[~sick])
    changed, more = ((each - none)[sick].abs().mean() for each in (usual, strong))
    assert 0.0005 < changed < more


@pytest.mark.parametrize(("kind", "channels", "width"), [("chest", (), 1), ("fundus", (3,), 1), ("chest-findings", (), 4)])
def test_an_archive_has_the_exact_form_of_medmnist(kind: str, channels: tuple[int, ...], width: int, tmp_path: Path) -> None:
    file = write_npz(tmp_path / "mine.npz", kind, train=6, val=4, test=5, size=28)  # type: ignore[arg-type]  # one of the kinds
    with np.load(file) as archive:
        for split, n in (("train", 6), ("val", 4), ("test", 5)):
            assert (archive[f"{split}_images"].dtype, archive[f"{split}_images"].shape) == (np.uint8, (n, 28, 28, *channels))
            assert (archive[f"{split}_labels"].dtype, archive[f"{split}_labels"].shape) == (np.uint8, (n, width))
            assert len(archive[f"{split}_patients"]) == n
    read = load_data(f"medmnist:{file}" + (",task=ordinal" if kind == "fundus" else ""))
    assert read.synthetic
    assert list(read.labels) == list(load_data(f"phantom:{kind},n=5,size=28").labels)


def test_what_cannot_be_drawn_is_refused() -> None:
    for spec, reason in (("n=0", "n must be 1 or more"), ("size=8", "16 or more"), ("lesion=-1", "lesion must be 0 or more")):
        with pytest.raises(UsageError, match=reason):
            load_data(f"phantom:chest,{spec}")
    with pytest.raises(UsageError, match="there are phantoms of chest, chest-findings, fundus, derm, not of 'liver'"):
        write_npz("nowhere.npz", "liver")  # type: ignore[arg-type]


def test_the_bundled_models_are_shipped_as_their_cards_say() -> None:
    assert sorted(ENTRIES) == SHIPPED, "make phantoms UPDATE=1"
    for name in SHIPPED:
        card = json.loads((FOLDER / f"{name}.json").read_text("utf-8"))
        file = FOLDER / f"{name}.safetensors"
        assert sha256(file.read_bytes()).hexdigest() == card["digest"]
        assert card["synthetic"]
        assert "SYNTHETIC" in card["description"] or "phantom" in card["description"]
    chest = sum((FOLDER / f"{name}.safetensors").stat().st_size for name in SHIPPED if name.startswith("phantom_chest"))
    assert chest < 300_000


@pytest.mark.slow
@pytest.mark.parametrize("name", SHIPPED)
def test_a_bundled_model_is_as_accurate_as_its_card_says(name: str) -> None:
    card = json.loads((FOLDER / f"{name}.json").read_text("utf-8"))
    clean = rb.evaluate(name, (), card["data"]).of("clean")
    assert len(clean) == card["of"]
    assert abs(sum(v.broken is False for v in clean) - card["right"]) <= 3


def test_a_run_on_them_says_so(tmp_path: Path) -> None:
    rb.evaluate("phantom_chest", "fgsm", "phantom:chest", limit=4, out=tmp_path)
    about = json.loads((tmp_path / "run.json").read_text())["data"]
    assert about["synthetic"]
    assert about["source"].startswith("SYNTHETIC")
