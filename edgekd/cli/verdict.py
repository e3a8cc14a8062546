"""How a command that ends in a gate tells its verdict: here, to other programs, by the exit code."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

import click

if TYPE_CHECKING:
    from edgekd.pipeline.run import Run

F = TypeVar("F", bound=Callable[..., Any])
Outputs = dict[str, Path | None]
_FILE = click.Path(path_type=Path)


def output_options(function: F) -> F:
    """Decorator: files for other programs."""
    for option in (
        click.option("--badge", type=_FILE, help="Write a shields.io endpoint file."),
        click.option("--markdown", type=_FILE, help="Write a Markdown file."),
        click.option("--junit", type=_FILE, help="Write a JUnit XML file."),
    ):
        function = option(function)
    return function


def take_outputs(options: dict[str, Any]) -> Outputs:
    """Those of `options`, which lose them. What an earlier gate left there goes: it may not pass again."""
    from edgekd.gate import outputs

    files: Outputs = {name: options.pop(name) for name in ("junit", "markdown", "badge")}
    outputs.forget(files)
    return files


def end(ctx: click.Context, run: Run, files: Outputs, show: Callable[[], None]) -> NoReturn:
    """`show` the verdict, then write the files and tell GitHub, and exit with the verdict's code.

    What cannot be written is an error after the verdict: exit code 2 unless that has one of its own.
    """
    from edgekd.gate import outputs

    report = run.gate
    try:
        show()
    finally:
        errors = outputs.write(report, run.manifest.config["name"], files)
        for error in errors:
            click.secho(f"error: {error}", fg="red", err=True)
    ctx.exit(report.exit_code or (2 if errors else 0))
