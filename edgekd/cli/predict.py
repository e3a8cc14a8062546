"""`edgekd predict`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgekd.cli.line import print_json
from edgekd.errors import UsageError

if TYPE_CHECKING:
    from edgekd.profile.targets import Target


@click.command("predict")
@click.argument("model", type=click.Path(path_type=Path))
@click.option("--target", "name", required=True, help="A calibrated target.")
@click.option("--runtime", help="Only this runtime.")
@click.option(
    "--top", default=5, show_default=True, type=click.IntRange(0), help="Operators per file."
)
@click.option("--json", "as_json", is_flag=True, help="Print the predictions as JSON.")
def command(model: Path, name: str, runtime: str | None, top: int, as_json: bool) -> None:
    """Predict the median latency of MODEL, a .onnx or .xml file or a run, on a target.

    The device need not be attached, but `edgekd targets calibrate` must have measured it once. The
    interval holds 95 % of networks like those that it was calibrated with.
    """
    from edgekd.profile.predict.forecast import calibrated, cost_model_path
    from edgekd.profile.predict.records import Calibration
    from edgekd.profile.targets import find

    target = find(name, Path.cwd(), where="--target")
    where = cost_model_path(target, Path.cwd())
    calibration = Calibration.read(where)
    found = [
        _forecast(path, format, target, one, calibration, str(where))
        for path, format in _files(model)
        for one in _runtimes(target, runtime, format)
    ]
    if not found:
        raise UsageError(
            f"the target's runtimes ({', '.join(target.runtimes)}) do not open it"
            + (f" in {runtime}" if runtime else ""),
            where=str(model),
        )
    if as_json:
        print_json(found)
        return
    for one in found:
        _print(one, top)
    click.secho(f"predicted, not measured: {calibrated(calibration)}", fg="yellow")


def _files(model: Path) -> list[tuple[Path, str]]:
    """Files to open with their formats: the model itself, or all of a run."""
    if model.is_dir():
        from edgekd.pipeline.run import Run

        run = Run.open(model)
        return [(run.path / file.path, file.format) for file in run.files]
    from edgekd.export.parts import FORMATS, model_parts

    return [(model_parts(model)[0], FORMATS[model.suffix])]


def _runtimes(target: Target, wanted: str | None, format: str) -> list[str]:
    from edgekd.profile.device.runtimes import RUNTIMES

    return [
        name
        for name in target.runtimes
        if wanted in (None, name) and format in RUNTIMES[name].formats
    ]


def _forecast(
    path: Path, format: str, target: Target, runtime: str, calibration: Any, where: str
) -> dict[str, Any]:
    from edgekd.profile.predict.forecast import calibrated, forecast

    steps, estimate = forecast(path, target, runtime, calibration, where=where)
    pairs = zip(steps, estimate.steps, strict=True)
    return {
        "file": str(path),
        "format": format,
        "target": target.name,
        "runtime": runtime,
        "runtime_version": calibration.versions[runtime],
        "threads": target.threads,
        "precision": target.precision,
        "provenance": "predicted",
        "latency_p50": estimate.seconds,
        "latency_p50_interval": list(estimate.interval),
        "unknown": list(estimate.unknown),
        "calibrated": calibrated(calibration),
        "operators": [
            {"name": step.name, "type": step.type, "kernel": step.kernel, "seconds": seconds}
            for step, seconds in pairs
        ],
    }


def _print(found: dict[str, Any], top: int) -> None:
    from edgekd.config.units import format_quantity

    def time(seconds: float) -> str:
        return format_quantity(seconds, "time")

    low, high = found["latency_p50_interval"]
    click.secho(f"{found['file']} in {found['runtime']} on {found['target']}", bold=True)
    click.echo(f"  latency p50 {time(found['latency_p50'])} [{time(low)}, {time(high)}], predicted")
    if found["unknown"]:
        click.secho(
            f"  not in the cost model, hence the wide interval: {', '.join(found['unknown'])}",
            fg="yellow",
        )
    operators = sorted(found["operators"], key=lambda o: -o["seconds"])
    for operator in operators[:top]:
        share = operator["seconds"] / found["latency_p50"]
        click.echo(
            f"  {time(operator['seconds']):>9} {share:6.1%}  {operator['type']}  {operator['name']}"
        )
