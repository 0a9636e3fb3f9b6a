"""How often the 95 % intervals of spkexp.scoring.statistics hold the truth, and how often a difference is found where
there is none, on synthetic lists whose truth is known.

    python benchmarks/coverage.py [--lists 1000] [--replicates 200] [--studies "one system" …] [--output FILE]

Scores are natural-log likelihood ratios ±s²/2 + s·noise, so that every metric has a closed form: the EER is Φ(-s/2).
The noise of a target has a part of its speaker (25 % of the variance); that of a non-target parts of both speakers
(20 %), of the pair (10 %) and of the trial. A speaker's two parts are correlated (0.3). Two systems on the same trials,
or two seeds of one, share 70 % of every part; the s of a seed is 0.1 about the configuration's.
"""

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from multiprocessing import Pool
from typing import Any

import numpy as np
from common import parser, write
from numpy.typing import NDArray
from scipy.stats import norm

from spkexp.scoring.measures import Measures
from spkexp.scoring.resampling import Draws, Resamples, SpeakerBootstrap, resample
from spkexp.scoring.statistics import combine_seeds, difference, interval

P_TARGETS = (0.01, 0.05, 0.5)
OF_TARGET_SPEAKER, OF_SPEAKERS, OF_PAIR, CORRELATION = 0.25, 0.2, 0.1, 0.3
SHARED = 0.7
SEED_DEVIATION = 0.1
FIRST = 20_000  # list; the constants of spkexp.scoring.statistics were chosen on lists of lower numbers
COMPARED = ("eer", "min_dcf.0.01", "min_dcf.0.05", "cllr")  # with differences and seeds
KEYS = (*COMPARED, "min_dcf.0.5", "auc", "act_dcf.0.01", "act_dcf.0.05", "rocch_eer", "min_cllr")
Array = NDArray[np.float64]


@dataclass(frozen=True)
class Design:
    """Who is tried against whom. pairs: non-target trials of each pair; 0: 20 a speaker with chance partners."""

    speakers: int
    targets: int  # trials a speaker
    pairs: int
    eer: float


DESIGNS = (
    Design(10, 50, 10, 0.05),
    Design(20, 50, 10, 0.05),
    Design(40, 50, 5, 0.05),
    Design(40, 50, 0, 0.05),
    Design(100, 40, 2, 0.03),
    Design(100, 40, 0, 0.05),
    Design(400, 20, 0, 0.05),
    # Hard ones: the minDCF(0.01) is 0.80, 0.94, 0.99 and 0.999.
    Design(20, 50, 20, 0.10),
    Design(20, 50, 50, 0.15),
    Design(40, 50, 5, 0.20),
    Design(20, 20, 50, 0.25),
)


def separation(eer: float) -> float:
    return float(-2 * norm.ppf(eer))


@cache
def truth(s: float) -> dict[str, float]:
    """Every metric of unlimited trials with the separation s. Ratios are calibrated: minCllr is Cllr, and so on."""
    found = {"eer": norm.cdf(-s / 2), "rocch_eer": norm.cdf(-s / 2), "auc": norm.cdf(s / np.sqrt(2))}
    for p in P_TARGETS:
        threshold = np.log((1 - p) / p)
        miss, false_alarm = norm.cdf((threshold - s * s / 2) / s), norm.sf((threshold + s * s / 2) / s)
        found[f"min_dcf.{p}"] = found[f"act_dcf.{p}"] = (p * miss + (1 - p) * false_alarm) / min(p, 1 - p)
    x, step = np.linspace(-12, 12, 200_001, retstep=True)
    bits = np.logaddexp(0, -(s * s / 2 + s * x)) / np.log(2)
    found["cllr"] = found["min_cllr"] = (norm.pdf(x) * bits).sum() * step
    return {key: float(value) for key, value in found.items()}


@dataclass(frozen=True)
class Trials:
    enroll: NDArray[np.int64]
    test: NDArray[np.int64]
    target: NDArray[np.bool_]


def trials(rng: np.random.Generator, design: Design) -> Trials:
    S = design.speakers
    first, second = np.triu_indices(S, k=1)
    if not design.pairs:
        chosen = rng.choice(len(first), size=10 * S, replace=False)
        first, second = first[chosen], second[chosen]
    one = np.repeat(np.arange(S), design.targets)
    pairs = np.repeat(np.stack([first, second]), max(design.pairs, 1), axis=1)
    target = np.arange(len(one) + pairs.shape[1]) < len(one)
    return Trials(np.append(one, pairs[0]), np.append(one, pairs[1]), target)


