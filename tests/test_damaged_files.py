"""Files that fuzzing found to end in a traceback: each is refused in words."""

from __future__ import annotations

import gc
import io
import json
import sqlite3
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from robustbench_lite.defenses.states import kept_state
from safetensors.torch import save_file

import robustbench_lite as rb
from robustbench_lite.baselines import read_baseline
from robustbench_lite.cards import Card
from robustbench_lite.checkpoints import read_state_dict
from robustbench_lite.corrupting import members
from robustbench_lite.data import load_data
from robustbench_lite.errors import BadSpec, DataError, ModelError, RobustEvalError, RunMismatch, UsageError
from robustbench_lite.gate import baseline
from robustbench_lite.gate.settings import read_settings
from robustbench_lite.imagefolder import class_indices
from robustbench_lite.patients import patients_in
from robustbench_lite.scenario_files import read_scenario
from robustbench_lite.sequences import read_rates
from robustbench_lite.store import Store, read_run
from robustbench_lite.stored import read_config
from robustbench_lite.trained import Made, load_trained

DEEP, LONG = "[" * 5000, "9" * 5000
CARD = next((Path(__file__).parents[1] / "defenses" / "zoo").glob("*.json"))

READERS: dict[str, Callable[[Path], object]] = {
    "gate.toml": read_settings,
    "scenario.toml": read_scenario,
    "scenario.yaml": read_scenario,
    "mapping.json": lambda file: class_indices(["a"], str(file), file.parent),
    "errors.json": read_baseline,
    "rates.json": read_rates,
    "baseline.json": baseline.read,
    "card.json": Card.read,
}


@pytest.mark.parametrize("name", READERS)
@pytest.mark.parametrize("text", [DEEP, LONG, "2001-99-99"])
def test_nests_without_end_endless_numbers_and_days_that_there_are_not(name: str, text: str, tmp_path: Path) -> None:
    file = tmp_path / name
    file.write_text(f"a = {text}" if file.suffix == ".toml" else f"a: {text}" if file.suffix == ".yaml" else text)
    with pytest.raises(RobustEvalError, match=name.replace(".", r"\.")):
        READERS[name](file)


@pytest.mark.parametrize("kind", ["npz", "cifar10-c"])
def test_a_header_that_numpy_takes_for_one_of_python_2_is_read_without_its_warning(kind: str, tmp_path: Path) -> None:
    def of_python_2(values: Any) -> bytes:
        stream = io.BytesIO()
        np.save(stream, values)
        return stream.getvalue().replace(b"  \n", b" \n ", 1)

    images, labels = np.zeros((10, 32, 32, 3), np.uint8), np.zeros(10, np.uint8)
    if kind == "npz":
        with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
            for name, values in (("images", images), ("labels", labels)):
                archive.writestr(f"{name}.npy", of_python_2(values))
        assert len(load_data(f"npz:{tmp_path / 'a.npz'}")) == 10
    else:
        (tmp_path / "fog.npy").write_bytes(of_python_2(np.tile(images, (5, 1, 1, 1))))
        (tmp_path / "labels.npy").write_bytes(of_python_2(np.tile(labels, 5)))
        assert len(load_data(f"cifar10-c:{tmp_path}")) == 10


def test_an_array_larger_than_numbers_go(tmp_path: Path) -> None:
    np.save(tmp_path / "labels.npy", np.zeros(50, np.uint8))
    with (tmp_path / "fog.npy").open("wb") as stream:
        np.lib.format.write_array_header_1_0(stream, {"descr": "|u1", "fortran_order": False, "shape": (50, 2**33, 2**33, 3)})
    with pytest.raises(DataError, match=r"fog\.npy is cut off or no array"):
        load_data(f"cifar10-c:{tmp_path}")


@pytest.mark.parametrize("shape", [(50, 0), (), (50, 1, 1)])
def test_labels_of_no_such_shape(shape: tuple[int, ...], tmp_path: Path) -> None:
    np.save(tmp_path / "labels.npy", np.zeros(shape, np.uint8))
    with pytest.raises(DataError, match=r"labels\.npy: labels must have the shape"):
        load_data(f"cifar10-c:{tmp_path}")


