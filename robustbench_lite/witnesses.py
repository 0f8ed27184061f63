"""Witness files: the clean and the adversarial image of one verdict, exactly, in one small safetensors file each."""

from __future__ import annotations

import hashlib
import json
import os
import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from . import private
from .results import Witness


def file_name(condition: str, sample_id: str) -> str:
    slug = re.sub(r"[^A-Za-z0-9.=]+", "-", condition).strip("-")
    return f"{slug}--{hashlib.sha256(f'{condition}/{sample_id}'.encode()).hexdigest()[:16]}.safetensors"


def image_digest(image: Tensor) -> str:
    """SHA-256 of an image's shape and float32 values."""
    return hashlib.sha256(str(tuple(image.shape)).encode() + image.float().cpu().contiguous().numpy().tobytes()).hexdigest()


def packed(witness: Witness, described: dict[str, Any]) -> bytes:
    """What a witness file holds. A clean image of whole 255ths is stored as bytes, at a quarter of the size."""
    from safetensors.torch import save

    clean = witness.clean.float().cpu().contiguous()
    levels = (clean * 255).round()
    if torch.equal(levels / 255, clean):
        clean = levels.to(torch.uint8)
    tensors = {"clean": clean, "adversarial": witness.adversarial.float().cpu().contiguous()}
    return save(tensors, {key: json.dumps(value) for key, value in described.items()})


def write(path: Path, content: bytes) -> str:
    """Write a witness file in one go; its SHA-256."""
    private.folder_inside(path.parent)
    partial = path.with_suffix(".partial")
    private.write(partial, content)
    os.replace(partial, path)
    return hashlib.sha256(content).hexdigest()


def read(path: Path, expected: str | None = None) -> Witness:
    """The witness in a file.

    Raises:
        ValueError: the file is missing, is not one of ours, or does not have the SHA-256 that its verdict names.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ValueError(f"{path.name}: {error.strerror}") from error
    if expected is not None and hashlib.sha256(content).hexdigest() != expected:
        raise ValueError(f"{path.name} was changed after it was written: its SHA-256 is not the one in its verdict")
    return unpacked(content, path.name)


def unpacked(content: bytes, name: str) -> Witness:
    """The witness in what `packed` made.

    Raises:
        ValueError: it is something else.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load

    try:
        tensors = load(content)
        clean, adversarial = tensors["clean"], tensors["adversarial"]
    except (SafetensorError, KeyError) as error:
        raise ValueError(f"{name} is not a witness file") from error
    return Witness(clean.float() / 255 if clean.dtype == torch.uint8 else clean, adversarial)
