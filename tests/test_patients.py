"""Whose images they are: tables and arrays read or refused in one line, and patients kept on one side."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from robustbench_lite.data import from_arrays, load_data
from robustbench_lite.errors import DataError
from robustbench_lite.evaluation import evaluate
from robustbench_lite.patients import no_patient_in_both, patients_of


def npz_of(path: Path, count: int = 4, **arrays: Any) -> Path:
    images = np.random.default_rng(count).integers(0, 256, (count, 6, 6), dtype=np.uint8)
    np.savez(path, images=images, labels=np.arange(count) % 2, **arrays)
    return path


def table(path: Path, *lines: str) -> Path:
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def scans(root: Path) -> Path:
    for name in ("ill/a.png", "ill/deep/b.png", "well/a.png"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.random.default_rng(len(name)).integers(0, 256, (6, 6), dtype=np.uint8)).save(root / name)
    return root


# --- tables ------------------------------------------------------------------------------------------------------------------


def test_a_table_names_the_patients_of_a_folder(tmp_path: Path) -> None:
    root = scans(tmp_path / "scans")
    rows = table(tmp_path / "p.csv", "sex,patient,file", "f,007,./well/a.png", "m,Müller,ill\\deep\\b.png", "", "f, 007 ,ill/a.png")
    images = load_data(f"imagefolder:{root},patients={rows}")
    assert images.groups == ["007", "Müller", "007"]
    assert load_data(f"imagefolder:{root}").groups is None
    assert images.take([1]).groups == ["Müller"]


def test_a_table_names_the_patients_of_an_archive_by_index(tmp_path: Path) -> None:
    file = npz_of(tmp_path / "own.npz")
    rows = table(tmp_path / "p.csv", "\ufeffindex,patient", "3,d", "0,a", "01,b", "2,a")
    assert load_data(f"npz:{file},patients={rows}").groups == ["a", "b", "a", "d"]


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        (["file,patient", "0,a"], "needs the columns index and patient, and has file, patient"),
        (["index;patient", "0;a"], "needs the columns index and patient, and has index;patient"),
        ([], "needs the columns index and patient, and has none"),
        (["index,patient", "0,a", "1,b", "3,c"], "has no row for 1 of 4 images, the first is index 2: add its patient"),
        (["index,patient", "0,a", "1,b", "2,c", "3,d", "9,e"], "has 1 rows for images that are not there, the first is index 9"),
        (["index,patient", "0,a", "0,b"], "line 3, is a second row for the index 0"),
        (["index,patient", "0,a", "1, "], "line 3, names no patient"),
        (["index,patient", "0,a", "1,b,c"], "line 3, has 3 values for 2 columns"),
        (["index,patient", "zero,a"], "has no row for 4 of 4 images"),
    ],
)
def test_tables_that_leave_a_patient_open_are_refused(lines: list[str], said: str, tmp_path: Path) -> None:
    file = npz_of(tmp_path / "own.npz")
    with pytest.raises(DataError) as refused:
        load_data(f"npz:{file},patients={table(tmp_path / 'p.csv', *lines) if lines else table(tmp_path / 'p.csv')}")
    assert said in str(refused.value)
    assert "\n" not in str(refused.value)


def test_files_that_are_no_table_are_refused(tmp_path: Path) -> None:
    file = npz_of(tmp_path / "own.npz")
    with pytest.raises(DataError, match="cannot read the patients' file"):
        load_data(f"npz:{file},patients={tmp_path / 'nowhere.csv'}")
    (tmp_path / "p.csv").write_bytes("index,patient\n0,Müller\n".encode("latin-1"))
    with pytest.raises(DataError, match="is no CSV file in UTF-8"):
        load_data(f"npz:{file},patients={tmp_path / 'p.csv'}")


# --- arrays ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "patients"),
    [
        (np.array(["a", "b ", "a", "c"]), ["a", "b", "a", "c"]),
        (np.array([b"a", b"b", b"a", b"c"]), ["a", "b", "a", "c"]),
        (np.array([[7], [8], [7], [123456789]]), ["7", "8", "7", "123456789"]),
        (np.array([7.0, 8.0, 7.0, 0.5]), ["7", "8", "7", "0.5"]),
    ],
)
def test_arrays_of_texts_or_numbers(values: Any, patients: list[str], tmp_path: Path) -> None:
    assert load_data(f"npz:{npz_of(tmp_path / 'own.npz', patients=values)}").groups == patients


@pytest.mark.parametrize(
    ("values", "said"),
    [
        (np.array(["a", "", "b"]), "patients names no patient of image 1"),
        (np.array([1.0, float("nan")]), "patients names no patient of image 1"),
        (np.zeros((3, 2)), r"patients must hold one patient an image, \(N,\), got \(3, 2\)"),
        (np.array("a"), r"patients must hold one patient an image, \(N,\), got \(\)"),
    ],
)
def test_arrays_that_leave_a_patient_open_are_refused(values: Any, said: str) -> None:
    with pytest.raises(DataError, match=said):
        patients_of(values, "patients")


def test_there_is_one_patient_an_image(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="has 4 images and 3 groups: there must be one each"):
        load_data(f"npz:{npz_of(tmp_path / 'own.npz', patients=np.arange(3))}")
    pickled = np.array(["a", None, "b", "c"], dtype=object)
    with pytest.raises(DataError, match="holds pickled objects, which could run code"):
        load_data(f"npz:{npz_of(tmp_path / 'own.npz', patients=pickled)}")


# --- one side ----------------------------------------------------------------------------------------------------------------


def of(groups: list[str] | None, name: str) -> Any:
    count = 5 if groups is None else len(groups)
    return from_arrays(torch.rand(count, 1, 2, 2), [0] * count, name, groups=groups, source=f"the {name} images")


def test_patients_on_both_sides_are_named() -> None:
    no_patient_in_both(of(["a", "b"], "training"), of(["c", "c"], "test"))
    no_patient_in_both(of(None, "training"), of(["a"], "test"))
    with pytest.raises(DataError) as refused:
        no_patient_in_both(of(["a", "b", "b"], "training"), of(["c", "b"], "test"))
    assert str(refused.value) == (
        "1 patient is in the training images as well as in the test images (b), and the figures would flatter: "
        "put all images of a patient on one side"
    )
    with pytest.raises(DataError, match=r"4 patients are in .* \(a, b, c, \.\.\.\), and"):
        no_patient_in_both(of(["d", "b", "a", "c"], "training"), of(["a", "b", "c", "d"], "test"))


def test_phantoms_of_another_seed_or_split_are_other_patients() -> None:
    judged = load_data("phantom:chest,n=5,size=16")
    no_patient_in_both(load_data("phantom:chest,n=5,size=16,seed=1"), judged)
    no_patient_in_both(load_data("phantom:chest,n=5,size=16,split=train"), judged)
    with pytest.raises(DataError, match="2 patients are in"):
        no_patient_in_both(load_data("phantom:chest,n=3,size=16"), judged)


def test_verdicts_say_whose_images_they_are(tmp_path: Path, net: Callable[..., torch.nn.Module]) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (4, 8, 8, 3), dtype=np.uint8)
    np.savez(tmp_path / "own.npz", images=pixels, labels=np.arange(4))
    rows = table(tmp_path / "p.csv", "index,patient", "0,ann", "1,bob", "2,ann", "3,eve")
    images = load_data(f"npz:{tmp_path / 'own.npz'},patients={rows}")
    result = evaluate(net(), "pgd:steps=2", images, eps=0.01, device="cpu")
    for row in {each.condition for each in result.verdicts}:
        said = {verdict.sample_id: verdict.group for verdict in result.of(row)}
        assert said == dict(zip(images.ids, ["ann", "bob", "ann", "eve"], strict=True)), row
