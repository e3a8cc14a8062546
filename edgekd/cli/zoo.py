"""`edgekd zoo`."""

from __future__ import annotations

import click

from edgekd.cli.line import print_json


@click.command("zoo")
@click.option("--json", "as_json", is_flag=True, help="Print the list as JSON.")
def command(as_json: bool) -> None:
    """List the built-in reference networks, for `model: zoo:NAME`.

    Parameters are counted for 100 classes of colour images of 32×32 pixels, or of 64 token ids.
    """
    import torch

    from edgekd.models.network import NETWORKS

    entries = [NETWORKS.get(name) for name in NETWORKS.names()]
    with torch.device("meta"):
        counts = {
            entry.name: sum(p.numel() for p in entry.build(entry.example, 100).parameters())
            for entry in entries
        }
    entries.sort(key=lambda entry: counts[entry.name])
    if as_json:
        print_json(
            [
                {"name": e.name, "parameters": counts[e.name], "description": e.description}
                for e in entries
            ]
        )
        return
    for entry in entries:
        click.echo(f"zoo:{entry.name:<14} {counts[entry.name]:>12,}  {entry.description}")
