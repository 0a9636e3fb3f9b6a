"""A run's section `scoring` with what the command line of `spkexp.evaluate` says instead."""

import re
from collections.abc import Sequence

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import ValidationError

from spkexp.compose import compose_config, parse_overrides
from spkexp.config import describe_error
from spkexp.errors import ConfigError
from spkexp.override_errors import explain
from spkexp.sections import Config, Scoring

# What changes the scores, or what they mean, and not only what is reported of them.
_OF_SCORES = (
    *("window", "window_step", "precision", "backend", "plda", "enrol", "subtract_mean", "normalise", "cohort"),
    *("calibration", "quality"),
)
_MAX_NAME = 80


def overridden(own: DictConfig, overrides: Sequence[str]) -> DictConfig:
    """`own` with scoring=NAME, which comes first as Hydra has it, and scoring.KEY=VALUE. Raises ConfigError."""
    parsed, mistakes = parse_overrides(overrides, OverridesParser.create())
    sweeps = [one.input_line for one in parsed if one.is_sweep_override()]
    mistakes += [f"{line}: is a sweep, and this command scores once" for line in sweeps]
    for one in sorted(parsed, key=lambda one: one.key_or_group != "scoring") if not mistakes else ():
        key = one.key_or_group.removeprefix("scoring.")
        try:
            if one.key_or_group == "scoring":
                own = compose_config([str(one.input_line)]).scoring
            else:
                OmegaConf.update(own, key, one.value(), force_add=True)
        except HydraException as error:
            mistakes.append(_of_hydra(error, [str(one.input_line)]))
        except (OmegaConfBaseException, ValueError, TypeError) as error:
            mistakes.append(
                f"{one.key_or_group}: cannot be set ({str(error).splitlines()[0]}); conf/scoring has its keys"
            )
    if mistakes:
        raise ConfigError(mistakes)
    try:
        Scoring.model_validate(OmegaConf.to_container(own))
    except ValidationError as error:
        found = [describe_error(".".join(map(str, ("scoring", *e["loc"]))), e, Config) for e in error.errors()]
        raise ConfigError(found) from error
    return own


def _of_hydra(error: HydraException, overrides: Sequence[str]) -> str:
    _, mistake = explain(error, list(overrides))
    return mistake or str(error).splitlines()[0]


def name_of(overrides: Sequence[str]) -> str | None:
    """What to call other scores of a run, such as as_norm or backend=plda,enrol=mean_score; None: they are the same."""
    changed = [
        line for line in overrides if line.partition("=")[0].removeprefix("scoring.").split(".")[0] in _OF_SCORES
    ]
    chosen = [line for line in overrides if line.partition("=")[0] == "scoring"]
    if not changed and not chosen:
        return None
    parts = [line.partition("=")[2] for line in chosen] + [line.removeprefix("scoring.") for line in changed]
    return re.sub(r"[^\w.=,+-]+", "-", ",".join(parts))[:_MAX_NAME].strip("-,")
