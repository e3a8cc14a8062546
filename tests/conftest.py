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

pytest_plugins = ["tests.exported_models", "tests.profile.ssh_device"]

# The same examples in every run; HYPOTHESIS_PROFILE=explore looks for new ones.
QUIET = (HealthCheck.too_slow,)
settings.register_profile("repeat", deadline=None, derandomize=True, suppress_health_check=QUIET)
settings.register_profile("explore", deadline=None, max_examples=1000, suppress_health_check=QUIET)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "repeat"))


# A shell that starts the tests in the background makes them ignore Ctrl-C, which some of them press.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


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
