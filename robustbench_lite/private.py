"""What a run leaves is for the eyes of who made it: images, their ids and what a model says of them may be of patients.

A folder that is made here is open to its owner alone. One that is there already stays as it is, and the files in it can be read by those
who can read the folder, so that a group may share its runs. The umask takes away more where it asks for more.
"""

from __future__ import annotations

import errno
import os
from pathlib import Path

from .errors import UsageError


def folder(path: Path) -> None:
    """Have a folder, and those that it lies in."""
    if not path.parent.exists():
        folder(path.parent)
    path.mkdir(mode=0o700, exist_ok=True)


def folder_inside(path: Path) -> None:
    """Have a folder in another, for the same eyes."""
    path.mkdir(mode=path.parent.stat().st_mode & 0o777, exist_ok=True)


def file(path: Path) -> Path:
    """Have a file, empty where it is new, for those who can read its folder.

    Raises:
        UsageError: it is a link.
    """
    os.close(_open(path, os.O_WRONLY | os.O_CREAT))
    return path


def write(path: Path, content: bytes) -> None:
    """Write such a file.

    Raises:
        UsageError: it is a link.
    """
    with open(path, "wb", opener=lambda name, flags: _open(Path(name), flags)) as stream:
        stream.write(content)


def _open(path: Path, flags: int) -> int:
    # a link in a folder that came from somebody else could lead to any file of ours
    try:
        return os.open(path, flags | getattr(os, "O_NOFOLLOW", 0), path.parent.stat().st_mode & 0o666)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise UsageError(f"{path} is a link, which is not written through: remove it, or choose another folder") from None
        if error.errno == errno.EISDIR:
            raise UsageError(f"{path} is a folder where a file belongs: remove it, or choose another folder") from None
        raise
