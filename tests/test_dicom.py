"""DICOM files become pictures in [0, 1] as the standard says, are refused in one line, and their headers stay where they are."""

from __future__ import annotations

import re
import shutil
import sys
import traceback
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from robustbench_lite import dicom
from robustbench_lite.classifier import Preprocess
from robustbench_lite.data import load_data
from robustbench_lite.errors import DataError

pydicom = pytest.importorskip("pydicom")
REAL = Path(pydicom.__file__).parent / "data" / "test_files"
RAMP = np.arange(64 * 64, dtype=np.uint16).reshape(64, 64)  # every value of 12 bits


def written(file: Path, pixels: np.ndarray[Any, Any], **elements: Any) -> Path:
    """A file with these pixels, of 12 bits unless `elements` say otherwise."""
    dataset = pydicom.Dataset()
    dataset.file_meta = pydicom.dataset.FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    dataset.SOPClassUID = pydicom.uid.SecondaryCaptureImageStorage
    dataset.SOPInstanceUID = "1.2.3"
    dataset.Rows, dataset.Columns = pixels.shape[:2]
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.BitsAllocated = pixels.dtype.itemsize * 8
    dataset.PixelRepresentation = int(pixels.dtype.kind == "i")
    for keyword, value in ({"BitsStored": 12} | elements).items():
        setattr(dataset, keyword, value)
    dataset.HighBit = dataset.BitsStored - 1
    dataset.PixelData = pixels.tobytes()
    file.parent.mkdir(parents=True, exist_ok=True)
    dataset.save_as(file, enforce_file_format=True)
    return file


def table(descriptor: list[int], data: np.ndarray[Any, Any], **more: Any) -> Any:
    item = pydicom.Dataset()
    item.LUTDescriptor = descriptor
    item.add_new("LUTData", "OW", data.tobytes())
    for keyword, value in more.items():
        setattr(item, keyword, value)
    return [item]


def close(levels: np.ndarray[Any, Any], expected: np.ndarray[Any, Any]) -> bool:
    return levels.dtype == np.float32 and levels.shape == expected.shape and bool(np.abs(levels - expected).max() < 1e-7)


# --- what a picture becomes ------------------------------------------------------------------------------------------------


def test_real_files_are_pictures_in_range() -> None:
    shapes = {
        "CT_small": (128, 128),
        "MR_small_RLE": (64, 64),
        "MR_small_expb": (64, 64),
        "693_J2KI": (512, 512),
        "image_dfl": (512, 512),
        "examples_palette": (350, 800, 3),
        "SC_rgb_rle_16bit": (100, 100, 3),
        "SC_ybr_full_422_uncompressed": (100, 100, 3),
    }
    for name, shape in shapes.items():
        levels = dicom.read(REAL / f"{name}.dcm")
        assert (levels.shape, levels.dtype) == (shape, np.float32)
        assert 0 <= levels.min() < levels.max() <= 1


def test_without_a_window_all_values_that_the_bits_can_hold_span_black_to_white(tmp_path: Path) -> None:
    stored = pydicom.dcmread(REAL / "CT_small.dcm").pixel_array
    assert close(dicom.read(REAL / "CT_small.dcm"), (stored + 32768.0) / 65535)
    assert close(dicom.read(written(tmp_path / "a.dcm", RAMP)), RAMP / 4095)
    assert len(np.unique(dicom.read(tmp_path / "a.dcm"))) == 4096
    signed = RAMP.astype(np.int16) - 2048
    assert close(dicom.read(written(tmp_path / "b.dcm", signed, RescaleSlope=2, RescaleIntercept=-7)), RAMP / 4095)
    falling = {"RescaleSlope": -1, "RescaleIntercept": 0}
    assert close(dicom.read(written(tmp_path / "c.dcm", RAMP, **falling)), 1 - RAMP / 4095)


def test_a_rescaling_without_its_slope_still_moves_the_window(tmp_path: Path) -> None:
    window = {"WindowCenter": 0, "WindowWidth": 401, "RescaleIntercept": -1024}
    levels = dicom.read(written(tmp_path / "a.dcm", RAMP, **window))
    assert close(levels, ((RAMP - 1023.5) / 400 + 0.5).clip(0, 1))


