"""One HTML file that says what a run found: it fetches nothing, and its only script sorts the tables.

The page itself is report.html beside this file, with trust.html, classes.html, report.css and report.js.
"""

from __future__ import annotations

from base64 import b64encode
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

from robustbench_lite.corruption_metrics import corruptions
from robustbench_lite.registry import file_format, report
from robustbench_lite.results import Result
from robustbench_lite.stats import wilson

from .believing import WEIGHTS, command_of, doubted, finding_rows, grouped, lacking, summary
from .corruption import by_severity, calibration, heat, sheet, tabled
from .distances import accuracy_curves, median_curves
from .figures import calibration_curves, published_scores, queries, shape_biases
from .files import write
from .gallery import LONGEST_SIDE, exhibits
from .per_class import OPEN, class_lines, class_rows
from .proven import ANOTHER, radii
from .shapes import shape_rows
from .table import FEW_IMAGES, Row, amount, bracket_legend, distance_legend, legend, percent, rows

if TYPE_CHECKING:
    from markupsafe import Markup

LONGEST_LIST = 24
"""Lists with more entries (a thousand class names) are counted, not printed."""
MOST_NAMED = 20
"""Images that a finding names on the page."""


@file_format("html")
@report("html")
def html(result: Result) -> list[Path]:
    """Write `report.html` into the run's folder; the same result writes the same bytes.

    Raises:
        UsageError: the result has no folder.
        InvalidEvaluation: the file could not be written.
    """
    return [write(result, "report.html", page(result))]


def page(result: Result) -> str:
    """The page as text: under 2 MB but for thousands of classes, well-formed XML as well as HTML."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    shown, folder = rows(result), Path(__file__).parent
    chart, script = queries(result), folder.joinpath("report.js").read_text(encoding="utf-8")
    columns, lines = class_lines(shown, class_rows(result))
    corrupted, pools, shapes = corruptions(result), by_severity(result), shape_rows(result)
    mce = next((figure for figure in corrupted.figures if figure.name == "mCE"), None) if corrupted.comparable else None
    picture, strips = sheet(result)
    environment = Environment(
        loader=FileSystemLoader(folder), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"amount": amount, "percent": percent, "breakable": _breakable, "sentence": _sentence}
    return environment.get_template("report.html").render(
        config=result.config,
        script=script,
        # the script's hash, so that nothing that slipped through the escaping could run
        allowed=b64encode(sha256(script.encode()).digest()).decode(),
        summary=summary(result.config["model"]["name"], shown),
        legend=[*legend(shown), *bracket_legend(shown), *distance_legend(shown)],
        proofs=[(row, radii(row)) for row in result.proof_rows],
        unsettled={name: bracket.unsettled for name, bracket in result.brackets.items() if name.startswith("worst")},
        another=ANOTHER,
        findings=grouped(finding_rows(result)),
        weights=WEIGHTS,
        doubts=doubted(result),
        lacking=lacking(result),
        class_columns=columns,
        class_lines=lines,
        open_classes=OPEN,
        most_named=MOST_NAMED,
        rows=shown,
        tabled=tabled(shown),
        under=_under(shown),
        widest=max(shown, key=lambda row: row.width),
        few_images=FEW_IMAGES,
        width_of_a_thousand=100 * (wilson(500, 1000)[1] - wilson(500, 1000)[0]),
        undecided=_undecided(result),
        charts=[*accuracy_curves(result, shown), *([chart] if chart else []), *median_curves(result)],
        cascade=result.cascade,
        transfer=result.transfer,
        exhibits=exhibits(result),
        corruptions=corrupted,
        heat=heat(result, shown, corrupted.rows),
        scores=published_scores(mce, result.config["model"]["name"]) if mce else None,
        picture=picture,
        strips=strips,
        calibration=calibration(pools),
        reliability=calibration_curves(pools),
        sequences=result.sequences,
        sequence_figures=result.sequence_figures,
        shapes=shapes,
        shape_chart=shape_biases(shapes) if shapes else None,
        longest_side=LONGEST_SIDE,
        command=command_of(result),
        provenance=list(_facts({key: value for key, value in result.config.items() if key != "command"})),  # it has a place of its own
    )


def _breakable(name: str) -> Markup:
    """A name that may go on in the next line after an underscore."""
    from markupsafe import Markup, escape

    return Markup("_<wbr/>").join(escape(part) for part in name.split("_"))


def _sentence(text: str) -> str:
    """With a capital and a full stop."""
    return f"{text[:1].upper()}{text[1:].rstrip('.')}."


def _under(shown: Sequence[Row]) -> str:
    """What the page is about: `attack`, `corruption` or both."""
    kinds = {row.kind for row in shown}
    return " and ".join(kind for kind in ("attack", "corruption") if kind in kinds) or "attack"


def _undecided(result: Result) -> list[str]:
    """`NaN in the logits (2 verdicts)`, over the conditions that were evaluated; the worst case only repeats them."""
    evaluated = {c.name for c in result.conditions if c.kind != "worst"}
    reasons = Counter(v.reason or "no reason stored" for v in result.verdicts if v.broken is None and v.condition in evaluated)
    return [f"{reason} ({count:,} {'verdict' if count == 1 else 'verdicts'})" for reason, count in reasons.items()]


def _facts(value: Any, path: str = "") -> Iterator[tuple[str, str]]:
    """Everything in the configuration as (`model.digest`, text) pairs."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _facts(inner, f"{path}.{key}" if path else str(key))
    elif isinstance(value, list | tuple) and len(value) > LONGEST_LIST:
        yield path, f"{len(value):,} values, in run.json"
    elif isinstance(value, list | tuple) and any(isinstance(inner, Mapping) for inner in value):
        for number, inner in enumerate(value, 1):
            yield f"{path}.{number}", ", ".join(f"{key} {part}" for key, part in inner.items() if part is not None)
    elif isinstance(value, list | tuple):
        yield path, ", ".join(map(str, value)) or "none"
    else:
        yield path, "none" if value is None else str(value)
