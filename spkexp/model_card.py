"""The page that a published model is introduced by, as the Hugging Face hub reads it."""

from importlib.metadata import version
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf

from spkexp.changes import changes, flat
from spkexp.saved_config import is_place

# What of a config says how the model came to be; the rest is in config.yaml.
_SECTIONS = ("data.label", "data.crop_seconds", "augment.speeds", "loss", "trainer.optimizer", "trainer.schedule")
# What is null in a published config, and says nothing of how the model came to be.
PLACES = ("data.root", "data.cache_dir", "data.manifest", "run_dir", "tracking.entity", "tracking.group")
_TRAINER = ("trainer.epochs", "trainer.batch_size", "trainer.precision", "seed")


def model_card(
    config: DictConfig,
    results: dict[str, Any] | None,
    licence: str,
    name: str | None,
    description: str | None,
    classifies: bool,
) -> str:
    """README.md with the hub's metadata: error rates with their intervals, how to use the model, how it was trained.

    config: of the run; results: its results.json; name: of the repository; classifies: whether the head is published.
    """
    title = f"{config.names.model} on {config.names.data}"
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


def _metadata(config: DictConfig, results: dict[str, Any] | None, licence: str, name: str | None) -> dict[str, Any]:
    found: dict[str, Any] = {
        "license": licence.lower(),
        "library_name": "spkexp",
        "tags": ["speaker-recognition", "speaker-verification", "speaker-embedding", config.names.model],
    }
    entries = _verified(results)
    if entries:
        measured = [
            {
                "task": {"type": "speaker-verification", "name": "Speaker verification"},
                "dataset": {"type": config.names.data, "name": f"{config.names.data}, {trials}"},
                "metrics": [{"type": "eer", "name": "EER (%)", "value": round(100 * entry["eer"], 3)}],
            }
            for trials, entry in entries.items()
        ]
        found["model-index"] = [{"name": name or config.names.model, "results": measured}]
    return found


def _verified(results: dict[str, Any] | None) -> dict[str, Any]:
    return {} if results is None else {n: e for n, e in results.get("trials", {}).items() if "eer" in e}


def _results(results: dict[str, Any] | None) -> list[str]:
    entries = _verified(results)
    classified = {} if results is None else {n: e for n, e in results.get("trials", {}).items() if "macro_f1" in e}
    if not entries and not classified:
        return ["## Results", "", "Nothing was measured.", ""]
    lines = ["## Results", ""]
    if entries:
        targets = list(next(iter(entries.values())).get("min_dcf", {}))
        head = ["trials", "number", "EER %", "95 % interval", *(f"minDCF({p})" for p in targets)]
        lines += [_row(head), _row(["---", *["---:"] * (len(head) - 1)])]
        for name, entry in entries.items():
            costs = [f"{entry['min_dcf'][p]:.3f}{_bounds(entry.get('min_dcf_ci95', {}).get(p))}" for p in targets]
            interval = _percent(entry.get("eer_ci95"))
            lines.append(_row([name, f"{entry['num_trials']:,}", f"{100 * entry['eer']:.2f}", interval, *costs]))
        lines += ["", "Intervals come from a bootstrap over speakers; `val` chose the checkpoint.", ""]
    if classified:
        lines += [_row(["set", "accuracy %", "95 % interval", "macro F1 %"]), _row(["---", "---:", "---:", "---:"])]
        for name, entry in classified.items():
            interval = _percent(entry.get("accuracy_ci95"))
            lines.append(_row([name, f"{100 * entry['accuracy']:.2f}", interval, f"{100 * entry['macro_f1']:.2f}"]))
        lines.append("")
    return lines


def _training(config: DictConfig, results: dict[str, Any] | None) -> list[str]:
    plain = OmegaConf.to_container(config, resolve=True)
    assert isinstance(plain, dict)
    content = {str(key): value for key, value in plain.items()}
    shown = {key: value for key, value in flat(content).items() if key.startswith(_SECTIONS) or key in _TRAINER}
    shown |= {key: value for key, value in changes(content).items() if key not in PLACES and not is_place(value)}
    counts = [] if results is None else [f"{results['parameters'] / 1e6:.2f} M parameters"]
    if results is not None and "classes" in results:
        counts.append(f"{results['classes']:,} classes in training")
    rows = [_row([f"`{key}`", f"`{value}`"]) for key, value in shown.items()]
    return [*[f"{', '.join(counts)}.", ""] * bool(counts), _row(["key", "value"]), _row(["---", "---"]), *rows]


def _percent(interval: list[float] | None) -> str:
    return "" if interval is None else f"{100 * interval[0]:.2f}–{100 * interval[1]:.2f}"


def _bounds(interval: list[float] | None) -> str:
    return "" if interval is None else f" ({interval[0]:.3f}–{interval[1]:.3f})"


def _row(cells: list[str]) -> str:
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"
