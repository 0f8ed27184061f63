"""A ball of its own size for every image."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterable, Mapping
from hashlib import blake2b
from numbers import Real
from pathlib import Path

from .errors import UsageError
from .results import Condition
from .threat import ball


def radii_of(source: Mapping[str, float] | str | Path, ids: Iterable[str]) -> dict[str, float]:
    """The eps of each of these images.

    Args:
        source: sample id -> eps, or a CSV file with the columns sample_id and eps.

    Raises:
        UsageError: the file cannot be read, an image has no eps, or one that is no size.
    """
    known, where = (_read(Path(source)), str(source)) if isinstance(source, (str, Path)) else (dict(source), "these radii")
    wanted = list(ids)
    missing = [key for key in wanted if key not in known]
    if missing:
        raise UsageError(f"{where}: {len(missing)} of {len(wanted)} images have no eps of their own ({', '.join(missing[:3])}): add them")
    unread = [key for key in wanted if isinstance(known[key], bool) or not isinstance(known[key], Real)]
    if unread:
        raise UsageError(f"{where}: the eps of {unread[0]} is {known[unread[0]]!r}, and must be a number")
    wrong = [key for key in wanted if not 0 < known[key] < math.inf]
    if wrong:
        raise UsageError(f"{where}: the eps of {wrong[0]} is {known[wrong[0]]:g}, and must be positive and finite: leave out what has none")
    return {key: known[key] for key in wanted}


def check_balls(radii: Mapping[str, float], planned: Iterable[Condition]) -> None:
    """Refuse what is no ball of its own for some image.

    Args:
        radii: the eps of each image. planned: conditions whose eps are multiples of it.

    Raises:
        UsageError: a multiple that is not positive, or an image's eps times it that is no size in the norm.
    """
    of_size = {eps: key for key, eps in radii.items()}
    for c in planned:
        times = float(c.eps or 0)
        if not times > 0:
            raise UsageError(f"with radii, eps says how many times each image's own, and must be positive, got {times:g}")
        for eps, key in of_size.items():
            try:
                made = ball(str(c.norm), eps * times)
            except UsageError as error:
                raise UsageError(f"{c.name}, image {key}, whose own eps is {eps:g}: {error}") from error
            if not made.eps > 0:
                raise UsageError(f"{c.name}: the eps of {key} is {eps:g}, too small a number to compute with")


def digest(radii: Mapping[str, float]) -> str:
    """Of all ids and sizes."""
    text = "\n".join(f"{key}\t{eps!r}" for key, eps in sorted(radii.items()))
    return blake2b(text.encode(), digest_size=16).hexdigest()


def _read(path: Path) -> dict[str, float]:
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:  # as spreadsheets write it
            rows = csv.DictReader(file)
            if not {"sample_id", "eps"} <= set(rows.fieldnames or ()):
                raise UsageError(f"{path} needs the columns sample_id and eps")
            found: dict[str, float] = {}
            for row in rows:
                if row["sample_id"] in found:
                    raise UsageError(f"{path} names {row['sample_id']} twice: leave one of the two rows")
                found[row["sample_id"]] = float(row["eps"])
            return found
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UsageError(f"{path} cannot be read: {error}") from error
    except (TypeError, ValueError) as error:
        raise UsageError(f"{path}: an eps is no number ({error})") from error