@pytest.mark.parametrize("function", [None, "LINEAR", "LINEAR_EXACT", "SIGMOID"])
@pytest.mark.parametrize("kind", [np.uint16, np.int16])
def test_windows_are_those_of_the_standard(tmp_path: Path, function: str | None, kind: Any) -> None:
    window = {"WindowCenter": [900, 5], "WindowWidth": [700, 5], "RescaleSlope": 0.5, "RescaleIntercept": -100}
    file = written(tmp_path / "a.dcm", RAMP.astype(kind), BitsStored=16, **window, **({"VOILUTFunction": function} if function else {}))
    dataset = pydicom.dcmread(file)
    theirs = pydicom.pixels.apply_windowing(pydicom.pixels.apply_modality_lut(dataset.pixel_array, dataset), dataset)
    low, high = (-32768, 32767) if kind is np.int16 else (0, 65535)
    expected = (theirs - (low * 0.5 - 100)) / ((high - low) * 0.5)
    assert close(dicom.read(file), expected)
    assert len(np.unique(dicom.read(file))) > 256


def test_a_window_as_wide_as_one_value_is_a_threshold(tmp_path: Path) -> None:
    levels = dicom.read(written(tmp_path / "a.dcm", RAMP, WindowCenter=100, WindowWidth=1))
    assert np.array_equal(levels, RAMP >= 100)


def test_monochrome1_is_inverted(tmp_path: Path) -> None:
    for number, more in enumerate(({}, {"WindowCenter": 900, "WindowWidth": 700})):
        plain = dicom.read(written(tmp_path / f"{number}.dcm", RAMP, **more))
        inverted = dicom.read(written(tmp_path / f"{number}i.dcm", RAMP, PhotometricInterpretation="MONOCHROME1", **more))
        assert close(inverted, 1.0 - plain)


