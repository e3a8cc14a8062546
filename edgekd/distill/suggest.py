"""What a student is distilled by where the configuration leaves it open: `distill.methods: auto`.

By experiment for many classes (`benchmarks/results/cifar_table.md`, a short schedule) and for few
(`benchmarks/results/digits.md`); for other tasks what their examples do well with.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgekd.distill.method import METHODS, Method
from edgekd.tasks.task import CLASSIFICATION

if TYPE_CHECKING:
    from edgekd.data.resolve import Dataset

# From so many classes on, how they go together says more than a soft target at T = 4.
MANY_CLASSES = 20


def suggested(dataset: Dataset) -> tuple[float, tuple[Method, ...]]:
    """`distill.alpha`, the weight of the labels, and the methods beside them."""
    task = dataset.task.partition(":")[0]
    if task in ("regression", "quantile"):
        return 0.3, (METHODS.get("mse")(weight=0.7),)
    if task == "segmentation":
        kd = METHODS.get("kd").model_validate({"temperature": 2.0, "weight": 0.5})
        return 0.5, (kd, METHODS.get("cwd")(weight=1.0))
    assert task == CLASSIFICATION
    method = METHODS.get("dist" if len(dataset.classes) >= MANY_CLASSES else "kd")()
    return method.labels_weight, (method,)
