"""What the stage commands share: their arguments, and running the line up to a stage."""

from __future__ import annotations

import contextlib
import json
import shlex
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from edgekd.errors import UsageError

if TYPE_CHECKING:
    from edgekd.config.schema import Config
    from edgekd.pipeline.run import Run

F = TypeVar("F", bound=Callable[..., Any])
EXAMPLES = Path(__file__).parent.parent / "examples"


def line_options(function: F) -> F:
    """Decorator: the arguments that every stage command takes."""
    for option in reversed(
        (
            click.argument("config", required=False, type=click.Path(path_type=Path)),
            click.option("--example", metavar="NAME", help="Use a bundled configuration (digits)."),
            click.option(
                "--set",
                "overrides",
                multiple=True,
                metavar="KEY=VALUE",
                help="Override a configuration key, such as distill.epochs=3. Repeatable.",
            ),
            click.option(
                "--out",
                type=click.Path(path_type=Path, file_okay=True),
                help="Run folder. Default: runs/<name>.",
            ),
            click.option("--force", is_flag=True, help="Do this stage again even if it is done."),
            click.option(
                "--no-doctor", is_flag=True, help="Do not look for mistakes before distilling."
            ),
            click.option(
                "--quiet", "-q", is_flag=True, help="No progress; errors and results only."
            ),
            click.option("--json", "as_json", is_flag=True, help="Print the results as JSON."),
        )
    ):
        function = option(function)
    return function


def run_until(
    stage: str,
    *,
    config: Path | None,
    example: str | None,
    overrides: tuple[str, ...],
    out: Path | None,
    force: bool,
    quiet: bool,
    as_json: bool,
    no_doctor: bool = False,
    allow: tuple[str, ...] = (),
) -> Run:
    """Bring the run up to date up to `stage`, telling the user what is done and what was not.

    Where `stage` is the gate, `allow` is added to gate.allow, and this and overrides of gate.* are
    of this call alone: the run keeps the section `gate` that it has without them.
    """
    from edgekd.config.load import of_gate
    from edgekd.pipeline import together
    from edgekd.pipeline.line import resolve_folder, run_line
    from edgekd.progress import default_progress

    started = time.monotonic()
    overrides = (*overrides, *["distill.doctor=false"][:no_doctor])
    resolved, base, folder = resolve(config, example, overrides, out)
    kept = resolved
    if stage == "gate":
        lasting = tuple(text for text in overrides if not of_gate(text))
        kept, _, _ = resolve(config, example, lasting, out)
        if allow:
            added = f"gate.allow={json.dumps([*resolved.gate.allow, *allow])}"
            resolved, _, _ = resolve(config, example, (*overrides, added), out)
    progress = default_progress(quiet)
    # Standard output is for results: what a user's module prints must not get between them.
    with contextlib.redirect_stdout(sys.stderr):
        run, done = run_line(
            resolved,
            base=base,
            out=resolve_folder(resolved, folder),
            until=stage,
            force=stage if force else None,
            progress=progress,
            command=shlex.join(["edgekd", *sys.argv[1:]]),
            kept=kept,
        )
    if together.follows():
        raise click.exceptions.Exit(0)  # the first process tells what there is to tell
    seconds = time.monotonic() - started
    if done:
        progress.say(f"done in {seconds:.1f} s: {', '.join(done)}")
    else:
        progress.say(f"nothing to do: {run.path} is up to date ({seconds:.1f} s)")
    return run


def resolve(
    config: Path | None, example: str | None, overrides: tuple[str, ...], out: Path | None
) -> tuple[Config, Path, Path | None]:
    """The configuration, the folder its paths start at, and the run folder if one was named."""
    from edgekd.config.load import apply_overrides, load_config, validate
    from edgekd.pipeline.line import config_of
    from edgekd.pipeline.run import Run

    if config is not None and example is not None:
        raise UsageError("give a configuration file or --example, not both")
    if example is not None:
        path = EXAMPLES / f"{example}.yaml"
        if not path.is_file():
            known = ", ".join(sorted(p.stem for p in EXAMPLES.glob("*.yaml")))
            raise UsageError(f"no example called {example!r}; known: {known}", where="--example")
        return load_config(path, overrides), Path.cwd(), out
    if config is None:
        raise UsageError(
            "no configuration given",
            fix="try `edgekd compress --example digits`, or write one with `edgekd init`",
        )
    if config.is_dir():
        recorded, base = config_of(Run.open(config))
        value = apply_overrides(recorded.model_dump(mode="json"), overrides)
        return validate(value, where="--set", lines={}), base, out or config
    return load_config(config, overrides), config.absolute().parent, out


def print_json(value: object) -> None:
    """One JSON document on standard output."""
    click.echo(json.dumps(value, indent=2, ensure_ascii=False))
