"""Several processes on one run, started by torchrun: the first runs the line, the others help train."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

from edgekd.errors import EdgekdError, Interrupted, StageError, UsageError

if TYPE_CHECKING:
    from edgekd.config.schema import Config
    from edgekd.distill.parallel import Failure

# Stages whose work every process does; its files are the first one's alone.
TRAINING = ("teacher", "distill")


def several() -> bool:
    """Whether torchrun started more than one."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


def follows() -> bool:
    """Whether this process is one that helps. Imports no torch where there is only one."""
    return several() and _rank() > 0


def check(config: Config) -> None:
    """Refuse what one process alone can do, before anything is trained."""
    if not several():
        return
    if config.student.auto:
        raise UsageError(
            "student: auto is searched by one process, not under torchrun",
            where="student.model",
            fix="`edgekd search` first; then torchrun with the configuration that it writes",
        )
    for i, method in enumerate(config.distill.methods.entries):
        if not method.divisible:
            raise UsageError(
                f"{method.name} keeps what it knows of every sample in one process, and torchrun started "
                f"{os.environ['WORLD_SIZE']}",
                where=f"distill.methods.{i}.{method.name}",
                fix="train in one process, or with another method",
            )


@contextlib.contextmanager
def leading() -> Iterator[None]:
    """Around the line in the first process: at the end, the others are told to go home."""
    if not several():
        yield
        return
    from edgekd.distill import parallel

    with _met():
        yield
        # All is done, whoever is still there to hear it.
        with contextlib.suppress(parallel.Lost):
            parallel.told(None)


@contextlib.contextmanager
def helped(stage: str) -> Iterator[None]:
    """Around a stage's work in the first process: the others do it too, or have no part in it."""
    if not several():
        yield
        return
    from edgekd.distill import parallel

    if stage in TRAINING:
        parallel.told(stage)
        yield
    else:
        with parallel.apart():
            yield


@contextlib.contextmanager
def following() -> Iterator[Iterator[str]]:
    """In the others: the stages that the first process works on with their help, until all is done."""
    from edgekd.distill import parallel

    with _met():
        yield iter(lambda: parallel.told(""), None)


@contextlib.contextmanager
def _met() -> Iterator[None]:
    """Among the others. Whoever fails says so before it leaves: they learn why they are alone."""
    from edgekd.distill import parallel

    try:
        parallel.join()
        yield
    except BaseException as error:
        _outlast_torchrun()
        reason = _lost_before(error) or error
        stopped = isinstance(reason, KeyboardInterrupt)
        known = reason.exit_code if isinstance(reason, EdgekdError) else StageError.exit_code
        _first(reason, Interrupted.exit_code if stopped else known)
        if reason is not error:
            raise reason from None
        raise
    finally:
        parallel.leave()


def _outlast_torchrun() -> None:
    """It ends all processes when one has failed: not before this one has said why."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, signal.SIG_IGN)


def _lost_before(error: BaseException | None) -> BaseException | None:
    """That another process was lost, where torchrun interrupted what this one did about it."""
    from edgekd.distill.parallel import Lost

    if not isinstance(error, KeyboardInterrupt | Interrupted):
        return None
    while error is not None and not isinstance(error, Lost):
        error = error.__context__
    return error


def told(error: BaseException, code: int) -> tuple[int, str | None]:
    """What this process, which failed, is to end with and to say. None: its error; "": nothing.

    A mistake that all of them find is said by the first one, and so is why the others had to stop.
    """
    from edgekd.distill.parallel import Lost

    _outlast_torchrun()
    first = _first(error, code)
    if first is None or first.rank == _rank():
        return code, None
    if isinstance(error, Lost):
        time.sleep(1)  # it is just saying why
        who = f"process {_rank()} stops, as process {first.rank} did"
        return first.code, f"error: {who}: see its message, here or in its log"
    # Who is interrupted after another has failed, was by torchrun.
    if first.text == str(error) or code == Interrupted.exit_code:
        return first.code, ""
    return code, None


def _first(error: BaseException, code: int) -> Failure | None:
    from edgekd.distill.parallel import Failure, first_failure

    return first_failure(Failure(_rank(), code, str(error)))


def _rank() -> int:
    return int(os.environ.get("RANK", "0"))
