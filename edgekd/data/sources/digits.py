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
        """Hash of scikit-learn's data file, found without importing scikit-learn."""
        if location is not None:
            raise UsageError("digits takes no path", where="data.source")
        spec = importlib.util.find_spec("sklearn")
        if spec is None or not spec.submodule_search_locations:
            raise UsageError("scikit-learn is not installed", where="data.source")
        return content_hash(
            Path(spec.submodule_search_locations[0]) / "datasets/data/digits.csv.gz"
        )

    def load(self, location: Path | None, config: Data) -> Samples:
        """All of it, as (1797, 1, 8, 8) uint8."""
        import numpy as np
        from sklearn.datasets import load_digits

        bunch = load_digits()
        return Samples(
            inputs=bunch.images.astype(np.uint8)[:, None],
            labels=bunch.target.astype(np.int64),
            classes=tuple(map(str, bunch.target_names)),
            scale=16.0,
        )
