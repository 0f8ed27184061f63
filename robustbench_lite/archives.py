"""Whole models in one file: archives of `torch.export.save` (.pt2) and of `torch.jit.save` (TorchScript)."""

from __future__ import annotations

import hashlib
import io
import json
import logging
import pickle
import re
import warnings
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from .checkpoints import check_model_zip, is_torchscript
from .classifier import Classifier, Images, Logits, Preprocess
from .errors import ModelError, first_line

if TYPE_CHECKING:
    from torch.export import ExportedProgram

SUFFIXES = {".pt2", ".pt", ".pth", ".ts"}

# which argument of an operation says that it drops units, or normalises with the batch's own statistics
TRAINING_ARGUMENT = {
    "batch_norm": 5,
    "_native_batch_norm_legit": 5,
    "_native_batch_norm_legit_functional": 5,
    "dropout": 2,
    "native_dropout": 2,
    "alpha_dropout": 2,
    "feature_dropout": 2,
    "feature_alpha_dropout": 2,
}

# parts of an archive of torch.export by name, which torch looks up in either case: those that it unpickles, and those that it reads as
# numbers or text; objects under data/constants are unpickled whatever they hold, and so are neither
NAMED = r"(?!custom_|opaque_)[^/]*"
UNPICKLED = re.compile(
    rf"data/(sample_inputs|weights|constants)/{NAMED}\.pt|serialized_(state_dict|constants|example_inputs)\.(pt|json)", re.I
)
PLAIN = re.compile(
    r"version|archive_format|archive_version|byteorder|\.data/\w+|models/[^/]*\.json|serialized_exported_program\.json|extra/.*"
    rf"|data/weights/(weight_\d+|{NAMED}_config\.json)|data/constants/(tensor_\d+|{NAMED}_config\.json)",
    re.I,
)


class Archive(nn.Module):
    """A model read from a file. The file's digest is part of its description, because an archive may keep its weights out of sight."""

    def __init__(self, program: nn.Module, file: Path) -> None:
        super().__init__()
        self.program = program
        with file.open("rb") as stream:
            self.file_digest = hashlib.file_digest(stream, "sha256").hexdigest()
        self.training = False

    def forward(self, images: Images) -> Logits:
        logits: Logits = self.program(images)
        return logits

    def train(self, mode: bool = True) -> Archive:
        """Eval mode is the only one there is: an exported program refuses to be asked."""
        if mode:
            raise ModelError("an archive cannot be put into training mode")
        return self

    def extra_repr(self) -> str:
        return f"sha256={self.file_digest}"


def load_archive(path: str | Path, *, allow_pickle: bool = False) -> Classifier:
    """The classifier in a .pt2 or TorchScript archive; it brings no normalisation, so it takes [0, 1] images unless told otherwise.

    The input size, the channels and the class count are read from a .pt2 archive; a TorchScript one does not record them.

    Args:
        allow_pickle: read .pt2 archives with pickled objects or machine code inside, which can run any code.

    Raises:
        ModelError: no such file, damaged, a state dict instead of a model, made in training mode or for one batch size,
            or with pickled objects or machine code inside.
    """
    file = Path(path).expanduser()
    if not file.is_file():
        raise ModelError(f"there is no model file {file}")
    if zipfile.is_zipfile(file):
        check_model_zip(file)
    if is_torchscript(file):
        return _torchscript(file)
    if file.suffix == ".pt2":
        return _exported(file, allow_pickle)
    raise ModelError(f"{file} holds no whole model: if it holds weights, name their architecture: --model resnet50 --weights {file}")


def _torchscript(file: Path) -> Classifier:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r"`torch\.jit\.load` is deprecated")
        try:
            model: nn.Module = torch.jit.load(str(file), map_location="cpu")  # type: ignore[no-untyped-call]  # torch leaves it untyped
        except Exception as error:  # RuntimeError, and what comes of words that are no text
            raise ModelError(f"{file} is damaged or of another torch version: {first_line(error)}") from error
    if getattr(model, "training", False):  # `torch.jit.freeze` bakes eval mode in and drops the flag
        raise ModelError(f"{file} was saved in training mode, where dropout and batch statistics change its answers: save model.eval()")
    return Classifier(Archive(model, file), name=file.name)


