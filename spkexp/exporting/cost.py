"""What an export costs and what it saves: error rates on trials, size, speed."""

from statistics import median
from time import perf_counter
from typing import NamedTuple

import torch
from torch import Tensor

from spkexp.exporting.agreement import Embed
from spkexp.scoring.measures import Measures
from spkexp.scoring.resampling import SpeakerBootstrap, resample
from spkexp.scoring.statistics import Difference, difference
from spkexp.scoring.verification import Scored

SECONDS = 3.0  # of the utterance that the speed is measured on
_REPEATS = 5


class ErrorRates(NamedTuple):
    """EER of the same trials before and after, as fractions."""

    before: float
    after: float
    difference: Difference | None  # after less before; None: too few speakers, or unknown ones, for an interval
    num_trials: int


def error_rates(before: Scored, after: Scored, replicates: int) -> ErrorRates:
    """replicates: resamplings of the speakers; 0: no interval. Raises ValueError where trials have no labels."""
    first, second = before.trial_scores, after.trial_scores
    if first.target is None or second.target is None or len(first) != len(second):
        raise ValueError("expected the same labelled trials twice")
    target = first.target
    measures = [Measures(one.score, target, [0.01], llr=False).only(["eer"]) for one in (second, first)]
    values = [float(one()[0]) for one in measures]
    found = None
    if replicates and first.speakers is not None:
        bootstrap = SpeakerBootstrap(*first.speakers, replicates)
        draws = [resample(one, bootstrap).of("eer") for one in measures]
        found = difference(values[0], draws[0], values[1], draws[1])
    return ErrorRates(values[1], values[0], found, len(first))


def utterances_per_second(embed: Embed, sample_rate: int, batch: int = 1) -> float:
    """Of `SECONDS` each, `batch` at a time; the median of five."""
    waveform, lengths = utterances(sample_rate, batch)
    with torch.inference_mode():
        embed(waveform, lengths)  # memory is found, layouts are chosen
        durations = []
        for _ in range(_REPEATS):
            start = perf_counter()
            embed(waveform, lengths)
            durations.append(perf_counter() - start)
    return batch / median(durations)


def utterances(sample_rate: int, batch: int) -> tuple[Tensor, Tensor]:
    samples = int(SECONDS * sample_rate)
    waveform = 0.1 * torch.sin(torch.arange(batch * samples).float().square()).view(batch, samples)
    return waveform, torch.full((batch,), samples)
