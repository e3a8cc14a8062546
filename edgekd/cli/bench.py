"""`edgekd bench`."""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path

import click

from edgekd.cli.line import print_json
from edgekd.cli.summary import print_profile


@click.command("bench")
@click.argument(
    "what", metavar="RUN_OR_FILES", nargs=-1, required=True, type=click.Path(path_type=Path)
)
@click.option("--target", "name", required=True, help="Where to measure: see `edgekd targets`.")
@click.option("--max-seconds", type=click.FloatRange(min=0, min_open=True, max=86_400),
              help="For each model and batch size, at most.")  # fmt: skip
@click.option("--host", help="browser: serve at this address; 0.0.0.0 for other devices.")
@click.option("--port", type=int, help="browser: serve at this port.  [default: a free one]")
@click.option("--certificate", help="browser: PEM certificate, for https.")
@click.option("--key", help="browser: the certificate's PEM key.")
@click.option("--open", "open_", is_flag=True, help="browser: open the page here.")
@click.option("--quiet", "-q", is_flag=True, help="No progress; links, errors and results only.")
@click.option("--json", "as_json", is_flag=True, help="Print the results as JSON.")
def command(
    what: tuple[Path, ...],
    name: str,
    max_seconds: float | None,
    host: str | None,
    port: int | None,
    certificate: str | None,
    key: str | None,
    open_: bool,
    quiet: bool,
    as_json: bool,
) -> None:
    """Measure on one target, and only print what was found.

    RUN_OR_FILES is a run folder, or model files (.onnx, .xml): a student's, or a teacher's and a
    student's. With `--target browser` it prints a link that any phone, tablet or browser may open,
    once, and waits for what that measures.
    """
    from edgekd.profile.bench import subject, with_page
    from edgekd.profile.measure import profile
    from edgekd.profile.targets import find
    from edgekd.progress import default_progress

    page = {"host": host, "port": port, "certificate": certificate, "key": key,
            "open": open_ or None}  # fmt: skip
    progress = default_progress(quiet)
    with contextlib.redirect_stdout(sys.stderr):
        of = subject(what, max_seconds)
        target = with_page(
            find(name, of.base, where="--target"),
            {option: value for option, value in page.items() if value is not None},
        )
        report, _, _ = profile(
            of.files, [target], of.settings, of.inputs, root=of.root, progress=progress
        )
    if as_json:
        print_json(report.model_dump(mode="json"))
    else:
        print_profile(report)
