"""`edgekd bundle`."""

from __future__ import annotations

from pathlib import Path

import click

from edgekd.errors import UsageError


@click.command("bundle")
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--target", "name", help="A target with `transport: bundle`, such as offline.")
@click.option(
    "--out", "-o", type=click.Path(path_type=Path), default=Path("bench.zip"), show_default=True
)
@click.option(
    "--samples", type=click.IntRange(min=1), default=500, show_default=True,
    help="Most test samples to check the outputs with.",
)  # fmt: skip
def command(run: Path, name: str | None, out: Path, samples: int) -> None:
    """Pack the models of RUN for a device that no network reaches.

    The zip file has models, inputs, expected outputs and one program, bench.pyz, that needs Python,
    numpy and the runtime. It writes result.json, which `edgekd import` brings back.
    """
    from edgekd.pipeline.line import config_of
    from edgekd.pipeline.run import Run
    from edgekd.profile.bundle import make
    from edgekd.profile.targets import find

    opened = Run.open(run)
    config, base = config_of(opened)
    if name is None:
        targets = [find(target, base) for target in config.profile.targets]
        bundled = [target.name for target in targets if target.transport == "bundle"]
        if len(bundled) != 1:
            raise UsageError("name one with --target, such as offline", where="--target")
        name = bundled[0]
    target = find(name, base, where="--target")
    manifest = make(opened, target, config, base, out, samples=samples)
    click.echo(
        f"wrote {out} ({out.stat().st_size / 2**20:.1f} MiB, bundle {manifest['id'][:12]})\n"
        f"on the device:  python3 -m zipfile -e {out.name} bench && python3 bench/bench.pyz\n"
        f"then here:      edgekd import result.json --run {run}"
    )
