"""What processes that torchrun started tell each other, and what is refused among them.

Real ones are in tests/distill/test_parallel.py.
"""

import datetime
import signal

import pytest
from torch import distributed

from edgekd.cli.line import resolve
from edgekd.distill import parallel
from edgekd.errors import Interrupted, StageError, UsageError
from edgekd.pipeline import together
from edgekd.pipeline.line import run_line
from edgekd.progress import Silent


@pytest.fixture
def torchrun(monkeypatch):
    """The place where its processes meet, and what it gives them; call it to be one of them."""
    store = distributed.TCPStore(
        "localhost", 0, is_master=True, timeout=datetime.timedelta(seconds=10)
    )
    given = {
        "WORLD_SIZE": 2, "MASTER_ADDR": "localhost", "MASTER_PORT": store.port,
        "TORCHELASTIC_USE_AGENT_STORE": True, "TORCHELASTIC_RESTART_COUNT": 0,
    }  # fmt: skip
    for name, value in given.items():
        monkeypatch.setenv(name, str(value))
    # Of the process that is about to end; not of the one that runs the tests.
    monkeypatch.setattr(together.signal, "signal", lambda number, handler: None)
    yield lambda rank: monkeypatch.setenv("RANK", str(rank))
    del store


def test_the_first_that_fails_says_why_and_the_others_end_as_it_did(torchrun):
    mistake = UsageError("no such key")
    torchrun(1)
    assert together.told(mistake, 2) == (2, None)
    assert together.told(mistake, 2) == (2, None)
    torchrun(0)
    assert together.told(UsageError("no such key"), 2) == (2, "")
    # torchrun ends the others.
    assert together.told(Interrupted("stopped in stage distill"), 130) == (2, "")
    # Something else is not hidden.
    assert together.told(StageError("disk full"), 3) == (3, None)
    code, text = together.told(parallel.Lost("gone"), 3)
    assert code == 2
    assert text == "error: process 0 stops, as process 1 did: see its message, here or in its log"


def test_a_process_that_was_killed_said_nothing_and_another_does(torchrun, monkeypatch):
    torchrun(0)
    assert together.told(parallel.Lost("gone"), 3) == (3, None)
    # Started again by torchrun (--max-restarts), with the same store.
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    torchrun(1)
    assert together.told(UsageError("no such key"), 2) == (2, None)


@pytest.mark.parametrize("interrupted", [False, True])
def test_whom_torchrun_ends_while_it_says_that_another_is_lost_says_so_all_the_same(
    torchrun, monkeypatch, interrupted
):
    ignored = []
    monkeypatch.setattr(together.signal, "signal", lambda *given: ignored.append(given))
    monkeypatch.setattr(parallel, "join", lambda: None)
    torchrun(0)
    with pytest.raises(parallel.Lost, match="gone") as caught, together.leading():
        try:
            raise parallel.Lost("gone")
        finally:
            if interrupted:
                try:
                    raise KeyboardInterrupt
                except KeyboardInterrupt:
                    raise Interrupted("stopped in stage distill") from None
    assert ignored == [(signal.SIGTERM, signal.SIG_IGN)]
    assert together.told(caught.value, 3) == (3, None)


def test_where_nobody_can_be_asked_everyone_says_its_own(monkeypatch):
    monkeypatch.setattr(together.signal, "signal", lambda number, handler: None)
    monkeypatch.delenv("TORCHELASTIC_USE_AGENT_STORE", raising=False)
    assert together.told(UsageError("no such key"), 2) == (2, None)


@pytest.mark.parametrize(
    ("override", "key"),
    [("distill.methods=[kd, crd]", "distill.methods.1.crd"), ("student=auto", "student.model")],
)
@pytest.mark.parametrize("rank", [0, 1])
def test_what_one_process_alone_can_do_is_refused_before_anything_is_trained(
    torchrun, tmp_path, override, key, rank
):
    torchrun(rank)
    config, base, _ = resolve(None, "digits", (override,), None)
    with pytest.raises(UsageError) as refused:
        run_line(config, base=base, out=tmp_path / "run", progress=Silent())
    assert refused.value.where == key
    assert not (tmp_path / "run").exists()


def test_training_that_the_others_do_not_help_with_is_that_of_one_process(torchrun, monkeypatch):
    # As where a student is trained in INT8, in stage quantize.
    said = []
    monkeypatch.setattr(parallel, "told", said.append)
    monkeypatch.setattr(distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(distributed, "get_world_size", lambda: 2)
    torchrun(0)
    with together.helped("quantize"):
        assert parallel.count() == 1
    assert not said
    with together.helped("distill"):
        assert parallel.count() == 2
    assert said == ["distill"]
