"""`make phantoms`: train the models for phantoms again and compare with those that are shipped; --update replaces these.

On the same machine with the same versions a model comes out with the same weights. Elsewhere sums are rounded otherwise, and training goes
its own way from there: then it is the clean accuracy that is compared.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from robustbench_lite.console import application, exit_code
from robustbench_lite.errors import UnknownName
from robustbench_lite.stats import wilson

from ..recipe import Tricks
from ..request import Request
from . import FOLDER

BUILD = Path("build/phantoms")


@dataclass(frozen=True)
class Entry:
    """A model before it is made.

    Args:
        description: of the model, as lists show it.
        kind: of the phantoms.
        seed: of the training and of the phantoms that it learns from, so that a twin saw other ones.
    """

    description: str
    kind: str
    seed: int = 0
    architecture: str = "phantom_cnn"
    epochs: int = 12

    def request(self, out: Path) -> Request:
        """What is asked of robust-train."""
        return Request(
            out=out,
            data=f"phantom:{self.kind}" + (f",seed={self.seed}" if self.seed else ""),
            model=self.architecture,
            # pasted pieces of other images teach it not to be upset by whatever is stuck on one
            defense="pasted",
            optimizer="adamw",
            epochs=self.epochs,
            batch_size=64,
            lr=0.003,
            weight_decay=0.01,
            label_smoothing=0.0,
            seed=self.seed,
            tricks=Tricks(augment="none"),
        )


TWIN = "trained independently on other synthetic phantoms: the attacker's twin of it."

ENTRIES = {
    "phantom_chest": Entry("A small network for SYNTHETIC chest phantoms, with a pneumothorax or without.", "chest"),
    "phantom_chest_twin": Entry(f"The network of phantom_chest, {TWIN}", "chest", 1),
    "phantom_chest_other": Entry(f"Another network for the task of phantom_chest, {TWIN}", "chest", 2, "phantom_residual"),
    "phantom_fundus": Entry("A small network for SYNTHETIC retinas, grades 0 to 4.", "fundus", epochs=14),
    "phantom_fundus_twin": Entry(f"The network of phantom_fundus, {TWIN}", "fundus", 1, epochs=14),
    "phantom_derm": Entry("A small network for SYNTHETIC moles, benign or malignant.", "derm"),
    "phantom_derm_twin": Entry(f"The network of phantom_derm, {TWIN}", "derm", 1),
}

app = application("make phantoms", default_parameter=Parameter(negative=()), version_flags=())


@app.default
def make_phantoms(names: Annotated[Sequence[str], Parameter(negative=())] = (), /, *, update: bool = False) -> int:
    """Train the models for phantoms, one after the other. Returns 1 where one is less accurate than the shipped one says of itself.

    Args:
        names: which models; all unless some are named.
        update: put what is made here in the place of what is shipped.
    """
    for name in names:
        if name not in ENTRIES:
            raise UnknownName("model for phantoms", name, ENTRIES)
    worse = 0
    for name in names or ENTRIES:
        card = made(name)
        if update:
            shutil.copyfile(BUILD / f"{name}.safetensors", FOLDER / f"{name}.safetensors")
            (FOLDER / f"{name}.json").write_text(json.dumps(card, indent=1) + "\n", "utf-8")
        shipped = json.loads((FOLDER / f"{name}.json").read_text("utf-8"))
        least = wilson(shipped["right"], shipped["of"])[0]
        worse += card["right"] / card["of"] < least
        same = "the same weights" if card["digest"] == shipped["digest"] else "other weights"
        told = f"{card['right']} of {card['of']} right, its card says {shipped['right']} of {shipped['of']}"
        print(f"{name}: {same}; {told}", flush=True)
    return int(worse > 0)


def made(name: str) -> dict[str, Any]:
    """Train one model, and measure its clean accuracy on test phantoms; what its card says."""
    import torch

    from robustbench_lite.evaluation import evaluate
    from robustbench_lite.trained import load_trained

    from ..job import run_job
    from ..world import World

    torch.set_num_threads(1)  # so that the same sums are made on every machine of one kind
    BUILD.mkdir(parents=True, exist_ok=True)
    entry, checkpoint = ENTRIES[name], BUILD / f"{name}.safetensors"
    request = entry.request(checkpoint)
    run_job(request, World(0, 1, torch.device("cpu")), lambda *_: None, fresh=True)
    clean = evaluate(load_trained(checkpoint), (), f"phantom:{entry.kind}").of("clean")
    return {
        "description": entry.description,
        "synthetic": True,
        "command": request.command,
        "digest": sha256(checkpoint.read_bytes()).hexdigest(),
        "data": f"phantom:{entry.kind}",
        "right": sum(v.broken is False for v in clean),
        "of": len(clean),
    }


def _run(words: Sequence[str]) -> int:
    code: int = app(words)
    return code


if __name__ == "__main__":
    sys.exit(exit_code("make phantoms", _run, sys.argv[1:]))
