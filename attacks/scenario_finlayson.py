"""Three clinical models attacked (Finlayson et al., Science 2019, https://arxiv.org/abs/1804.05296): chest X-rays, retinas, skin.

Of the paper's table the rows of patches are given here, which its own notebooks hold; for the others see the paper.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from robustbench_lite.registry import attack
from robustbench_lite.scenarios import Published, PublishedRow, Row, Scenario

SOURCE = "Finlayson et al., Science 2019, https://arxiv.org/abs/1804.05296"
PGD = "pgd:steps=20,step_size=0.5"  # steps of 0.01 on [-1, 1], that is 0.005 here, in a ball of 0.01
EPS, SCALE = 0.01, 0.4

ROWS = (
    Row("PGD, white box", "white box", PGD, "linf", EPS),
    Row("PGD, black box", "same architecture", PGD, "linf", EPS),
    Row("PGD, other architecture", "other architecture", PGD, "linf", EPS),
    Row("PGD, public backbone", "public backbone", PGD, "linf", EPS),
    Row("patch, white box", "white box", "patch", "patch", SCALE),
    Row("patch, black box", "same architecture", "patch", "patch", SCALE),
    Row("patch of each image's own", "white box", "own-patch", "patch", SCALE),
    Row("natural patch", "nothing", "natural-patch", "patch", SCALE),
    Row("clumsy handling, at its worst", "nothing", "clumsy", "handling", 1.0),
)

CAN = (
    "They change pixels by at most 1 % of the range from black to white, which nobody sees, or stick a printed patch on the image. "
    "Who has a copy of the model uses it; who has not trains a similar one, or starts from a network that everybody can download."
)


def published(images: str, natural: Sequence[float], white: Sequence[float], black: Sequence[float]) -> Published:
    """Accuracy, AUROC and mean confidence of the three rows."""
    rows = (("natural patch", natural), ("patch, white box", white), ("patch, black box", black))
    setting = f"ResNet-50, two classes, 224 x 224 pixels; {images}"
    return Published(SOURCE, setting, tuple(PublishedRow(name, *figures) for name, figures in rows))


@attack("finlayson-cxr")
@dataclass(frozen=True)
class FinlaysonCXR(Scenario):
    """Pneumothorax or not on chest X-rays, by pixels and by patches; `robust-eval scenario run finlayson-cxr` adds the clinical report."""

    title = "Chest X-rays that a computer misreads"
    domain = "chest X-ray"
    who = "Someone who handles the image before the model reads it and gains by a wrong finding, such as a biller, an insurer or a vendor."
    can = CAN
    happens = (
        "Findings that are there are reported absent, and healthy chests are reported sick. "
        "The model's stated confidence need not give a warning, and unless a patch was used a person who looks at the image sees nothing."
    )
    rows = (*ROWS, Row("accident", "nothing", "medmnist-c-pneumonia:severity=3"))
    sensitivity = 0.9
    data = "phantom:chest"
    tasks = ("binary", "multi-label")
    published = published("8,383 images of ChestX-ray14", (0.9205, 0.5386, 0.958), (0.0001, 0.0, 0.988), (0.0967, 0.0038, 0.833))


@attack("finlayson-dr")
@dataclass(frozen=True)
class FinlaysonDR(Scenario):
    """Diabetic retinopathy on fundus photographs, by pixels and by patches; `robust-eval scenario run finlayson-dr` adds the report."""

    title = "Retinas that a screening programme grades wrongly"
    domain = "fundus photograph"
    who = "Someone between the camera and the screening model who gains by more referrals, or by fewer, such as a clinic or a payer."
    can = CAN
    happens = (
        "Patients whose sight is at risk are told to come back in a year, and healthy ones are sent to a specialist. "
        "Such a result can look as sure as an honest one."
    )
    rows = (*ROWS, Row("accident", "nothing", "medmnist-c-retina:severity=3"))
    sensitivity = 0.85
    data = "phantom:fundus"
    tasks = ("binary", "ordinal")
    published = published(
        "10,644 images of Kaggle's EyePACS, referable or not", (0.7853, 0.8275, 0.808), (0.0029, 0.0, 0.992), (0.0397, 0.0002, 0.975)
    )


@attack("finlayson-derm")
@dataclass(frozen=True)
class FinlaysonDerm(Scenario):
    """Melanoma or naevus on dermoscopy, by pixels and by patches; `robust-eval scenario run finlayson-derm` adds the clinical report."""

    title = "Moles that a computer calls by the wrong name"
    domain = "dermoscopy"
    who = "Someone who takes or forwards the photograph and gains by an operation, or by avoiding one, such as a practice or an insurer."
    can = CAN
    happens = (
        "Malignant moles are called benign and stay; benign ones are called malignant and are cut out. "
        "The stated confidence can be as high as on honest images."
    )
    rows = (*ROWS, Row("accident", "nothing", "medmnist-c-derma:severity=3"))
    sensitivity = 0.8
    data = "phantom:derm"
    published = published("533 images of the ISIC archive", (0.6758, 0.4872, 0.856), (0.0, 0.0, 0.997), (0.0137, 0.0004, 0.976))
