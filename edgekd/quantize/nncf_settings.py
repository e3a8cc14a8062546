"""What edgekd tells NNCF: ranges by the recipe's word for them, silence, and its errors in one line."""

from __future__ import annotations

import contextlib
import logging
import os
import warnings
from collections.abc import Iterator
from typing import Any

from edgekd.quantize.recipes import Recipe


def ranges(recipe: Recipe) -> Any:
    """NNCF's range estimator for a recipe's `range`; min-max for one that NNCF does not know."""
    from nncf.quantization.range_estimator import AggregatorType, StatisticsType
    from nncf.quantization.range_estimator import RangeEstimatorParameters as Parameters
    from nncf.quantization.range_estimator import RangeEstimatorParametersSet as Ranges
    from nncf.quantization.range_estimator import StatisticsCollectorParameters as Collector

    if recipe.range == "percentile":
        end = Collector(
            statistics_type=StatisticsType.QUANTILE,
            aggregator_type=AggregatorType.MEAN,
            quantile_outlier_prob=1 - recipe.percentile / 100,
        )
        return Parameters(min=end, max=end)
    known = {"mean-min-max": Ranges.MEAN_MINMAX, "mse": Ranges.HISTOGRAM}
    return known.get(recipe.range, Ranges.MINMAX)


def reason(error: BaseException) -> str:
    """The error in one line."""
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[0][:300]}"


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """NNCF without its progress bars, logs and telemetry."""
    before = os.environ.get("NNCF_CI")
    os.environ["NNCF_CI"] = "1"
    try:
        with (
            warnings.catch_warnings(),
            open(os.devnull, "w") as nowhere,
            contextlib.redirect_stdout(nowhere),
            contextlib.redirect_stderr(nowhere),
        ):
            warnings.simplefilter("ignore")
            logging.getLogger("nncf").setLevel(logging.CRITICAL)
            yield
    finally:
        if before is None:
            del os.environ["NNCF_CI"]
        else:
            os.environ["NNCF_CI"] = before
