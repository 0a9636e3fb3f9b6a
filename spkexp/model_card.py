"""The page that a published model is introduced by, as the Hugging Face hub reads it."""

from importlib.metadata import version
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf
from pydantic import BaseModel

from spkexp.changes import changes, flat
from spkexp.checkpoint import named
from spkexp.saved_config import is_place

# What of a config says how the model came to be; the rest is in config.yaml.
_SECTIONS = ("data.label", "data.crop_seconds", "augment.speeds", "loss", "trainer.optimizer", "trainer.schedule")
# What is null in a published config, and says nothing of how the model came to be.
PLACES = ("data.root", "data.cache_dir", "data.manifest", "run_dir", "tracking.entity", "tracking.group")
_TRAINER = ("trainer.epochs", "trainer.batch_size", "trainer.precision", "seed")

_Interval = tuple[float, float] | None


class Entry(BaseModel):
    """What results.json says of a trial list, or of a set with classes; rates are fractions. Others may have less."""

    num_trials: int | None = None
    eer: float | None = None
    eer_ci95: _Interval = None
    min_dcf: dict[str, float] = {}
    min_dcf_ci95: dict[str, _Interval] = {}
    accuracy: float | None = None
    accuracy_ci95: _Interval = None
    macro_f1: float | None = None


class Results(BaseModel):
    """Of results.json what the card shows."""

    trials: dict[str, Entry]
    parameters: int | None = None
    classes: int | None = None


def model_card(
    config: DictConfig,
    results: Results | None,
    licence: str,
    name: str | None,
    description: str | None,
    classifies: bool,
) -> str:
    """README.md with the hub's metadata: error rates with their intervals, how to use the model, how it was trained.

    config: of the run; name: of the repository; classifies: whether the head is published.
    """
    title = f"{named(config, 'model')} on {named(config, 'data')}"
    where = name or "PATH"
    lines = ["---", yaml.safe_dump(_metadata(config, results, licence, name), sort_keys=False).rstrip(), "---", ""]
    lines += [f"# {name or title}", "", description or f"A speaker encoder: {title}.", ""]
    lines += ["## Use", "", "```python", "import spkexp", f'model = spkexp.load("{where}")']
    lines += [
        'model.embed("a.wav")              # the embedding, float32',
        'model.verify("a.wav", "b.wav")    # score and decision',
    ]
    lines += ['model.classify("a.wav")           # label and probability'] * classifies + ["```", ""]
    rate = config.model.features.sample_rate
    lines += [
        f"An embedding has {config.model.embedding_size} values. The model hears {rate} Hz mono; other rates are "
        "resampled and channels averaged. Opening it runs no code.",
        "",
        *_results(results),
        "## Training",
        "",
        *_training(config, results),
        "",
        f"Trained and published with spkexp {version('spkexp')}; `config.yaml` has every key.",
        "",
        "## Licence",
        "",
        f"{licence}. The recordings that it was trained on have licences of their own.",
    ]
    return "\n".join(lines) + "\n"


def _metadata(config: DictConfig, results: Results | None, licence: str, name: str | None) -> dict[str, Any]:
    model, data = named(config, "model"), named(config, "data")
    found: dict[str, Any] = {
        "license": licence.lower(),
        "library_name": "spkexp",
        "tags": ["speaker-recognition", "speaker-verification", "speaker-embedding", model],
    }
    entries = _verified(results)
    if entries:
        measured = [
            {
                "task": {"type": "speaker-verification", "name": "Speaker verification"},
                "dataset": {"type": data, "name": f"{data}, {trials}"},
                "metrics": [{"type": "eer", "name": "EER (%)", "value": round(100 * eer, 3)}],
            }
            for trials, (eer, _) in entries.items()
        ]
        found["model-index"] = [{"name": name or model, "results": measured}]
    return found


def _verified(results: Results | None) -> dict[str, tuple[float, Entry]]:
    """The trial lists that have an equal error rate, and that."""
    return {} if results is None else {n: (e.eer, e) for n, e in results.trials.items() if e.eer is not None}


def _results(results: Results | None) -> list[str]:
    entries = _verified(results)
    classified = {} if results is None else {n: e for n, e in results.trials.items() if e.macro_f1 is not None}
    if not entries and not classified:
        return ["## Results", "", "Nothing was measured.", ""]
    lines = ["## Results", ""]
    if entries:
        targets = list(dict.fromkeys(p for _, entry in entries.values() for p in entry.min_dcf))
        head = ["trials", "number", "EER %", "95 % interval", *(f"minDCF({p})" for p in targets)]
        lines += [_row(head), _row(["---", *["---:"] * (len(head) - 1)])]
        for name, (eer, entry) in entries.items():
            costs = [_cost(entry.min_dcf.get(p), entry.min_dcf_ci95.get(p)) for p in targets]
            number = "" if entry.num_trials is None else f"{entry.num_trials:,}"
            lines.append(_row([name, number, _percent(eer), _percents(entry.eer_ci95), *costs]))
        lines += [
            "",
            "Intervals come from a bootstrap over speakers, where enough are known; `val` chose the checkpoint.",
            "",
        ]
    if classified:
        lines += [_row(["set", "accuracy %", "95 % interval", "macro F1 %"]), _row(["---", "---:", "---:", "---:"])]
        for name, entry in classified.items():
            rates = _percent(entry.accuracy), _percents(entry.accuracy_ci95), _percent(entry.macro_f1)
            lines.append(_row([name, *rates]))
        lines.append("")
    return lines


def _training(config: DictConfig, results: Results | None) -> list[str]:
    plain = OmegaConf.to_container(config, resolve=True)
    assert isinstance(plain, dict)
    content = {str(key): value for key, value in plain.items()}
    if not isinstance(content.get("names"), dict):
        content.pop("names", None)
    shown = {key: value for key, value in flat(content).items() if key.startswith(_SECTIONS) or key in _TRAINER}
    shown |= {key: value for key, value in changes(content).items() if key not in PLACES and not is_place(value)}
    counts = []
    if results is not None and results.parameters is not None:
        counts.append(f"{results.parameters / 1e6:.2f} M parameters")
    if results is not None and results.classes is not None:
        counts.append(f"{results.classes:,} classes in training")
    rows = [_row([f"`{key}`", f"`{value}`"]) for key, value in shown.items()]
    return [*[f"{', '.join(counts)}.", ""] * bool(counts), _row(["key", "value"]), _row(["---", "---"]), *rows]


def _percent(rate: float | None) -> str:
    return "" if rate is None else f"{100 * rate:.2f}"


def _percents(interval: _Interval) -> str:
    return "" if interval is None else "–".join(map(_percent, interval))


def _cost(value: float | None, interval: _Interval) -> str:
    bounds = "" if interval is None else f" ({interval[0]:.3f}–{interval[1]:.3f})"
    return "" if value is None else f"{value:.3f}{bounds}"


def _row(cells: list[str]) -> str:
    """Of a table, whatever a name has in it."""
    return f"| {' | '.join(' '.join(cell.split()).replace('|', chr(92) + '|') for cell in cells)} |"
