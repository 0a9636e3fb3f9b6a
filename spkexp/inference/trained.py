"""A trained model in use: embeddings, decisions, classes, and a gallery of known speakers."""

import hashlib
import math
import os
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from omegaconf import DictConfig
from torch import Tensor

from spkexp.errors import UserError
from spkexp.inference.classes import Class, Classifier
from spkexp.inference.gallery import Candidate, Gallery
from spkexp.inference.recordings import Opened, Reader, Recording, Recordings, is_one, padded_batches, warn_of_unheard
from spkexp.inference.threshold import Threshold
from spkexp.models.speaker import SpeakerModel
from spkexp.scoring.extract import batches_by_length
from spkexp.scoring.projection import mean_embeddings, unit
from spkexp.scoring.sliding import Windows, embed_sliding, inference, parse_step

Lengths = Sequence[int] | NDArray[Any] | Tensor


class Verification(NamedTuple):
    """What `verify` says of two recordings."""

    score: float  # cosine, in [-1, 1]: the higher, the more alike
    same: bool | None  # whether it is one speaker: score > threshold; None: there is no threshold
    threshold: float | None
    reason: str  # where the threshold comes from, or why there is none


class Identification(NamedTuple):
    """What `identify` says of a recording."""

    name: str | None  # of the nearest speaker; None: nobody in the gallery, for no score is above the threshold
    score: float  # of the nearest speaker, whether or not it is accepted: cosine, in [-1, 1]
    candidates: list[Candidate]  # the nearest first, accepted or not
    threshold: float | None  # None: the nearest is named, however far it is
    reason: str  # where the threshold comes from, or why there is none


