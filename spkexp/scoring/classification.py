"""How well the classifier of a run tells the classes of its label: accuracy, F1, confusions.

The classifier is the head of training: its scores of the embedding of a whole utterance, the highest wins.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from spkexp.data.classes import LabelledSet, require_trained
from spkexp.data.utterances import Utterances
from spkexp.losses.head import Head
from spkexp.scoring.statistics import accuracy_interval
from spkexp.scoring.verification import Scored

# Utterances classified at once: bounds the memory of (utterances, classes) scores.
BLOCK = 4_096


@dataclass(frozen=True)
class Classified:
    """What a classifier answered on a labelled set."""

    set: LabelledSet
    label: str  # the column that was learnt
    classes: list[str]  # in the order of the head's outputs
    expected: NDArray[np.int64]  # (N,) index into classes
    predicted: NDArray[np.int64]  # (N,) index into classes, -1 where the utterance could not be read

    @property
    def readable(self) -> NDArray[np.bool_]:
        return self.predicted >= 0

    def confusions(self) -> NDArray[np.int64]:
        """(K, K) utterances of the row's class that were taken for the column's."""
        return confusion_matrix(self.expected[self.readable], self.predicted[self.readable], len(self.classes))


def predict(head: Head, embeddings: NDArray[np.float32], device: torch.device) -> NDArray[np.int64]:
    """(N,) class of the highest score for each of `embeddings` (N, size); -1 for a row that is not finite."""
    predicted = np.full(len(embeddings), -1, dtype=np.int64)
    readable = np.flatnonzero(np.isfinite(embeddings).all(axis=1))
    with torch.inference_mode():
        for start in range(0, len(readable), BLOCK):
            rows = readable[start : start + BLOCK]
            scores = head.scores(torch.from_numpy(embeddings[rows]).to(device))
            predicted[rows] = scores.argmax(dim=1).cpu().numpy()
    return predicted


def classify(head: Head, scored: Scored, label: str, classes: list[str], device: torch.device) -> Classified:
    """The head's answers on a labelled set. Raises UserError where the set has a class that is not among `classes`."""
    evaluation = scored.set
    assert isinstance(evaluation, LabelledSet)
    utterances = evaluation.utterances
    require_trained(evaluation.name, label, utterances.label_names, classes)
    index = {name: position for position, name in enumerate(classes)}
    expected = np.array([index[name] for name in utterances.label_names])[utterances.label]
    return Classified(evaluation, label, classes, expected, predict(head, scored.embeddings, device))


def classify_all(
    head: Head, scored: Mapping[str, Scored], label: str, classes: list[str], device: torch.device
) -> dict[str, Classified]:
    """`classify` for those of `scored` that are labelled sets."""
    labelled = {name: result for name, result in scored.items() if isinstance(result.set, LabelledSet)}
    return {name: classify(head, result, label, classes, device) for name, result in labelled.items()}


def mean_loss(
    head: Head,
    embeddings: NDArray[np.float32],
    expected: NDArray[np.int64],
    readable: NDArray[np.bool_],
    device: torch.device,
    at: int,
) -> float:
    """Mean over the readable utterances of the head's loss, with the margin of optimizer step `at`.

    embeddings: (N, size); expected: (N,) class of each.
    """
    rows, total = np.flatnonzero(readable), 0.0
    with torch.inference_mode():
        for start in range(0, len(rows), BLOCK):
            block = rows[start : start + BLOCK]
            scores = head.scores(torch.from_numpy(embeddings[block]).to(device))
            label = torch.from_numpy(expected[block]).to(device)
            total += len(block) * float(head.loss(scores, label, at))
    return total / len(rows)


