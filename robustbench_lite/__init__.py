"""Robustness evaluation of image classifiers: accuracy under attack, with the evidence for every number.

import robustbench_lite as rb

result = rb.evaluate("efficientnet_lite0", attacks=["fgsm", "pgd"])
result.table
"""

from __future__ import annotations

import importlib
import os
from typing import TYPE_CHECKING, Any

# Idle OpenMP threads that spin made two threads up to fifty times slower on a shared machine; read when torch is loaded.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

if TYPE_CHECKING:
    from .classifier import Classifier as Classifier
    from .classifier import Preprocess as Preprocess
    from .data import load_data as load_data
    from .errors import RobustEvalError as RobustEvalError
    from .evaluation import evaluate as evaluate
    from .models import load_model as load_model
    from .registry import attack as attack
    from .registry import corruption as corruption
    from .registry import defense as defense
    from .registry import report as report
    from .results import Result as Result
    from .store import read_run as read_run
    from .verification import verify as verify

_HOME = {
    "evaluate": "evaluation",
    "load_model": "models",
    "load_data": "data",
    "read_run": "store",
    "verify": "verification",
    "Classifier": "classifier",
    "Preprocess": "classifier",
    "Result": "results",
    "RobustEvalError": "errors",
    "attack": "registry",
    "corruption": "registry",
    "defense": "registry",
    "report": "registry",
}

__all__ = [*_HOME]


def __getattr__(name: str) -> Any:
    """Import on first use, so that `robust-eval --help` does not wait for torch."""
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_HOME[name]}", __name__), name)
