"""How a run scores a model on its own evaluation sets, while it trains and at its end."""

from collections.abc import Callable
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf

from spkexp import numerics
from spkexp.data.evaluation_set import EvaluationSet
from spkexp.data.load import Data
from spkexp.losses.head import Loss
from spkexp.models.speaker import SpeakerModel
from spkexp.scoring.classification import Classified, classify_all, closed_set
from spkexp.scoring.verification import Policy, Scored, score, summarise
from spkexp.sections import Scoring
from spkexp.step import TrainStep


def _never() -> bool:
    return False


class Scorer:
    """The evaluation sets of `data`, and how the config wants them scored."""

    def __init__(self, cfg: DictConfig, data: Data, labels: list[str], device: torch.device, workers: int) -> None:
        """labels: the classes of the head, in the order of its outputs; workers: processes that read."""
        self.settings = Scoring.model_validate(OmegaConf.to_container(cfg.scoring))
        self.policy = Policy(cfg.data.on_error, cfg.data.max_bad_fraction)
        self.label, self.data, self.labels, self.device, self.workers = cfg.data.label, data, labels, device, workers

    def score(self, model: SpeakerModel, evaluation: EvaluationSet, should_stop: Callable[[], bool] = _never) -> Scored:
        reading = self.data.reading
        with numerics.varying_lengths():
            return score(model, evaluation, reading, self.settings, self.policy, self.workers, should_stop)

    def evaluate(
        self, step: TrainStep, evaluation: EvaluationSet, should_stop: Callable[[], bool] = _never
    ) -> dict[str, Any]:
        """Error rates without intervals: eer and min_dcf, accuracy where the head knows the speakers."""
        scored = self.score(step.model, evaluation, should_stop)
        found = summarise(scored, self.settings, interval=False)
        return {key: found[key] for key in ("eer", "min_dcf") if key in found} | self.closed_set(step.head, scored)

    def closed_set(self, loss: Loss, scored: Scored) -> dict[str, float]:
        """Accuracy of the loss's classifier; {} where it has none, or does not know the speakers."""
        if loss.classifier is None:
            return {}
        return closed_set(loss.classifier, scored, self.label, self.labels, self.device)

    def classify(self, loss: Loss, scored: dict[str, Scored]) -> dict[str, Classified]:
        """The answers of the loss's classifier on those that are labelled sets."""
        if loss.classifier is None:
            return {}
        return classify_all(loss.classifier, scored, self.label, self.labels, self.device)
