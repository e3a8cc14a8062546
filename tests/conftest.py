"""What every test shares: pinned threads, reproducible properties, the folder of real data sets."""

import operator
import os
import random
import signal
import sys
from pathlib import Path

# Before anything imports torch or numpy: tests run side by side, and results depend on threads.
for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ.setdefault(name, "1")

import pytest
from hypothesis import HealthCheck, settings

from edgekd.signals import forget_alternate_stack

# Whatever PYTHONDONTWRITEBYTECODE says: hundreds of processes import the files that collecting imports.
WRITES_NO_BYTECODE, sys.dont_write_bytecode = sys.dont_write_bytecode, False

pytest_plugins = ["tests.exported_models", "tests.profile.ssh_device"]

# The same examples in every run; HYPOTHESIS_PROFILE=explore looks for new ones.
QUIET = (HealthCheck.too_slow,)
settings.register_profile("repeat", deadline=None, derandomize=True, suppress_health_check=QUIET)
settings.register_profile("explore", deadline=None, max_examples=1000, suppress_health_check=QUIET)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "repeat"))


# A shell that starts the tests in the background makes them ignore Ctrl-C, which some of them press.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


# The longest first, by seconds of the fast or the slow tests in them: a worker takes whole files, and one
# that begins with a long file last is left alone with it. On a new machine test_qat waits for a compiler too.
LONGEST = (
    "packaging/test_readme.py", "pipeline/test_line.py", "search/test_search.py", "cli/test_cli.py",
    "quantize/test_qat.py", "e2e/test_aarch64.py", "e2e/test_mnist.py", "text/test_example.py",
    "export/test_formats.py", "profile/test_bundle.py", "profile/test_ssh.py", "profile/test_adb.py",
    "distill/test_parallel.py", "models/test_prune_heads.py", "profile/test_device.py",
    "quantize/test_stage.py", "models/test_unet.py", "teachers/test_mlserver.py",
    "imitation/test_transformers_serve.py", "series/test_ts.py", "search/test_ray.py",
    "tasks/test_regression_run.py", "quantize/test_backend.py", "profile/test_costs.py",
    "quantize/test_fake_quantize.py", "profile/test_browser.py", "profile/test_operators.py",
    "data/test_audio.py", "history/test_record.py", "export/test_matrix.py", "teachers/test_oip.py",
    "gate/test_command.py", "text/test_files.py",
)  # fmt: skip


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest files first; collecting is over.

    Raises UsageError for a slow test that `run.sh` would not find, and for a long file that is gone.
    """
    for name in ("slow", "timing"):
        for path in {item.path for item in items if item.get_closest_marker(name)}:
            if f"pytest.mark.{name}" not in path.read_text(encoding="utf-8"):
                raise pytest.UsageError(f"{path}: run.sh looks for `pytest.mark.{name}` in it")
    rank = {Path(__file__).parent / name: place for place, name in enumerate(LONGEST)}
    if gone := [str(path) for path in rank if not path.exists()]:
        raise pytest.UsageError(f"LONGEST names {', '.join(gone)}")
    items.sort(key=lambda item: rank.get(item.path, len(rank)))
    # Tests write modules of their own, some of them twice in a second.
    sys.dont_write_bytecode = WRITES_NO_BYTECODE


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Whatever ran before in this process, a test draws the same numbers, and a timeout's signal is heard."""
    forget_alternate_stack()
    random.seed(0)
    for module, seed in (("numpy", "random.seed"), ("torch", "manual_seed")):
        if module in sys.modules:
            operator.attrgetter(seed)(sys.modules[module])(0)


@pytest.fixture(scope="session")
def edgekd_data() -> Path:
    """The folder in EDGEKD_DATA, with `mnist/` (the four IDX files); tests skip without it."""
    folder = os.environ.get("EDGEKD_DATA")
    if not folder:
        pytest.skip("EDGEKD_DATA is not set")
    path = Path(folder).resolve()
    assert path.is_dir(), f"EDGEKD_DATA={folder} is not a folder"
    return path
