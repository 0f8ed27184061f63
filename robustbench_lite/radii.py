"""A ball of its own size for every image."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterable, Mapping
from hashlib import blake2b
from pathlib import Path

from .errors import UsageError


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
    wrong = [key for key in wanted if not 0 < known[key] < math.inf]
    if wrong:
        raise UsageError(f"{where}: the eps of {wrong[0]} is {known[wrong[0]]:g}, and must be positive and finite: leave out what has none")
    return {key: known[key] for key in wanted}


def digest(radii: Mapping[str, float]) -> str:
    """Of all ids and sizes."""
    text = "\n".join(f"{key}\t{eps!r}" for key, eps in sorted(radii.items()))
    return blake2b(text.encode(), digest_size=16).hexdigest()


def _read(path: Path) -> dict[str, float]:
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows = csv.DictReader(file)
            if not {"sample_id", "eps"} <= set(rows.fieldnames or ()):
                raise UsageError(f"{path} needs the columns sample_id and eps")
            return {row["sample_id"]: float(row["eps"]) for row in rows}
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UsageError(f"{path} cannot be read: {error}") from error
    except (TypeError, ValueError) as error:
        raise UsageError(f"{path}: an eps is no number ({error})") from error
