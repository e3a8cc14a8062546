"""`edgekd verify`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import click

from edgekd.cli.line import line_options, print_json, run_until
from edgekd.cli.summary import print_summary

if TYPE_CHECKING:
    from edgekd.results import LayerComparison, VerifyReport

# Layers that are shown before and after the first one past the tolerance.
_AROUND = 3


@click.command("verify")
@line_options
@click.option(
    "--layers",
    is_flag=True,
    help="Compare every file with PyTorch layer by layer instead, and name the first that differs.",
)
def command(layers: bool, **options: Any) -> None:
    """Check every exported file against PyTorch, in every runtime that opens it.

    On real inputs in batches of all kinds, on extreme ones, and against the file it was made from.
    """
    if layers:
        _layers(**options)
        return
    run = run_until("verify", **options)
    if options["as_json"]:
        print_json(run.verify.model_dump(mode="json"))
    else:
        print_summary(run)
        for line in _edges(run.verify):
            click.echo(line)


def _edges(report: VerifyReport) -> Iterator[str]:
    from edgekd.report.checks import edge_text

    for edge in report.edges:
        yield f"  {edge_text(edge)}"
    for note in report.notes:
        yield f"  {note}"


def _layers(**options: Any) -> None:
    """Also where verify fails: what it is for."""
    from edgekd.pipeline.line import config_of
    from edgekd.verify.stage import layers

    run = run_until("quantize", **options)
    config, base = config_of(run)
    found = layers(run, config, base)
    if options["as_json"]:
        print_json([comparison.model_dump(mode="json") for comparison in found])
        return
    for comparison in found:
        _print(comparison)


def _print(found: LayerComparison) -> None:
    click.secho(f"{found.path} in {found.runtime}, {found.samples} samples", bold=True)
    if not found.layers:
        click.echo(f"  {found.note}")
        return
    if found.first is None:
        worst = max(found.layers, key=lambda layer: layer.max_error or 0)
        click.echo(
            f"  no layer past {found.tolerance:g}: of {len(found.layers)} the largest error is "
            f"{worst.max_error:.1e}, at {worst.label}"
        )
        return
    layer = found.layers[found.first]
    click.secho(f"  first past {found.tolerance:g}: {layer.label}", fg="red")
    start = max(0, found.first - _AROUND)
    for position, near in enumerate(found.layers[start : found.first + _AROUND + 1], start):
        error = "not finite" if near.max_error is None else f"{near.max_error:.1e}"
        mark = "→" if position == found.first else " "
        click.echo(f"  {mark} {error:>10}  {near.type:<16} {near.label}")
