"""The command line. Commands live in one file each and are imported only when used."""

from __future__ import annotations

import errno
import importlib
import io
import os
import sys
from typing import Any

import click

import edgekd
from edgekd.errors import EdgekdError

# Command and its one-line help: `edgekd --help` imports nothing more than this.
COMMANDS = {
    "init": "Write a commented compress.yaml to start from.",
    "compress": "Teacher to report: run the whole line.",
    "search": "Find the student that meets the budgets best.",
    "distill": "Train the student (and the teacher before it).",
    "export": "Write ONNX and OpenVINO files of both models.",
    "quantize": "Write INT8 versions of the student's files.",
    "verify": "Check that the exported files compute the same function.",
    "profile": "Measure latency, throughput and memory.",
    "bench": "Measure a run or model files on one target, a phone's browser too.",
    "bundle": "Pack a run for a device that no network reaches.",
    "import": "Bring back what a bundle measured.",
    "gate": "Hold the budgets against the results; the exit code is the verdict.",
    "report": "Write report.html and report.json.",
    "predict": "Predict latency on a device that is not attached.",
    "history": "Show what earlier gates found, and the commits at which a figure moved.",
    "operators": "Show where the time goes, operator by operator.",
    "imitate": "Learn from a language model: collect its answers, clean them, train.",
    "methods": "List the distillation methods.",
    "schemes": "List the schemes: who learns from whom.",
    "knowledge": "Show, verify and prune what teachers said.",
    "targets": "List, show, check, make and calibrate device descriptors.",
    "zoo": "List the built-in reference networks.",
    "schema": "Print the configuration's JSON Schema.",
    "completion": "Print the shell completion script.",
}


class _Lazy(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        if name not in COMMANDS:
            return None
        command: click.Command = importlib.import_module(f"edgekd.cli.{name}").command
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and args[0] not in COMMANDS and not args[0].startswith("-"):
            from edgekd.registry import suggestion

            ctx.fail(f"no such command {args[0]!r}{suggestion(args[0], COMMANDS)}")
        return super().resolve_command(ctx, args)


@click.group(cls=_Lazy, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(edgekd.__version__, prog_name="edgekd")
def app() -> None:
    """Make a model small enough for the device, and prove that it still works.

    Start with `edgekd compress --example digits`.

    Exit codes: 0 pass, 1 a budget is broken, 2 usage or configuration error, 3 a stage failed,
    4 inconclusive, 130 interrupted.
    """


def main(argv: list[str] | None = None) -> None:
    """Entry point: run a command and exit with its code; no traceback for what users can mend."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # A terminal that knows ASCII only gets "?" rather than nothing.
            stream.reconfigure(errors="replace")
    try:
        code = app.main(argv, prog_name="edgekd", standalone_mode=False)
        sys.stdout.flush()
    except EdgekdError as error:
        code = _failed(error, error.exit_code, f"error: {error}")
    except click.ClickException as error:
        shown = io.StringIO()
        error.show(shown)
        code = _failed(error, 2, shown.getvalue().rstrip())
    except click.Abort as abort:
        # click takes every EOFError for a Ctrl-D at one of its prompts, of which there are none.
        if isinstance(abort.__cause__, EOFError):
            code = _crashed(abort.__cause__)
        else:
            code = _failed(abort, 130, "interrupted")
    except click.exceptions.Exit as exit_request:
        code = exit_request.exit_code
    except PermissionError as error:
        code = _failed(error, 2, f"error: {error.filename}: {error.strerror}")
    except OSError as error:
        output = error.filename is None and error.errno in (errno.EPIPE, errno.ENOSPC)
        code = _unwritable_output(error) if output else _crashed(error)
    except Exception as error:
        if os.environ.get("EDGEKD_DEBUG"):
            raise
        code = _crashed(error)
    sys.exit(code if isinstance(code, int) else 0)


def _failed(error: BaseException, code: int, text: str) -> int:
    """Say what went wrong, for users. Returns the exit code."""
    from edgekd.pipeline import together

    if together.several():
        code, instead = together.told(error, code)
        text = text if instead is None else instead
    if text:
        click.secho(text, fg="red", err=True)
    return code


def _unwritable_output(error: OSError) -> int:
    """A pipe whose reader left (exit code 141, as from SIGPIPE), or a full disk behind `>`."""
    # Python would try to write the rest when it exits.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    if isinstance(error, BrokenPipeError):
        return 141
    click.secho(f"error: standard output cannot be written: {error.strerror}", fg="red", err=True)
    return 3


def _crashed(error: Exception) -> int:
    """A bug of ours: one line for the user, the traceback in a file for the report."""
    import tempfile
    import traceback

    with tempfile.NamedTemporaryFile(
        "w", prefix="edgekd-crash-", suffix=".log", delete=False
    ) as log:
        log.write(f"edgekd {edgekd.__version__}: {sys.argv!r}\n{traceback.format_exc()}")
    message: Any = str(error).splitlines()[0][:200] if str(error) else ""
    return _failed(
        error,
        3,
        f"error: edgekd itself failed ({type(error).__name__}: {message})\n"
        f"  please report it with the file {log.name}",
    )
