"""Small networks trained here on the real digits, one per defense, each a checkpoint with a card beside it; `make zoo` makes them again."""

from __future__ import annotations

from pathlib import Path

from robustbench_lite.cards import Card
from robustbench_lite.classifier import Classifier
from robustbench_lite.registry import MODELS
from robustbench_lite.trained import load_trained

FOLDER = Path(__file__).parent


def _register(file: Path) -> None:
    def bundled() -> Classifier:
        return load_trained(file.with_suffix(".safetensors"))

    card = Card.read(file)
    bundled.__doc__ = card.description
    MODELS.register(card.name, bundled).card = card  # type: ignore[attr-defined]  # a function may carry what `cards` looks for


for _file in sorted(FOLDER.glob("*.json")):
    _register(_file)
