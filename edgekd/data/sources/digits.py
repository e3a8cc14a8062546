"""`digits`: 1797 handwritten digits of 8×8 grey levels 0–16, bundled in scikit-learn (UCI, Alpaydin 1998)."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from edgekd.config.schema import Data
from edgekd.data.source import Samples, content_hash, source
from edgekd.errors import UsageError


@source("digits")
class Digits:
    """Embedded: no location, no download."""

    def fingerprint(self, location: Path | None) -> str:
        """Hash of scikit-learn's data file."""
        if location is not None:
            raise UsageError("digits takes no path", where="data.source")
        return content_hash(_file())

    def load(self, location: Path | None, config: Data) -> Samples:
        """All of it, as (1797, 1, 8, 8) uint8."""
        import numpy as np

        rows = np.loadtxt(_file(), delimiter=",", dtype=np.int64)
        return Samples(
            inputs=rows[:, :-1].astype(np.uint8).reshape(-1, 1, 8, 8),
            labels=rows[:, -1].copy(),
            classes=tuple(map(str, range(10))),
            scale=16.0,
        )


def _file() -> Path:
    """The digits of scikit-learn, whose import would take a second."""
    spec = importlib.util.find_spec("sklearn")
    if spec is None or not spec.submodule_search_locations:
        raise UsageError("scikit-learn is not installed", where="data.source")
    return Path(spec.submodule_search_locations[0]) / "datasets/data/digits.csv.gz"
