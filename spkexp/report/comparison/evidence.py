"""What the scores that runs kept prove: intervals, differences with p-values, and DET curves."""

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from spkexp.errors import UserError
from spkexp.report.comparison.aligned import OtherTrials, aligned, same_trials
from spkexp.report.comparison.metrics import Metric
from spkexp.report.comparison.ranking import Row
from spkexp.report.comparison.runs import Run
from spkexp.report.plots import thinned
from spkexp.scoring.measures import Measures
from spkexp.scoring.metrics import eer, error_rates
from spkexp.scoring.resampling import Draws, SpeakerBootstrap, resample
from spkexp.scoring.statistics import Difference, combine_seeds, difference, interval
from spkexp.scoring.trial_scores import TrialScores

log = logging.getLogger(__name__)
_SAID_EVERY = 10.0  # seconds, where there is much to resample
_SAME = 1e-3  # EER of scores and of results.json: older scores have six digits
_OF_CLASSES = ("accuracy", "macro_f1")


@dataclass
class Evidence:
    """Of one row. untested: why it is not held against the reference, in words that follow "Not tested: NAME: "."""

    intervals: dict[str, tuple[float, float]] = field(default_factory=dict)
    differences: dict[str, Difference] = field(default_factory=dict)  # to the reference
    det: dict[str, Any] | None = None  # {"false_alarm": [...], "miss": [...], "seed"} of the first seed
    untested: str | None = None
    notes: list[str] = field(default_factory=list)


class _NoProof(Exception):
    """Why scores prove nothing, in words."""


@dataclass(frozen=True)
class _Sample:
    """The seeds of a row on the same trials, all under the same draws of speakers."""

    systems: list[TrialScores]
    bootstrap: SpeakerBootstrap
    means: dict[str, tuple[float, Draws]]  # of each metric over the seeds


def gather(
    ranked: Sequence[Row], reference: Row, trials: str, metrics: Sequence[Metric], replicates: int
) -> list[Evidence]:
    """The evidence for each of the rows. replicates: of the bootstrap; 0: the DET curves alone.

    A row is held against the reference on the trials that both have, each the mean of its seeds.
    """
    jury = _Jury(trials, metrics, replicates)
    of_reference, against = jury.evidence(reference, None)
    said, found = time.monotonic(), []
    for row in ranked:
        own = of_reference if row is reference else jury.evidence(row, against)[0]
        if own is not of_reference and of_reference.untested is not None:
            own.untested = own.untested or "the reference cannot be"
        found.append(own)
        if time.monotonic() - said > _SAID_EVERY:
            log.info("%d of %d rows resampled", len(found), len(ranked))
            said = time.monotonic()
    return found


