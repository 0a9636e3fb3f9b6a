"""From the data section of a config to utterances and trials, everything checked."""

import logging
import pkgutil
from collections.abc import Callable, Iterable
from pathlib import Path

import polars as pl
import torch
from omegaconf import DictConfig, OmegaConf

from spkexp import build, distributed
from spkexp.cores import cores
from spkexp.data.classes import SPEAKER, labelled_set, require_no_lists
from spkexp.data.cohort import cohort
from spkexp.data.dataset import Reading
from spkexp.data.evaluation_set import EvaluationSet, Trained, evaluation_set
from spkexp.data.load import Data, describe, require_label, usable
from spkexp.data.manifest import filter_table, read_table
from spkexp.data.prepared import Prepared, Source, corpus_source, manifest_source, prepare
from spkexp.data.split import split_table
from spkexp.data.staging import staged
from spkexp.data.utterances import Utterances
from spkexp.errors import UserError
from spkexp.scoring.normalise import overlap
from spkexp.scoring.trial_scores import RESERVED
from spkexp.sections import Scoring

log = logging.getLogger(__name__)


def reading(cfg: DictConfig) -> Reading:
    return Reading(cfg.model.features.sample_rate, cfg.data.resample, cfg.data.mix_channels)


def source(cfg: DictConfig) -> Source:
    """The corpus or the manifest that the config names."""
    data = cfg.data
    root = None if data.root is None else Path(data.root).expanduser()
    if data.corpus is not None:
        if root is None:
            raise UserError("data.root: the corpus needs the folder where it lies; give it as data.root=DIR")
        listed, node = build.build(data.corpus, "data.corpus"), OmegaConf.to_container(data.corpus, resolve=True)
        assert isinstance(node, dict)
        # A class whose table takes in more than the root says which arguments are paths, and what it reads.
        paths = {key: node[key] for key in getattr(listed, "PATHS", ()) if node[key] is not None}
        node |= {key: str(Path(path).expanduser().resolve()) for key, path in paths.items()}
        sources = getattr(listed, "sources", lambda root: ())
        return corpus_source(node, root, lambda: listed.table(root), lambda: sources(root))
    if data.manifest is None:
        raise UserError("data: neither a corpus nor a manifest; use data=manifest data.manifest=FILE")
    return _manifest(data.manifest, root)


def is_made(cfg: DictConfig) -> bool:
    """Whether the data are not found but made where they are looked for."""
    return cfg.data.corpus is not None and getattr(pkgutil.resolve_name(cfg.data.corpus._target_), "MADE", False)


def _manifest(name: str, root: Path | None) -> Source:
    file = Path(name).expanduser()
    return manifest_source(file, root, lambda: read_table(file, root))


def table(cfg: DictConfig, known: Prepared | None = None) -> tuple[pl.DataFrame, list[dict[str, str]]]:
    """The corpus's or the manifest's utterances, filtered, with durations; and those left out as unusable: id, path
    and reason of each.

    One process does what writes to disk. known: what `prepare` has found already.
    """
    data = cfg.data
    cache = Path(data.cache_dir).expanduser()
    known = known or distributed.main_first(lambda: prepare(source(cfg), cache, keep=False))
    found, broken = known.table, known.facts.get("broken", [])
    found = filter_table(found, data.filter)
    if data.split.by == "speaker" and "split" in found.columns:
        found = found.drop("split")
    return usable(require_label(found, data.label), broken, data.on_error, data.max_bad_fraction)


