"""Ctrl-C and SIGTERM: neither is lost, also after OpenVINO was used."""

from __future__ import annotations

import contextlib
import ctypes
import signal
import sys
import threading
from collections.abc import Iterator
from types import FrameType

_SS_DISABLE = 2
_told_to_end = threading.Event()


class _Stack(ctypes.Structure):
    """stack_t of Linux."""

    _fields_ = (("sp", ctypes.c_void_p), ("flags", ctypes.c_int), ("size", ctypes.c_size_t))


def forget_alternate_stack() -> None:
    """Let signals of this thread, the main one, be handled on its own stack again.

    Every `Core` of OpenVINO with a CPU plugin (2026.4) gives its thread a stack for signals, and takes it
    away at its end: two that end in the order they were made leave the thread with one that is unmapped,
    and the next Ctrl-C kills the process without a word, whatever Python would have done.
    """
    if sys.platform == "linux":
        libc = ctypes.CDLL(None, use_errno=True)
        libc.sigaltstack(ctypes.byref(_Stack(None, _SS_DISABLE, 0)), None)


@contextlib.contextmanager
def terminable() -> Iterator[None]:
    """Treat SIGTERM, which schedulers send, like Ctrl-C; the end raises KeyboardInterrupt that was lost.

    Python drops an exception that a signal raises in a destructor, or in a callback of the collector.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    forget_alternate_stack()
    _told_to_end.clear()
    before = {signal.SIGTERM: signal.signal(signal.SIGTERM, _end)}
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        before[signal.SIGINT] = signal.signal(signal.SIGINT, _end)
    try:
        yield
        if told_to_end():
            raise KeyboardInterrupt
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        _told_to_end.clear()


def told_to_end() -> bool:
    """Whether a signal came in what is `terminable`, and went on all the same."""
    return _told_to_end.is_set()


def _end(number: int, frame: FrameType | None) -> None:
    _told_to_end.set()
    raise KeyboardInterrupt
