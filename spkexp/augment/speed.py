"""Speed perturbation: Ko et al. 2015. Copies of the utterances that are played faster or slower, pitch and all.

A copy is a row of the manifest. Its voice is another one (the formants move by the same factor), so for speakers it
gets a speaker of its own, `id10012@0.9`, as in Yamamoto et al. 2019 and in WeSpeaker: more classes to tell apart.
"""

from collections.abc import Sequence

import numpy as np
import polars as pl
import soxr
from numpy.typing import NDArray


def with_speed_copies(table: pl.DataFrame, label: str, speeds: Sequence[float]) -> pl.DataFrame:
    """`table` followed by a copy for each of `speeds` (1.1: a tenth faster; 1 adds nothing), in a column `speed`.

    Where `label` is the speaker a copy is of a new one; any other label, a language say, stays what it is.
    """
    speeds = [speed for speed in dict.fromkeys(speeds) if speed != 1.0]
    if not speeds:
        return table
    parts = [table.with_columns(pl.lit(1.0).alias("speed"))]
    for speed in speeds:
        suffix = pl.lit(f"@{speed:g}")
        columns = [pl.lit(speed).alias("speed"), pl.col("duration") / speed, pl.concat_str("id", suffix)]
        if label == "speaker":
            columns.append(pl.concat_str("speaker", suffix))
        parts.append(table.with_columns(columns))
    return pl.concat(parts)


def change_speed(wave: NDArray[np.float32], speed: float) -> NDArray[np.float32]:
    """wave: (samples,) played `speed` times as fast: (round(samples / speed),)."""
    if speed == 1.0:
        return wave
    return soxr.resample(wave, speed, 1.0)
