"""Shape bias: published counts give published figures, and what is counted is what the definition says."""

from __future__ import annotations

import pytest

from robustbench_lite.errors import DataError
from robustbench_lite.shape_bias import CATEGORIES, PUBLISHED, Cues, cues, shape_bias
from robustbench_lite.stats import wilson

NAMES = list(CATEGORIES)
FIGURES = {  # decisions for shape, for texture -> bias, as counted from the published raw decisions
    "humans": (9236, 398, 0.9587),
    "AlexNet": (283, 376, 0.4294),
    "GoogLeNet": (228, 503, 0.3119),
    "ResNet-50": (162, 572, 0.2207),
    "VGG-16": (130, 625, 0.1722),
    "AlexNet, Stylized-ImageNet": (488, 161, 0.7519),
    "DenseNet-121, Stylized-ImageNet": (618, 130, 0.8262),
    "ResNet-50, Stylized-ImageNet": (586, 141, 0.8061),
    "SqueezeNet, Stylized-ImageNet": (467, 124, 0.7902),
    "VGG-16, Stylized-ImageNet": (551, 163, 0.7717),
}


def test_the_categories_are_207_classes_of_imagenet_that_do_not_overlap() -> None:
    every = [index for indices in CATEGORIES.values() for index in indices]
    assert len(every) == len(set(every)) == 207
    assert sorted(CATEGORIES) == NAMES
    sizes = {name: len(indices) for name, indices in CATEGORIES.items()}
    assert (sizes["dog"], sizes["bird"], sizes["truck"], sizes["bottle"]) == (109, 49, 8, 7)
    assert (min(every), max(every)) == (8, 914)


def decided(shape_correct: int, texture_correct: int, n: int = 1200) -> list[tuple[str, int]]:
    """Decisions on n conflicts over all pairs of categories: so many for shape, for texture, and the rest for neither."""
    pairs = [(shape, texture) for shape in NAMES for texture in NAMES if shape != texture]
    decisions = []
    for i in range(n):
        shape, texture = pairs[i % len(pairs)]
        other = next(name for name in NAMES if name not in (shape, texture))
        said = shape if i < shape_correct else texture if i < shape_correct + texture_correct else other
        decisions.append((f"{shape}/{shape}{i}-{texture}{i % 3 + 1}.png", NAMES.index(said)))
    return decisions


@pytest.mark.parametrize("name", FIGURES)
def test_published_counts_give_published_biases(name: str) -> None:
    shape_correct, texture_correct, bias = FIGURES[name]
    published = next(p for p in PUBLISHED if p.name == name)
    assert (published.shape_correct, published.texture_correct) == (shape_correct, texture_correct)
    assert published.bias == pytest.approx(bias, abs=5e-5)
    measured = shape_bias(decided(shape_correct, texture_correct, 12000 if name == "humans" else 1200))
    assert (measured.shape_correct, measured.texture_correct) == (shape_correct, texture_correct)
    assert measured.bias == pytest.approx(bias, abs=5e-5)
    assert measured.interval == wilson(shape_correct, shape_correct + texture_correct)
    assert len(PUBLISHED) == len(FIGURES)


def test_cue_accuracy_counts_either_cue_among_all_conflicts() -> None:
    measured = shape_bias(decided(162, 572))
    assert (measured.n, measured.cue_accuracy) == (1200, pytest.approx(734 / 1200))
    assert measured.cue_interval == wilson(734, 1200)


def test_an_undecided_image_is_a_decision_for_neither() -> None:
    assert shape_bias([("bear/bear1-clock2.png", None), ("bear/bear2-cat1.png", NAMES.index("bear"))]).per_class == {"bear": Cues(1, 0, 2)}


def test_images_of_one_category_are_left_out() -> None:
    agreeing = [(f"{name}/{name}{i}-{name}{i + 1}.png", NAMES.index(name)) for name in NAMES for i in range(5)]
    assert len(agreeing) == 80
    assert shape_bias(decided(162, 572) + agreeing) == shape_bias(decided(162, 572))
    with pytest.raises(DataError, match="no image whose shape and texture are of two categories"):
        shape_bias(agreeing)


def test_per_class_goes_by_the_category_of_the_shape() -> None:
    decisions = [
        ("bear/bear1-clock2.png", NAMES.index("bear")),
        ("bear/bear2-cat1.png", NAMES.index("cat")),
        ("bear/bear3-cat1.png", NAMES.index("bear")),
        ("cat/cat10-bear1.png", NAMES.index("bear")),
        ("cat/cat8-dog1.png", NAMES.index("oven")),
        ("dog/dog1-cat2.png", NAMES.index("oven")),
    ]
    measured = shape_bias(decisions)
    assert measured.per_class == {"bear": Cues(2, 1, 3), "cat": Cues(0, 1, 2), "dog": Cues(0, 0, 1)}
    assert (measured.shape_correct, measured.texture_correct, measured.n) == (2, 2, 6)
    assert measured.per_class["dog"].bias is None
    assert measured.per_class["dog"].interval == (0.0, 1.0)
    assert measured.per_class["cat"].bias == 0.0


@pytest.mark.parametrize(
    ("sample_id", "expected"),
    [
        ("bear/bear10-airplane3.png", ("bear", "airplane")),
        ("bear10-airplane3.png", ("bear", "airplane")),
        ("knife/0001_cue_dnn_knife_00_knife2-oven1.png", ("knife", "oven")),
    ],
)
def test_names_say_both_cues(sample_id: str, expected: tuple[str, str]) -> None:
    assert cues(sample_id) == expected


@pytest.mark.parametrize("sample_id", ["bear/bear10.png", "bear/bear1-unicorn2.png", "bear/bear-clock.png", "n01440764/a.JPEG"])
def test_names_that_say_no_conflict_are_refused(sample_id: str) -> None:
    with pytest.raises(DataError, match="is not named as a cue-conflict image"):
        cues(sample_id)
