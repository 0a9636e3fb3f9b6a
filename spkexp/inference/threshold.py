"""From which score on two recordings count as of one speaker: what a run's own validation says."""

import math
from pathlib import Path
from typing import Any, NamedTuple

from omegaconf import DictConfig, OmegaConf

from spkexp import checkpoint, foreign
from spkexp.data.classes import SPEAKER
from spkexp.errors import UserError

_NO_RESULTS = "the run has no validation results, so there is no threshold"
# Settings of `scoring` with which the validation's scores are the cosines of whole utterances. A calibration changes
# the scores of the other lists alone.
_PLAIN = {"backend": "cosine", "normalise": None, "subtract_mean": False, "window": None}


class Threshold(NamedTuple):
    """Of the cosine, where as many same pairs of the run's validation are refused as different ones are accepted."""

    value: float  # higher scores are accepted
    eer: float  # the share of either at this threshold
    eer_ci95: tuple[float, float] | None  # None: of too few speakers for an interval
    num_trials: int

    def __str__(self) -> str:
        """Where it comes from."""
        rate = f"{100 * self.eer:.2f} %"
        if self.eer_ci95 is not None:
            rate += f", 95 % interval {100 * self.eer_ci95[0]:.2f} to {100 * self.eer_ci95[1]:.2f} %"
        return f"at the equal error rate of the run's validation trials: {rate}"


def threshold_of(folder: Path, config: DictConfig) -> tuple[Threshold | None, str]:
    """(that of the checkpoint `folder` with its `config`, where it comes from); or (None, why there is none)."""
    scoring = OmegaConf.select(config, "scoring") or {}
    other = [f"scoring.{key}={scoring[key]}" for key, plain in _PLAIN.items() if scoring.get(key, plain) != plain]
    if other:
        return None, (
            f"the run's scores are no plain cosines ({', '.join(other)}), so its threshold is none for this score; "
            "spkexp.evaluate scores trials as the run does"
        )
    label = OmegaConf.select(config, "data.label") or SPEAKER
    if label != SPEAKER:
        return None, f"the run learnt data.label={label}, so its validation has no trials and there is no threshold"
    files = checkpoint.results_files(folder)
    for file in files:
        try:
            found = _read(foreign.read_json(file, foreign.LABELS_BYTES))
        except UserError as error:
            return None, f"the validation results are of no use: {error}"
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            return None, f"{file}: is no results.json of a run ({type(error).__name__}: {error})"
        if found is not None:
            return found, str(found)
    run = folder.parent.parent
    if not files and folder.parent.name == "checkpoints" and (run / checkpoint.RESULTS).is_file():
        best = f"checkpoints/{checkpoint.BEST}"
        return None, f"the results of {run} are those of {best}, not of checkpoints/{folder.name}"
    return None, _NO_RESULTS


def _read(results: Any) -> Threshold | None:
    """None where there are no validation trials."""
    entry = results["trials"].get("val", {})
    if "eer_threshold" not in entry:
        return None
    value, eer, interval = float(entry["eer_threshold"]), float(entry["eer"]), entry.get("eer_ci95")
    if not (math.isfinite(value) and 0 <= eer <= 1):
        raise ValueError(f"eer_threshold={value}, eer={eer}")
    bounds = None if interval is None else (float(interval[0]), float(interval[1]))
    return Threshold(value, eer, bounds, int(entry["num_trials"]))
