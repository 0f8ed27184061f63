"""Small networks trained here on the real digits, one per defense, each a checkpoint with a card beside it; `make zoo` makes them again."""

from __future__ import annotations

from pathlib import Path

from robustbench_lite.cards import Card
from robustbench_lite.classifier import Classifier
from robustbench_lite.defending import Defenses
from robustbench_lite.registry import MODELS
from robustbench_lite.trained import load_trained

FOLDER = Path(__file__).parent


def stored(folder: Path, name: str, defense: str, around: str | None) -> Classifier:
    """A model of the zoo from the checkpoints in a folder: as it was trained, or with the defense put around another one."""
    classifier = load_trained(folder / f"{around or name}.safetensors")
    if around is not None:
        classifier = Defenses.parse(defense).applied(classifier)
        classifier.name = name
    return classifier


def _register(file: Path) -> None:
    def bundled() -> Classifier:
        return stored(FOLDER, card.name, card.defense, card.around)

    card = Card.read(file)
    bundled.__doc__ = card.description
    MODELS.register(card.name, bundled).card = card  # type: ignore[attr-defined]  # a function may carry what `cards` looks for


for _file in sorted(FOLDER.glob("*.json")):
    _register(_file)
