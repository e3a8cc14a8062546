"""Which packages this interpreter can really import, and in which version."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

_IMPORT = "import sys, importlib; print(importlib.import_module(sys.argv[1]).__version__)"


def packages(names: list[str]) -> dict[str, dict[str, Any]]:
    """`version` of each, or None and the `error`.

    Each is imported in a process of its own: a build for another CPU can end it by a signal.
    """
    return {name: _package(name) for name in names}


def _package(name: str) -> dict[str, Any]:
    environment = {**os.environ, "PYTHONSAFEPATH": "1"}
    try:
        done = subprocess.run(
            [sys.executable, "-c", _IMPORT, name], check=False,
            capture_output=True, text=True, errors="replace", env=environment, timeout=120,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return {"version": None, "error": "importing it takes more than two minutes"}
    if done.returncode == 0:
        return {"version": done.stdout.strip().partition("-")[0], "error": None}
    last = (done.stderr.strip().splitlines() or [f"ended by signal {-done.returncode}"])[-1]
    return {"version": None, "error": last[:300]}
