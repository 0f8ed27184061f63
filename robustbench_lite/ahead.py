"""Pictures in files, decoded ahead: threads read those that are asked for next while the model is at work; and their way to the device.

Only the time depends on it. What a thread could not read is read again by whoever asks for it, and fails there as it would have failed
without threads; what nobody expected is read when it is asked for.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterable, Sequence
from types import TracebackType
from typing import Generic, Self, TypeVar

import torch
from torch import Tensor

from .classifier import Images

THREADS = 4
"""At most; no more than torch computes with here, so that workers who share a machine's cores share them in this too."""

BYTES = 64 * 2**20
"""Of pictures that wait to be asked for, at most: 111 of 224 pixels."""

LEAVING = 5.0
"""Seconds that threads are waited for in the end: one may hang in a network drive, where Ctrl-C and --hang-after must not."""

Key = TypeVar("Key", bound=Hashable)


class _Work:
    """Stands for a picture that a thread is reading."""


class Ahead(Generic[Key]):
    """Threads that read what is expected for as long as this is open; they begin with the first expectation.

    Args:
        read: what a thread does for a key; None, or an error, where it cannot.
    """

    def __init__(self, read: Callable[[Key], Tensor | None]) -> None:
        self._read = read
        self._changed = threading.Condition()
        self._coming: OrderedDict[Key, None] = OrderedDict()
        self._held: dict[Key, _Work | Tensor | None] = {}
        self._room = 0
        self._open = False
        self._threads: list[threading.Thread] = []

    def __enter__(self) -> Self:
        self._open = True
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        with self._changed:
            self._open = False
            self._coming.clear()
            self._held.clear()
            self._changed.notify_all()
        for thread in self._threads:
            thread.join(LEAVING)
        self._threads.clear()

    def expect(self, keys: Iterable[Key], room: int) -> None:
        """These are asked for next, in this order, and nothing else that was expected; at most `room` of them wait or are being read."""
        if not self._open:
            return
        with self._changed:
            coming = OrderedDict.fromkeys(keys)
            for key in [key for key in self._held if key not in coming]:
                del self._held[key]
            for key in self._held:
                del coming[key]
            self._coming, self._room = coming, room
            self._changed.notify_all()
        while coming and room and len(self._threads) < min(THREADS, torch.get_num_threads()):
            thread = threading.Thread(target=self._work, name="ahead", daemon=True)
            thread.start()
            self._threads.append(thread)

    def take(self, key: Key) -> Tensor | None:
        """The picture, if it was expected and a thread could read it. It is handed out once."""
        with self._changed:
            self._coming.pop(key, None)
            self._changed.wait_for(lambda: not isinstance(self._held.get(key), _Work))
            picture = self._held.pop(key, None)
            self._changed.notify_all()
        return picture if isinstance(picture, Tensor) else None

    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: not self._open or (self._coming and len(self._held) < self._room))
                if not self._open:
                    return
                key, _ = self._coming.popitem(last=False)
                mine = self._held[key] = _Work()
            try:
                picture = self._read(key)
            except Exception:  # whatever it is: who asks for the picture meets it
                picture = None
            with self._changed:
                if self._held.get(key) is mine:  # else nobody expects it any more
                    self._held[key] = picture
                self._changed.notify_all()


def stacked(pictures: Sequence[Tensor], device: torch.device) -> Images:
    """(B, C, H, W) on the device; on CUDA by way of memory that it reads by itself, without waiting for the copy."""
    if device.type != "cuda":
        return torch.stack(list(pictures)).to(device)
    batch = torch.empty((len(pictures), *pictures[0].shape), dtype=pictures[0].dtype, pin_memory=True)
    return torch.stack(list(pictures), out=batch).to(device, non_blocking=True)
