"""`edgekd verify`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import click

from edgekd.cli.line import line_options, print_json, resolve, run_until
from edgekd.cli.summary import print_summary

if TYPE_CHECKING:
    from edgekd.results import Layer, LayerComparison, VerifyReport

# Layers that are shown before and after the first one past the tolerance.
_AROUND = 3


@click.command("verify")
@line_options
@click.option(
    "--layers",
    is_flag=True,
    help="Compare every file with PyTorch layer by layer instead, and name the first that differs, on "
    "the inputs that the file fails on if it does. Exit code 3 when a float32 or float16 file has one.",
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
    from edgekd.verify.stage import layers

    run = run_until("quantize", **options)
    # Of `verify` the run remembers only what has passed.
    config, base, _ = resolve(*(options[key] for key in ("config", "example", "overrides", "out")))
    found = layers(run, config, base)
    if options["as_json"]:
        print_json([comparison.model_dump(mode="json") for comparison in found])
    else:
        for comparison in found:
            _print(comparison)
    _check(found)


def _check(found: list[LayerComparison]) -> None:
    """Raises StageError for the first file that has a layer which it must not have."""
    from edgekd.errors import StageError

    for comparison in found:
        layer = comparison.broken
        if layer is not None:
            raise StageError(
                f"layer {layer.label} differs from PyTorch's by {_error(layer)} of the largest; "
                f"at most {comparison.tolerance:g} is allowed",
                where=f"{comparison.path} in {comparison.runtime}",
                fix=comparison.note or f"in the file it is the tensor {layer.tensor}",
            )


def _print(found: LayerComparison) -> None:
    samples = "1 sample" if found.samples == 1 else f"{found.samples} samples"
    click.secho(f"{found.path} in {found.runtime}, {samples}", bold=True)
    failed = ""
    if found.inputs:
        error = found.error if isinstance(found.error, str) else f"error {found.error:.1e}"
        failed = f"verify fails at {found.inputs} ({error})"
    if found.layers and found.first is None:
        but = f"{failed}, but no single layer of {samples} does: " if failed else ""
        click.echo(f"  {but}{_none_past(found)}")
    elif failed:
        click.echo(f"  {failed}")
    if found.first is not None:
        _print_layers(found, found.first)
    if found.note:
        click.echo(f"  {found.note}")


def _none_past(found: LayerComparison) -> str:
    worst = max(found.layers, key=lambda layer: layer.max_error or 0)
    return (
        f"no layer past {found.tolerance:g}: of {len(found.layers)} the largest error is "
        f"{worst.max_error:.1e}, at {worst.label}"
    )


def _print_layers(found: LayerComparison, first: int) -> None:
    layer = found.layers[first]
    click.secho(f"  first past {found.tolerance:g}: {layer.label}", fg="red")
    start = max(0, first - _AROUND)
    for position, near in enumerate(found.layers[start : first + _AROUND + 1], start):
        mark = "→" if position == first else " "
        click.echo(f"  {mark} {_error(near):>10}  {near.type:<16} {near.label}")


def _error(layer: Layer) -> str:
    return "not finite" if layer.max_error is None else f"{layer.max_error:.1e}"
