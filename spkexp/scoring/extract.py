"""Embeddings of whole utterances, by all processes together."""

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray

from spkexp import distributed
from spkexp.data.dataset import Bad, Reading, WholeUtterances, loader
from spkexp.data.utterances import Utterances
from spkexp.models.speaker import SpeakerModel


class Interrupted(Exception):
    """The caller asked to stop in the middle."""


def embed(
    model: SpeakerModel,
    utterances: Utterances,
    reading: Reading,
    batch_seconds: float,
    num_workers: int,
    should_stop: Callable[[], bool] = lambda: False,
) -> tuple[NDArray[np.float32], list[Bad]]:
    """(N, embedding_size) float32 and the utterances that could not be read, whose rows are NaN.

    Each utterance is embedded whole. Batches hold utterances of like length, at most `batch_seconds` of audio with
    the padding counted; the processes take them in turn and all of them return everything.
    Raises Interrupted once `should_stop()` is true in any process.
    """
    device = next(model.parameters()).device
    batches = batches_by_length(utterances.duration, batch_seconds)
    mine = batches[distributed.rank() :: distributed.world_size()]
    rounds = -(-len(batches) // distributed.world_size())
    was_training = model.training
    model.eval()
    found: list[tuple[NDArray[np.int64], NDArray[np.float32]]] = []
    bad: list[Bad] = []
    source = iter(loader(WholeUtterances(utterances, reading), mine, num_workers, pin=device.type == "cuda"))
    with torch.inference_mode():
        for _ in range(rounds):
            # Every process comes by here equally often, so that they agree on when to stop.
            if distributed.any_of(should_stop())[0]:
                model.train(was_training)
                raise Interrupted
            batch = next(source, None)
            if batch is None:
                continue
            bad += batch.bad
            if len(batch.item):
                embedding = model(batch.waveform.to(device), batch.lengths)
                found.append((batch.item.numpy(), embedding.float().cpu().numpy()))
    model.train(was_training)
    everything = np.full((len(utterances), model.embedding_size), np.nan, dtype=np.float32)
    for part, part_bad in distributed.gather((found, bad)):
        for item, embedding in part:
            everything[item] = embedding
        if part_bad is not bad:
            bad = [*bad, *(b for b in part_bad if b not in bad)]
    return everything, sorted(bad)


def batches_by_length(duration: NDArray[np.float64], batch_seconds: float) -> list[list[int]]:
    """Items sorted by length, cut so that (longest × count) of a batch stays within `batch_seconds` (one at least)."""
    batches: list[list[int]] = []
    for item in np.argsort(duration, kind="stable").tolist():
        if batches and duration[item] * (len(batches[-1]) + 1) <= batch_seconds:
            batches[-1].append(item)
        else:
            batches.append([item])
    return batches
