"""The database of a search, and the trials that are in it."""

import hashlib
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import optuna
from optuna.storages import RDBStorage
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError

from hydra_plugins.spkexp_optuna._space import Space
from spkexp.errors import UserError
from spkexp.lock import hold
from spkexp.pruning import PRUNER, RETRY_OF, PrunerSettings, masked, open_storage
from spkexp.resume import IMMATERIAL
from spkexp.whole_file import write_secret

SPACE, OVERRIDES = "space", "overrides"  # the study's attributes
RUN_DIR, ERROR = "run_dir", "error"  # a trial's attributes
NOT_RUN = "not_run"  # a trial's attribute: why it was drawn and never run
DONE = (TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL)


class Trials:
    """A study in its database: what was tried, what is left over, and what is known of each trial."""

    def __init__(self, study: Study, storage: RDBStorage, where: str) -> None:
        """where: the database's URL, or a file with it, for the jobs, whose configs anybody may read."""
        self.study, self.storage, self.where = study, storage, where
        self.name = study.study_name
        self._id = storage.get_study_id_from_name(self.name)

    def all(self) -> list[FrozenTrial]:
        """The trials that count, each under its last number: without duplicates and without failures that were, or
        are about to be, run again."""
        trials = [t for t in self.study.get_trials(deepcopy=False) if NOT_RUN not in t.user_attrs]
        last = {first_number(trial): trial for trial in trials}
        return list(last.values())

    def having(self, *states: TrialState) -> list[FrozenTrial]:
        return [trial for trial in self.all() if trial.state in states]

    def drop(self, number: int, reason: str) -> None:
        """Let the trial `number`, which was drawn and not run, count for nothing."""
        self.note(number, NOT_RUN, reason)
        self.study.tell(number, state=TrialState.FAIL)

    def note(self, number: int, key: str, value: Any) -> None:
        """Leave an attribute with the trial `number`, which must not be finished."""
        trial_id = self.storage.get_trial_id_from_study_id_trial_number(self._id, number)
        self.storage.set_trial_user_attr(trial_id, key, value)


def first_number(trial: FrozenTrial) -> int:
    """The number under which the run of `trial` knows itself: that of its first try."""
    return int(trial.user_attrs.get(RETRY_OF, trial.number))


def name_of(space: Space) -> str:
    """A name that the same ranges and overrides have again."""
    content = json.dumps([space.described(), _overrides_that_matter(space)], sort_keys=True)
    return f"search-{hashlib.sha256(content.encode()).hexdigest()[:8]}"


def _overrides_that_matter(space: Space) -> list[str]:
    """Without those that may differ between two starts of the same run."""
    keys = [(override.lstrip("+~").partition("=")[0], override) for override in space.fixed]
    return sorted(override for key, override in keys if not f"{key}.".startswith(tuple(f"{k}." for k in IMMATERIAL)))


@contextmanager
def opened(name: str, storage: str | None, space: Space, pruner: PrunerSettings) -> Iterator[Trials]:
    """The study `name`, made if it is not there, and no other search's while the block runs.

    storage: a file, a URL, or None for runs/sweeps/<name>/study.db. Raises UserError where the database is out of
    reach, another search is at work on the study, or the study is about other ranges or overrides.
    """
    plain = re.sub(r"[^\w.-]", "_", name)
    folder = Path("runs", "sweeps", plain).absolute()
    url = _url(storage, folder / "study.db")
    file = Path(url.database or "") if url.get_backend_name() == "sqlite" else None
    text = url.render_as_string(hide_password=False)
    busy = (
        f"search {name}: {{holder}} is at work on it; wait for it or end it (hydra.sweeper.n_jobs and a launcher run "
        "trials side by side)"
    )
    with hold((file.parent if file else folder) / f".{plain}.lock", busy, "set hydra.sweeper.storage=FILE"):
        try:
            database = open_storage(text)
            study = optuna.create_study(storage=database, study_name=name, direction="minimize", load_if_exists=True)
        # Each database has a driver with errors of its own.
        except Exception as error:
            reason = masked(str(error).strip().partition("\n")[0].rstrip(".")) or type(error).__name__
            raise UserError(
                f"hydra.sweeper.storage: {masked(text)} cannot be used: {reason}; "
                "give an sqlite file, or the URL of a database whose driver is installed"
            ) from error
        try:
            _describe(study, space, pruner)
            where = text
            if masked(text) != text:
                where = str(folder / "storage.url")
                write_secret(Path(where), text)
            yield Trials(study, database, where)
        finally:
            database.remove_session()
            database.engine.dispose()


def _url(storage: str | None, default: Path) -> URL:
    if storage is None or "://" not in storage:
        file = default if storage is None else Path(storage).expanduser().absolute()
        return URL.create("sqlite", database=str(file))
    try:
        url = make_url(storage)
        backend = url.get_backend_name()
    except ArgumentError:
        raise UserError(f"hydra.sweeper.storage: {masked(storage)!r} is no URL of a database, and no file") from None
    if backend != "sqlite":
        return url
    if url.database in (None, "", ":memory:"):
        raise UserError("hydra.sweeper.storage: jobs have processes of their own, which cannot reach sqlite in memory")
    return url.set(database=str(Path(url.database).expanduser().absolute()))


def _describe(study: Study, space: Space, pruner: PrunerSettings) -> None:
    """Leave what the search is about with its study, or hold it against what is there. Raises UserError."""
    known, ranges, overrides = study.user_attrs, space.described(), _overrides_that_matter(space)
    if SPACE in known and (known[SPACE] != ranges or known[OVERRIDES] != overrides):
        before, now = known[SPACE], ranges
        differences = [
            f"{key}: {before.get(key, 'not searched')} there, {now.get(key, 'not searched')} here"
            for key in sorted({*before, *now})
            if before.get(key) != now.get(key)
        ]
        differences += [f"{o}: only there" for o in sorted(set(known[OVERRIDES]) - set(overrides))]
        differences += [f"{o}: only here" for o in sorted(set(overrides) - set(known[OVERRIDES]))]
        raise UserError(
            f"hydra.sweeper.study_name: {study.study_name} is another search; choose another name, or none\n  "
            + "\n  ".join(differences)
        )
    if SPACE not in known:
        study.set_user_attr(OVERRIDES, overrides)
        study.set_user_attr(SPACE, ranges)
    if known.get(PRUNER) != pruner.as_attribute():
        study.set_user_attr(PRUNER, pruner.as_attribute())
