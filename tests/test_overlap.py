"""Warnings about training on what is tested."""

import pytest

from robustbench_lite.overlap import overlaps


@pytest.mark.parametrize(
    ("operation", "corruption"),
    [
        ("contrast", "contrast"),
        ("autocontrast", "contrast"),
        ("brightness", "brightness"),
        ("color", "saturate"),
        ("sharpness", "defocus_blur"),
        ("gaussian_noise", "impulse_noise"),
        ("gaussian-noise", "shot_noise"),
        ("shear_x", "elastic_transform"),
        ("jpeg", "jpeg_compression"),
        ("fog", "fog"),
        ("augmix", "contrast"),
        ("augmix-all", "brightness"),
        ("adversarial-auto-augment", "saturate"),
        ("contrast", "retina/contrast_down"),
        ("gaussian_noise", "pneumonia/gaussian_noise"),
    ],
)
def test_what_repeats_a_corruption_is_named(operation: str, corruption: str) -> None:
    (sentence,) = overlaps([operation], [corruption, "snow"])
    assert operation in sentence
    assert corruption in sentence
    assert "snow" not in sentence


@pytest.mark.parametrize(
    ("operation", "corruption"),
    [
        ("solarize", "contrast"),
        ("stylise", "gaussian_noise"),
        ("adversarial", "gaussian_noise"),
        ("augmix", "brightness"),
        ("cutout", "pixelate"),
    ],
)
def test_what_repeats_none_says_nothing(operation: str, corruption: str) -> None:
    assert overlaps([operation], [corruption]) == []


def test_one_sentence_for_each_operation_in_order() -> None:
    sentences = overlaps(["gaussian_noise", "stylise", "contrast"], ["contrast", "gaussian_noise", "shot_noise", "fog"])
    assert [sentence.split(",")[0] for sentence in sentences] == ["trained on gaussian_noise", "trained on contrast"]
    assert "gaussian_noise and shot_noise" in sentences[0]
    assert "contrast and fog" in sentences[1]
    assert overlaps([], ["contrast"]) == []
