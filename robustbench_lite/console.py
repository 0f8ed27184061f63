"""What the commands share: bars, complaints, exit codes, and the end of a run. Imports no torch."""

from __future__ import annotations

import os
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import App, CycloptsError, Parameter
from rich.console import Console

from .allowing import of_command
from .errors import RobustEvalError, UsageError
from .plain_text import one_line, printable, say, without_commands

if TYPE_CHECKING:
    from rich.console import ConsoleOptions, RenderableType
    from rich.segment import Segment

    from .results import Result

AllowCode = Annotated[bool, Parameter(help="Run file.py:build and the like where no terminal shows that it runs.", negative="")]
"""Read by `exit_code`, as --debug is."""
Progress = Callable[[str, int, int, int], None]
"""Told what is being done, how many images are done, how many there are, and how many of them are broken."""


def application(name: str, **more: Any) -> App:
    """A command line whose errors and interruptions are left to `exit_code`."""
    return App(
        name=name,
        exit_on_error=False,
        print_error=False,
        suppress_keyboard_interrupt=False,  # an interrupted run says that it can go on
        result_action="return_value",
        **more,
    )


def exit_code(program: str, command: Callable[[Sequence[str]], object], words: Sequence[str]) -> int:
    """Run a command on the words after its name; its exit code, as the errors module documents. Whatever goes wrong is said in one line."""
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # read when torch is imported; spinning threads starve a shared machine
    try:
        with of_command("--allow-code" in words):
            code = command(words)
    except CycloptsError as error:
        complain(program, f"{error} ({program} --help lists the options)")
        return 2
    except RobustEvalError as error:
        if "--debug" in words:
            traceback.print_exc()
        complain(program, str(error))
        return error.exit_code
    except KeyboardInterrupt:
        complain(program, "interrupted; the same command goes on where it stopped")
        return 130
    except BrokenPipeError:
        # whoever read our output has gone, as in `robust-eval list models | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception:
        traceback.print_exc()
        complain(program, f"this is a bug in {program}: please report it with the lines above")
        return 4
    return code if isinstance(code, int) else 0


def complain(program: str, message: str) -> None:
    """One line on standard error."""
    say(f"{program}: {message}", sys.stderr)


def finish(result: Result, seconds: float | None, formats: Sequence[str], *, strict: bool = False) -> int:
    """Print the table and write the run's files; 4 where an image could not be decided, 1 where `strict` and a figure cannot be trusted."""
    from .registry import REPORTS
    from .store import explained

    with explained(result.folder):
        first, *others = result.write(formats)
    show(REPORTS.get("terminal")(result))
    for note in result.config["notes"]:
        say(f"note: {note}")
    say(f"report: {first}" + "".join(f", {path.name}" for path in others) + (f" ({seconds:.0f} s)" if seconds is not None else ""))
    undecided = {v.sample_id for v in result.verdicts if v.broken is None}
    if undecided:
        reasons = sorted({str(v.reason) for v in result.verdicts if v.broken is None})
        said = f"{len(undecided)} images are undecided ({'; '.join(reasons[:2])}); they count as not correct, samples.csv names them"
        complain("robust-eval", said)
        return 4
    untrusted = [f"{name} is {trust.level}" for name, trust in result.headlines.items() if trust.level != "sound"]
    if strict and untrusted:
        complain("robust-eval", f"{', '.join(untrusted)}: the report says why, and --settle tries to settle it")
        return 1
    return 0


def show(table: RenderableType) -> None:
    """Print something of rich's on standard output."""
    console = Console()
    with console.capture() as text:  # rich would end the process by itself where the reader of our output has gone
        console.print(_Plain(table))
    print(without_commands(text.get()), end="")


@dataclass(frozen=True)
class _Plain:
    """What is shown, without the control characters that names in it may hold: rich lets them through to the terminal."""

    shown: RenderableType

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[Segment]:
        for segment in console.render(self.shown, options):
            yield segment if segment.control else segment._replace(text=printable(segment.text))


def formats_of(text: str) -> list[str]:
    """The formats that were asked for, as `html,csv`.

    Raises:
        UnknownName: one that is not registered.
        UsageError: none was asked for, or one needs a package that is not installed.
    """
    from importlib.util import find_spec

    from .registry import FORMATS

    names = list(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))
    if not names:
        raise UsageError("--format is empty: name one or more, such as html,csv (`robust-eval list formats`)")
    for name in names:
        package, extra = getattr(FORMATS.get(name), "needs", (None, None))
        if package is not None and find_spec(package) is None:
            raise UsageError(f"--format {name} needs {package}: install robustbench-lite[{extra}], or ask for --format csv")
    return names


def whole(option: str, text: str, more: str = "") -> int:
    """The number that was given for an option, which may take `more`.

    Raises:
        UsageError: it is none.
    """
    try:
        return int(text)
    except ValueError:
        raise UsageError(f"{option} takes a whole number{more}, got {text!r}") from None


def batch_size_of(text: str) -> int | Literal["auto", "tune"]:
    """What `--batch-size` was given: a number or one of these words."""
    return "auto" if text == "auto" else "tune" if text == "tune" else whole("--batch-size", text, ", auto or tune")


def default_folder(asked: Sequence[object], label: str) -> Path:
    """The same request, the same place."""
    from hashlib import sha256

    return Path("robust-eval-runs") / f"{label[:80]}-{sha256(repr(asked).encode()).hexdigest()[:8]}"


@contextmanager
def bars() -> Iterator[Progress]:
    """Bars on a terminal; elsewhere a line now and then. Both on standard error, so that a pipe gets the table alone."""
    console = Console(stderr=True)
    if not console.is_terminal:
        said = time.monotonic()

        def line(name: str, done: int, total: int, broken: int) -> None:
            nonlocal said
            if time.monotonic() - said >= 10:
                said = time.monotonic()
                say(f"{name}: {done} of {total}, {broken} broken", sys.stderr)

        yield line
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[note]}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True) as drawn:
        tasks: dict[str, Any] = {}

        def bar(name: str, done: int, total: int, broken: int) -> None:
            if name not in tasks:
                tasks[name] = drawn.add_task(one_line(name).replace("[", r"\["), note="")
            drawn.update(tasks[name], completed=done, total=total, note=f"{broken} broken" if broken else "")

        yield bar