def test_tables_of_more_than_256_bytes_take_the_right_entries(tmp_path: Path) -> None:
    entries = (np.arange(4096) // 16).astype(np.uint8)
    levels = dicom.read(written(tmp_path / "a.dcm", RAMP, VOILUTSequence=table([4096, 0, 8], entries)))
    assert close(levels, (RAMP // 16) / 255)
    squares = (np.arange(1024.0) ** 2 // 16).astype(np.uint16)
    beginning_at_1000 = table([1024, 1000, 16], squares, ModalityLUTType="US")
    levels = dicom.read(written(tmp_path / "b.dcm", RAMP, ModalityLUTSequence=beginning_at_1000, WindowCenter=20000, WindowWidth=30001))
    expected = (squares[np.clip(RAMP.astype(int) - 1000, 0, 1023)] - 19999.5) / 30000 + 0.5
    assert close(levels, expected.clip(0, 1))


def test_colours(tmp_path: Path) -> None:
    dataset = pydicom.dcmread(REAL / "examples_palette.dcm")
    theirs = pydicom.pixels.apply_color_lut(dataset.pixel_array, dataset)
    assert close(dicom.read(REAL / "examples_palette.dcm"), theirs / np.iinfo(theirs.dtype).max)
    assert close(dicom.read(REAL / "ExplVR_BigEnd.dcm"), pydicom.dcmread(REAL / "ExplVR_BigEnd.dcm").pixel_array / 255)
    deep, shallow = dicom.read(REAL / "SC_rgb_rle_16bit.dcm"), dicom.read(REAL / "SC_rgb_rle.dcm")
    assert np.abs(deep - shallow).max() < 1 / 255
    red = np.tile(np.array([76, 85, 255], np.uint8), (4, 4, 1))
    colour = {"PhotometricInterpretation": "YBR_FULL", "SamplesPerPixel": 3, "PlanarConfiguration": 0, "BitsStored": 8}
    assert np.abs(dicom.read(written(tmp_path / "red.dcm", red, **colour)) - [1, 0, 0]).max() < 2 / 255


def test_enhanced_files_say_it_elsewhere(tmp_path: Path) -> None:
    window, rescale, group = pydicom.Dataset(), pydicom.Dataset(), pydicom.Dataset()
    window.WindowCenter, window.WindowWidth, rescale.RescaleSlope, rescale.RescaleIntercept = 0, 401, 1, -1024
    group.FrameVOILUTSequence, group.PixelValueTransformationSequence = [window], [rescale]
    file = written(tmp_path / "a.dcm", RAMP, NumberOfFrames=1, SharedFunctionalGroupsSequence=[group])
    assert close(dicom.read(file), ((RAMP - 1023.5) / 400 + 0.5).clip(0, 1))


def test_eight_bits_are_what_a_png_is(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (16, 16), dtype=np.uint8)
    written(tmp_path / "xray" / "ill" / "0.dcm", pixels, BitsStored=8)
    Image.fromarray(pixels).save(tmp_path / "xray" / "ill" / "1.png")
    (deep, _), (shallow, _) = load_data(f"imagefolder:{tmp_path / 'xray'}")
    assert torch.equal(deep, shallow)


@pytest.mark.parametrize("channels", [1, 3])
def test_prepared_for_grey_and_colour_models(tmp_path: Path, channels: int) -> None:
    (tmp_path / "xray" / "ill").mkdir(parents=True)
    for name in ("CT_small", "examples_palette"):
        shutil.copy(REAL / f"{name}.dcm", tmp_path / "xray" / "ill")
    images = load_data(f"imagefolder:{tmp_path / 'xray'}", preprocess=Preprocess((32, 32), 40, channels=channels))
    assert [image.shape for image, _ in images] == [(channels, 32, 32)] * 2


# --- refused ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("rtplan", "it holds no picture, as plans and reports do not: take it out"),
        ("test-SR", "it holds no picture, as plans and reports do not: take it out"),
        ("SC_rgb_rle_2frame", "it holds 2 frames: write each into a file of its own"),
        ("MR_truncated", "it is damaged or no DICOM file"),
        ("badVR", "it is damaged or no DICOM file"),
        ("no_meta", "it is damaged or no DICOM file"),
        ("JPEGLSNearLossless_08", "its pixels are compressed and cannot be decoded: run `pip install pylibjpeg"),
    ],
)
def test_real_files_that_are_refused(tmp_path: Path, name: str, reason: str) -> None:
    (tmp_path / "xray" / "ill").mkdir(parents=True)
    shutil.copy(REAL / f"{name}.dcm", tmp_path / "xray" / "ill" / "0.dcm")
    with pytest.raises(DataError) as refused:
        load_data(f"imagefolder:{tmp_path / 'xray'}")[0]
    assert str(refused.value).startswith(f"cannot read the image {tmp_path / 'xray' / 'ill' / '0.dcm'}: {reason}")


def test_headers_that_do_not_make_sense(tmp_path: Path) -> None:
    with pytest.raises(dicom.Unreadable, match="its window has a width or a function that the standard does not know"):
        dicom.read(written(tmp_path / "a.dcm", RAMP, WindowCenter=100, WindowWidth=0))
    with pytest.raises(dicom.Unreadable, match="its pixel values do not fit its header"):
        dicom.read(written(tmp_path / "b.dcm", RAMP, RescaleSlope=0, RescaleIntercept=0))
    with pytest.raises(dicom.Unreadable, match="its colours are coded in a way that is not read here"):
        dicom.read(written(tmp_path / "c.dcm", RAMP, PhotometricInterpretation="HSV"))
    (tmp_path / "d.dcm").write_bytes(b"")
    with pytest.raises(dicom.Unreadable, match="it is damaged or no DICOM file"):
        dicom.read(tmp_path / "d.dcm")


def test_without_pydicom_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written(tmp_path / "xray" / "ill" / "0.dcm", RAMP)
    monkeypatch.setitem(sys.modules, "pydicom", None)
    with pytest.raises(DataError, match=re.escape("run `pip install 'robustbench-lite[medical]'`")):
        load_data(f"imagefolder:{tmp_path / 'xray'}")


# --- folders ---------------------------------------------------------------------------------------------------------------


def test_a_folder_of_all_kinds(tmp_path: Path) -> None:
    root = tmp_path / "xray"
    written(root / "ill" / "IM0001", RAMP, PatientID="Erika Mustermann")
    written(root / "ill" / "1.2.840.113619.2.55", RAMP, PatientID="Otto Normal")
    written(root / "well" / "a.DCM", RAMP, PatientID=" Erika Mustermann ", WindowCenter=5, WindowWidth=5)
    Image.fromarray(RAMP).save(root / "well" / "b.png")
    shutil.copy(root / "ill" / "IM0001", root / "well" / "DICOMDIR")
    (root / "well" / "notes").write_text("no picture")
    images = load_data(f"imagefolder:{root}")
    assert images.ids == ["ill/1.2.840.113619.2.55", "ill/IM0001", "well/a.DCM", "well/b.png"]
    assert images.groups == ["patient-1", "patient-2", "patient-2", "well/b.png"], "an image without a patient is one of its own"
    assert images.source == (
        f"4 pictures in {root}; 2 files of other kinds left out; "
        "2 of 3 DICOM files have no window, so that all values their bits can hold span black to white; "
        "DICOM headers tell 2 patients apart, and name none for 1 images"
    )
    assert "Muster" not in repr(images)
    assert torch.equal(images[1][0], images[0][0])


def test_no_patients_no_groups(tmp_path: Path) -> None:
    written(tmp_path / "xray" / "ill" / "0.dcm", RAMP, PatientID="")
    assert load_data(f"imagefolder:{tmp_path / 'xray'}").groups is None


def test_labels_from_a_table(tmp_path: Path) -> None:
    root, labels = tmp_path / "series", tmp_path / "labels.csv"
    for number in range(3):
        written(root / f"{number}.dcm", RAMP // (number + 1), PatientID="Erika Mustermann")
    labels.write_text("file,label\n2.dcm,1\n0.dcm, 0\n")
    images = load_data(f"imagefolder:{root},labels={labels}")
    assert (images.ids, images.labels, images.classes, images.groups) == (["0.dcm", "2.dcm"], [0, 1], 2, ["patient-1"] * 2)
    assert close(images[1][0][0].numpy(), (RAMP // 3) / 4095)
    labels.write_text("file,label,patient\n2.dcm,well,A\n1.dcm,ill,B\n")
    images = load_data(f"imagefolder:{root},labels={labels}")
    assert (images.labels, images.groups) == ([0, 1], ["B", "A"])


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ("name,label\n0.dcm,1\n", "needs the columns file and label, and has name, label"),
        ("file,label\n0.dcm,1\n0.dcm,0\n", "line 3, names 0.dcm a second time: keep one"),
        ("file,label\n9.dcm,1\n", "line 2, names 9.dcm, which is not in"),
        ("file,label\n../0.dcm,1\n", "line 2, needs a path below"),
        ("file,label\n0.dcm\n", "line 2, needs a path below"),
        ("file,label\n", "lists no files"),
        ("", "needs the columns file and label, and has none"),
    ],
)
def test_tables_of_labels_that_are_refused(tmp_path: Path, content: str, complaint: str) -> None:
    written(tmp_path / "series" / "0.dcm", RAMP)
    (tmp_path / "labels.csv").write_text(content)
    with pytest.raises(DataError, match=re.escape(complaint)):
        load_data(f"imagefolder:{tmp_path / 'series'},labels={tmp_path / 'labels.csv'}")


# --- headers stay where they are -------------------------------------------------------------------------------------------

MODEL = """
import torch
from robustbench_lite import Classifier
from robustbench_lite.classifier import Preprocess

def build():
    layer = torch.nn.Linear(32 * 32, 2)
    torch.nn.init.normal_(layer.weight, generator=torch.Generator().manual_seed(0))
    return Classifier(torch.nn.Sequential(torch.nn.Flatten(), layer).eval(), preprocess=Preprocess((32, 32), None, channels=1), classes=2)
"""
SHOWN = (
    "CT_small",
    "MR_small",
    "MR_small_RLE",
    "693_J2KI",
    "JPEG2000",
    "examples_overlay",
    "examples_palette",
    "examples_rgb_color",
    "SC_rgb_rle",
)
NUMBERS = ("DS", "IS", "FD", "FL", "US", "SS", "UL", "SL", "AT", "OB", "OW", "OB or OW", "US or SS", "UN", "SQ")
CHANGED = ("Wurzelbacher^Kunigunde", "Oelx", "Mustermann")


def header_texts(file: Path) -> set[str]:
    """Every text of more than three characters in a header, and the parts of names."""
    texts = set()
    for element in dicom_elements(file):
        for value in element.value if isinstance(element.value, (list, pydicom.multival.MultiValue)) else [element.value]:
            texts |= {str(value), *re.split(r"[\^=]", str(value))}
    return {text.strip() for text in texts if len(text.strip()) > 3}


def dicom_elements(file: Path) -> list[Any]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dataset = pydicom.dcmread(file, stop_before_pixels=True)
        return [
            element for part in (dataset.file_meta, dataset) for element in part.iterall() if element.VR not in NUMBERS and element.value
        ]


def damaged(file: Path) -> None:
    """A file whose header quotes itself in what pydicom warns of and raises: no number in the window, no such time, no such VR."""
    content = (REAL / "MR_small.dcm").read_bytes()
    dataset = pydicom.dcmread(REAL / "MR_small.dcm")
    changes = {str(dataset.PatientName): CHANGED[0], "1600": CHANGED[1], str(dataset.StudyDate): CHANGED[2]}
    for text, other in changes.items():
        assert text.encode() in content
        content = content.replace(text.encode(), other[: len(text)].ljust(len(text)).encode())
    file.write_bytes(content)


def test_no_header_text_in_tracebacks(tmp_path: Path) -> None:
    (tmp_path / "series" / "ill").mkdir(parents=True)
    damaged(tmp_path / "series" / "ill" / "0.dcm")
    images = load_data(f"imagefolder:{tmp_path / 'series'}")
    with pytest.raises(DataError) as refused:
        images[0]
    told = "".join(traceback.format_exception(refused.value))
    assert "it is damaged or no DICOM file" in told
    assert not [text for text in CHANGED if text in told]


@pytest.mark.parametrize("command", ["inside", pytest.param("robust_eval", marks=pytest.mark.slow)])
def test_no_header_text_in_any_output(command: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    for number, name in enumerate(SHOWN):
        place = tmp_path / "series" / ("ill", "well")[number % 2]
        place.mkdir(parents=True, exist_ok=True)
        shutil.copy(REAL / f"{name}.dcm", place / f"{number}.dcm")
    shutil.copy(REAL / "rtplan.dcm", tmp_path / "series" / "ill" / "20.dcm")
    damaged(tmp_path / "series" / "ill" / "21.dcm")
    (tmp_path / "model.py").write_text(MODEL)
    options = ("--on-bad-image", "quarantine", "-a", "pgd:steps=2", "--eps", "0.1", "--format", "html,csv,json,md,junit", "--out", "run")
    ran = request.getfixturevalue(command)("--model", "model.py:build", "--data", f"imagefolder:{tmp_path / 'series'}", *options)
    assert (ran.code, "Traceback" in ran.err) == (4, False), ran.err
    outputs = {file: file.read_bytes().decode("latin-1") for file in (tmp_path / "run").rglob("*") if file.is_file()}
    assert {file.suffix for file in outputs} >= {".html", ".csv", ".json", ".sqlite", ".safetensors"}
    outputs |= {Path("stdout"): ran.out, Path("stderr"): ran.err}
    assert any("it holds no picture" in text for text in outputs.values()), "reasons are shown"
    assert any("it is damaged" in text for text in outputs.values())
    assert any("patient-1" in text for text in outputs.values())
    sources = Path(dicom.__file__).parent.parent
    own = " ".join(file.read_text().lower() for kind in ("py", "html", "css", "js") for file in sources.glob(f"[r]*/*.{kind}"))
    texts = {text for file in (tmp_path / "series").rglob("*.dcm") for text in header_texts(file)} | set(CHANGED)
    texts = {text for text in texts if text.lower() not in own}
    assert len(texts) > 150
    assert texts >= {"CompressedSamples", "id00001", *CHANGED}
    for text in texts:
        alone = re.compile(rf"(?<![A-Za-z0-9+.]){re.escape(text)}(?![A-Za-z0-9+.])")  # not by chance in a number or in base64
        assert not [file for file, content in outputs.items() if text in content and alone.search(content)], text