def _exported(file: Path, allow_pickle: bool) -> Classifier:
    source = file if allow_pickle else _harmless(file)
    try:
        with _quiet("torch.export"):  # it logs a whole traceback before it tries an older format
            program = torch.export.load(source)
        trains, (shape, classes) = any(_trains(node) for node in program.graph.nodes), _shapes(program, file)
        model = program.module()
    except ModelError:
        raise
    except Exception as error:  # torch raises AssertionError, KeyError, RuntimeError and its own for a damaged archive
        raise ModelError(f"{file} is damaged or of another torch version: {type(error).__name__}: {first_line(error)}") from error
    if trains:
        raise ModelError(
            f"{file} was exported in training mode, where dropout and batch statistics change its answers: export model.eval()"
        )
    height, width = (side if isinstance(side, int) else None for side in shape[2:])
    size = (height, width) if height is not None and width is not None else None
    preprocess = Preprocess(size=size, resize=height if height == width else None, channels=1 if shape[1] == 1 else 3)
    for part in model.modules():
        part.training = False  # an exported module says True, whatever mode it was exported in, and refuses .eval()
    return Classifier(Archive(model, file), name=file.name, classes=classes, preprocess=preprocess)


@contextmanager
def _quiet(name: str) -> Iterator[None]:
    """A logger that says nothing for as long as this lasts."""
    log = logging.getLogger(name)
    before, log.disabled = log.disabled, True
    try:
        yield
    finally:
        log.disabled = before


def _harmless(file: Path) -> io.BytesIO:
    """The archive, packed anew from parts that cannot run code.

    `torch.export.load` unpickles whatever an archive tells it to, and loads the machine code in it. So every part is looked at first, and
    what torch gets is a copy of just these parts: it finds its way through a zip file by other means than Python does.
    """
    copy = io.BytesIO()
    try:
        with zipfile.ZipFile(file) as archive, zipfile.ZipFile(copy, "w") as clean, warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # torch's own words on pickles of another protocol
            for member in archive.infolist():
                content = archive.read(member)
                name = member.filename.partition("/")[2] if "/" in member.filename else member.filename
                if UNPICKLED.fullmatch(name):
                    torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
                elif not PLAIN.fullmatch(name):
                    raise pickle.UnpicklingError(f"{name} is no part of a model that is known")
                elif name.lower().endswith("_config.json"):
                    json.loads(content, object_hook=_refuse_pickled_tensor)
                clean.writestr(member.filename, content)
    except pickle.UnpicklingError as error:
        advice = "pass --allow-pickle if you trust where the file comes from"
        raise ModelError(f"{file} holds pickled objects or machine code, which could run code: {advice}") from error
    except Exception as error:  # zipfile's own, and whatever torch stumbles over in a pickle
        raise ModelError(f"{file} is damaged or no archive of torch.export.save: {first_line(error)}") from error
    copy.seek(0)
    return copy


def _refuse_pickled_tensor(entry: dict[str, Any]) -> dict[str, Any]:
    if entry.get("use_pickle"):
        raise pickle.UnpicklingError("a tensor stored as a pickle")
    return entry


def _trains(node: torch.fx.Node) -> bool:
    name = str(node.target).removeprefix("aten.").partition(".")[0]
    return name in TRAINING_ARGUMENT and bool(node.args[TRAINING_ARGUMENT[name]])


def _shapes(program: ExportedProgram, file: Path) -> tuple[torch.Size, int | None]:
    """Shape of the images that the program takes, free dimensions as symbols, and its class count."""
    values = {node.name: node.meta["val"].shape for node in program.graph.nodes if isinstance(node.meta.get("val"), torch.Tensor)}
    inputs = [values[name] for name in program.graph_signature.user_inputs if name in values]
    outputs = [values[name] for name in program.graph_signature.user_outputs if name in values]
    if len(inputs) != 1 or len(inputs[0]) != 4 or len(outputs) != 1 or len(outputs[0]) != 2:
        raise ModelError(f"{file} is no image classifier: it must take images (B, C, H, W) and return logits (B, K)")
    if isinstance(inputs[0][0], int):
        advice = 'torch.export.export(model, (images,), dynamic_shapes=({0: torch.export.Dim("batch")},)) with two images or more'
        raise ModelError(f"{file} takes batches of {inputs[0][0]} images only: export it with {advice}")
    return inputs[0], outputs[0][1] if isinstance(outputs[0][1], int) else None
