"""What can be set about diarization; read by commands before anything heavy is imported."""

from typing import Annotated, Literal

from annotated_types import Ge, Gt, Lt
from pydantic import BaseModel, ConfigDict

from spkexp.errors import UserError
from spkexp.types import NonNegative, Positive, PositiveInt


class Settings(BaseModel):
    """How recordings are diarized.

    clustering: spectral finds the number of speakers from a gap between eigenvalues; agglomerative merges the two
        clusters whose windows are most alike on average, until that falls below `threshold`.
    window, step: s, of the windows that are embedded. A stretch of speech that is shorter is one window.
    num_speakers: how many speak; None: found.
    max_speakers: at most so many are found; default None: no more limits than there are always, which are one speaker
        for every 4 s of speech and, with spectral clustering, 20.
    threshold: cosine of the embeddings, for agglomerative clustering of an unknown number of speakers; `completed`
        fills in that of the run's validation trials, which is of longer utterances in other rooms. In mixed
        conversations of 1 to 5 speakers 16 % of the speech was confused (11 % at the best threshold) where voices were
        like the run's, and 31 % where they were real; with spectral clustering, which needs none, 11 % and 4 %.
    min_silence: s; a shorter pause is part of the speech around it.
    min_speech: s; a shorter sound between two pauses is no speech.
    min_turn: s; a shorter turn amid another's speech goes to its longer neighbour.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    clustering: Literal["agglomerative", "spectral"] = "spectral"
    window: Annotated[float, Ge(0.1)] = 1.5
    step: Positive = 0.75
    num_speakers: PositiveInt | None = None
    max_speakers: PositiveInt | None = None
    threshold: Annotated[float, Gt(-1), Lt(1)] | None = None
    min_speech: NonNegative = 0.2
    min_silence: NonNegative = 0.3
    min_turn: NonNegative = 0.25

    def completed(self, run_threshold: float | None) -> "Settings":
        """With `run_threshold`, that of the run's validation trials, where a threshold is needed and none is given.

        Raises UserError where there is none, and for settings that contradict one another.
        """
        if self.step > self.window:
            raise UserError(f"step={self.step:g}: windows of {self.window:g} s would leave gaps; at most the window")
        if self.num_speakers and self.max_speakers and self.num_speakers > self.max_speakers:
            raise UserError(f"num_speakers={self.num_speakers} is more than max_speakers={self.max_speakers}")
        if self.clustering == "spectral" or self.num_speakers or self.threshold is not None:
            return self
        if run_threshold is None:
            raise UserError(
                "threshold: the model comes with none, for its run has no validation results; set threshold=0.3 (a "
                "cosine), or num_speakers=N, or clustering=spectral"
            )
        return self.model_copy(update={"threshold": run_threshold})
