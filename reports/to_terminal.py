"""The table in a terminal, whole at 80 columns."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby

from rich import box
from rich.console import Group
from rich.table import Table
from rich.text import Text

from robustbench_lite.corruption_metrics import Corruptions, Figure, corruptions
from robustbench_lite.registry import report
from robustbench_lite.results import Result

from .believing import doubted
from .corruption import HeatRow, heat, tabled
from .proven import ANOTHER, unsettled
from .reading import readings
from .shapes import shape_rows
from .table import FEW_IMAGES, Row, amount, bracket_legend, legend, percent, rows


@report("terminal")
def terminal(result: Result) -> Group:
    """The table of a run, and below it those of trust, cascades, transfer, corruptions, sequences and shape bias.

    Only names may wrap; no number is ever cut. A condition's name holds its norm and its size. Cells are `Text`, since rich would read
    `[linf,4/255]` as markup.
    """
    every = rows(result)
    shown = tabled(every) or every
    undecided = any(row.undecided for row in shown)
    table = Table(
        title=Text(f"{result.config['model']['name']} on {result.config['data']['name']}"),
        caption=_caption(every),
        caption_justify="left",
        box=box.SIMPLE_HEAD,
        show_edge=False,
        pad_edge=False,
        padding=(0, 0 if undecided else 1, 0, 0),  # eight columns leave the names room only where they stand close
    )
    table.add_column("condition", overflow="fold")
    headings = ["correct", "accuracy", "95 % in-\nterval", *(["un-\ndecided"] if undecided else []), "forward\npasses", "backward\npasses"]
    for heading in [*headings, "seconds"]:
        table.add_column(heading, justify="right", no_wrap=True)
    for row, following in zip(shown, [*shown[1:], None], strict=True):
        table.add_row(*_cells(row, undecided), end_section=following is not None and following.kind != row.kind)
    corrupted = corruptions(result)
    lines = heat(result, every, corrupted.rows) if len(shown) < len(every) else []
    below: list[Table | Text] = [
        *_proofs(result),
        *_distances(result, every),
        *_trust(shown, [row for row in every if row not in shown]),
        *_doubts(result),
        *_cascades(result),
        *_transfers(result),
        *_heat(lines),
        *_figures(corrupted),
        *_sequences(result),
        *_shapes(result),
    ]
    return Group(table, *below)


def _trust(shown: list[Row], others: list[Row]) -> Iterator[Table | Text]:
    """How far the rows of the table can be believed, and why not further; of the `others` it says how many are not sound."""
    # for a doubtful attack the worst case of its size is listed
    lowered = [row for row in shown if row.trust == "refuted" or (row.trust == "doubtful" and row.kind != "attack")]
    unseen = sum(row.trust != "sound" for row in others)
    if not lowered and not unseen and any(row.kind == "attack" for row in shown):
        yield Text("\ntrust: every row is sound", style="green")
    if not lowered and not unseen:
        return
    table = Table(title=Text("trust"), caption_justify="left", box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
    for heading, widest in (("condition", 26), ("trust", 8), ("why", None)):
        table.add_column(heading, overflow="fold", max_width=widest)
    for row in lowered:
        more = f" (and {len(row.reasons) - 1} more)" if len(row.reasons) > 1 else ""
        level = Text(row.trust, style="bold red" if row.trust == "refuted" else "yellow")
        table.add_row(Text(row.condition), level, Text(row.reasons[0] + more))
    said = [f"{unseen} conditions of corruptions are not sound either."] if unseen else []
    table.caption = "\n".join([*said, "The report has all the reasons, and what would settle them."])
    yield table


def _proofs(result: Result) -> Iterator[Table | Text]:
    """What the certificates proved, and which images are neither proven nor broken."""
    if result.proof_rows:
        table = _below("certificates", "certificate", ["proven", "accuracy", "95 % in-\nterval", "confi-\ndence", "of"])
        for row in result.proof_rows:
            share, interval = f"{percent(row.accuracy)} %", f"{percent(row.ci_low)}–{percent(row.ci_high)}"
            cells = [f"{row.proven}/{row.n}", share, interval, f"{row.confidence:g}", "this model" if row.of_model else "another"]
            table.add_row(Text(row.condition), *map(Text, cells))
        others = [row for row in result.proof_rows if not row.of_model]
        table.caption = ANOTHER if others else None
        yield table
    for line in unsettled(result):
        yield Text(line)


def _distances(result: Result, every: list[Row]) -> Iterator[Table]:
    """The accuracy at a few sizes, where an attack sought the nearest broken image."""
    for found in readings(result, every):
        table = _below(found.title, found.first, [heading.replace(" ", "\n") for heading in found.headings])
        for line in found.lines:
            table.add_row(Text(line.name, style="bold" if line.worst else ""), *map(Text, line.cells))
        table.caption = found.note
        yield table


def _doubts(result: Result) -> Iterator[Table]:
    """What was tried on the images that the attacks asked for had left."""
    tried = doubted(result)
    if not tried:
        return
    table = _below("tried in doubt", "attack", ["images\nleft", "broken", "forward\npasses", "backward\npasses"])
    for row in tried:
        passes = [Text(amount(value), style="dim") for value in (row.mean_forwards, row.mean_backwards)]
        table.add_row(Text(row.condition), Text(str(row.met)), Text(str(row.broken), style="bold"), *passes)
    yield table


def _heat(lines: list[HeatRow]) -> Iterator[Table]:
    """Accuracy by corruption and severity, the cells the redder the more is wrong."""
    if not lines:
        return
    table = _below("accuracy under corruptions, %", "severity", ["1", "2", "3", "4", "5", "mean", "95 % in-\nterval"])
    for line in lines:
        cells = [Text("") if cell is None else _shaded(cell.accuracy) for cell in line.cells]
        interval = Text(f"{percent(line.low)}–{percent(line.high)}")
        table.add_row(Text(line.corruption), *cells, Text(percent(line.mean), style="bold"), interval)
    table.caption = "Each cell's interval is in table.csv and in the report; the mean's is over the images, the same at every severity."
    yield table


def _shaded(accuracy: float) -> Text:
    red, green, blue = (round(255 + (1 - accuracy) * (full - 255)) for full in (217, 98, 43))
    return Text(f"{percent(accuracy):>5}", style=f"black on rgb({red},{green},{blue})")


def _figures(found: Corruptions) -> Iterator[Text]:
    """One line a figure over all corruptions, and why it cannot stand beside published ones."""
    if not found.rows:
        return
    yield Text("\n".join(["", *map(_figure, found.figures), *([found.reason] if found.reason else [])]))


def _figure(figure: Figure) -> str:
    estimate = figure.estimate
    interval = "" if estimate.low is None or estimate.high is None else f" ({estimate.low:.1f}–{estimate.high:.1f})"
    return f"{figure.name} {estimate.value:.1f} %{interval}: {figure.meaning}"


def _sequences(result: Result) -> Iterator[Table]:
    """How often the prediction changes along each perturbation."""
    if not result.sequences:
        return
    table = _below("perturbation sequences", "perturbation", ["images", "flips", "95 % in-\nterval", "T5D"])
    for row in result.sequences:
        interval = f"{percent(row.ci_low)}–{percent(row.ci_high)}"
        t5d = "" if row.t5d is None else f"{row.t5d:.3f}"
        table.add_row(
            Text(row.condition), Text(str(row.n)), Text(f"{percent(row.flip_probability)} %", style="bold"), Text(interval), Text(t5d)
        )
    table.caption = "\n".join(["Flips: how often the prediction differs between two frames.", *result.sequence_figures])
    yield table


def _shapes(result: Result) -> Iterator[Table]:
    """Shape bias over all images and by category."""
    found = shape_rows(result)
    if not found:
        return
    table = _below("shape or texture", "shape", ["images", "for\nshape", "for\ntexture", "shape\nbias", "95 % in-\nterval"])
    for row in found:
        bias = "" if row.bias is None else f"{percent(row.bias)} %"
        counts = (row.n, row.shape_correct, row.texture_correct)
        table.add_row(
            Text(row.category),
            *(Text(str(count)) for count in counts),
            Text(bias, style="bold"),
            Text(f"{percent(row.ci_low)}–{percent(row.ci_high)}"),
        )
    yield table


def _cascades(result: Result) -> Iterator[Table]:
    """For every condition that is several attacks in turn, what each of them broke and cost."""
    goals = {condition.name: condition.goal for condition in result.conditions}
    for condition, stages in groupby(result.cascade, key=lambda row: row.condition):
        table = _below(condition, "attack", ["images", "broken", "forward\npasses", "backward\npasses"])
        for row in stages:
            passes = [Text(amount(value), style="dim") for value in (row.mean_forwards, row.mean_backwards)]
            table.add_row(Text(row.stage), Text(str(row.attacked)), Text(str(row.broken), style="bold"), *passes)
        seen = "what those before it left" if goals[condition] == "first" else "every image"
        table.caption = f"Each attack saw {seen}; passes are means over these."
        yield table


def _transfers(result: Result) -> Iterator[Table]:
    """For every attack on a source, how far it got with each target."""
    for condition, cells in groupby(result.transfer, key=lambda row: row.condition):
        table = _below(condition, "target", ["wrong\nof all", "8-bit", "of those\nright", "8-bit", "SSIM"])
        for row in cells:
            name = Text(row.target)
            if row.white_box:
                name.append(" white box", style="dim")
            shares = (row.success_all, row.success_all_8bit, row.success_correct, row.success_correct_8bit)
            table.add_row(name, *(Text("" if share is None else f"{percent(share)} %") for share in shares), Text(f"{row.ssim:.3f}"))
        table.caption = "Wrong: of all images, and of those that the target has right when clean; then rounded to 8 bits."
        yield table


def _below(title: str, first: str, headings: list[str]) -> Table:
    table = Table(title=Text(title), caption_justify="left", box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column(first, overflow="fold")
    for heading in headings:
        table.add_column(heading, justify="right", no_wrap=True)
    return table


def _cells(row: Row, undecided: bool) -> list[Text]:
    name = Text(row.condition, style="bold" if row.kind == "worst" else "")
    if row.first_pass_only:
        name.append(f" {row.first_pass_only}", style="yellow")
    return [
        name,
        Text(row.share),
        Text(row.percent, style={"sound": "bold", "doubtful": "bold yellow", "refuted": "bold red"}[row.trust]),
        Text(row.interval),
        *([Text(str(row.undecided or ""), style="yellow")] if undecided else []),
        Text(amount(row.mean_forwards), style="dim"),
        Text(amount(row.mean_backwards), style="dim"),
        Text(row.time, style="dim"),
    ]


def _caption(shown: list[Row]) -> Text:
    lines = ["Passes are means per attacked image.", *legend(shown), *bracket_legend(shown)]
    if any(row.undecided for row in shown):
        lines.append("Undecided images count as not correct.")
    for rough in sorted({row.first_pass_only for row in shown if row.first_pass_only}):
        lines.append(f"{rough}: search={rough} only; survivors were not attacked again in float32, which flatters the model.")
    widest = max(shown, key=lambda row: row.width)
    if widest.n < FEW_IMAGES:
        lines.append(f"Only {widest.n} images: the interval is up to {widest.width:.0f} points wide.")
    return Text("\n".join(lines))
