"""`edgekd schema`."""

from __future__ import annotations

from typing import Any

import click

from edgekd.cli.line import print_json


@click.command("schema")
def command() -> None:
    """Print the JSON Schema of compress.yaml, for editors and other tools."""
    print_json(config_schema())


def config_schema() -> dict[str, Any]:
    """The JSON Schema (draft 2020-12) of the configuration."""
    from edgekd.config.schema import Config

    schema = Config.model_json_schema()
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}
