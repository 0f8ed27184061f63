"""`robust-train`: train a classifier and write a checkpoint that `robust-eval` loads."""

from __future__ import annotations

import os
import shlex
import sys
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import App, CycloptsError, Parameter
from rich.console import Console

from robustbench_lite.errors import RobustEvalError, UsageError
from robustbench_lite.stats import wilson

from .recipe import Recipe

if TYPE_CHECKING:
    import torch

    from .training import Report

Device = Literal["auto", "cpu", "cuda", "mps"]

app = App(
    name="robust-train",
    default_parameter=Parameter(negative=()),
    version_flags=(),
    exit_on_error=False,
    print_error=False,
    suppress_keyboard_interrupt=False,
    result_action="return_value",
)


@app.default
def robust_train(
    *,
    out: Path,
    data: str = "digits",
    model: str = "digits_cnn",
    recipe: Annotated[Recipe, Parameter(name="*")] = Recipe(),  # noqa: B008 - frozen, so that it can be shared
    device: Device = "auto",
    force: bool = False,
    debug: bool = False,
) -> None:
    """Train a classifier on the training split of a data set, test it on the test split, and write a checkpoint.

    Example: robust-train --data digits --out digits.safetensors

    Args:
        out: the .safetensors file to write; one that exists is kept unless --force is given.
        data: a data set with a training and a test split: digits, cifar10:FOLDER, cifar100:FOLDER.
        model: the architecture.
        device: auto takes cuda, then mps, then cpu.
        force: overwrite --out.
        debug: show the traceback of an error.
    """
    _check(out, force)

    from .architectures import find_architecture
    from .standard import Standard
    from .training import count_correct, save, splits, train

    architecture = find_architecture(model)
    target = _device(device)
    train_images, test_images = splits(data)
    with _progress(recipe.epochs) as report:
        classifier = train(architecture, train_images, Standard(), recipe, target, report)
    correct, n = count_correct(classifier, test_images), len(test_images)
    settings = {"data": data, "model": model} | asdict(recipe) | {"device": target.type, "out": out}
    save(classifier, out, _facts(settings, correct / n))
    low, high = wilson(correct, n)
    print(f"{out}: {correct} of {n} test images right, {correct / n:.2%} [{low:.2%}, {high:.2%}]")


def _check(out: Path, force: bool) -> None:
    """Everything about `out` that can be wrong is said before training, not after."""
    if out.suffix != ".safetensors":
        raise UsageError(f"--out {out} must end in .safetensors")
    if not out.parent.is_dir():
        raise UsageError(f"--out {out}: there is no folder {out.parent}, create it first")
    if not os.access(out.parent, os.W_OK):
        raise UsageError(f"--out {out}: the folder {out.parent} cannot be written to")
    if out.is_dir():
        raise UsageError(f"--out {out} is a folder")
    if out.exists() and not force:
        raise UsageError(f"--out {out} exists already: choose another name, or add --force to overwrite it")


def _device(name: Device) -> torch.device:
    import torch

    usable = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        return torch.device(next(kind for kind, there in usable.items() if there))
    if not usable[name]:
        raise UsageError(f"--device {name}: this machine has none that PyTorch can use; try --device auto")
    return torch.device(name)


def _facts(settings: dict[str, object], accuracy: float) -> dict[str, str]:
    """What a checkpoint says about itself; its command names every setting, so that it holds when a default changes."""
    import torch

    flags = [word for name, value in settings.items() for word in (f"--{name.replace('_', '-')}", str(value))]
    return {
        "model": str(settings["model"]),
        "data": str(settings["data"]),
        "command": shlex.join(["robust-train", *flags]),
        "seed": str(settings["seed"]),
        "test_accuracy": f"{accuracy:.4f}",
        "torch": torch.__version__,
    }


@contextmanager
def _progress(epochs: int) -> Iterator[Report]:
    """A bar on a terminal, else ten lines; on stderr."""
    from rich.progress import Progress, TimeElapsedColumn

    console = Console(stderr=True)
    with Progress(*Progress.get_default_columns(), TimeElapsedColumn(), console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task("training", total=epochs)

        def report(epoch: int, loss: float) -> None:
            bar.update(task, completed=epoch, description=f"training, loss {loss:.3f}")
            if not console.is_terminal and (epoch % max(1, epochs // 10) == 0 or epoch in (1, epochs)):
                console.print(f"epoch {epoch} of {epochs}, loss {loss:.4f}", highlight=False)

        yield report


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; the exit code is 0, 2 (the command or its input is wrong), 4 (failed while training) or 130 (interrupted)."""
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # read when torch is imported; spinning threads starve a shared machine
    words = list(sys.argv[1:] if argv is None else argv)
    try:
        app(words)
    except RobustEvalError as error:
        if "--debug" in words:
            traceback.print_exc()
        _say(str(error))
        return error.exit_code
    except CycloptsError as error:
        _say(f"{error} See robust-train --help.")
        return 2
    except KeyboardInterrupt:
        _say("interrupted; nothing was written")
        return 130
    except Exception:
        traceback.print_exc()
        _say("this is a bug in robust-train: please report it with the lines above")
        return 4
    return 0


def _say(message: str) -> None:
    print(f"robust-train: {' '.join(message.split())}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
