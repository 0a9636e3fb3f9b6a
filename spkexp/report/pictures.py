"""The pictures and lists that an evaluation leaves of its scores and embeddings."""

import logging
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from spkexp.report.embeddings import Method, embedding_plot
from spkexp.report.hardest import hardest_trials, write_hardest
from spkexp.report.similarities import similarity_plot
from spkexp.scoring.metrics import Ranking, eer_threshold
from spkexp.scoring.trial_scores import TrialScores

log = logging.getLogger(__name__)


def write_pictures(
    folder: Path,
    name: str,
    scores: TrialScores | None,
    embeddings: NDArray[np.float32],
    table: pl.DataFrame,
    *,
    projection: Method | None = "pca",
    colour_by: str = "speaker",
    hardest: int = 20,
    unit: str = "score",
    seed: int = 0,
) -> list[Path]:
    """Write what there is to see of the trial list `name` into the run `folder`; returns the files.

    plots/embeddings-NAME-pca.png (or -tsne, -umap; projection None: none), plots/scores-NAME.png, and the `hardest`
    trials of either kind (0: none) as hardest/NAME.csv and .txt. All but the first need trials with labels.

    embeddings: (N, D); table: a row for each of them, of whose columns `colour_by` names the one that the points are
    coloured by; a list that has none of that name is warned of, for it is no reason to lose what was scored. unit: what
    the scores are.
    """
    written = []
    if projection is not None and colour_by not in table.columns:
        log.warning("scoring.colour_by: %s has no column %r; it has %s", name, colour_by, ", ".join(table.columns))
    elif projection is not None:
        picture = folder / "plots" / f"embeddings-{name}-{projection}.png"
        if embedding_plot(picture, embeddings, table[colour_by], name, projection, seed):
            written.append(picture)
        else:
            log.info("%s: no picture of the embeddings, for too few have a known %s", name, colour_by)
    if scores is None or scores.target is None:
        return written
    picture = folder / "plots" / f"scores-{name}.png"
    similarity_plot(picture, {name: scores}, unit)
    written.append(picture)
    if hardest and scores.target.any() and not scores.target.all():
        threshold = eer_threshold(Ranking(scores.score, scores.target))
        found = hardest_trials(scores, threshold, hardest)
        for file in (folder / "hardest" / f"{name}{extension}" for extension in (".csv", ".txt")):
            write_hardest(file, name, found, threshold)
            written.append(file)
    return written