def test_a_damaged_archive_in_the_place_of_an_array_is_not_left_open(tmp_path: Path) -> None:
    np.save(tmp_path / "labels.npy", np.zeros(50, np.uint8))
    (tmp_path / "fog.npy").write_bytes(b"PK\x03\x04" + bytes(1000))
    with pytest.raises(DataError, match=r"fog\.npy is cut off or no array"):
        load_data(f"cifar10-c:{tmp_path}")
    gc.collect()  # a file that is left open is told of here


def test_a_tiff_with_a_second_page_of_no_size(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    Image.new("L", (8, 8)).save(tmp_path / "a" / "picture.tif")
    whole = bytearray((tmp_path / "a" / "picture.tif").read_bytes())
    first = int.from_bytes(whole[4:8], "little")
    following = first + 2 + 12 * int.from_bytes(whole[first : first + 2], "little")
    whole[following : following + 4] = len(whole).to_bytes(4, "little")
    (tmp_path / "a" / "picture.tif").write_bytes(whole + bytes(6))
    with pytest.raises(DataError, match=r"cannot read the image .*picture\.tif: Missing dimensions"):
        load_data(f"imagefolder:{tmp_path}")[0]


def test_a_severity_and_an_index_of_five_thousand_digits(tmp_path: Path) -> None:
    with pytest.raises(BadSpec, match="write a number from 1 to 5"):
        members(f"fog:severity={LONG}")
    (tmp_path / "who.csv").write_text(f"index,patient\n{LONG},a\n")
    with pytest.raises(DataError, match="has no row for 1 of 1 images"):
        patients_in(str(tmp_path / "who.csv"), "index", ["0"])


@pytest.mark.parametrize(
    ("place", "value"),
    [
        ("eps", float("nan")),
        ("eps", []),
        ("eps", 1e308),
        ("right", None),
        ("right", ""),
        ("right", "-1 1"),
        ("answers", 0),
        ("asked", [None]),
    ],
)
def test_a_card_with_a_figure_that_is_none(place: str, value: Any, tmp_path: Path) -> None:
    stored = json.loads(CARD.read_text())
    stored["figures"][1][place] = value
    (tmp_path / "card.json").write_text(json.dumps(stored))
    with pytest.raises(ModelError, match="cannot be read"):
        Card.read(tmp_path / "card.json")


def test_archives_of_a_later_zip_and_headers_that_are_no_python(tmp_path: Path) -> None:
    good = io.BytesIO()
    np.savez(good, images=np.zeros((2, 8, 8), np.uint8), labels=np.arange(2))
    later = bytearray(good.getvalue())
    later[later.index(b"PK\x01\x02") + 6] = 110  # the version that is needed to unpack it
    (tmp_path / "later.npz").write_bytes(later)
    with zipfile.ZipFile(good) as archive, zipfile.ZipFile(tmp_path / "header.npz", "w") as other:
        for name in archive.namelist():
            other.writestr(name, archive.read(name).replace(b"{'descr'", b"{('desc'"))
    for name in ("later", "header"):
        with pytest.raises(DataError, match=f"{name}.npz is damaged"):
            load_data(f"npz:{tmp_path / name}.npz")
    np.save(tmp_path / "labels.npy", np.tile(np.arange(2), 5))
    np.save(tmp_path / "fog.npy", np.zeros((10, 32, 32, 3), np.uint8))
    for old, new in ((b"{'descr'", b"{('desc'"), (b"NUMPY\x01", b"NUMPY\x03"), (b"{'descr'", b"\0'descr'")):
        whole = (tmp_path / "fog.npy").read_bytes()
        (tmp_path / "fog.npy").write_bytes(whole.replace(old, new))
        with pytest.raises(DataError, match=r"fog\.npy"):
            load_data(f"cifar10-c:{tmp_path}")
        (tmp_path / "fog.npy").write_bytes(whole)


def test_what_pillow_would_warn_of_is_quiet_and_a_bomb_is_refused(tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    (tmp_path / "0").mkdir()
    file = tmp_path / "0" / "a.tif"
    Image.new("RGB", (16, 16)).save(file)
    file.write_bytes(file.read_bytes()[:8] * 9)
    with pytest.raises(DataError, match=r"cannot read the image .*a\.tif"):
        load_data(f"imagefolder:{tmp_path}")[0]
    Image.new("RGB", (16, 16)).save(tmp_path / "0" / "b.bmp")
    whole = bytearray((tmp_path / "0" / "b.bmp").read_bytes())
    whole[18:26] = (10_000).to_bytes(4, "little") * 2
    file.unlink()
    (tmp_path / "0" / "b.bmp").write_bytes(whole)
    with pytest.raises(DataError, match=r"cannot read the image .*b\.bmp: .*bomb"):
        load_data(f"imagefolder:{tmp_path}")[0]
    assert not recwarn.list


# ---------------------------------------------------------------------- a run's folder


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "run"
    rb.evaluate("digits_cnn", "fgsm", "digits", limit=6, eps=0.1, out=folder, corruptions="fog:severity=1")
    return folder


@pytest.mark.parametrize(
    "spoil",
    [
        "UPDATE verdicts SET distance = 'far'",
        "UPDATE verdicts SET label = '[['",
        "UPDATE verdicts SET label = '\"x\"'",
        "UPDATE verdicts SET prediction = NULL",
        "UPDATE verdicts SET approach = '[[\"x\", 1]]'",
        "UPDATE verdicts SET forwards = x'00'",
        "UPDATE verdicts SET reason = CAST(x'ff' AS TEXT)",
        "UPDATE seconds SET spent = 'long'",
        "INSERT INTO proofs VALUES ('another', 'a', 1, 1, 1, 0.5, NULL)",
        "DROP TABLE left_out",
        "DROP TABLE verdicts",
    ],
)
def test_a_database_that_was_changed(run: Path, spoil: str) -> None:
    kept = (run / "results.sqlite").read_bytes()
    database = sqlite3.connect(run / "results.sqlite")
    database.execute(spoil)
    database.commit()
    database.close()
    try:
        with pytest.raises(RunMismatch, match="damaged"):
            read_run(run)
    finally:
        (run / "results.sqlite").write_bytes(kept)


@pytest.mark.parametrize(
    ("spoil", "read"),
    [
        ("INSERT INTO survivors VALUES ('pgd', 'a', '{}', x'00000000')", lambda store: store.survivors("pgd")),
        ("INSERT INTO survivors VALUES ('pgd', 'a', '[[', x'00000000')", lambda store: store.survivors("pgd")),
        ("INSERT INTO survivors VALUES ('pgd', 'a', 3, NULL)", lambda store: store.survivors("pgd")),
        ("INSERT INTO learnt VALUES ('key', x'ffff')", lambda store: store.learnt("key")),
        ("INSERT INTO learnt VALUES ('key', NULL)", lambda store: store.learnt("key")),
    ],
)
def test_what_a_run_that_goes_on_begins_with_was_changed(spoil: str, read: Callable[[Store], object]) -> None:
    with Store(None, {"conditions": []}) as store:
        store._database.execute(spoil)
        with pytest.raises(RunMismatch, match=r"results\.sqlite is damaged or was changed"):
            read(store)


@pytest.mark.parametrize(
    ("key", "value"),
    [("model", {}), ("model", {"name": "m", "recipe": {"defense": {}}}), ("model", []),
     ("conditions", [{"name": "clean"}]), ("conditions", {}), ("sessions", []), ("notes", "none"),
     ("notes", [3]), ("data", {"name": "x", "n": "many"}), ("identity", 3), ("observed", [1]), ("sequence_rates", True),
     ("sequence_rates", {}), ("corruptions", {"baseline": {}}), ("seed", "3"), ("observed", {"outputs": {}}),
     ("observed", {"outputs": {"softmaxed": True, "saturated": "all", "n": 6}}),
     ("observed", {"seen-in-training": {"ids": ["a"], "n": 0, "training": 1, "unread": 0}}),
     ("conditions", [{"name": "fog", "kind": "corruption", "severity": 2**80}]),
     ("conditions", [{"name": "a", "kind": "attack", "attack": "pgd", "norm": "linf", "eps": float("nan")}]),
     ("conditions", [{"name": "a", "kind": "attack", "attack": "pgd", "eps": 0.1}]),
     ("conditions", [{"name": "a", "kind": "attack", "attack": "pgd", "norm": "", "eps": 0.1}]),
     ("sessions", [{"prepared": "folded"}]), ("precision", ["bf16"]),
     ("conditions", [{"name": "clean", "kind": "clean", "strange": 1}])],
)  # fmt: skip
def test_a_record_that_was_changed(run: Path, key: str, value: Any) -> None:
    kept = (run / "run.json").read_text()
    (run / "run.json").write_text(json.dumps(json.loads(kept) | {key: value}))
    try:
        with pytest.raises(RunMismatch, match=rf"run\.json is damaged or was changed \({key}"):
            read_run(run)
        with pytest.raises(RunMismatch, match=r"run\.json is damaged"):
            Store(run, json.loads(kept))
    finally:
        (run / "run.json").write_text(kept)
    assert read_config(run)["created"]


@pytest.mark.parametrize(
    "change",
    [{"allow_pickle": True}, {"strange": 1}, {"num_classes": "10"}, {"size": ""}, {"mean": True}, {"weights": 3}, {"spec": None}],
)
def test_a_recipe_that_was_changed(run: Path, change: dict[str, Any]) -> None:
    kept = (run / "run.json").read_text()
    record = json.loads(kept)
    record["model"]["recipe"] |= change
    (run / "run.json").write_text(json.dumps(record))
    try:
        with pytest.raises(RunMismatch, match=rf"run\.json is damaged or was changed \(model\.recipe\.{next(iter(change))}"):
            rb.verify(run)
    finally:
        (run / "run.json").write_text(kept)


def test_a_model_whose_name_is_too_long_for_a_file() -> None:
    with pytest.raises(ModelError, match="cannot be read: File name too long"):
        rb.load_model("x" * 2000)


# ---------------------------------------------------------------------- models


def test_a_checkpoint_with_a_flipped_bit(tmp_path: Path) -> None:
    """torch loads it without a word."""
    weights = torch.arange(1000.0)
    torch.save({"a": weights}, tmp_path / "net.pt")
    whole = bytearray((tmp_path / "net.pt").read_bytes())
    whole[whole.index(weights.numpy().tobytes()) + 402] ^= 64
    (tmp_path / "net.pt").write_bytes(whole)
    assert not torch.equal(torch.load(tmp_path / "net.pt", weights_only=True)["a"], weights)
    for read in (read_state_dict, lambda file: kept_state(file, {})):
        with pytest.raises(UsageError, match=r"net\.pt is damaged"):
            read(tmp_path / "net.pt")


@pytest.mark.parametrize(
    "change", [{"classes": None}, {"channels": "1"}, {"architecture": 3}, {"mean": ["x"]}, {"std": [0]}, {"size": 2**80}, {"strange": 1}]
)
def test_a_checkpoint_that_says_nonsense_of_its_network(tmp_path: Path, change: dict[str, Any]) -> None:
    made = Made("digits_cnn", "none", "none", 10, 1, 8, None, "bilinear", (0.5,), (0.5,), "digits")
    said = json.loads(made.written()["robust_train"]) | change
    save_file({"weight": torch.zeros(1)}, tmp_path / "net.safetensors", {"robust_train": json.dumps(said)})
    with pytest.raises(ModelError, match=rf"was damaged, or written by another version of robust-train \({next(iter(change))}"):
        load_trained(tmp_path / "net.safetensors")


def test_archives_with_pickles_that_end_early_and_words_that_are_no_text(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "net.pt2", "w") as archive:
        archive.writestr("net/data/weights/x.pt", b"\x80\x02.")
    with zipfile.ZipFile(tmp_path / "net.ts", "w") as archive:
        for name in ("constants.pkl", "code/x.py", "version"):
            archive.writestr(f"net/{name}", b"\x80\xff")
    for name in ("net.pt2", "net.ts"):
        with pytest.raises(ModelError, match=rf"{name} is damaged"):
            rb.load_model(str(tmp_path / name))
