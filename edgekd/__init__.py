"""edgekd: distill, export, verify, profile and gate compact models for small devices.

>>> import edgekd
>>> run = edgekd.compress({"data": {"source": "digits"}})  # doctest: +SKIP
>>> run.gate.verdict, run.path / "report.html"  # doctest: +SKIP
"""

from __future__ import annotations

import os
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from edgekd.api import (
        compress,
        distill,
        export,
        gate,
        profile,
        quantize,
        report,
        search,
        verify,
    )

__version__ = "0.1.0"
__all__ = [
    "__version__",
    "compress",
    "distill",
    "export",
    "gate",
    "profile",
    "quantize",
    "report",
    "search",
    "verify",
]


# Nobody is told what is converted, run or quantized here. OpenVINO's telemetry also forks the process for
# every report, threads and locks and all: children that hang keep our pipes open. ONNX Runtime's is a
# thread and a data base beside what is measured. Whoever wants one, asks for it before edgekd.
if "openvino_telemetry" not in sys.modules:
    sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")


def __getattr__(name: str) -> Any:
    # `import edgekd` stays instant; the API and what it needs come with its first use.
    if name in __all__:
        from edgekd import api

        return getattr(api, name)
    raise AttributeError(f"module 'edgekd' has no attribute {name!r}")


class _Package(ModuleType):
    """Rooms are called like the functions (`edgekd/gate/`, `edgekd.gate()`): attributes are functions.

    The import system sets a sub-package as attribute when it is loaded, which would hide the
    function; `from edgekd.gate.budget import …` does not need that attribute
    (`import edgekd.gate.budget as …` does: use the former).
    """

    def __setattr__(self, name: str, value: Any) -> None:
        if not (name in __all__ and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
