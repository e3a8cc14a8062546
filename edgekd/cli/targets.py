"""`edgekd targets`."""

from __future__ import annotations

from pathlib import Path

import click

from edgekd.cli.line import print_json
from edgekd.errors import UsageError


@click.group("targets")
def command() -> None:
    """List, show, check and make device descriptors: one YAML file per device.

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


@command.command("check")
@click.argument("name")
@click.option("--json", "as_json", is_flag=True, help="Print the findings as JSON.")
def check(name: str, as_json: bool) -> int:
    """Ask the device of target NAME what it lacks, and say how to install it.

    Exit codes: 0 models can be measured there, 3 something is missing.
    """
    import dataclasses

    from edgekd.profile.check import check as look
    from edgekd.profile.targets import find

    findings = look(find(name, Path.cwd(), where="edgekd targets"))
    if as_json:
        print_json([dataclasses.asdict(finding) for finding in findings])
    else:
        for finding in findings:
            click.echo(f"{finding.status:<8} {finding.name:<12} {finding.text}")
            if finding.fix:
                click.echo(f"{'':<21} → {finding.fix}")
    return 3 if any(finding.status == "missing" for finding in findings) else 0


@command.command("probe")
@click.argument("where", metavar="NAME|[USER@]HOST[:PORT]")
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Default: targets/NAME.yaml.")
@click.option("--force", is_flag=True, help="Replace the file if there is one.")
def probe(where: str, output: Path | None, force: bool) -> None:
    """Write a descriptor from the live device: a known target, or any host that ssh reaches."""
    from edgekd.artifacts import write_text
    from edgekd.profile.check import as_yaml, probed, target_at
    from edgekd.profile.targets import TARGETS

    if output is not None and output.suffix != ".yaml":
        raise UsageError("should end in .yaml", where=f"--output {output}")
    stem = output.stem if output else None
    known = {path.stem: path for path in TARGETS.files(Path.cwd())}
    target = TARGETS.read(known[where]) if where in known else target_at(where, stem)
    path = output or Path("targets") / f"{target.name}.yaml"
    if path.exists() and not force:
        raise UsageError("exists already", where=str(path), fix="--force replaces it")
    found = probed(target, known=where in known).model_copy(update={"name": path.stem})
    write_text(path, f"# By `edgekd targets probe` from the live device.\n{as_yaml(found)}")
    click.echo(f"{path}: {found.description}")


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