@dataclass(frozen=True, eq=False, repr=False)
class TrainedModel:
    """What `spkexp.load` returns. Everything but the gallery stays as it is: any number of threads may use it at once.

    A recording is a file, or samples in [-1, 1] as an array or tensor (samples,): of a floating type, or int16, which
    is divided by 32768. Wherever several are taken, they may be a list of any mixture, or an array (N, samples), a
    recording a row, whose channels nobody averages.

    Files that cannot be used raise AudioError, a UserError, which names the file; arrays that cannot raise ValueError
    or TypeError. `sample_rate`, of the arrays in a call, is in Hz; None: the model's own.
    """

    module: SpeakerModel  # (waveform, lengths) -> embeddings, in evaluation mode on `device`
    config: DictConfig  # of the run
    source: str  # what was loaded
    device: torch.device
    precision: Literal["fp32", "bf16"]
    threshold: Threshold | None
    reason: str  # where the threshold comes from, or why there is none
    classifier: Classifier | str  # or why there is none
    reader: Reader
    gallery: Gallery  # the speakers that `enroll` has enrolled

    @property
    def sample_rate(self) -> int:
        """Of the waveforms that the model hears, Hz."""
        return self.module.sample_rate

    @property
    def embedding_size(self) -> int:
        return self.module.embedding_size

    @property
    def labels(self) -> list[str]:
        """Names of the classes that `classify` tells apart; empty where there are none."""
        return [] if isinstance(self.classifier, str) else list(self.classifier.labels)

    @cached_property
    def fingerprint(self) -> str:
        """16 hexadecimal digits that change with any of the model's weights."""
        digest = hashlib.sha256()
        for name, tensor in sorted(self.module.state_dict().items()):
            digest.update(name.encode())
            digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
        return digest.hexdigest()[:16]

    def __repr__(self) -> str:
        return (
            f"TrainedModel({self.source}: embedding of {self.embedding_size}, {self.sample_rate} Hz, on {self.device}, "
            f"{self.precision}, {len(self.labels)} class{'es' * (len(self.labels) != 1)}, threshold "
            f"{'none' if self.threshold is None else f'{self.threshold.value:.4f}'})"
        )

    def embed(
        self,
        recordings: Recordings,
        lengths: Lengths | None = None,
        *,
        sample_rate: int | None = None,
        batch_seconds: float = 240.0,
    ) -> NDArray[np.float32]:
        """(D,) embedding of one recording, or (N, D) of several, as the model gives them: not of length one.

        Those of like length are computed together, at most `batch_seconds` at once with the padding counted (one at
        least), and padding changes no embedding. lengths: samples of each row of an array (N, samples), behind which it
        is not heard; None: all.
        """
        found = self._embed(self.reader.open(recordings, lengths, sample_rate), batch_seconds)
        return found[0] if is_one(recordings) else found

    def embed_windows(
        self, recording: Recording, window: float, step: float | str = "50%", *, sample_rate: int | None = None
    ) -> Windows:
        """Embeddings of windows of `window` seconds of one recording, and when each starts and ends.

        step: from one window to the next, in seconds, or as a share of the window such as "25%". The last window ends
        with the recording; one that is shorter than a window is one window. A file is read piece by piece: hours of it
        take no more memory than minutes.
        """
        if not is_one(recording):
            raise ValueError("embed_windows takes one recording: a path or samples (samples,)")
        if not 0 < window < math.inf:
            raise ValueError(f"window={window}: expected seconds, more than 0")
        seconds = parse_step(step, window)
        (opened,) = self.reader.open(recording, None, sample_rate)
        source = os.fspath(recording) if isinstance(recording, str | os.PathLike) else opened.read()
        return embed_sliding(self.module, source, window, seconds, precision=self.precision)

    def verify(
        self, a: Recordings, b: Recordings, *, threshold: float | None = None, sample_rate: int | None = None
    ) -> Verification:
        """Whether `a` and `b` are of one speaker. Of either there may be several recordings: their mean is compared.

        The score is the cosine of the embeddings; of several it is that of the mean of their directions. threshold: of
        one's own; None: that of the run's validation trials, where there is one.
        """
        first, second = (self.reader.open(side, None, sample_rate) for side in (a, b))
        if not first or not second:
            raise ValueError("verify: there is nothing to compare, a list of recordings is empty")
        start = np.array([0, len(first)])
        rows = self._embed([*first, *second])
        left, right = unit(mean_embeddings(rows, np.arange(len(rows)), start))
        score = float(left @ right)
        limit, reason = self._limit(threshold)
        return Verification(score, None if limit is None else score > limit, limit, reason)

    def classify(
        self, recordings: Recordings, top: int | None = None, *, sample_rate: int | None = None
    ) -> Class | list[Class] | list[list[Class]]:
        """The label of the most probable class and its probability; `top` of them as a list, the best first.

        Of several recordings a list of these. The probability takes it for certain that the recording is of one of the
        classes: one of somebody else gets a label, too. Raises UserError for a model without classes.
        """
        if isinstance(self.classifier, str):
            raise UserError(f"{self.source}: cannot classify: {self.classifier}")
        if top is not None and top < 1:
            raise ValueError(f"top={top}: expected 1 or more")
        rows = self._embed(self.reader.open(recordings, None, sample_rate))
        found = self.classifier.best(rows, top or 1)
        answers: list[Class] | list[list[Class]] = found if top is not None else [classes[0] for classes in found]
        return answers[0] if is_one(recordings) else answers

    def enroll(self, name: str, recordings: Recordings, *, sample_rate: int | None = None) -> None:
        """Take one or several recordings of a speaker into the gallery, in addition to those that are there of it."""
        opened = self.reader.open(recordings, None, sample_rate)
        if not opened:
            raise ValueError(f"{name}: there is no recording to enrol")
        self.gallery.add(name, self._embed(opened))

    def identify(
        self,
        recordings: Recordings,
        top: int = 1,
        *,
        threshold: float | None = None,
        sample_rate: int | None = None,
    ) -> Identification | list[Identification]:
        """Who of the gallery speaks; of several recordings a list of answers. threshold as in `verify`.

        A threshold is of two recordings: of N speakers in the gallery each has its chance to be taken for a stranger.
        """
        limit, reason = self._limit(threshold)
        rows = self._embed(self.reader.open(recordings, None, sample_rate))
        answers = []
        for candidates in self.gallery.search(rows, top):
            name, score = candidates[0]
            accepted = limit is None or score > limit
            answers.append(Identification(name if accepted else None, score, candidates, limit, reason))
        return answers[0] if is_one(recordings) else answers

    def save_gallery(self, file: str | os.PathLike[str]) -> None:
        """Write the speakers of the gallery to a safetensors file, their recordings not. Raises UserError."""
        self.gallery.save(file, self.fingerprint)

    def load_gallery(self, file: str | os.PathLike[str]) -> None:
        """Have the speakers in the gallery that `save_gallery` wrote, in the place of those that are there.

        Raises UserError, also where another model wrote it, whose embeddings mean nothing to this one.
        """
        self.gallery.load(file, self.fingerprint)

    def _limit(self, own: float | None) -> tuple[float | None, str]:
        if own is not None:
            return float(own), "given by the caller"
        return None if self.threshold is None else self.threshold.value, self.reason

    def _embed(self, opened: Sequence[Opened], batch_seconds: float = 240.0) -> NDArray[np.float32]:
        """(N, D)"""
        found = np.empty((len(opened), self.embedding_size), dtype=np.float32)
        if not opened:
            return found
        seconds = np.array([one.samples for one in opened]) / self.sample_rate
        batches = batches_by_length(seconds, batch_seconds)
        rows, silent = [], list[int]()
        with (
            inference(self.module, self.precision),
            closing(padded_batches(opened, batches, pin=self.device.type == "cuda")) as padded,
        ):
            for batch, (waveform, lengths) in zip(batches, padded, strict=True):
                silent += [item for item, heard in zip(batch, waveform.any(dim=1).tolist(), strict=True) if not heard]
                rows.append(self.module(waveform.to(self.device, non_blocking=True), lengths).float())
            # Here and not in between: a GPU need not wait for what comes next.
            found[np.concatenate(batches)] = torch.cat(rows).cpu().numpy()
        if not np.isfinite(found).all():
            raise UserError(f"{self.source}: an embedding is not finite; did training diverge?")
        warn_of_unheard(opened, silent, self.sample_rate)
        return found