def noise(rng: np.random.Generator, design: Design, trials: Trials) -> Array:
    """(N,) of variance 1, depending on the speakers."""
    S = design.speakers
    as_target = rng.normal(size=S)
    as_nontarget = CORRELATION * as_target + np.sqrt(1 - CORRELATION**2) * rng.normal(size=S)
    own = rng.normal(size=len(trials.target))
    pair = rng.normal(size=(S, S))[trials.enroll, trials.test]
    both = as_nontarget[trials.enroll] + as_nontarget[trials.test]
    of_target = np.sqrt(OF_TARGET_SPEAKER) * as_target[trials.enroll] + np.sqrt(1 - OF_TARGET_SPEAKER) * own
    rest = np.sqrt(1 - OF_SPEAKERS - OF_PAIR)
    of_nontarget = np.sqrt(OF_SPEAKERS / 2) * both + np.sqrt(OF_PAIR) * pair + rest * own
    return np.where(trials.target, of_target, of_nontarget)


def scores(s: float, noise: Array, trials: Trials) -> Array:
    return s * s / 2 * np.where(trials.target, 1, -1) + s * noise


Found = dict[str, list[bool | None]]  # for each metric and kind, whether it held the truth; None: no interval


def one_list(number: int, design: Design, replicates: int) -> Found:
    """Whether our interval, and the plain ones of the same bootstrap, hold the truth."""
    rng = np.random.default_rng([1, number, design.speakers])
    tried = trials(rng, design)
    s = separation(design.eer)
    measures = Measures(scores(s, noise(rng, design, tried), tried), tried.target, P_TARGETS, llr=True)
    bootstrap = SpeakerBootstrap(tried.enroll, tried.test, replicates, seed=number)
    draws = resample(measures, bootstrap, KEYS, threads=1)
    plain = plain_bootstrap(measures, bootstrap)
    found: Found = {}
    for key, value in zip(KEYS, measures.only(KEYS)(), strict=True):
        kinds = {"spkexp": interval(float(value), draws.of(key))}
        if key in plain:
            kinds |= plain_intervals(float(value), plain[key])
        for kind, bounds in kinds.items():
            found[f"{key} {kind}"] = [bounds and bool(bounds[0] <= truth(s)[key] <= bounds[1])]
    return found


def plain_bootstrap(measures: Measures, bootstrap: SpeakerBootstrap) -> dict[str, Array]:
    """Replicates of some metrics, minDCF with its best threshold each time."""
    some = measures.only(COMPARED)
    counts = bootstrap.counts(range(bootstrap.replicates))
    sides = (bootstrap.places(places).by_speakers(counts) for places in (some.targets, some.nontargets))
    return dict(zip(COMPARED, some.optimised(some.curve(*sides)).T, strict=True))


def plain_intervals(value: float, replicates: Array) -> dict[str, tuple[float, float]]:
    """Efron and Tibshirani 1993, ch. 12-14: what is usual, for comparison."""
    low, high = np.percentile(replicates, [2.5, 97.5])
    share = np.clip(((replicates < value).mean() + (replicates <= value).mean()) / 2, 1e-3, 1 - 1e-3)
    corrected = np.quantile(replicates, norm.cdf(2 * norm.ppf(share) + norm.ppf([0.025, 0.975])))
    step = 1.96 * replicates.std()
    return {
        "percentile": (low, high),
        "basic": (2 * value - high, 2 * value - low),
        "bias-corrected": (corrected[0], corrected[1]),
        "normal": (value - step, value + step),
    }


def systems(number: int, design: Design, replicates: int, s: list[float]) -> list[tuple[dict[str, float], Resamples]]:
    """Values and resamples of systems with the separations s on the same trials."""
    rng = np.random.default_rng([2, number, design.speakers])
    tried = trials(rng, design)
    common = noise(rng, design, tried)
    bootstrap = SpeakerBootstrap(tried.enroll, tried.test, replicates, seed=number)
    found = []
    for one in s:
        mixed = np.sqrt(SHARED) * common + np.sqrt(1 - SHARED) * noise(rng, design, tried)
        measures = Measures(scores(one, mixed, tried), tried.target, P_TARGETS, llr=True).only(COMPARED)
        values = dict(zip(COMPARED, measures().tolist(), strict=True))
        found.append((values, resample(measures, bootstrap, threads=1)))
    return found


