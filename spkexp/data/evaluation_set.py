"""Utterances with the trials over them: from a list, or pairs of a split's own utterances."""

import logging
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from spkexp.data import audio
from spkexp.data.groups import read_groups
from spkexp.data.look_up import look_up, tried
from spkexp.data.trial_lists import TrialNames, read_trials
from spkexp.data.trials import Models, Trials, make_trials
from spkexp.data.utterances import Strings, Utterances
from spkexp.errors import UserError

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class EvaluationSet:
    """Utterances and the trials over them."""

    name: str
    utterances: Utterances
    trials: Trials | None  # None where no two utterances are of one speaker: only closed-set accuracy can be measured
    speakers_known: bool  # label means something: for intervals over speakers, and closed-set accuracy
    columns: pl.DataFrame | None = None  # what else the manifest says of the utterances, a row for each, as asked for


@dataclass(frozen=True)
class Trained:
    """What the model under test has heard in training, as far as it is known."""

    speakers: Collection[str]
    ids: pl.Series  # of its utterances


def evaluation_set(
    name: str,
    table: pl.DataFrame,
    label: str,
    trials: str | None,
    models: str | None,
    max_pairs: int,
    seed: int,
    everything: pl.DataFrame,
    root: str | None,
    trained: Trained,
    keep: Sequence[str] = (),
) -> EvaluationSet | None:
    """Trials from the list `trials`, else pairs of the utterances of `table`; None where that is empty.

    keep: further columns that the set is to have. Raises UserError where the table has no such column.
    """
    if trials is not None:
        found = from_list(name, trials, models, everything, label, root, trained, keep)
        if name == "val" and found.trials is not None and found.trials.target is None:
            raise UserError(
                f"data.trials.val: {trials} has no labels, so it cannot choose the best checkpoint; leave it out, and "
                f"score the trained run: python -m spkexp.evaluate model=RUN trials={trials}"
            )
        return found
    if len(table) == 0:
        return None
    utterances = Utterances.of(table, label)
    pairs = make_trials(utterances.label.astype(np.int64), max_pairs, seed)
    if pairs is None:
        log.warning(
            "%s: its %d utterances make no trials, so there is no EER; it needs two speakers, one of them twice",
            name,
            len(table),
        )
    return EvaluationSet(name, utterances, pairs, speakers_known=True, columns=_columns(table, keep))


def _columns(table: pl.DataFrame, keep: Sequence[str]) -> pl.DataFrame:
    if missing := [name for name in keep if name not in table.columns]:
        raise UserError(
            f"scoring.conditions, scoring.colour_by: the manifest has no column {missing[0]!r}; it has "
            f"{', '.join(table.columns)}"
        )
    return table.select(keep)


def from_list(
    name: str,
    file: str,
    models: str | None,
    table: pl.DataFrame,
    label: str,
    root: str | None,
    trained: Trained,
    keep: Sequence[str] = (),
) -> EvaluationSet:
    """The trials of a list, over utterances of `table` or, where it has none of that name, files.

    models: a list of `MODEL utterance [utterance ...]`, for enrolment names that stand for several utterances.
    keep: further columns of `table`; of a file nothing is known. Raises UserError that names file and line.
    """
    names = read_trials(file)
    members = _members(names.enrolled(), models)
    wanted = pl.concat([members["utterance"], names.tested()]).unique(maintain_order=True)
    folders = _folders(root, names.file, Path(models).expanduser() if models else None)
    found = look_up(wanted, table["id"], folders)
    _require_all(found, names, members, models, tried(table["id"], folders))
    rows = _rows(found, table, label, _columns(table, keep).columns)
    _warn_of_training(name, rows, names, members, label, trained)

    # Names are numbers by their place in `wanted`, which is the order of the rows.
    index = _places(names.names, wanted)
    if models is None or (members["name"] == members["utterance"]).all():
        trials = Trials(index[names.enroll], index[names.test], names.target)
    else:
        counts = members.group_by("name", maintain_order=True).len()
        start = np.concatenate([[0], counts["len"].cast(pl.Int64).cum_sum().to_numpy()[:-1]])
        enrolled = Models(Strings(counts["name"]), _places(members["utterance"], wanted), start)
        enroll = _places(names.names, counts["name"])[names.enroll]
        trials = Trials(enroll, index[names.test], names.target, enrolled)
    known = bool(((rows[label] != "") & rows["table_id"].is_not_null()).all())
    return EvaluationSet(name, Utterances.of(rows, label), trials, known, rows.select(keep))


def _places(texts: pl.Series, among: pl.Series) -> NDArray[np.int64]:
    """Where each of `texts` stands in `among`, whose texts are all different; -1 where it does not."""
    return texts.cast(pl.Enum(among), strict=False).to_physical().cast(pl.Int64).fill_null(-1).to_numpy()


def _members(enrolled: pl.Series, file: str | None) -> pl.DataFrame:
    """Columns `name`, `utterance`, `line`: the utterances of each enrolment name, side by side; itself and no line
    where the list of models has no such name."""
    groups = pl.DataFrame(schema={"name": pl.String, "utterance": pl.String, "line": pl.UInt32})
    if file is not None:
        groups = read_groups(file, "list of models").with_columns(pl.col("line").cast(pl.UInt32))
    members = pl.DataFrame({"name": enrolled}).join(groups, on="name", how="left", maintain_order="left_right")
    if file is not None:
        count = members.filter(pl.col("line").is_not_null())["name"].n_unique()
        report = log.info if count == len(enrolled) else log.warning
        report("%s: %d of %d enrolment names are models", file, count, len(enrolled))
    return members.with_columns(pl.coalesce("utterance", "name").alias("utterance"))


