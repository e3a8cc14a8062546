"""Ctrl-C and SIGTERM are heard although OpenVINO was used before."""

import signal
import subprocess
import sys

import pytest

# Two cores that end in the order they were made: what the next signal is handled on is gone.
AFTER_OPENVINO = """
import openvino, signal
first, second = openvino.Core(), openvino.Core()
first.get_versions("CPU"), second.get_versions("CPU")
del first
del second
"""
TOLD_TO_END = """
from edgekd.signals import terminable
try:
    with terminable():
        signal.raise_signal(signal.SIGTERM)
except KeyboardInterrupt:
    print("heard")
"""
# What is raised in a destructor is lost.
LOST = """
import signal
class Deaf:
    def __del__(self):
        signal.raise_signal(signal.SIGINT)
"""
LOST_AT_FIRST = (
    LOST
    + """
from edgekd.signals import terminable
try:
    with terminable():
        Deaf()
        print("went on")
except KeyboardInterrupt:
    print("heard")
"""
)
LOST_BEFORE_A_TRAINING = (
    LOST
    + """
from edgekd.distill.trainer import _stop_signals
from edgekd.signals import terminable
try:
    with terminable():
        Deaf()
        with _stop_signals() as stop:
            print("heard" if stop.is_set() else "not heard")
except KeyboardInterrupt:
    pass
"""
)
STOPPED_IN_A_TRAINING = """
from edgekd.distill.trainer import _stop_signals
with _stop_signals() as stop:
    signal.raise_signal(signal.SIGINT)
    print("heard" if stop.is_set() else "not heard")
"""


def run(program):
    return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)


@pytest.mark.parametrize("program", [TOLD_TO_END, STOPPED_IN_A_TRAINING])
def test_a_signal_after_openvino_is_heard(program):
    done = run(AFTER_OPENVINO + program)
    assert (done.returncode, done.stdout) == (0, "heard\n"), done.stderr


def test_an_interrupt_that_python_drops_is_heard_later():
    done = run(LOST_AT_FIRST)
    assert (done.returncode, done.stdout) == (0, "went on\nheard\n"), done.stderr
    done = run(LOST_BEFORE_A_TRAINING)
    assert (done.returncode, done.stdout) == (0, "heard\n"), done.stderr


def test_it_would_have_been_fatal():
    """If this fails, OpenVINO has mended it, and edgekd/signals.py can go."""
    program = "signal.signal(signal.SIGINT, print); signal.raise_signal(signal.SIGINT)"
    assert run(AFTER_OPENVINO + program).returncode == -signal.SIGSEGV
