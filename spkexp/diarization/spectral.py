"""Spectral clustering whose number of clusters, and how many neighbours a point keeps, are told by the points.

NME-SC: Park, Han, Kumar, Narayanan 2020, "Auto-tuning spectral clustering for speaker diarization using normalized
maximum eigengap", IEEE Signal Processing Letters 27. A is the affinity, p how many neighbours a row of it keeps, L the
Laplacian, e_p the gaps between its eigenvalues.
"""

import numpy as np
from numpy.typing import NDArray

# With the point itself. More than the windows of most turns: those overlap and are alike for that alone, so that fewer
# neighbours part a recording into its turns. Of conversations of 1 to 5 speakers 3, 6, 10 and 15 were tried.
FEWEST_NEIGHBOURS = 10
# Of few points, those of less than half a minute, ten are too many, and this share of them is kept; but so many at
# least, or half of all: a graph that falls into more parts than there are clusters says nothing of these (von Luxburg
# 2007, "A tutorial on spectral clustering", Statistics and Computing 17, section 8.2). On conversations of 8 to 52 s
# shares of 0.25 to 0.5 and 3 to 10 neighbours were tried.
SHARE_OF_FEW = 0.35
FEWEST_OF_FEW = 5
MOST_NEIGHBOURS = 0.25  # of all points, unless that is less than the fewest
TRIED = 24  # numbers of neighbours
MOST_SPEAKERS = 20  # that are looked for

Matrix = NDArray[np.float64]


def spectral(
    points: NDArray[np.float32], num_speakers: int | None, max_speakers: int | None, looked_for: int = MOST_SPEAKERS
) -> NDArray[np.int64]:
    """(N,) clusters of `points` (N, D), of length one; num_speakers None: found, at most `max_speakers` of them.

    looked_for: gaps after more eigenvalues than this are not looked at. Of few points those are no gaps between
    clusters but within, and may be the widest.
    """
    from scipy.linalg import eigh
    from sklearn.cluster import KMeans

    if len(points) <= 2:  # of which a graph says nothing
        return np.minimum(np.arange(len(points)), (num_speakers or 1) - 1)
    cosine = (points @ points.T).astype(np.float64)
    laplacian, found = best_graph(cosine, min(looked_for, len(points) - 1))
    number = min(num_speakers or min(found, max_speakers or found), len(points))
    if number == 1:
        return np.zeros(len(points), dtype=np.int64)
    _, vectors = eigh(laplacian, subset_by_index=[0, number - 1])
    return KMeans(number, n_init=10, random_state=0).fit_predict(vectors).astype(np.int64)


def best_graph(cosine: Matrix, most: int) -> tuple[Matrix, int]:
    """(Laplacian, number of clusters, at most `most`) of the number of neighbours p with the least p / g_p.

    g_p is the largest of the first gaps e_p relative to the largest eigenvalue.
    """
    from scipy.linalg import eigvalsh

    order = np.argsort(-cosine, axis=1)
    count = len(cosine)
    first = min(FEWEST_NEIGHBOURS, max(min(FEWEST_OF_FEW, (count + 1) // 2), round(SHARE_OF_FEW * count)))
    last = max(first, round(MOST_NEIGHBOURS * count))
    best = (np.inf, np.empty(0), 1)
    for neighbours in np.unique(np.linspace(first, last, TRIED).round().astype(int)):
        laplacian = laplacian_of(binarised(order, int(neighbours)))
        values = eigvalsh(laplacian)
        gaps = np.diff(values[: most + 1])
        ratio = neighbours / max(gaps.max() / max(values[-1], 1e-12), 1e-12)
        if ratio < best[0]:
            best = (ratio, laplacian, int(gaps.argmax()) + 1)
    return best[1], best[2]


def binarised(order: NDArray[np.int64], neighbours: int) -> Matrix:
    """(N, N) symmetric: 1 where each of two points is among the nearest of the other, 1/2 where one is.

    order: (N, N) in each row all points, the nearest first.
    """
    kept = np.zeros(order.shape)
    np.put_along_axis(kept, order[:, :neighbours], 1.0, axis=1)
    return (kept + kept.T) / 2


def laplacian_of(affinity: Matrix) -> Matrix:
    """D - A, not normalised; what a point has to do with itself cancels."""
    return np.diag(affinity.sum(axis=1)) - affinity
