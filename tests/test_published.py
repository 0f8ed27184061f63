"""Published sets in their own layouts, read from small folders of the same form, or refused in one line that says what to do."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import robustbench_lite
from robustbench_lite.checks import first_answer
from robustbench_lite.classifier import Classifier, Preprocess
from robustbench_lite.conditions import clean_criterion
from robustbench_lite.criteria import Among
from robustbench_lite.data import from_arrays, load_data
from robustbench_lite.errors import DataError, ModelError, UsageError
from robustbench_lite.labelled import LabelledImages, label_tensor
from robustbench_lite.readout import Groups, Subset
from robustbench_lite.shape_bias import CATEGORIES, shape_bias
from robustbench_lite.synsets import imagenet_synsets, subset_indices

RANDOM = np.random.default_rng(0)
MODEL = Preprocess(size=(12, 12), resize=14)


def noise(*shape: int) -> np.ndarray[Any, Any]:
    return RANDOM.integers(0, 256, shape, dtype=np.uint8)


def picture(file: Path, height: int = 12, width: int = 12) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(noise(height, width, 3)).save(file, "PNG")  # whatever its name says: Pillow looks inside


def stored(file: Path) -> torch.Tensor:
    return torch.from_numpy(np.asarray(Image.open(file)).transpose(2, 0, 1).copy()) / 255


# --- one folder --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("letter", "host"), [("a", "hendrycks/natural-adv-examples"), ("r", "hendrycks/imagenet-r")])
def test_sets_of_200_classes_bring_their_readout(letter: str, host: str, tmp_path: Path) -> None:
    indices = subset_indices(letter)
    some = [indices[0], indices[57], indices[199]]
    for index in some:
        picture(tmp_path / "data" / f"imagenet-{letter}" / imagenet_synsets()[index] / "art_0.jpg", 20, 30)
    for path in (tmp_path / "data", tmp_path / "data" / f"imagenet-{letter}"):
        images = robustbench_lite.load_data(f"imagenet-{letter}:{path}", preprocess=MODEL)
        assert (images.labels, images.classes, images.name) == ([0, 57, 199], 200, f"imagenet-{letter}")
    assert images.readout == Subset(indices)
    assert images.class_names is not None
    assert (len(images.class_names), len(set(images.ids))) == (200, 3)
    assert images[0][0].shape == (3, 12, 12)
    assert images.default_eps["linf"] == 4 / 255
    assert len(load_data(f"imagenet-{letter}:{tmp_path / 'data'}", limit=2)) == 2
    outside = next(synset for number, synset in enumerate(imagenet_synsets()) if number not in indices)
    picture(tmp_path / "data" / f"imagenet-{letter}" / outside / "art_0.jpg")
    with pytest.raises(DataError, match=f"the set has no class index for 1 of the folders in .*, the first is '{outside}'"):
        load_data(f"imagenet-{letter}:{tmp_path / 'data'}")
    with pytest.raises(DataError, match=f"there is no folder .*ImageNet-{letter.upper()} is to be had from https://github.com/{host}$"):
        load_data(f"imagenet-{letter}:{tmp_path / 'nowhere'}")


def test_class_names_are_those_of_the_classes(tmp_path: Path) -> None:
    picture(tmp_path / "n01443537" / "a.jpg")
    images = load_data(f"imagenet-r:{tmp_path}")
    assert images.class_names is not None
    assert (images.labels, images.class_names[0]) == ([0], "goldfish")


def test_sets_of_1000_classes_may_lack_some(tmp_path: Path) -> None:
    picture(tmp_path / "sketch" / "n01440764" / "sketch_0.JPEG")
    picture(tmp_path / "sketch" / "n15075141" / "sketch_1.JPEG")
    images = load_data(f"imagenet-sketch:{tmp_path}")
    assert (images.labels, images.classes, images.readout, images.has_clean) == ([0, 999], 1000, None, True)
    picture(tmp_path / "v2" / "0" / "a.jpeg")
    picture(tmp_path / "v2" / "10" / "b.jpeg")
    picture(tmp_path / "v2" / "9" / "c.jpeg")
    images = load_data(f"imagenet-v2:{tmp_path / 'v2'}")
    assert (images.labels, images.classes, images.name) == ([0, 10, 9], 1000, "imagenet-v2")
    picture(tmp_path / "v2" / "1000" / "a.jpeg")
    with pytest.raises(DataError, match="the first is '1000'"):
        load_data(f"imagenet-v2:{tmp_path / 'v2'}")


# --- ReaL --------------------------------------------------------------------------------------------------------------------


def validation(folder: Path, *numbers: int, suffix: str = "JPEG") -> Path:
    for number in numbers:
        picture(folder / f"ILSVRC2012_val_{number:08d}.{suffix}", 20, 30)
    return folder


def test_real_labels_go_by_the_number_in_the_name(tmp_path: Path) -> None:
    validation(tmp_path / "flat", 1, 2, 3, 17)
    (tmp_path / "flat" / "notes.txt").write_text("no picture")
    images = load_data(f"imagenet-val:{tmp_path / 'flat'},real=timm", preprocess=MODEL)
    # the first picture has no label that anybody agreed on, and is left out
    assert images.labels == [frozenset({795, 970}), frozenset({230, 231}), frozenset({108, 327})]
    assert (images.name, images.classes, images.ids[0]) == ("imagenet-real", 1000, "ILSVRC2012_val_00000002.JPEG")
    assert "1 that have none left out" in images.source
    assert torch.equal(images[0][0], MODEL(Image.open(tmp_path / "flat" / images.ids[0])))

    validation(tmp_path / "sorted" / "n01440764", 2, 3)
    validation(tmp_path / "sorted" / "n01443537", 1)
    entries: list[list[int]] = [[] for _ in range(50_000)]
    entries[0], entries[1] = [4], [999, 0]
    (tmp_path / "real.json").write_text(json.dumps(entries))
    images = load_data(f"imagenet-val:{tmp_path / 'sorted'},real={tmp_path / 'real.json'}")
    assert dict(zip(images.ids, images.labels, strict=True)) == {
        "n01440764/ILSVRC2012_val_00000002.JPEG": frozenset({0, 999}),
        "n01443537/ILSVRC2012_val_00000001.JPEG": frozenset({4}),
    }
    assert images.digest == load_data(f"imagenet-val:{tmp_path / 'sorted'},real={tmp_path / 'real.json'}").digest
    assert len(images.subset(1, 0)) == 1
    plain = load_data(f"imagenet-val:{tmp_path / 'sorted'}")
    assert (plain.labels, plain.classes, plain.name) == ([0, 0, 1], 1000, "imagenet-val")


def test_real_labels_that_cannot_be_had(tmp_path: Path) -> None:
    flat = validation(tmp_path / "flat", 1, 2)
    with pytest.raises(DataError, match="has no sub-folders that say what its pictures are: add real=timm"):
        load_data(f"imagenet-val:{flat}")
    with pytest.raises(DataError, match=r"cannot read the ReaL labels .*nowhere\.json .*real=timm"):
        load_data(f"imagenet-val:{flat},real={tmp_path / 'nowhere.json'}")
    for content in ("{}", "[[1]]", "[", json.dumps([["tench"]] * 50_000), json.dumps([1] * 50_000)):
        (tmp_path / "real.json").write_text(content)
        with pytest.raises(DataError, match=r"real\.json must be a JSON list of 50000 lists"):
            load_data(f"imagenet-val:{flat},real={tmp_path / 'real.json'}")
    (tmp_path / "real.json").write_text(json.dumps([[1000]] * 50_000))
    with pytest.raises(DataError, match=r"label 0 of imagenet-real is 1000: class indices are 0\.\.999"):
        load_data(f"imagenet-val:{flat},real={tmp_path / 'real.json'}")
    picture(tmp_path / "named" / "n01440764" / "tench.jpg")
    with pytest.raises(DataError, match=r"n01440764/tench\.jpg is not named as a picture of ImageNet's validation set"):
        load_data(f"imagenet-val:{tmp_path / 'named'},real=timm")
    with pytest.raises(DataError, match="imagenet-real holds no images"):
        load_data(f"imagenet-val:{validation(tmp_path / 'first', 1)},real=timm")


# --- stimuli -----------------------------------------------------------------------------------------------------------------


def test_cue_conflicts_are_labelled_by_shape_and_read_off_categories(tmp_path: Path) -> None:
    for shape, texture in (("bear", "clock"), ("truck", "oven"), ("cat", "cat")):
        picture(tmp_path / shape / f"{shape}1-{texture}2.png")
    images = load_data(f"cue-conflict:{tmp_path}", preprocess=MODEL)
    names = list(CATEGORIES)
    assert images.ids == ["bear/bear1-clock2.png", "cat/cat1-cat2.png", "truck/truck1-oven2.png"]
    assert (images.labels, images.classes, images.class_names) == ([names.index(n) for n in ("bear", "cat", "truck")], 16, names)
    assert images.readout == Groups(tuple(CATEGORIES.values()))
    assert torch.equal(images[0][0], stored(tmp_path / images.ids[0])), "a stimulus of the model's size is not resized and cropped again"
    said = shape_bias([(images.ids[0], names.index("bear")), (images.ids[2], names.index("oven")), (images.ids[1], 0)])
    assert (said.shape_correct, said.texture_correct, said.n) == (1, 1, 2)
    (tmp_path / "unicorn").mkdir()
    with pytest.raises(DataError, match="the first is 'unicorn'"):
        load_data(f"cue-conflict:{tmp_path}")
    with pytest.raises(DataError, match=r"cue-conflict is to be had from https://github\.com/rgeirhos/texture-vs-shape"):
        load_data(f"cue-conflict:{tmp_path / 'nowhere'}")


@pytest.mark.parametrize("name", ["edges", "silhouettes"])
def test_shapes_without_texture(name: str, tmp_path: Path) -> None:
    picture(tmp_path / "dog" / "dog1.png", 9, 9)
    images = load_data(f"{name}:{tmp_path}", preprocess=MODEL)
    assert (images.labels, images.classes, images.name) == ([list(CATEGORIES).index("dog")], 16, name)
    wanted = Image.open(tmp_path / "dog" / "dog1.png").resize((12, 12), Image.Resampling.BILINEAR)
    assert torch.equal(images[0][0] * 255, torch.from_numpy(np.asarray(wanted).transpose(2, 0, 1).copy()).float())


# --- several right classes ---------------------------------------------------------------------------------------------------


def test_sets_of_classes_become_rows_filled_up_with_minus_one() -> None:
    assert label_tensor([frozenset({5, 2}), frozenset({7})]).tolist() == [[2, 5], [7, -1]]
    assert label_tensor([3, 1]).tolist() == [3, 1]
    assert label_tensor([(1.0, 0.0)]).dtype == torch.float32
    images = from_arrays(torch.rand(2, 1, 4, 4), [0, 1])
    with pytest.raises(DataError, match="label 1 of data names no class"):
        LabelledImages(images.pictures, [frozenset({1}), frozenset()], images.ids)
    for label, wrong in ((frozenset({1, 10}), 10), (frozenset({-1, 3}), -1)):
        with pytest.raises(DataError, match=rf"label 0 of data is {wrong}: class indices are 0\.\.9"):
            LabelledImages(images.pictures, [label, frozenset({1})], images.ids, classes=10)


LOGITS = torch.tensor([[1.0, 4.0, 3.0, 0.0], [1.0, 2.0, 3.0, 0.0], [3.0, 3.0, 1.0, 3.0], [3.0, 3.0, 1.0, 3.0], [0.0, 1.0, 2.0, 3.0]])
RIGHT = [frozenset({1, 0}), frozenset({0, 1, 3}), frozenset({1}), frozenset({0, 2}), frozenset({0, 1, 2, 3})]


def test_any_of_several_classes_is_right() -> None:
    rule = clean_criterion(label_tensor(RIGHT), 4)
    assert isinstance(rule, Among)
    margin = rule.margin(LOGITS)
    assert margin[:2].tolist() == [-1.0, 1.0]
    assert (margin > 0).tolist() == [answer not in right for answer, right in zip(LOGITS.argmax(1).tolist(), RIGHT, strict=True)]
    assert margin[2].item() == -margin[3].item() == torch.finfo(torch.float32).tiny, "ties go as argmax breaks them"
    assert margin[4].item() == -torch.inf, "nothing is wrong where everything is right"
    assert rule.predict(LOGITS).tolist() == LOGITS.argmax(1).tolist()
    assert torch.equal(rule.take(slice(1, 2)).margin(LOGITS[1:2]), margin[1:2])
    single = clean_criterion(torch.tensor([1, 0, 1, 0, 2]), 4)
    assert torch.equal(clean_criterion(label_tensor([frozenset({k}) for k in (1, 0, 1, 0, 2)]), 4).margin(LOGITS), single.margin(LOGITS))


def test_a_run_with_several_right_classes_is_kept_and_read_again(tmp_path: Path) -> None:
    flat = validation(tmp_path / "flat", 2, 3, 4)
    images = load_data(f"imagenet-val:{flat},real=timm", preprocess=MODEL)
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(432, 1000)).eval()
    with torch.no_grad():
        model[1].bias[230] = 50.0
    result = robustbench_lite.evaluate(model, [], images, device="cpu", out=tmp_path / "run")
    assert [v.label for v in result.of("clean")] == [[795, 970], [230, 231], [809]]
    assert [v.broken for v in result.of("clean")] == [True, False, True]
    assert result.table.loc[0, "accuracy"] == pytest.approx(1 / 3)


def test_a_model_with_too_few_outputs_for_any_right_class_is_refused() -> None:
    model = Classifier(torch.nn.Flatten().eval())
    with pytest.raises(ModelError, match="has 16 outputs, but the data has the label 20"):
        first_answer(model, torch.rand(2, 1, 4, 4), label_tensor([frozenset({1, 20}), frozenset({2})]))


def test_several_right_classes_need_not_be_attacked(tmp_path: Path) -> None:
    flat = validation(tmp_path / "flat", 2, 3, 4)
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(432, 1000)).eval()
    images = load_data(f"imagenet-val:{flat},real=timm", preprocess=MODEL)
    with pytest.raises(UsageError, match="several right classes an image, and an attack needs one"):
        robustbench_lite.evaluate(model, ["pgd:steps=1"], images, device="cpu")
