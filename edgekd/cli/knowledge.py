"""`edgekd knowledge`."""

from __future__ import annotations

import shlex
from pathlib import Path

import click

from edgekd.cli.line import print_json


@click.group("knowledge")
def command() -> None:
    """Show, verify and prune what teachers said; it is kept beside the runs that asked."""


@command.command("info")
@click.argument("folder", default="runs", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print the list as JSON.")
def info(folder: Path, as_json: bool) -> None:
    """List the stores beside the runs in FOLDER (default: runs)."""
    from edgekd.config.units import format_quantity
    from edgekd.distill.knowledge_files import stores

    found = [store.describe() for store in stores(folder)]
    if as_json:
        print_json(found)
        return
    for about in found:
        teachers = ", ".join(about["runs"]) or "no run here"
        place, size = about["place"] or "unknown", format_quantity(about["bytes"], "bytes")
        told = (
            f"DAMAGED ({about['damage']}), {size}; "
            f"`edgekd knowledge prune {shlex.quote(str(folder))}` deletes it"
        )
        if about["damage"] is None:
            told = (
                f"{about['views']} × {about['samples']} samples, {about['filled']:.0%} known, {size}; "
                f"teacher of: {teachers}"
            )
        click.echo(f"{about['name'][:12]}  {place:<16} {told}")
    if not found:
        click.echo(f"no knowledge is kept in {folder}")


@command.command("verify")
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--samples", default=256, show_default=True, type=click.IntRange(1, 100_000))
@click.option("--seed", default=0, show_default=True, type=click.IntRange(0))
def verify(run: Path, samples: int, seed: int) -> None:
    """Ask the teachers of RUN again about random samples, and compare with what is kept.

    Exit code 1 where it says something else than the store, or the store is damaged.
    """
    from edgekd.distill.knowledge_files import verify as check

    results = check(run, samples, seed)
    for result in results:
        name = result.place + (f" that taught the {result.taught}" if result.taught else "")
        if result.damage is not None:
            click.echo(f"{name}: DAMAGED: {result.damage}")
            continue
        word = "the same" if result.same else "NOT THE SAME"
        click.echo(
            f"{name}: {result.rows} rows, {word}: largest difference {result.difference:.2g} "
            f"of values up to {result.largest:.3g}"
        )
    if not all(result.same for result in results):
        how = "" if all(result.same or result.damage for result in results) else " --all"
        click.echo(
            f"  `edgekd knowledge prune {shlex.quote(str(run))}{how}` deletes it; it is filled again"
        )
        raise click.exceptions.Exit(1)


@command.command("prune")
@click.argument("folder", default="runs", type=click.Path(path_type=Path))
@click.option("--all", "everything", is_flag=True, help="Not only what no run here made.")
def prune(folder: Path, everything: bool) -> None:
    """Delete stores whose teacher is in no run in FOLDER any more, and damaged ones. Those in use stay."""
    from edgekd.config.units import format_quantity
    from edgekd.distill.knowledge_files import prune as delete

    freed, used = delete(folder, everything=everything)
    click.echo(f"freed {format_quantity(freed, 'bytes')}")
    if used:
        click.echo(f"{used} in use by another process: left as they are")
