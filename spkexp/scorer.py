"""How a run scores a model on its own evaluation sets, while it trains and at its end."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf

from spkexp import distributed, numerics
from spkexp.data.evaluation_set import EvaluationSet
from spkexp.data.load import Data
from spkexp.losses.head import Loss
from spkexp.models.speaker import SpeakerModel
from spkexp.scoring.classification import Classified, classify_all, closed_set
from spkexp.scoring.extract import never
from spkexp.scoring.summary import error_rates_of
from spkexp.scoring.system import System
from spkexp.scoring.verification import Extraction, Policy, Scored, score
from spkexp.sections import Scoring
from spkexp.step import TrainStep
from spkexp.trial_results import check_reports


class Scorer:
    """The evaluation sets of `data`, and how the config wants them scored."""

    def __init__(self, cfg: DictConfig, data: Data, labels: list[str], device: torch.device, workers: int) -> None:
        """labels: the classes of the head, in the order of its outputs; workers: processes that read."""
        self.settings = Scoring.model_validate(OmegaConf.to_container(cfg.scoring))
        check_reports(self.settings, data.evaluation, cfg.data.label)
        policy = Policy(cfg.data.on_error, cfg.data.max_bad_fraction)
        self.extraction = Extraction(data.reading, self.settings, policy, workers)
        self.label, self.data, self.labels, self.device = cfg.data.label, data, labels, device

    def score(
        self, model: SpeakerModel, evaluation: Mapping[str, EvaluationSet], should_stop: Callable[[], bool] = never
    ) -> dict[str, Scored]:
        """By name; the processes embed together, and the main one scores: the others have the embeddings alone.

        Raises UserError, and Interrupted.
        """
        with numerics.varying_lengths():
            verified = any(which.trials is not None for which in evaluation.values())
            behind = self.extraction.background(model, self.data.background if verified else None, should_stop)
            embedded = {
                name: self.extraction.embeddings(model, name, which.utterances, should_stop)
                for name, which in evaluation.items()
            }
        found = {name: Scored(which, embedded[name], None, None, 0) for name, which in evaluation.items()}

        def verify() -> None:
            system = System(self.settings, behind)
            found.update({name: score(which, embedded[name], system) for name, which in evaluation.items()})

        distributed.decided_by_main(verify)
        return found

    def evaluate(
        self,
        step: TrainStep,
        evaluation: Mapping[str, EvaluationSet],
        should_stop: Callable[[], bool] = never,
        at: int = 0,
    ) -> dict[str, dict[str, Any]]:
        """By name, error rates without intervals, and what the head says of speakers that it knows.

        at: optimizer step, whose margin the loss has.
        """
        scored = self.score(step.model, evaluation, should_stop)
        rates = distributed.decided_by_main(
            lambda: {name: error_rates_of(found, self.settings) for name, found in scored.items()}
        )
        return {name: rates[name] | self.closed_set(step.head, found, at) for name, found in scored.items()}

    def closed_set(self, loss: Loss, scored: Scored, at: int) -> dict[str, float]:
        """Loss and accuracy of the loss's classifier; {} where it has none, or does not know the speakers."""
        if loss.classifier is None:
            return {}
        return closed_set(loss.classifier, scored, self.label, self.labels, self.device, at)

    def classify(self, loss: Loss, scored: dict[str, Scored]) -> dict[str, Classified]:
        """The answers of the loss's classifier on those that are labelled sets."""
        if loss.classifier is None:
            return {}
        return classify_all(loss.classifier, scored, self.label, self.labels, self.device)
