"""Which windows of a recording are of one speaker: clusters of their embeddings.

Clustering compares all with all: time and memory grow with the square, or the cube, of their number. So it sees at most
AGGLOMERATIVE_LIMIT or SPECTRAL_LIMIT windows. Where there are more, so many are taken at even distances, and the others
go to the speaker whose mean is nearest. Somebody who has no window, or few, among those is not found: of 3 hours of
speech the spectral way sees every 14th window, and so one in 11 s.
"""

import numpy as np
from numpy.typing import NDArray

from spkexp.diarization.settings import Settings
from spkexp.diarization.spectral import MOST_SPEAKERS, spectral

# 4,000 windows, 50 minutes of speech at 0.75 s a step: 64 MB of distances and a second or two.
AGGLOMERATIVE_LIMIT = 4000
SPECTRAL_LIMIT = 1000  # 8 MB of affinities, and TRIED decompositions of some tenths of a second each
# A cluster with less speech than this (s), and, in a short recording, than this share of it, is no speaker: windows
# astride a change of speakers gather in such.
FEWEST_SECONDS = 5.0
LEAST_SHARE = 0.05
# s of speech for each speaker, where the number is not given: 7 s hold one at most, a minute 15. 2 to 5 s were tried on
# conversations of 8 to 52 s; without a bound up to 15 speakers too many were found in such.
SECONDS_A_SPEAKER = 4.0
# Means of two clusters that are more alike than this are of one speaker: a graph of nearest neighbours has gaps also
# where voices hardly differ, as between the turns of somebody who speaks very evenly.
SAME_SPEAKER = 0.9

Labels = NDArray[np.int64]


def cluster(embeddings: NDArray[np.float32], seconds: NDArray[np.float64], settings: Settings) -> Labels:
    """(N,) the speaker, from 0 on in the order of appearance, of each of N windows with embeddings (N, D).

    seconds: (N,) how much speech each window stands for. Embeddings may have any length but 0; settings are completed.
    """
    points = embeddings / np.maximum(np.linalg.norm(embeddings, axis=1, keepdims=True), 1e-12)
    limit = SPECTRAL_LIMIT if settings.clustering == "spectral" else AGGLOMERATIVE_LIMIT
    if len(points) <= limit:
        return in_order_of_appearance(_cluster(points, seconds, settings))
    some = np.linspace(0, len(points) - 1, limit).round().astype(np.int64)
    labels = _cluster(points[some], seconds[some] * (len(points) / limit), settings)
    return in_order_of_appearance((points @ means_of(points[some], labels).T).argmax(axis=1))


def _cluster(points: NDArray[np.float32], seconds: NDArray[np.float64], settings: Settings) -> Labels:
    """(N,) clusters of points (N, D), of length one, numbered from 0 on."""
    most = max(1, int(seconds.sum() / SECONDS_A_SPEAKER))
    if settings.clustering == "agglomerative":
        fewer = min(most, settings.max_speakers or most)
        return agglomerative(points, seconds, settings.model_copy(update={"max_speakers": fewer}))
    if settings.num_speakers is not None:
        return spectral(points, settings.num_speakers, None)
    return _without_twins(points, spectral(points, None, settings.max_speakers, min(most, MOST_SPEAKERS)))


def agglomerative(points: NDArray[np.float32], seconds: NDArray[np.float64], settings: Settings) -> Labels:
    """(N,) clusters of `points` (N, D), of length one, by average linkage of their cosines.

    seconds: (N,) what each point stands for; clusters with too little (FEWEST_SECONDS, LEAST_SHARE) do not count as
    speakers, and their points go to the nearest of the others. The tree is cut at settings.threshold, or where it gives
    num_speakers large clusters, or max_speakers where the threshold would give more.
    """
    if len(points) == 1:
        return np.zeros(1, dtype=np.int64)
    tree, least = _tree(points), min(FEWEST_SECONDS, LEAST_SHARE * float(seconds.sum()))

    def large(labels: Labels) -> NDArray[np.bool_]:
        return np.bincount(labels, seconds) >= least

    number = settings.num_speakers
    if number is None:
        assert settings.threshold is not None, "settings that are completed have one"
        labels = _cut_at(tree, 1 - settings.threshold)
        # None that is large: no two windows are alike, and each would be a speaker.
        if settings.max_speakers is None or 1 <= large(labels).sum() <= settings.max_speakers:
            return _without_small(points, labels, large(labels))
        number = settings.max_speakers
    for clusters in range(number, len(points) + 1):
        labels = _cut(tree, clusters)
        if large(labels).sum() >= number:
            return _without_small(points, labels, large(labels))
    return _cut(tree, number)  # so few windows that there are not as many large clusters


def in_order_of_appearance(labels: Labels) -> Labels:
    """The same clusters, numbered 0, 1, … as they first appear."""
    _, first, label = np.unique(labels, return_index=True, return_inverse=True)
    return np.argsort(np.argsort(first))[label]


def means_of(points: NDArray[np.float32], labels: Labels) -> NDArray[np.float32]:
    """(K, D): the mean of the points of each of K clusters, brought to length one."""
    total = np.zeros((labels.max() + 1, points.shape[1]), dtype=np.float32)
    np.add.at(total, labels, points)
    return total / np.maximum(np.linalg.norm(total, axis=1, keepdims=True), 1e-12)


def _without_small(points: NDArray[np.float32], labels: Labels, large: NDArray[np.bool_]) -> Labels:
    """Points of clusters that are not `large` (K,) given to the nearest that is; as it was where none is."""
    if large.all() or not large.any():
        return labels
    cosine = np.where(large, points @ means_of(points, labels).T, -np.inf)
    return np.where(large[labels], labels, cosine.argmax(axis=1))


def _without_twins(points: NDArray[np.float32], labels: Labels) -> Labels:
    """Clusters whose means are more alike than SAME_SPEAKER merged, the most alike first."""
    while labels.max() > 0:
        means = means_of(points, labels)
        cosine = np.triu(means @ means.T, 1)
        first, second = np.unravel_index(int(cosine.argmax()), cosine.shape)
        if cosine[first, second] <= SAME_SPEAKER:
            break
        labels = in_order_of_appearance(np.where(labels == second, first, labels))
    return labels


def _tree(points: NDArray[np.float32]) -> NDArray[np.float64]:
    """(N - 1, 4): scipy's linkage, whose heights are 1 - the mean cosine between the two clusters that merge."""
    from scipy.cluster.hierarchy import linkage
    from scipy.spatial.distance import squareform

    distance = np.clip(1 - points @ points.T, 0, 2)
    return linkage(squareform(distance, checks=False), method="average")


def _cut(tree: NDArray[np.float64], clusters: int) -> Labels:
    from scipy.cluster.hierarchy import fcluster

    return fcluster(tree, clusters, criterion="maxclust").astype(np.int64) - 1


def _cut_at(tree: NDArray[np.float64], height: float) -> Labels:
    from scipy.cluster.hierarchy import fcluster

    return fcluster(tree, height, criterion="distance").astype(np.int64) - 1
