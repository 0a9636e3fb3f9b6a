"""A run's side of a hyper-parameter search: it reports each validation, and learns whether it is worth going on.

The search lies in a database that the sweeper (hydra/sweeper=optuna) made. Pruners are not stored in it: the sweeper
leaves the name and the settings of its pruner with the study, and every run builds it again from those.
"""

import logging
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from spkexp.errors import UserError
from spkexp.sections import Search

if TYPE_CHECKING:
    from optuna.pruners import BasePruner
    from optuna.storages import RDBStorage
    from optuna.study import Study

log = logging.getLogger(__name__)

PRUNER = "pruner"  # the study's attribute that holds a PrunerSettings
RETRY_OF = "retry_of"  # a trial's attribute: the number of the failed trial that it runs again
SQLITE_WAIT = 60  # seconds to wait for a file that another process is writing to


# user:password@ of a URL, and passwords among what follows its ?
_PASSWORD = re.compile(r"(?<=://)([^:/@\s'\"]*):[^@\s'\"]*(?=@)")
_PASSWORD_OPTION = re.compile(r"(?<=[?&])(password|passwd|pwd)=[^&\s'\"]*")


def masked(text: str) -> str:
    """`text` with *** in the place of every password in a URL, for what people read and what is stored."""
    return _PASSWORD_OPTION.sub(r"\1=***", _PASSWORD.sub(r"\1:***", text))


def import_optuna() -> None:
    """Raises UserError that says how to install it."""
    try:
        import optuna
    except ImportError as error:
        if error.name != "optuna":
            raise
        raise UserError("hydra/sweeper=optuna needs optuna; pip install 'spkexp[optuna]'") from None
    optuna.logging.set_verbosity(optuna.logging.WARNING)


@dataclass(frozen=True)
class PrunerSettings:
    """Steps are epochs, so that trials whose batch sizes differ are compared after the same work.

    startup: finished trials before `median` stops any; warmup: epochs in which no trial is stopped; reduction: of so
    many trials `halving` (Li et al. 2018, ASHA) and `hyperband` (Li et al. 2018) let one go on.
    """

    name: Literal["none", "median", "halving", "hyperband"]
    startup: int
    warmup: int
    reduction: int

    def build(self) -> "BasePruner":
        from optuna import pruners

        first = self.warmup + 1  # the first epoch after which a trial may be stopped
        if self.name == "median":
            return pruners.MedianPruner(n_startup_trials=self.startup, n_warmup_steps=first)
        if self.name == "halving":
            return pruners.SuccessiveHalvingPruner(min_resource=first, reduction_factor=self.reduction)
        if self.name == "hyperband":
            return pruners.HyperbandPruner(min_resource=first, reduction_factor=self.reduction)
        return pruners.NopPruner()

    def as_attribute(self) -> dict[str, Any]:
        return asdict(self)


def open_storage(url: str) -> "RDBStorage":
    """The database at `url`, with its tables. Raises what optuna, sqlalchemy and the database's driver raise."""
    from optuna.storages import RDBStorage

    sqlite = url.startswith("sqlite")
    settings: dict[str, Any] = {"connect_args": {"timeout": SQLITE_WAIT}} if sqlite else {"pool_pre_ping": True}
    return RDBStorage(url, engine_kwargs=settings)


class Pruning:
    """What a run asks after each validation. Outside a search it does nothing."""

    def __init__(self, search: Search | None) -> None:
        self._search = search
        self._trial: _Trial | None = None

    def report(self, step: int, value: float) -> bool:
        """True: stop this run, for it does worse than others did at the same step.

        step: epochs trained, from 1; value: what the search minimises. A step that was reported before the run was
        interrupted keeps the value that it had. A database that cannot be reached warns once, and never stops a run.
        """
        if self._search is None:
            return False
        try:
            self._trial = self._trial or _Trial(self._search)
            return self._trial.report(step, value)
        # The run matters more than the search, whatever its database, the driver or the network came up with.
        except Exception as error:
            reason = masked(" ".join(str(error).split())) or type(error).__name__
            log.warning("search: this run will not be stopped early, the search is out of reach: %s", reason)
            self._search = None
            return False


class _Trial:
    """A trial of a study in a database."""

    def __init__(self, search: Search) -> None:
        import_optuna()
        import optuna
        from sqlalchemy.engine import make_url

        # A URL with a password stands in a file that is this user's alone.
        text = search.storage if "://" in search.storage else Path(search.storage).read_text(encoding="utf-8")
        url = make_url(text)
        if url.get_backend_name() == "sqlite" and not Path(url.database or "").is_file():
            raise FileNotFoundError(f"{url.database} is not there")  # sqlite would make an empty one
        self.storage = open_storage(text)
        # A sampler is never asked here: the sweeper drew the parameters.
        self.study = optuna.load_study(study_name=search.study, storage=self.storage)
        self.study.pruner = _pruner(self.study).build()
        study_id = self.storage.get_study_id_from_name(search.study)
        # A failed trial that is run again has a new number, and the run's config the first one.
        number = max(
            trial.number
            for trial in self.study.get_trials(deepcopy=False)
            if search.trial in (trial.number, trial.user_attrs.get(RETRY_OF))
        )
        self.id = self.storage.get_trial_id_from_study_id_trial_number(study_id, number)

    def report(self, step: int, value: float) -> bool:
        if step not in self.storage.get_trial(self.id).intermediate_values:
            self.storage.set_trial_intermediate_value(self.id, step, value)
        return bool(self.study.pruner.prune(self.study, self.storage.get_trial(self.id)))  # some answer with numpy's


def _pruner(study: "Study") -> PrunerSettings:
    found: Mapping[str, Any] = study.user_attrs[PRUNER]
    return PrunerSettings(**found)