def _folders(root: str | None, *lists: Path | None) -> list[Path]:
    """Where names may be files: below data.root, the folder of a list and the one above it (where CN-Celeb and SITW
    have the audio), and the current folder."""
    folders = [Path(root).expanduser()] if root else []
    for file in lists:
        if file is not None:
            folders += [file.resolve().parent, file.resolve().parent.parent]
    return list(dict.fromkeys([*folders, Path.cwd()]))


def _require_all(
    found: pl.DataFrame, names: TrialNames, members: pl.DataFrame, models: str | None, places: str
) -> None:
    """Raise UserError, with the line of the first, where a name was not found."""
    missing = found.filter(pl.col("row").is_null() & pl.col("path").is_null())["name"]
    if len(missing) == 0:
        return
    from_models = members.filter(pl.col("line").is_not_null() & pl.col("utterance").is_in(missing.implode()))
    if len(from_models):
        name, where = from_models["utterance"][0], f"{models}:{from_models['line'][0]}"
    else:
        name, line = names.first_of(missing)
        where = f"{names.file}:{line}"
    hint = ""
    if models is None and not missing.is_in(names.tested().implode()).any():
        hint = "; where the first column names models of several utterances, give their list (data.trials.models=FILE, "
        hint += "or models=FILE to evaluate)"
    raise UserError(
        f"{where}: no utterance is called {name!r} ({len(missing):,} such names of {len(found):,}); "
        f"tried: {places}{hint}"
    )


def _rows(found: pl.DataFrame, table: pl.DataFrame, label: str, keep: Sequence[str]) -> pl.DataFrame:
    """The utterances of a list as a table, called as the list calls them; `table_id` is null where one is a file."""
    columns = ["path", "duration", label, *(c for c in ("start", "offset", "bytes") if c in table.columns), *keep]
    known = table.select(pl.col("id").alias("table_id"), *columns)
    rows = known[found["row"].fill_null(0)] if len(known) else known.clear(len(found))
    as_file = found["row"].is_null()
    paths = found.filter(as_file)["path"]
    duration = pl.DataFrame({"path": paths, "measured": _durations(paths)}).unique("path")
    rows = rows.with_columns(
        pl.when(as_file).then(None).otherwise(pl.exclude("path")).name.keep(),
        pl.when(as_file).then(found["path"]).otherwise("path").alias("path"),
    ).join(duration, on="path", how="left", maintain_order="left")
    return rows.with_columns(
        pl.when(as_file).then("measured").otherwise("duration").alias("duration"),
        pl.col(label).fill_null(""),
        *([pl.col("start").fill_null(0)] if "start" in columns else []),
    ).select(found["name"].alias("id"), "table_id", *columns)


def _durations(paths: pl.Series) -> pl.Series:
    """Seconds of each file. Raises UserError for one without audio."""
    measured = pl.Series(audio.durations(paths.to_list()), dtype=pl.Float64)
    bad = paths.filter(measured.is_null() | ~(measured > 0))
    if len(bad):
        audio.info(bad[0])
        raise UserError(f"{bad[0]}: holds no audio ({len(bad)} such files in the list)")
    return measured


def _warn_of_training(
    name: str, rows: pl.DataFrame, names: TrialNames, members: pl.DataFrame, label: str, trained: Trained
) -> None:
    """Say how much of a list the model has been trained on: error rates on known voices tell nothing about new ones.

    The speaker of a file is not known; a folder on its way that is called like a training speaker counts.
    """
    folders = pl.col("id").str.split("/").list.slice(0, pl.col("id").str.count_matches("/", literal=True))
    heard = pl.Series(trained.speakers, dtype=pl.String).implode()
    people = rows.select(
        "id",
        utterance=pl.col("table_id").is_in(trained.ids.implode()).fill_null(False),
        speaker=pl.when(pl.col("table_id").is_not_null())
        .then(pl.concat_list(label))
        .otherwise(folders)
        .list.eval(pl.element().filter(pl.element().is_in(heard)))
        .list.last(),
    )
    known = people.filter(pl.col("speaker").is_not_null() | pl.col("utterance"))
    if len(known) == 0:
        return
    who = known["speaker"].drop_nulls()
    what = f"{who.n_unique()} speakers of the list (such as {who[0]})" if len(who) else "utterances of the list"
    by_name = members.group_by("name").agg(pl.col("utterance").is_in(known["id"].implode()).any())
    side = names.names.is_in(by_name.filter("utterance")["name"].implode()).to_numpy()[names.enroll]
    side |= names.names.is_in(known["id"].implode()).to_numpy()[names.test]
    log.warning(
        "%s: the error rates say nothing about unknown speakers: the model was trained on %s, which are in "
        "%s of its %s trials; %s of its %s utterances were training utterances",
        name, what, f"{side.sum():,}", f"{len(side):,}",
        f"{known['utterance'].sum():,}", f"{len(people):,}",
    )  # fmt: skip
