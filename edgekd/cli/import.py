"""`edgekd import`."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import click


@click.command("import")
@click.argument("result", type=click.Path(path_type=Path))
@click.option(
    "--run", type=click.Path(path_type=Path), help="Default: the one in runs/ that made the bundle."
)
def command(result: Path, run: Path | None) -> None:
    """Bring RESULT, the result.json of a bundle, into the run that it was made of."""
    from edgekd.pipeline.line import config_of
    from edgekd.pipeline.run import Run
    from edgekd.profile import imported

    found = imported.read(result)
    opened = Run.open(run) if run is not None else imported.find_run(found, Path("runs"))
    imported.bring(result, found, opened)
    for name, figures in found.models.items():
        p = figures.device_parity
        same = "the same outputs" if p.passed else "OTHER OUTPUTS"
        classes = (
            ""
            if p.agreement is None
            else f", top-1 agreement {p.agreement:.2%}, accuracy {p.accuracy:.2%} "
            f"(here {p.accuracy_here:.2%})"
        )
        click.echo(f"{name}: {same} (largest error {p.max_error:.1e}{classes})")
    for name, reason in found.failed.items():
        click.echo(f"{name}: does not run there: {reason}")
    emulated = found.environment.get("emulated")
    if emulated:
        click.echo(f"emulated: {emulated}; its speed is no device's")
    target, targets = found.manifest.target, config_of(opened)[0].profile.targets
    change = ""
    if target not in targets:
        value = json.dumps([*targets, target], separators=(",", ":"))
        change = f" --set {shlex.quote(f'profile.targets={value}')}"
    click.echo(f"next: edgekd compress {shlex.quote(str(opened.path))}{change}")