def closed_set(
    head: Head, scored: Scored, label: str, classes: list[str], device: torch.device, at: int
) -> dict[str, float]:
    """{"loss": …, "accuracy": …} of the head, of a labelled set "macro_f1" too; nothing where a speaker was not trained
    on. at: optimizer step, whose margin the loss has."""
    if isinstance(scored.set, LabelledSet):
        answers = classify(head, scored, label, classes, device)
        counts = answers.confusions()
        loss = mean_loss(head, scored.embeddings, answers.expected, answers.readable, device, at)
        return {"loss": loss, "accuracy": accuracy(counts), "macro_f1": macro_f1(counts)}
    utterances = scored.set.utterances
    if not set(utterances.label_names) <= set(classes):
        return {}
    index = {name: position for position, name in enumerate(classes)}
    expected = np.array([index[name] for name in utterances.label_names])[utterances.label]
    predicted = predict(head, scored.embeddings, device)
    readable = predicted >= 0
    loss = mean_loss(head, scored.embeddings, expected, readable, device, at)
    return {"loss": loss, "accuracy": float(np.mean((predicted == expected)[readable]))}


def largest_class(train: Utterances) -> str:
    """The class with the most training utterances: what a classifier that learnt nothing else would always answer."""
    return train.label_names[int(np.bincount(train.label).argmax())]


def summarise_classes(classified: Classified, replicates: int, majority: str | None) -> dict[str, Any]:
    """The entry of results.json for one labelled set; rates are fractions.

    replicates: resamplings of the speakers for the interval of the accuracy; 0: none.
    majority: the class of a classifier that always answers it, for the baseline to read the rest against; None: none.
    """
    counts, readable = classified.confusions(), classified.readable
    entry: dict[str, Any] = {
        "num_utterances": int(readable.sum()),
        "skipped_utterances": int((~readable).sum()),
        "accuracy": accuracy(counts),
        "accuracy_ci95": None,
        "macro_f1": macro_f1(counts),
    }
    speaker = classified.set.speaker
    if replicates and speaker is not None:
        correct = (classified.predicted == classified.expected)[readable]
        bounds = accuracy_interval(correct, speaker[readable], replicates)
        entry["accuracy_ci95"] = list(bounds) if bounds else None
    if majority in classified.classes:
        answer = np.full_like(classified.expected[readable], classified.classes.index(majority))
        always = confusion_matrix(classified.expected[readable], answer, len(classified.classes))
        entry["majority"] = {"class": majority, "accuracy": accuracy(always), "macro_f1": macro_f1(always)}
    precision, recall, f1 = per_class(counts)
    entry["classes"] = {
        name: {
            "num_utterances": int(counts[index].sum()),
            "precision": float(precision[index]),
            "recall": float(recall[index]),
            "f1": float(f1[index]),
        }
        for index, name in enumerate(classified.classes)
    }
    return entry


def confusion_matrix(expected: NDArray[np.int64], predicted: NDArray[np.int64], num_classes: int) -> NDArray[np.int64]:
    """(K, K) how often the class of the row was taken for that of the column. expected, predicted: (N,) in [0, K)."""
    cells = np.bincount(expected * num_classes + predicted, minlength=num_classes * num_classes)
    return cells.reshape(num_classes, num_classes)


def accuracy(counts: NDArray[np.int64]) -> float:
    """Share of the utterances on the diagonal of the confusion matrix (K, K)."""
    return float(np.trace(counts) / counts.sum())


def per_class(counts: NDArray[np.int64]) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """(precision, recall, F1) of each class, each (K,), from the confusion matrix (K, K).

    With the hits h: precision h / answered, recall h / occurring, F1 2h / (answered + occurring). Where a denominator
    is 0 (a class that is never answered has no precision) the value is 0, as scikit-learn's default has it.
    """
    hits, answered, occurring = np.diagonal(counts), counts.sum(axis=0), counts.sum(axis=1)
    return (
        hits / np.maximum(answered, 1),
        hits / np.maximum(occurring, 1),
        2 * hits / np.maximum(answered + occurring, 1),
    )


def macro_f1(counts: NDArray[np.int64]) -> float:
    """Mean F1 over the classes that occur, each counting alike however many utterances it has.

    counts: confusion matrix (K, K). As scikit-learn's f1_score(average="macro", labels=the classes that occur). Its
    default takes in, with an F1 of 0, each class that does not occur but is answered: in a small set with half of the
    classes a single slip would then weigh as much as a whole class. Here it lowers the F1 of the class it belongs to.
    """
    occurring = counts.sum(axis=1) > 0
    return float(per_class(counts)[2][occurring].mean())
