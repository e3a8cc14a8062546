"""`edgekd targets`."""

from __future__ import annotations

from pathlib import Path

import click

from edgekd.cli.line import print_json
from edgekd.errors import UsageError


@click.group("targets")
def command() -> None:
    """List and show device descriptors: one YAML file per device.

    Your own go in ./targets, or in targets/ beside the configuration.
    """


@command.command("list")
@click.option("--json", "as_json", is_flag=True, help="Print the list as JSON.")
def list_(as_json: bool) -> None:
    """List the targets that `profile.targets` can name here."""
    from edgekd.profile.targets import TARGETS

    found, broken = {}, []
    for path in TARGETS.files(Path.cwd()):
        try:
            found[path] = TARGETS.read(path)
        except UsageError as error:
            broken.append(str(error))
    if as_json:
        print_json([target.model_dump(mode="json", by_alias=True) for target in found.values()])
        found = {}
    for path, target in found.items():
        click.echo(
            f"{target.name:<20} {target.kind:<7} {target.transport:<8} {target.description}  ({path})"
        )
    if broken:
        raise UsageError("\n".join(broken))


@command.command("show")
@click.argument("name")
@click.option("--json", "as_json", is_flag=True, help="Print it as JSON.")
def show(name: str, as_json: bool) -> None:
    """Show the target NAME with all of its settings."""
    import yaml

    from edgekd.profile.targets import find

    value = find(name, Path.cwd(), where="edgekd targets").model_dump(mode="json", by_alias=True)
    if as_json:
        print_json(value)
    else:
        click.echo(yaml.safe_dump(value, sort_keys=False, allow_unicode=True), nl=False)


@command.command("calibrate")
@click.argument("name")
@click.option(
    "--out",
    type=click.Path(path_type=Path, dir_okay=False),
    help="The cost model's file. Default: targets/NAME.cost.json.",
)
@click.option("--quiet", "-q", is_flag=True, help="No progress.")
def calibrate_(name: str, out: Path | None, quiet: bool) -> None:
    """Measure a suite of networks on the target NAME for `edgekd predict`.

    It takes some minutes; what was interrupted goes on where it was. The device should do nothing else.
    """
    from edgekd.profile.predict.calibrate import calibrate, default_cache
    from edgekd.profile.predict.model import scored
    from edgekd.profile.targets import TARGETS, find
    from edgekd.progress import default_progress

    target = find(name, Path.cwd(), where="edgekd targets")
    out = out or Path(TARGETS.folder) / f"{name}.cost.json"
    found = scored(calibrate(target, cache=default_cache(), progress=default_progress(quiet)))
    found.write(out)
    click.echo(f"{len(found.observations)} measurements in {out}")
    click.echo(
        "to predict while the device is not attached, write a target with `transport: predicted` and "
        f"`cost_model: {out.name}`"
    )