def one_difference(number: int, design: Design, replicates: int) -> Found:
    """Of two systems as good as one another, and of one with 0.8 times the errors: whether the interval holds it, and
    whether p < 0.05 says that they differ."""
    s, better = separation(design.eer), separation(0.8 * design.eer)
    one, same, other = systems(number, design, replicates, [s, s, better])
    found: Found = {}
    for key in COMPARED:
        for name, against, gap in (("same", same, 0.0), ("better", other, truth(s)[key] - truth(better)[key])):
            result = difference(one[0][key], one[1].of(key), against[0][key], against[1].of(key))
            found[f"{key} {name}: held"] = [result and bool(result.low <= gap <= result.high)]
            found[f"{key} {name}: p < .05"] = [result and bool(result.p_value < 0.05)]
    return found


@cache
def mean_truth(s: float) -> dict[str, float]:
    """Metrics averaged over seeds, by Gauss-Hermite quadrature."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(9)
    each = [truth(s + SEED_DEVIATION * node) for node in nodes.tolist()]
    return {key: float(np.average([one[key] for one in each], weights=weights)) for key in COMPARED}


def three_seeds(number: int, design: Design, replicates: int) -> Found:
    return several_seeds(number, design, replicates, 3)


def five_seeds(number: int, design: Design, replicates: int) -> Found:
    return several_seeds(number, design, replicates, 5)


def several_seeds(number: int, design: Design, replicates: int, seeds: int) -> Found:
    """Of the mean over seeds, for new seeds and speakers; and of two configurations as good as one another."""
    rng = np.random.default_rng([3, number, design.speakers])
    s = separation(design.eer)
    runs = systems(number, design, replicates, (s + SEED_DEVIATION * rng.normal(size=2 * seeds)).tolist())
    found: Found = {}
    for key in COMPARED:
        groups: list[tuple[float, Draws]] = [
            combine_seeds([values[key] for values, _ in part], [draws.of(key) for _, draws in part])
            for part in (runs[:seeds], runs[seeds:])
        ]
        bounds, result = interval(*groups[0]), difference(*groups[0], *groups[1])
        found[f"{key} mean: held"] = [bounds and bool(bounds[0] <= mean_truth(s)[key] <= bounds[1])]
        found[f"{key} same: held"] = [result and bool(result.low <= 0 <= result.high)]
        found[f"{key} same: p < .05"] = [result and bool(result.p_value < 0.05)]
    return found


STUDIES: dict[str, tuple[Callable[[int, Design, int], Found], tuple[Design, ...]]] = {
    "one system": (one_list, DESIGNS),
    "difference": (one_difference, (*DESIGNS[1:5], DESIGNS[8])),
    "3 seeds": (three_seeds, (DESIGNS[2], DESIGNS[4], DESIGNS[8])),
    "5 seeds": (five_seeds, (DESIGNS[2], DESIGNS[4])),
}


def share(outcomes: list[bool | None]) -> float | None:
    """Percent of those with an answer; None where fewer than half have one."""
    answers = [outcome for outcome in outcomes if outcome is not None]
    return round(100 * sum(answers) / len(answers), 1) if 2 * len(answers) >= len(outcomes) else None


def study(pool: Any, name: str, design: Design, given: argparse.Namespace) -> dict[str, Any]:
    of = STUDIES[name][0]
    begin = time.monotonic()
    found = pool.starmap(of, [(FIRST + number, design, given.replicates) for number in range(given.lists)], chunksize=5)
    percent = {key: share([outcome for one in found for outcome in one[key]]) for key in found[0]}
    seconds = round(time.monotonic() - begin)
    result = {"study": name, **vars(design), "lists": given.lists, "seconds": seconds, "percent": percent}
    print(result, flush=True)
    return result


def main() -> None:
    arguments = parser(__doc__, "coverage")
    arguments.add_argument("--lists", type=int, default=1000)
    arguments.add_argument("--replicates", type=int, default=200)
    arguments.add_argument("--studies", nargs="+", choices=list(STUDIES), default=list(STUDIES))
    arguments.add_argument("--processes", type=int, default=2)
    given = arguments.parse_args()
    with Pool(given.processes) as pool:
        results = [study(pool, name, design, given) for name in given.studies for design in STUDIES[name][1]]
    write(
        given.output,
        "share of 95 % intervals that hold the truth, and of tests at 5 % that reject, on lists of known truth",
        {
            "asked_percent": {"held": [93, 97], "p < .05 where same": [3, 7]},
            "lists": given.lists,
            "replicates": given.replicates,
            "standard_error_percent": round(100 * (0.95 * 0.05 / given.lists) ** 0.5, 1),
            "results": results,
        },
        "numpy",
        "scipy",
    )


if __name__ == "__main__":
    main()
