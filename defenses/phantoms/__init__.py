"""Small networks trained on SYNTHETIC phantoms, for trying scenarios; `make phantoms` makes them again.

No figure of theirs says anything about patients.
"""

from __future__ import annotations

import json
from pathlib import Path

from robustbench_lite.classifier import Classifier
from robustbench_lite.registry import MODELS
from robustbench_lite.trained import load_trained

FOLDER = Path(__file__).parent


def _register(file: Path) -> None:
    def bundled() -> Classifier:
        return load_trained(file.with_suffix(".safetensors"))

    bundled.__doc__ = json.loads(file.read_text("utf-8"))["description"]
    MODELS.register(file.stem, bundled)


for _file in sorted(FOLDER.glob("*.json")):
    _register(_file)
