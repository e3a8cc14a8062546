"""`edgekd init`."""

from __future__ import annotations

from pathlib import Path

import click

from edgekd.errors import UsageError


@click.command("init")
@click.argument(
    "path", type=click.Path(path_type=Path, dir_okay=False), default=Path("compress.yaml")
)
@click.option("--force", is_flag=True, help="Overwrite an existing file.")
def command(path: Path, force: bool) -> None:
    """Write a commented configuration to PATH (default compress.yaml), ready to run.

    Its JSON Schema goes beside it, so that editors complete keys and underline mistakes.
    """
    from edgekd.artifacts import write_json, write_text
    from edgekd.cli.line import EXAMPLES
    from edgekd.cli.schema import config_schema

    if path.exists() and not force:
        raise UsageError(
            "already exists", where=str(path), fix="choose another name, or overwrite with --force"
        )
    schema = path.with_suffix(".schema.json")
    hint = f"# yaml-language-server: $schema=./{schema.name}\n"
    write_text(path, hint + (EXAMPLES / "digits.yaml").read_text(encoding="utf-8"))
    write_json(schema, config_schema())
    click.echo(f"wrote {path} and {schema}; next: edgekd compress {path}")
