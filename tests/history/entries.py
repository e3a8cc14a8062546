"""Histories as gates would have written them."""

import datetime
import hashlib

from edgekd.history.entry import Entry

START = datetime.datetime(2026, 1, 1, 12, tzinfo=datetime.UTC)
HOSTILE = "<script>alert(1)</script>&\"'"
FIELDS = {
    "time": START, "run": "digits", "commit": "0" * 40, "dirty": False, "branch": "main",
    "config": "c" * 64, "artifact": "a" * 64, "target": "local", "device": "A CPU, x86_64, 2 cores",
    "runtime": "onnxruntime", "runtime_version": "1.31.1", "precision": "f32", "threads": 1,
    "batch_size": 1, "variant": "f32", "metric": "latency_p50", "label": None, "value": 0.002,
    "interval": (0.0019, 0.0021), "provenance": "measured", "noisy": False, "limit": None,
    "verdict": None, "edgekd": "0.1.0",
}  # fmt: skip


def entry(day=0, **changes):
    """An entry, measured `day` days after the first."""
    time = START + datetime.timedelta(days=day)
    return Entry.model_validate({**FIELDS, "time": time, **changes})


def commit(day):
    """The commit that was measured on that day."""
    return hashlib.sha1(str(day).encode()).hexdigest()


def days(values, **changes):
    """One measurement a day, of a commit each; intervals of ±2 %."""
    return [
        entry(
            day,
            value=float(value),
            interval=(float(value) * 0.98, float(value) * 1.02),
            **{"commit": commit(day), **changes},
        )
        for day, value in enumerate(values)
    ]
