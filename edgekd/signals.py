"""Signals that can be handled after OpenVINO was used."""

from __future__ import annotations

import ctypes
import sys

_SS_DISABLE = 2


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
