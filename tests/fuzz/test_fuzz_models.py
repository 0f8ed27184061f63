"""Fuzzing files of models: checkpoints, what robust-train writes, whole archives. What is read fits or is refused; no code in it runs."""

from __future__ import annotations

import io
import json
import os
import pickle
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from damage import BYTE_EDITS, TREE_EDITS, fuzz, needs_limits, replaced, spoilt
from hypothesis import strategies as st
from robustbench_lite.defenses.states import keep_state, kept_state
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from robustbench_lite.archives import load_archive
from robustbench_lite.checkpoints import load_into, read_state_dict
from robustbench_lite.trained import Made, load_trained

pytestmark = needs_limits
MADE = Made("digits_cnn", "none", "none", 10, 1, 8, None, "bilinear", (0.5,), (0.5,), "digits")
IDENTITY = {"model": "digits_cnn", "seed": 0, "lr": 0.1}


class Evil:
    """Makes a folder when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.marker),)


def network() -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(72, 10)).eval()


def packed(content: Any, **how: Any) -> bytes:
    stream = io.BytesIO()
    torch.save(content, stream, **how)
    return stream.getvalue()


def weights(file: Path) -> None:
    load_into(network(), read_state_dict(file), file, "net")


def exported(file: Path) -> None:
    batch = ({0: torch.export.Dim("batch")},)
    torch.export.save(torch.export.export(network(), (torch.rand(2, 1, 8, 8),), dynamic_shapes=batch), file)


def scripted(file: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        torch.jit.script(network()).save(file)


READERS: dict[str, tuple[Callable[[Path], object], Callable[[Path], object]]] = {
    # the file: who reads it, and who writes a good one
    "plain.safetensors": (weights, lambda file: save_file(network().state_dict(), file)),
    "trained.safetensors": (load_trained, lambda file: save_file(MADE.untrained().model.state_dict(), file, MADE.written())),
    "zipped.pt": (weights, lambda file: torch.save({"state_dict": network().state_dict(), "epoch": 3}, file)),
    "legacy.pt": (weights, lambda file: torch.save(network().state_dict(), file, _use_new_zipfile_serialization=False)),
    "training.state": (lambda file: kept_state(file, IDENTITY), lambda file: keep_state(file, IDENTITY, {"model": network().state_dict()})),
    "whole.pt2": (load_archive, exported),
    "whole.ts": (load_archive, scripted),
}


def repacked(content: bytes, part: int, name: str | None, made: Any, more: bytes | None) -> bytes:
    """A zip file in which one part was spoilt, or has another name, or holds something else."""
    stream = io.BytesIO()
    with warnings.catch_warnings(), zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(stream, "w") as new:
        warnings.simplefilter("ignore", UserWarning)  # of two parts of one name
        members = old.infolist()
        for number, member in enumerate(members):
            whole, chosen = old.read(member), number == part % len(members)
            new.writestr(member.filename, whole if not chosen else spoilt(more if more is not None and name is None else whole, made))
            if chosen and name is not None:
                new.writestr(f"{member.filename.partition('/')[0]}/{name}", more or whole)
    return stream.getvalue()


NAMES = st.sampled_from((None, None, None, "data.pkl", "data/0", "../x", "", "version", "code/x.py", "constants.pkl", "data/weights/x.pt",
                         "data/constants/opaque_obj_0", "data/aotinductor/model/x.so", "models/model.json", "byteorder"))  # fmt: skip


@pytest.mark.parametrize("name", READERS)
def test_models(name: str, tmp_path: Path) -> None:
    read, write = READERS[name]
    file, marker = tmp_path / name, tmp_path / "ran"
    write(file)
    read(file)
    sample, evil = file.read_bytes(), Evil(marker)
    bad = [
        *(pickle.dumps(evil, protocol) for protocol in (0, 2, 4)),
        packed({"weight": evil}),
        packed([evil], _use_new_zipfile_serialization=False),
    ]
    zipped = zipfile.is_zipfile(file)

    def check(case: tuple[Any, int, str | None, bytes | None, int]) -> None:
        made, part, other, more, scale = case
        made = [(kind, place % scale, length, word) for kind, place, length, word in made]
        if zipped and part:
            file.write_bytes(repacked(sample, part, other, made, more))
        else:
            file.write_bytes(spoilt(sample if more is None else more, made))
        try:
            read(file)
        finally:
            assert not marker.exists(), "code of the file ran"

    more = st.none() | st.sampled_from(bad)
    fuzz(st.tuples(BYTE_EDITS, st.integers(0, 40), NAMES, more, st.sampled_from((64, 400, 2**16))), check, 40)


def test_descriptions(tmp_path: Path) -> None:
    """What a checkpoint says of its network."""
    file = tmp_path / "net.safetensors"
    save_file(MADE.untrained().model.state_dict(), file, MADE.written())
    tensors = load_file(file)
    with safe_open(file, "pt") as opened:
        good = json.loads(opened.metadata()["robust_train"])

    def check(made: Any) -> None:
        save_file(tensors, file, {"robust_train": json.dumps(replaced(good, made))})
        load_trained(file)

    check([])
    fuzz(TREE_EDITS, check)