def data(cfg: DictConfig) -> Data:
    """Training utterances and evaluation sets. Raises UserError for anything wrong with them."""
    everything, unusable = table(cfg)
    skipped = len(unusable)
    settings = cfg.data
    if settings.stage_dir is not None:
        everything = staged(everything, Path(settings.stage_dir).expanduser(), settings.on_error)
    tables = split_table(everything, settings.label, settings.split.by, settings.split.fractions, settings.split.seed)
    log.info("data: %s", describe(tables, settings.label))
    train = Utterances.of(tables["train"], settings.label)
    own_labels = settings.label == SPEAKER and cfg.augment.speed_label == "own"
    train = train.with_speed_copies(cfg.augment.speeds, own_labels)
    if len(train.label_names) < 2:
        raise UserError(f"data: all {len(train)} training utterances are of one {settings.label}; training needs two")
    evaluation: dict[str, EvaluationSet] = {}
    if settings.label != SPEAKER:
        require_no_lists(settings.label, [(f"data.trials.{name}", settings.trials[name]) for name in ("val", "test")])
        sets = [labelled_set(name, tables[name], settings.label, train.label_names) for name in ("val", "test")]
        return Data(train, {found.name: found for found in sets if found}, None, reading(cfg), skipped)
    for name in ("val", "test"):
        found = evaluation_set(
            name,
            tables[name],
            settings.label,
            settings.trials[name],
            settings.trials.models,
            settings.trials.max_pairs,
            settings.split.seed,
            everything,
            settings.root,
            Trained(train.label_names, tables["train"]["id"]),
            kept_columns(cfg),
        )
        if found is None:
            continue
        # Without trials there is still the accuracy, where the speakers were trained on; else nothing to measure.
        if found.trials is not None or set(found.utterances.label_names) <= set(train.label_names):
            evaluation[name] = found
    behind = None
    if any(found.trials is not None for found in evaluation.values()):
        behind = background(cfg, lambda: tables["train"], evaluation.values())
    return Data(train, evaluation, behind, reading(cfg), skipped)


def kept_columns(cfg: DictConfig) -> list[str]:
    """The columns of the manifest that reports want beside those that every evaluation set has."""
    asked = dict.fromkeys([*cfg.scoring.conditions, cfg.scoring.colour_by])
    if taken := [name for name in asked if name in ("id", "path", *RESERVED)]:
        raise UserError(
            f"scoring.conditions, scoring.colour_by: {taken[0]!r} is no condition; where the manifest has such a "
            "column, rename it"
        )
    return [name for name in asked if name not in ("duration", SPEAKER)]


def background(
    cfg: DictConfig, train: Callable[[], pl.DataFrame], evaluation: Iterable[EvaluationSet]
) -> Utterances | None:
    """The utterances that scores are normalised against and PLDA is trained on; None where scoring has no use for any.

    train: the table of the training utterances; evaluation: sets, whose speakers should be others. Raises UserError.
    """
    scoring = Scoring.model_validate(OmegaConf.to_container(cfg.scoring))
    if not scoring.needs_background:
        return None
    wanted = scoring.cohort
    if wanted.manifest is None:
        found = train()
    else:
        listed = _manifest(wanted.manifest, None if cfg.data.root is None else Path(cfg.data.root).expanduser())
        cache = Path(cfg.data.cache_dir).expanduser()
        try:
            known = distributed.main_first(lambda: prepare(listed, cache, keep=False))
            found, _ = usable(known.table, known.facts.get("broken", []), cfg.data.on_error, cfg.data.max_bad_fraction)
        except UserError as error:
            raise UserError(str(error).replace("data.manifest", "scoring.cohort.manifest")) from error
    if SPEAKER not in found.columns or found[SPEAKER].null_count():
        raise UserError(
            "scoring.cohort: not every utterance of its table has a speaker; scoring.cohort.manifest=FILE names another"
        )
    chosen = cohort(found, SPEAKER, wanted.utterances_per_speaker, wanted.speakers, cfg.seed)
    result = Utterances.of(chosen, SPEAKER)
    speakers, few = len(result.label_names), scoring.normalise == "as" and len(result.label_names) < wanted.top_n
    log.info(
        "scoring.cohort: %s utterances of %s speakers%s", f"{len(chosen):,}", f"{speakers:,}",
        f", fewer than top_n={wanted.top_n}: all are used" if few else "",
    )  # fmt: skip
    for one in evaluation:
        if both := overlap(result.label_names, one.utterances.label_names if one.speakers_known else []):
            log.warning(
                "%s: %d of its speakers are in scoring.cohort, too, such as %s: their own trials look ordinary by it",
                one.name, len(both), both[0],
            )  # fmt: skip
    return result


def num_workers(cfg: DictConfig, device: torch.device) -> int:
    """data.num_workers; null: none where the model itself needs the cores, else a share of those that we may use."""
    if cfg.data.num_workers is not None:
        return cfg.data.num_workers
    return 0 if device.type == "cpu" else max(1, min(16, cores() // distributed.on_this_node()))
