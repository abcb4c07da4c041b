"""How often the interval of a growth holds the true one, by simulation.

Leaks of known rates are added to the counts of servers that open and close descriptors, and judged with the rule.
``steady`` leaks one descriptor after the other at equal times, ``random`` one at a time at random times, and ``calls``
32 at a time at random times.  A leak of which nothing has come yet leaves no trace, so such watches are not counted.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import product

import numpy as np
import pandas as pd

from .floors import Floors
from .rule import current
from .series import Samples

CALL = 32  # descriptors that a call leaks
LARGEST_CALL = 256  # descriptors that a call opens, at most
LIFE = 300  # seconds that a descriptor is kept

Counts = Callable[[np.random.Generator, int], np.ndarray]


def _quiet(rng: np.random.Generator, samples: int) -> np.ndarray:
    return np.zeros(samples)


def _calls(rng: np.random.Generator, samples: int) -> np.ndarray:
    """Calls that open and close: in half of the samples any number is open."""
    return np.where(rng.random(samples) < 0.5, 0, rng.integers(0, LARGEST_CALL + 1, samples))


def _busy(rng: np.random.Generator, samples: int) -> np.ndarray:
    """Calls without a pause: any number is open in each sample."""
    return rng.integers(0, LARGEST_CALL + 1, samples).astype(float)


def _load(rng: np.random.Generator, samples: int) -> np.ndarray:
    """A load that changes slowly: counts around 100, each near the one before."""
    counts = [0.0]
    for push in rng.normal(0, 20, samples):
        counts.append(0.8 * counts[-1] + push)
    return np.round(100 + np.array(counts[1:]))


def _kept(rng: np.random.Generator, samples: int) -> np.ndarray:
    """Descriptors that are kept for five minutes on average, about 20 at a time."""
    counts = [20]
    for _ in range(samples - 1):
        counts.append(counts[-1] - rng.binomial(counts[-1], 1 / LIFE) + rng.poisson(20 / LIFE))
    return np.array(counts, float)


NOISE: dict[str, Counts] = {"none": _quiet, "calls": _calls, "busy": _busy, "slow load": _load, "kept": _kept}
LEAKS: dict[str, Callable[[np.random.Generator, int, float], np.ndarray]] = {
    "steady": lambda rng, samples, each: np.floor(each * np.arange(samples) + rng.random()),
    "random": lambda rng, samples, each: rng.poisson(each, samples).cumsum().astype(float),
    "calls": lambda rng, samples, each: CALL * rng.poisson(each / CALL, samples).cumsum().astype(float),
}


def coverage(
    rates: Sequence[float] = (0, 12, 120),
    noises: Sequence[str] = tuple(NOISE),
    leaks: Sequence[str] = ("random",),
    minutes: Sequence[float] = (1, 5),
    watches: int = 40,
) -> pd.DataFrame:
    """Judge simulated watches with a sample each second.

    Parameters
    ----------
    rates : sequence of float
        Descriptors that leak per minute.
    noises, leaks : sequence of str
        Of ``NOISE`` and ``LEAKS``.
    minutes : sequence of float
        How long each watch is.
    watches : int
        Simulated watches of each row; those in which nothing leaked yet do not count.

    Returns
    -------
    pandas.DataFrame
        ``noise``, ``leak``, ``rate``, ``minutes``, ``watches``, ``held`` (how many intervals hold the rate), ``share``
        (of them), ``above_0`` (how many intervals are above zero) and ``width`` (their median, per minute).
    """
    rows = []
    for noise, leak, rate, long in product(noises, leaks, rates, minutes):
        found = [_watch(noise, leak, rate, int(60 * long), seed) for seed in range(watches)]
        kept = np.array([interval for interval in found if interval is not None]).reshape(-1, 2)
        held = int(((kept[:, 0] <= rate) & (rate <= kept[:, 1])).sum())
        share = held / len(kept) if len(kept) else np.nan
        width = round(float(np.median(kept[:, 1] - kept[:, 0])), 1) if len(kept) else np.nan
        rows.append((noise, leak, rate, long, len(kept), held, share, int((kept[:, 0] > 0).sum()), width))
    columns = ["noise", "leak", "rate", "minutes", "watches", "held", "share", "above_0", "width"]
    return pd.DataFrame(rows, columns=columns)


def _watch(noise: str, leak: str, rate: float, seconds: int, seed: int) -> tuple[float, float] | None:
    """Return the interval after a simulated watch; None when nothing of its leak has come."""
    rng = np.random.default_rng(seed)
    leaked = LEAKS[leak](rng, seconds, rate / 60)
    if rate and leaked[-1] == leaked[0]:
        return None
    samples = Samples()
    for second, count in enumerate(NOISE[noise](rng, seconds) + leaked):
        samples.add(second, [count])
    found = Floors(current([view.column(0) for view in samples.views()])).growth()
    return found.low - 1e-9, found.high + 1e-9
