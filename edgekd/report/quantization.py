"""The report's section on INT8 files: how they were made, and what accuracy and speed asked for."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from markupsafe import Markup

from edgekd.config.units import format_quantity
from edgekd.report import plots
from edgekd.report.comparison import figure_text, interval_text
from edgekd.report.contents import Contents
from edgekd.report.plots import Plot
from edgekd.results import AccuracyAware, BackendSpeed, Calibration, ExportedFile, SpeedAware

# The longest tables; quantize.json has all.
_MOST_LAYERS = 40


@dataclass(frozen=True)
class Table:
    """Texts under column names, and a sentence."""

    title: str
    note: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class Section:
    """What the template shows; `files` are the rows of the INT8 files."""

    explanation: str
    columns: tuple[str, ...]
    files: tuple[tuple[str, ...], ...]
    plots: tuple[Plot, ...]
    tables: tuple[Table, ...]


def section(contents: Contents) -> Section | None:
    """None where the run does not quantize."""
    report = contents.quantize
    if report is None or report.calibration is None:
        return None
    original = {
        file.format: file.size
        for file in (contents.export.files if contents.export else ())
        if (file.role, file.variant) == ("student", "f32")
    }
    return Section(
        _explanation(report.calibration),
        ("File", "Quantized by", "Size", "Of the float32 file", "Took"),
        tuple(_file(file, original.get(file.format)) for file in report.files),
        tuple(
            plot
            for position, aware in enumerate(report.accuracy_aware)
            for plot in _trade_off(aware, f"trade-off-{position}")
        ),
        (
            *(_sensitivities(a) for a in report.accuracy_aware if a.sensitivities),
            *map(_speeds, report.speed_aware),
            *([_backends(report.backends)] if report.backends else []),
        ),
    )


def _explanation(calibration: Calibration) -> str:
    recipe, types = calibration.recipe, calibration.arithmetic
    bits = "7-bit weights (reduced range)" if types.reduced_range else "8-bit weights"
    return (
        f"Recipe {recipe['name']}, {recipe['method']}: {len(calibration.samples)} samples of the "
        f"training split ({recipe['sampler']}), ranges by {recipe['range']}; {bits} and "
        f"{types.activations} activations, for {'; '.join(types.cpus)}."
    )


def _file(file: ExportedFile, original: int | None) -> tuple[str, ...]:
    return (
        file.path,
        "; ".join((file.producer or "–", *file.notes)),
        format_quantity(file.size, "bytes"),
        f"{file.size / original:.2f}" if original else "–",
        format_quantity(file.seconds, "time"),
    )


def _trade_off(aware: AccuracyAware, name: str) -> Iterator[Plot]:
    least = aware.float32 - aware.max_drop
    title = f"Accuracy and size by layers in float32, {aware.format}"
    kept = f"{aware.reverted} are kept in float32" if aware.reverted else "none had to be"
    yield Plot(
        title,
        Markup(plots.trade_off(aware, name=name, title=title)),
        ("layers in float32", "validation accuracy", "size"),
        tuple(
            (
                str(point.reverted),
                figure_text(point.accuracy, "share"),
                format_quantity(point.size, "bytes"),
            )
            for point in aware.curve
        ),
        f"The most sensitive layers first, {kept}. On {aware.samples} validation samples; the "
        f"float32 file has {figure_text(aware.float32, 'share')}, at least "
        f"{figure_text(least, 'share')} was asked for.",
    )


def _sensitivities(aware: AccuracyAware) -> Table:
    return Table(
        f"Sensitivity of layers, {aware.format}",
        "Each quantized alone: divergence from teacher and float32 student in nats, and signal by "
        "noise of the logits.",
        ("Layer", "Divergence", "SNR", "Kept in"),
        tuple(
            (
                found.layer,
                f"{found.divergence:.3g}",
                "–" if found.snr is None else f"{found.snr:.1f} dB",
                "float32" if position < aware.reverted else "INT8",
            )
            for position, found in enumerate(aware.sensitivities[:_MOST_LAYERS])
        ),
    )


def _speeds(aware: SpeedAware) -> Table:
    left = f" {len(aware.left_out)} layers were not measured." if aware.left_out else ""
    slow = sorted(aware.layers, key=lambda speed: speed.ratio)
    return Table(
        f"Speed of layers, {aware.format}",
        f"Latency with one layer in float32, by that with none, in {aware.runtime} on "
        f"{aware.target}; below 1 its quantization costs time.{left}",
        ("Layer", "Ratio", "95 % interval", "Kept in"),
        tuple(
            (
                speed.layer,
                f"{speed.ratio:.3f}",
                interval_text(speed.interval, "ratio"),
                "float32" if speed.kept_float32 else "INT8",
            )
            for speed in slow[:_MOST_LAYERS]
        ),
    )


def _backends(found: tuple[BackendSpeed, ...]) -> Table:
    return Table(
        "Quantizers by speed",
        "Median latency of the files of both, in turns; the faster one was kept.",
        ("Format", "Target", "float32", *found[0].backends),
        tuple(
            (
                speed.format,
                speed.target,
                *(
                    format_quantity(value, "time")
                    for value in (speed.float32, *speed.backends.values())
                ),
            )
            for speed in found
            if speed.backends.keys() == found[0].backends.keys()
        ),
    )
