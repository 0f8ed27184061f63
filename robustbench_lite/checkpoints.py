"""Checkpoint files: read without running code, unwrapped, and loaded into a model that they must fit."""

from __future__ import annotations

import pickle
import re
import warnings
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .errors import ModelError, first_line
from .unpacking import check_zip

WRAPPERS = ("state_dict", "model", "model_state_dict", "net", "ema")
PREFIXES = ("module.", "model.", "_orig_mod.")

Shape = tuple[int, ...]


def read_state_dict(path: str | Path, *, allow_pickle: bool = False) -> dict[str, Tensor]:
    """The tensors of a .safetensors file or of a file that `torch.save` wrote, by name.

    A dictionary around them (`{"state_dict": ...}`, `{"model": ...}`, ...) is taken off.

    Args:
        allow_pickle: read files that hold more than tensors. Their pickle can run any code: only for files from people you trust.

    Raises:
        ModelError: no such file, damaged, no weights in it, or a pickle that needs more than tensors.
    """
    file = Path(path).expanduser()
    if not file.is_file():
        raise ModelError(f"there is no weights file {file}")
    content = _read_safetensors(file) if file.suffix == ".safetensors" else _read_torch(file, allow_pickle)
    tensors = _unwrapped(content)
    if not tensors:
        raise ModelError(f"{file} holds a {type(content).__name__} without weights: save model.state_dict() to it")
    return tensors


def _read_safetensors(file: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(file)
    except (SafetensorError, OSError) as error:
        raise ModelError(f"{file} is damaged or no safetensors file: {error}") from error


def _read_torch(file: Path, allow_pickle: bool) -> Any:
    if zipfile.is_zipfile(file):
        check_model_zip(file)
    if is_torchscript(file):
        raise ModelError(f"{file} is a TorchScript archive, a whole model: pass it as --model {file}")
    try:
        with warnings.catch_warnings():  # torch's own words on pickles of another protocol would come on top of ours
            warnings.simplefilter("ignore", UserWarning)
            return torch.load(file, map_location="cpu", weights_only=not allow_pickle)
    except pickle.UnpicklingError as error:
        refused = re.search(r"GLOBAL (\S+)", str(error))
        asks = f"its pickle asks for {refused[1]}" if refused else "it is a plain pickle"
        if refused is None and not re.match(rb"\x80[\x03-\x05].", file.read_bytes()[:3], re.DOTALL):  # a pickle's first bytes
            raise ModelError(f"{file} is damaged or no file of torch.save: {first_line(error)}") from error
        raise ModelError(
            f"{file} holds more than weights: {asks}, which could run code; "
            "save model.state_dict() alone, or pass --allow-pickle if you trust where the file comes from"
        ) from error
    except Exception as error:  # a cut-off zip, a short read, or with allow_pickle whatever the file's own classes raise
        raise ModelError(f"{file} is damaged or no file of torch.save: {type(error).__name__}: {first_line(error)}") from error


def check_model_zip(file: Path) -> None:
    """Refuse a file of torch that would fill the memory, or whose parts are not as they were written: torch does not look, and would load
    other weights.

    Raises:
        ModelError: it is one of these.
    """
    try:
        check_zip(file, ModelError)
        with zipfile.ZipFile(file) as archive:
            changed = archive.testzip()
    except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, ValueError, OSError) as error:
        raise ModelError(f"{file} is damaged or no file of torch.save: {first_line(error)}") from error
    if changed is not None:
        raise ModelError(f"{file} is damaged: the checksum of {changed!r} is not that of what it holds")


def is_torchscript(file: Path) -> bool:
    """Whether a file is an archive of `torch.jit.save`: the only kind with code and constants side by side."""
    try:
        with zipfile.ZipFile(file) as archive:
            names = {name.partition("/")[2] for name in archive.namelist()}
    except (zipfile.BadZipFile, ValueError, NotImplementedError, OSError):  # the last three: a damaged directory
        return False
    return "constants.pkl" in names and any(name.startswith("code/") for name in names)


def _unwrapped(content: Any) -> dict[str, Tensor]:
    if isinstance(content, nn.Module):
        return dict(content.state_dict())
    if not isinstance(content, Mapping):
        return {}
    for name in WRAPPERS:
        if isinstance(content.get(name), Mapping | nn.Module):
            return _unwrapped(content[name])
    return {str(key): value for key, value in content.items() if isinstance(value, Tensor)}


def load_into(model: nn.Module, tensors: Mapping[str, Tensor], file: str | Path, name: str, classes: int | None = None) -> None:
    """Copy `tensors` into `model`; a prefix that a wrapper left on every name (`module.`, `model.`, `_orig_mod.`) is taken off.

    Args:
        file, name: what the message calls the checkpoint and the model.
        classes: K of `model`, so that a message can tell a last layer of another size.

    Raises:
        ModelError: names or shapes differ; the first few are listed.
    """
    expected = {key: tuple(value.shape) for key, value in model.state_dict().items()}
    tensors = _without_prefix(tensors, expected)
    wrong = {key: (tuple(value.shape), expected[key]) for key, value in tensors.items() if expected.get(key, value.shape) != value.shape}
    fitting = {key: value for key, value in tensors.items() if key not in wrong}
    # modules rename the keys of older files while they load, so only what they report afterwards is missing or unexpected
    result = model.load_state_dict(fitting, strict=False)
    missing = [key for key in result.missing_keys if key not in wrong]
    if missing or wrong or result.unexpected_keys:
        parts = [_wrong_shapes(wrong, classes), _listed("missing", missing), _listed("unexpected", result.unexpected_keys)]
        raise ModelError(f"{file} does not fit {name}: " + "; ".join(part for part in parts if part))


def _without_prefix(tensors: Mapping[str, Tensor], expected: Mapping[str, Shape]) -> Mapping[str, Tensor]:
    while not tensors.keys() & expected.keys():
        prefix = next((prefix for prefix in PREFIXES if all(key.startswith(prefix) for key in tensors)), None)
        if prefix is None:
            break
        tensors = {key.removeprefix(prefix): value for key, value in tensors.items()}
    return tensors


def _wrong_shapes(wrong: Mapping[str, tuple[Shape, Shape]], classes: int | None) -> str:
    if not wrong:
        return ""
    described = [f"{key} is {found} in the file and {wanted} in the model" for key, (found, wanted) in list(wrong.items())[:2]]
    more = f" and {len(wrong) - 2} more of another shape" if len(wrong) > 2 else ""
    heads = {(found[:1], wanted[:1], found[1:] == wanted[1:]) for found, wanted in wrong.values()}
    found, wanted, rest_alike = heads.pop()
    advice = f": pass --num-classes {found[0]}" if not heads and rest_alike and wanted == (classes,) and found else ""
    return ", ".join(described) + more + advice


def _listed(what: str, keys: list[str]) -> str:
    if not keys:
        return ""
    more = f" and {len(keys) - 3} more" if len(keys) > 3 else ""
    return f"{len(keys)} {what} ({', '.join(keys[:3])}{more})"
