"""How a run scores a model on its own evaluation sets, while it trains and at its end."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf

from spkexp import numerics
from spkexp.data.evaluation_set import EvaluationSet
from spkexp.data.load import Data
from spkexp.losses.head import Loss
from spkexp.models.speaker import SpeakerModel
from spkexp.scoring.classification import Classified, classify_all, closed_set
from spkexp.scoring.summary import error_rates_of
from spkexp.scoring.system import System
from spkexp.scoring.verification import Extraction, Policy, Scored, score
from spkexp.sections import Scoring
from spkexp.step import TrainStep
from spkexp.trial_results import check_reports


def _never() -> bool:
    return False


class Scorer:
    """The evaluation sets of `data`, and how the config wants them scored."""

    def __init__(self, cfg: DictConfig, data: Data, labels: list[str], device: torch.device, workers: int) -> None:
        """labels: the classes of the head, in the order of its outputs; workers: processes that read."""
        self.settings = Scoring.model_validate(OmegaConf.to_container(cfg.scoring))
        check_reports(self.settings, data.evaluation)
        policy = Policy(cfg.data.on_error, cfg.data.max_bad_fraction)
        self.extraction = Extraction(data.reading, self.settings, policy, workers)
        self.label, self.data, self.labels, self.device = cfg.data.label, data, labels, device

    def system(self, model: SpeakerModel, should_stop: Callable[[], bool] = _never) -> System:
        """What turns embeddings of `model` into scores. Raises UserError, and Interrupted."""
        with numerics.varying_lengths():
            return self.extraction.system(model, self.data.background, should_stop)

    def score(
        self,
        model: SpeakerModel,
        evaluation: EvaluationSet,
        system: System,
        should_stop: Callable[[], bool] = _never,
    ) -> Scored:
        """Raises UserError, and Interrupted."""
        with numerics.varying_lengths():
            embeddings = self.extraction.embeddings(model, evaluation.name, evaluation.utterances, should_stop)
        return score(evaluation, embeddings, system)

    def evaluate(
        self,
        step: TrainStep,
        evaluation: Mapping[str, EvaluationSet],
        should_stop: Callable[[], bool] = _never,
        at: int = 0,
    ) -> dict[str, dict[str, Any]]:
        """By name, error rates without intervals, and what the head says of speakers that it knows.

        at: optimizer step, whose margin the loss has.
        """
        system = self.system(step.model, should_stop)
        scored = {name: self.score(step.model, which, system, should_stop) for name, which in evaluation.items()}
        return {
            name: error_rates_of(found, self.settings) | self.closed_set(step.head, found, at)
            for name, found in scored.items()
        }

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
