"""A training's state on disk: written whole or not at all, and gone on with by the same command only."""

from __future__ import annotations

import io
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from robustbench_lite.checkpoints import check_model_zip
from robustbench_lite.errors import InvalidEvaluation, RunMismatch, UsageError


def write_whole(file: Path, write: Callable[[Path], object]) -> None:
    """Let `write` make a file beside this one, then put it in its place, so that a broken-off job leaves the old one.

    Raises:
        InvalidEvaluation: the disk is full, or the folder cannot be written to.
    """
    part = file.with_name(f"{file.name}.part")  # of one name: what a killed job leaves, the next one takes away
    try:
        write(part)
        with part.open("rb") as written:
            os.fsync(written.fileno())  # or a power cut after the replacement could leave an empty file
        os.replace(part, file)
    except OSError as error:
        raise InvalidEvaluation(f"could not write {file}: {error.strerror or error}; what was there before is as it was") from error
    finally:
        part.unlink(missing_ok=True)


def keep_state(file: Path, identity: dict[str, Any], state: dict[str, Any]) -> None:
    """Write a state of the training that `identity` describes.

    Raises:
        InvalidEvaluation: it could not be written.
    """
    # in memory first: Ctrl-C inside a file's write ends in torch.save as an error of its own, or aborts the process
    packed = io.BytesIO()
    torch.save({"identity": identity, "state": state}, packed)
    write_whole(file, lambda part: part.write_bytes(packed.getbuffer()))


def kept_state(file: Path, identity: dict[str, Any]) -> dict[str, Any] | None:
    """The state to go on from; None where there is none.

    Raises:
        RunMismatch: it is of a training with other settings; the first that differs is named.
        UsageError: the file is damaged.
    """
    if not file.is_file():
        return None
    try:
        check_model_zip(file)
        found = torch.load(file, map_location="cpu", weights_only=True)
        identity_there, state = dict(found["identity"]), dict(found["state"])
    except Exception as error:  # a cut-off or foreign file fails in any way
        raise damaged(file) from error
    for name in sorted({*identity, *identity_there}, key=str):
        if identity.get(name) != identity_there.get(name):
            raise RunMismatch(
                f"{file} is of a training with {name} {identity_there.get(name)}, not {identity.get(name)}: "
                "repeat that command to go on, choose another --out, or start over with --fresh"
            )
    return state


def damaged(file: Path) -> UsageError:
    return UsageError(f"{file} is damaged or no state of a training: delete it, or start over with --fresh")
