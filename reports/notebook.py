"""What a notebook shows for a result: the table, as an HTML fragment."""

from __future__ import annotations

from html import escape

from robustbench_lite.registry import report
from robustbench_lite.results import Result

from .table import legend, rows


@report("notebook")
def notebook(result: Result) -> str:
    """A table with accuracy, interval and trust, and lines that say what they are. It brings no style of its own."""
    shown = rows(result)
    undecided = any(row.undecided for row in shown)
    headings = ["condition", "correct", "accuracy", "95 % interval", *(["undecided"] if undecided else []), "trust"]
    lines = []
    for row in shown:
        name = row.condition + (f" (search={row.first_pass_only})" if row.first_pass_only else "")
        lines.append([name, row.share, row.percent, f"{row.interval} %", *([str(row.undecided)] if undecided else []), row.trust])
    title = f"{result.config['model']['name']} on {result.config['data']['name']}"
    where = "" if result.folder is None else f" The run is kept in <code>{escape(str(result.folder))}</code>."
    body = "".join(f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in line)}</tr>" for line in lines)
    signs = "".join(f" {escape(line)}" for line in legend(shown))
    reasons = "".join(f"<li>{escape(f'{row.condition}: {reason}')}</li>" for row in shown for reason in row.reasons)
    return (
        f"<table><caption>{escape(title)}</caption><thead><tr>{''.join(f'<th>{h}</th>' for h in headings)}</tr></thead>"
        f"<tbody>{body}</tbody></table>"
        f"<small>Accuracy is correct / n, with Wilson's 95 % interval; undecided images are not correct.{signs}{where}</small>"
        + (f"<ul>{reasons}</ul>" if reasons else "")
    )
