"""`edgekd imitate`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from edgekd.imitation.settings import Imitate
    from edgekd.progress import Progress


@click.group("imitate")
def command() -> None:
    """Learn from a language model that can only be asked: collect its answers, clean them, train.

    CONFIG is a YAML file (docs/teachers.md). Every step leaves a Parquet file in the folder --out.
    """


def _options(function: Any) -> Any:
    for option in (
        click.option("--quiet", "-q", is_flag=True, help="No progress."),
        click.option("--json", "as_json", is_flag=True, help="Print the summary as JSON."),
        click.option(
            "--out", type=click.Path(path_type=Path), help="Folder. Default: imitation/<config>."
        ),
        click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE"),
        click.argument("config", type=click.Path(path_type=Path)),
    ):
        function = option(function)
    return function


@command.command("collect")
@_options
def collect_command(
    config: Path, overrides: tuple[str, ...], out: Path | None, as_json: bool, quiet: bool
) -> None:
    """Ask about every text, constrained to the classes; answers.parquet. Goes on where it stopped."""
    from edgekd.imitation.collect import collect

    settings, folder, progress = _open(config, overrides, out, quiet)
    found = collect(settings, config.absolute().parent, folder, progress)
    tokens = f"{found['prompt_tokens']:,} + {found['completion_tokens']:,} tokens"
    cost = "" if found["cost"] is None else f", cost {found['cost']:.4g}"
    _tell(
        found,
        as_json,
        f"{found['usable']} of {found['answers']} answers are usable; {tokens}{cost}: "
        f"{folder}/answers.parquet",
    )


@command.command("clean")
@_options
def clean_command(
    config: Path, overrides: tuple[str, ...], out: Path | None, as_json: bool, quiet: bool
) -> None:
    """Settle votes and leave out what is doubtful; clean.parquet, rejected.parquet."""
    from edgekd.imitation.clean import clean

    settings, folder, _ = _open(config, overrides, out, quiet)
    found = clean(settings, folder)
    left_out = ", ".join(f"{count} {reason}" for reason, count in found["rejected"].items())
    right = f"; {found['right']} of {found['known']} known labels right" if found["known"] else ""
    _tell(
        found,
        as_json,
        f"{found['kept']} texts kept, left out: {left_out or 'none'}{right}: {folder}/clean.parquet",
    )


@command.command("train")
@_options
def train_command(
    config: Path, overrides: tuple[str, ...], out: Path | None, as_json: bool, quiet: bool
) -> None:
    """Write records.parquet, a teacher for the line, and distil the configured student from it."""
    from edgekd.imitation.train import train

    settings, folder, progress = _open(config, overrides, out, quiet)
    records, run = train(settings, config.absolute().parent, folder, progress)
    if run is None:
        _tell({"records": str(records)}, as_json, f"teacher: {{model: 'records:{records}'}}")
        return
    test = run.training("student").test
    assert test is not None
    _tell(
        {"records": str(records), "run": str(run.path), "accuracy": test.value},
        as_json,
        f"student: {test.value:.2%} on the test split, {run.path}",
    )


def _open(
    config: Path, overrides: tuple[str, ...], out: Path | None, quiet: bool
) -> tuple[Imitate, Path, Progress]:
    from edgekd.imitation.settings import load_settings
    from edgekd.progress import default_progress

    settings = load_settings(config, overrides)
    return settings, out or Path("imitation") / config.stem, default_progress(quiet)


def _tell(found: dict[str, Any], as_json: bool, text: str) -> None:
    from edgekd.cli.line import print_json

    if as_json:
        print_json(found)
    else:
        click.echo(text)