class _Jury:
    def __init__(self, trials: str, metrics: Sequence[Metric], replicates: int) -> None:
        self.trials, self.metrics, self.replicates = trials, metrics, replicates

    def evidence(self, row: Row, against: _Sample | None) -> tuple[Evidence, _Sample | None]:
        """And the sample that it comes from, if any. against: the reference's; None: it has none, or is this row."""
        found, own = Evidence(), None
        try:
            systems = self._read(row)
            found.det = _det(systems[0], self._measured(row)[0].config.get("seed"))
            if not self.replicates:
                return found, None
            same = against is not None and same_trials(systems[0], against.systems[0])
            own = self._sample(systems, self._keys(row), against.bootstrap if against is not None and same else None)
            found.intervals = {key: ends for key, mean in own.means.items() if (ends := interval(*mean)) is not None}
            if against is not None:
                self._hold_against(against, own, same, found)
        except _NoProof as reason:
            found.untested = str(reason)
        return found, own

    def _hold_against(self, against: _Sample, own: _Sample, same: bool, found: Evidence) -> None:
        if not same:
            own, against = self._on_common_trials(own, against, found)
        for key in own.means.keys() & against.means.keys():
            # Where a value has no interval, such as a rate of 0 or a cost of 1 that no replicate moves, a test would
            # take it for certain.
            bounded = all(interval(*side.means[key]) is not None for side in (own, against))
            if bounded and (apart := difference(*own.means[key], *against.means[key])) is not None:
                found.differences[key] = apart
        chosen = self.metrics[0]
        if chosen.key not in found.differences:
            ends = [value for side in (own, against) if (value := side.means[chosen.key][0]) in (0.0, 1.0)]
            raise _NoProof(
                f"{chosen.name} is exactly {ends[0]:g} in one of the two, and has no interval there"
                if ends
                else "too few speakers, or replicates, for a test"
            )

    def _on_common_trials(self, own: _Sample, against: _Sample, found: Evidence) -> tuple[_Sample, _Sample]:
        try:
            common = aligned([*against.systems, *own.systems])
        except OtherTrials as other:
            raise _NoProof(str(other)) from None
        keys = [key for key in own.means if key in against.means]
        there = self._sample(common[: len(against.systems)], keys)
        most = max(len(own.systems[0]), len(against.systems[0]))
        if len(common[0]) < most:
            found.notes.append(f"tested on the {len(common[0]):,} of {most:,} trials that it has in common.")
        return self._sample(common[len(against.systems) :], keys, there.bootstrap), there

    def _keys(self, row: Row) -> list[str]:
        """The metrics of the row that come from scores."""
        found = [metric for metric in self.metrics if metric.key not in _OF_CLASSES]
        return [metric.key for metric in found if row.value(self.trials, metric) is not None]

    def _measured(self, row: Row) -> list[Run]:
        return [run for run, _ in row.measured(self.trials, self.metrics[0])]

    def _read(self, row: Row) -> list[TrialScores]:
        """Of the seeds, on the trials that all of them have. Raises _NoProof."""
        if self.metrics[0].key in _OF_CLASSES:
            raise _NoProof("the answers of classifiers are not resampled")
        try:
            return aligned([self._scores(run) for run in self._measured(row)])
        except OtherTrials as other:
            raise _NoProof(f"its seeds were not tested alike: {other}") from None

    def _scores(self, run: Run) -> TrialScores:
        assert run.folder is not None  # where there are results, there is a folder
        file = run.folder / "scores" / f"{self.trials}.txt"
        if not file.is_file():
            raise _NoProof("no scores are kept (scoring.save_scores)")
        try:
            found = TrialScores.read(file)
            rate = None if found.target is None else eer(error_rates(found.score, found.target))
        except (OSError, UserError, ValueError) as error:
            raise _NoProof(f"its scores cannot be used: {error}") from None
        if rate is None:
            raise _NoProof("its scores have no labels")
        said = (run.entry(self.trials) or {}).get("eer")
        if isinstance(said, float) and not abs(rate - said) <= _SAME:
            raise _NoProof("its scores are not those that its results are of; evaluate it again")
        return found

    def _sample(
        self, systems: list[TrialScores], keys: Sequence[str], bootstrap: SpeakerBootstrap | None = None
    ) -> _Sample:
        """bootstrap: where the speakers of these very trials are drawn already. Raises _NoProof."""
        if bootstrap is None:
            speakers = next((one.speakers for one in systems if one.speakers is not None), None)
            if speakers is None:
                raise _NoProof("who speaks in its trials is unknown")
            bootstrap = SpeakerBootstrap(*speakers, self.replicates)
        p_targets = sorted({float(key.partition(".")[2]) for key in keys if "_dcf." in key})
        llr = any(key == "cllr" or key.startswith("act_dcf.") for key in keys)
        of_seeds: dict[str, list[tuple[float, Draws]]] = {}
        for one in systems:
            assert one.target is not None
            measures = Measures(one.score, one.target, p_targets, llr)
            measures = measures.only([key for key in measures.keys if key in keys])
            resamples = resample(measures, bootstrap)
            for key, value in zip(measures.keys, measures().tolist(), strict=True):
                of_seeds.setdefault(key, []).append((value, resamples.of(key)))
        means = {key: combine_seeds([v for v, _ in seeds], [d for _, d in seeds]) for key, seeds in of_seeds.items()}
        return _Sample(systems, bootstrap, means)


def _det(scored: TrialScores, seed: Any) -> dict[str, Any]:
    assert scored.target is not None
    rates = thinned(error_rates(scored.score, scored.target))
    return {"false_alarm": rates.false_alarm.tolist(), "miss": rates.miss.tolist(), "seed": seed}
