"""How often `edgekd history changes` names a commit for nothing, and how often it finds the right one.

    python benchmarks/history_power.py [--series 300] [--write]

Simulated histories, of which the truth is known: latencies with noise of several kinds (scale
1.5 %), without a change and with one. Beside the rule that people use today:
the newest value is 5 % above the one before it.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import numpy as np

from edgekd.history.changepoints import FEWEST, LEVEL, change_points, shift
from edgekd.statistics import wilson

NOISE = 0.015
LENGTHS = (50, 100)
SHIFTS = (0.01, 0.02, 0.03, 0.05, 0.1)
# How far from the right commit still counts as found.
NEAR = 2
_BEFORE, _AFTER = 40, 20
Noise = Callable[[np.random.Generator, int], np.ndarray]


def main() -> None:
    """Simulate, and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--series", type=int, default=300, help="for each line of the tables")
    parser.add_argument("--write", action="store_true")
    options = parser.parse_args()
    text = tables(options.series)
    print(text)
    if options.write:
        path = Path(__file__).parent / "results" / "history_power.md"
        path.write_text(text, encoding="utf-8")


def tables(count: int) -> str:
    """The results as Markdown."""
    return "\n".join(
        [
            "# Change points in the history: false alarms and misses",
            "",
            f"`python benchmarks/history_power.py --series {count} --write`",
            "",
            "Shares of simulated series with their 95 % Wilson intervals, in per cent. Scale of the noise: "
            f"{100 * NOISE:g} %. Level of the permutation test: {LEVEL:g}.",
            "",
            "## Nothing changed",
            "",
            "*at the end*: a change point is in the whole series. *ever*: one was reported at any time, "
            f"looking after every run from the {FEWEST}th on. *naive*: any value 5 % above the one "
            "before it.",
            "",
            "| noise | runs | at the end | ever | naive |",
            "|---|---|---|---|---|",
            *(false_alarms(name, n, 2 * count, count // 3) for name in NOISES for n in LENGTHS),
            "",
            "## One change",
            "",
            f"Anywhere with 10 runs or more on either side. *found*: within {NEAR} runs of the true place. "
            "*too many*: more than one change point. *covered*: the interval of the size, where found, has "
            "the true size in it.",
            "",
            "| noise | change | runs | found | too many | covered |",
            "|---|---|---|---|---|---|",
            *(found("normal", size, n, count) for size in SHIFTS for n in LENGTHS),
            *(found(name, 0.05, LENGTHS[0], count) for name in NOISES if name != "normal"),
            "",
            "## How soon",
            "",
            f"Runs at the new level until the change is reported, after {_BEFORE} at the old one; the "
            f"90th percentile and the share reported within {_AFTER}.",
            "",
            "| noise | change | median | p90 | reported |",
            "|---|---|---|---|---|",
            *(delay("normal", size, count // 3) for size in SHIFTS[2:]),
            "",
        ]
    )


def false_alarms(name: str, length: int, count: int, looked_at: int) -> str:
    """A line of the first table; only `looked_at` of the `count` series are looked at again and again."""
    random = np.random.default_rng(0)
    end, ever, naive = [], [], []
    for i in range(count):
        values = np.exp(NOISES[name](random, length))
        end.append(bool(change_points(values)))
        naive.append(bool((values[1:] > 1.05 * values[:-1]).any()))
        if i < looked_at:
            looks = range(FEWEST, length)
            ever.append(end[-1] or any(change_points(values[:n]) for n in looks))
    return f"| {name} | {length} | {share(end)} | {share(ever)} | {share(naive)} |"


def found(name: str, size: float, length: int, count: int) -> str:
    """A line of the second table."""
    random = np.random.default_rng(1)
    near, many, covered = [], [], []
    for _ in range(count):
        cut = int(random.integers(10, length - 9))
        values = np.exp(NOISES[name](random, length))
        values[cut:] *= 1 + size
        places = [place for place, _ in change_points(values)]
        near.append(any(abs(place - cut) <= NEAR for place in places))
        many.append(len(places) > 1)
        if near[-1] and not many[-1]:
            low, high = shift(values[: places[0]], values[places[0] :], relative=True).interval
            covered.append(low <= 1 + size <= high)
    shares = " | ".join(share(values) for values in (near, many, covered))
    return f"| {name} | {size:.0%} | {length} | {shares} |"


def delay(name: str, size: float, count: int) -> str:
    """A line of the third table."""
    random = np.random.default_rng(2)
    delays = []
    for _ in range(count):
        values = np.exp(NOISES[name](random, _BEFORE + _AFTER))
        values[_BEFORE:] *= 1 + size
        soon = (n for n in range(1, _AFTER + 1) if _near(values[: _BEFORE + n]))
        delays.append(next(soon, np.inf))
    median, p90 = (
        f"{q:.0f}" if np.isfinite(q) else f"> {_AFTER}"
        for q in np.quantile(delays, [0.5, 0.9], method="higher")
    )
    return f"| {name} | {size:.0%} | {median} | {p90} | {share([d <= _AFTER for d in delays])} |"


def _near(values: np.ndarray) -> bool:
    return any(abs(place - _BEFORE) <= NEAR for place, _ in change_points(values))


def share(values: list[bool]) -> str:
    """ "4.2 [3.4, 5.1]" in per cent."""
    if not values:
        return "–"
    low, high = wilson(sum(values), len(values))
    return f"{100 * sum(values) / len(values):.1f} [{100 * low:.1f}, {100 * high:.1f}]"


def _normal(random: np.random.Generator, n: int) -> np.ndarray:
    return NOISE * random.normal(size=n)


def _heavy(random: np.random.Generator, n: int) -> np.ndarray:
    return NOISE * random.standard_t(2, size=n)


def _outliers(random: np.random.Generator, n: int) -> np.ndarray:
    slow = random.random(n) < 0.1
    return NOISE * random.normal(size=n) + slow * random.uniform(0.1, 0.7, size=n)


def _two_modes(random: np.random.Generator, n: int) -> np.ndarray:
    return NOISE * (random.choice([-1.0, 1.0], size=n) + 0.2 * random.normal(size=n))


def _correlated(random: np.random.Generator, n: int) -> np.ndarray:
    """Each run remembers 30 % of the one before it: a permutation test does not expect that."""
    values = np.empty(n)
    values[0] = random.normal()
    for i in range(1, n):
        values[i] = 0.3 * values[i - 1] + np.sqrt(1 - 0.3**2) * random.normal()
    return NOISE * values


NOISES: dict[str, Noise] = {
    "normal": _normal,
    "heavy tails (t, 2 degrees)": _heavy,
    "10 % of runs 10–70 % slower": _outliers,
    "two modes": _two_modes,
    "autocorrelated (0.3)": _correlated,
}


if __name__ == "__main__":
    main()
