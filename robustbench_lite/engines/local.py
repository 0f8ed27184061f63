"""The engine for one machine: which device, how large a batch, and what to do when memory runs out."""

from __future__ import annotations

import ctypes
import gc
import platform
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Protocol, TypeVar

import torch

from ..errors import InvalidEvaluation, UsageError, first_line

if TYPE_CHECKING:
    from ..results import Reduced

DEVICES = ("auto", "cpu", "cuda", "mps")


def pick_device(name: str = "auto") -> torch.device:
    """The device of this name; `auto` takes an accelerator where there is one.

    Raises:
        UsageError: there is no such device here.
    """
    here = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if name == "auto":
        return torch.device(next(device for device in ("cuda", "mps", "cpu") if here[device]))
    kind = name.split(":")[0]
    if kind not in here:
        raise UsageError(f"unknown device {name!r}: use {', '.join(DEVICES)} or cuda:N")
    number = name.partition(":")[2] or "0"
    if not here[kind] or not number.isdigit() or (kind == "cuda" and int(number) >= torch.cuda.device_count()):
        raise UsageError(f"there is no device {name!r} on this machine: use --device auto")
    return torch.device(name)


def described(device: torch.device) -> str:
    """For the record of a run."""
    if device.type == "cuda":
        return f"{device} ({torch.cuda.get_device_name(device)})"
    return f"{device} ({platform.machine()}, {torch.get_num_threads()} threads)"


def pick_batch_size(pixels: int, device: torch.device) -> int:
    """A first guess for images of this many values; memory that does not suffice halves it."""
    values, most = (2**21, 128) if device.type == "cpu" else (2**24, 256)
    return max(4, min(most, values // max(1, pixels)))


def bfloat16_here(device: torch.device) -> bool:
    """Whether the processor computes in bfloat16 itself; emulated, it is slower than float32."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return device.type == "cpu" and bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


def tf32_here(device: torch.device) -> bool:
    """Whether the processor multiplies matrices in TF32: NVIDIA's do from Ampere on."""
    return device.type == "cuda" and torch.version.hip is None and torch.cuda.get_device_capability(device) >= (8, 0)


def reduced_here(asked: Reduced | None, device: torch.device) -> Reduced | None:
    """What was asked for where the processor computes in it, else None."""
    return asked if (asked == "bf16" and bfloat16_here(device)) or (asked == "tf32" and tf32_here(device)) else None


def tune_process() -> None:
    """Settings of the whole process that make it faster; for the command line, not for a library.

    Freed activations are kept: glibc gives large blocks back at once, and every layer pays page faults for new ones, which was
    measured to cost a CPU 20 to 50 %. What was imported is not looked through for garbage any more, a tenth of a second each time.
    """
    gc.freeze()
    if platform.libc_ver()[0] == "glibc":
        trim_threshold, mmap_max = -1, -4  # M_TRIM_THRESHOLD, M_MMAP_MAX of malloc.h
        libc = ctypes.CDLL(None)
        libc.mallopt(mmap_max, 0)
        libc.mallopt(trim_threshold, 2**31 - 1)


@contextmanager
def exact() -> Iterator[None]:
    """Float32 that is float32: without TF32, which accelerators use in its place unless told otherwise, for as long as this lasts."""
    with tf32(False):
        yield


@contextmanager
def tf32(allowed: bool = True) -> Iterator[None]:
    """Products of matrices and convolutions in TF32, or not, for as long as this lasts."""
    before = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = allowed
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = before


def out_of_memory(error: BaseException) -> bool:
    said = ("can't allocate memory", "out of memory", "CUBLAS_STATUS_ALLOC_FAILED")
    named = isinstance(error, (torch.OutOfMemoryError, MemoryError))
    return named or (isinstance(error, RuntimeError) and any(words in str(error) for words in said))


def forget_memory() -> None:
    """Give back what an accelerator's allocator keeps of what did not fit."""
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _none_fits(error: BaseException) -> InvalidEvaluation:
    return InvalidEvaluation(f"out of memory with a single image: {first_line(error)}")


Said = TypeVar("Said")


def on_fewer(ask: Callable[[torch.Tensor], Said], images: torch.Tensor) -> Said:
    """`ask(images)`, of the first half of them whenever memory runs out.

    Raises:
        InvalidEvaluation: not even one image fits.
    """
    while True:
        try:
            return ask(images)
        except (RuntimeError, MemoryError) as error:
            if not out_of_memory(error):
                raise
            if len(images) == 1:
                raise _none_fits(error) from error
        images = images[: len(images) // 2]


class Identified(Protocol):
    @property
    def id(self) -> str: ...


Asked = TypeVar("Asked", bound=Identified)
Found = TypeVar("Found", bound=Identified)


def with_smaller_batches(
    run: Callable[[list[Asked], int], Iterator[list[Found]]],
    subjects: Iterable[Asked],
    batch_size: int,
    shrunk: Callable[[int], None],
) -> Iterator[list[Found]]:
    """`run(subjects, batch_size)`, halving the batch size whenever memory runs out and going on with the images that are left.

    Args:
        shrunk: told the new batch size.

    Raises:
        InvalidEvaluation: not even one image fits.
    """
    left = {subject.id: subject for subject in subjects}
    while left:
        try:
            for found in run(list(left.values()), batch_size):
                for finding in found:
                    del left[finding.id]
                yield found
            if left:
                raise AssertionError(f"{len(left)} images were never decided, {next(iter(left))} among them")
        except (RuntimeError, MemoryError) as error:
            if not out_of_memory(error):
                raise
            if batch_size == 1:
                raise _none_fits(error) from error
            batch_size //= 2
            forget_memory()
            shrunk(batch_size)
