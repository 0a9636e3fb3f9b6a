"""Closed-set identification: how often the right speaker is among the k most alike."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from spkexp.scoring.projection import Backend, Projected

KS = (1, 5, 10)
# Scores that are held at once: 4 MB of float32, near a core from one step to the next.
BLOCK = 2**20


def top_k(
    gallery: Projected,
    probes: Projected,
    expected: NDArray[np.int64],
    ks: Sequence[int] = KS,
    own: Projected | None = None,
) -> dict[str, float]:
    """{"top1": share of the probes whose right model scores highest, "top5": whose is among the five highest, …}.

    gallery: of G models; probes: of P; expected: (P,) the right model of each probe. own: (P,) the right model of each
    probe as it is to be compared with that one, such as without the probe itself; None: as it is in the gallery. Models
    that score the same as the right one stand in random order: a probe counts with its chance to come among the first
    k, so that scores which are all the same find the right one of G in k of G cases. A k of G or more, which could not
    miss, is left out. Raises ValueError where a score is not finite.
    """
    if not len(expected) or expected.min() < 0 or expected.max() >= len(gallery.vector):
        raise ValueError("every probe needs a model of the gallery, and there must be one")
    ks = [k for k in ks if k < len(gallery.vector)]
    hits = np.zeros(len(ks))
    rows = max(1, BLOCK // len(gallery.vector))
    for start in range(0, len(expected), rows):
        block = slice(start, start + rows)
        right = expected[block]
        scores = probes.vector[block] @ gallery.vector.T + gallery.offset  # the probe's offset is the same for all
        at = np.arange(len(right))
        if own is not None:
            scores[at, right] = np.einsum("nd,nd->n", probes.vector[block], own.vector[block]) + own.offset[block]
        if not np.isfinite(scores).all():
            raise ValueError("a score is not finite")
        best = scores[at, right][:, None]
        higher = (scores > best).sum(axis=1)
        same = (scores == best).sum(axis=1)  # the right one is among them
        hits += [np.clip((k - higher) / same, 0, 1).sum() for k in ks]
    return {f"top{k}": float(hit / len(expected)) for k, hit in zip(ks, hits, strict=True)}


@dataclass(frozen=True)
class LeftOut:
    """A gallery of a model for each of S speakers, and their utterances as probes of it."""

    gallery: NDArray[np.float32]  # (S, size) mean direction of a speaker's embeddings times their mean length
    probe: NDArray[np.int64]  # (P,) rows of the embeddings
    expected: NDArray[np.int64]  # (P,) index into gallery
    own: NDArray[np.float32]  # (P, size) the right model without the probe
    skipped: int  # utterances that are no probe: not readable, or the only one of their speaker


def leave_one_out(embeddings: NDArray[np.float32], speaker: NDArray[np.int64]) -> LeftOut:
    """Every utterance in turn is the probe, its speaker's model the mean of the others.

    embeddings: (N, size), NaN where unreadable; speaker: (N,) codes. The gallery is in their order. A speaker with a
    single utterance stays in it, as one that others may be taken for.
    """
    readable = np.flatnonzero(np.isfinite(embeddings).all(axis=1))
    rows = embeddings[readable]
    length = np.linalg.norm(rows, axis=1).astype(np.float64)
    rows /= np.maximum(length, 1e-12)[:, None].astype(np.float32)
    _, code, count = np.unique(speaker[readable], return_inverse=True, return_counts=True)
    starts = np.concatenate([[0], np.cumsum(count)[:-1]])
    order = np.argsort(code, kind="stable")
    total = np.add.reduceat(rows[order], starts, axis=0, dtype=np.float64) if len(rows) else rows
    size = np.add.reduceat(length[order], starts) if len(rows) else length
    several = np.flatnonzero(count[code] > 1)
    expected = code[several]
    others = count[expected] - 1
    own = total.astype(np.float32)[expected]
    own -= rows[several]
    # The scale of the embeddings, on which a PLDA depends: mean direction times mean length, as `mean_embeddings`.
    own *= ((size[expected] - length[several]) / others**2).astype(np.float32)[:, None]
    gallery = total * (size / count**2)[:, None]
    return LeftOut(
        gallery.astype(np.float32),
        readable[several],
        expected.astype(np.int64),
        own,
        len(embeddings) - len(several),
    )


def identification(
    embeddings: NDArray[np.float32], speaker: NDArray[np.int64], backend: Backend, ks: Sequence[int] = KS
) -> dict[str, Any] | None:
    """The entry of results.json: of every utterance against the speakers' models without it, as `leave_one_out` has it.

    None where there are fewer than two speakers, or none has two utterances that can be read.
    """
    parts = leave_one_out(embeddings, speaker)
    if len(parts.gallery) < 2 or not len(parts.probe):
        return None
    probes = backend.project(embeddings[parts.probe])
    rates = top_k(backend.project(parts.gallery), probes, parts.expected, ks, backend.project(parts.own))
    return {"speakers": len(parts.gallery), "probes": len(parts.probe), "skipped": parts.skipped, **rates}
