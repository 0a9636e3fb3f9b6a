"""A search as people read it: its trials in numbers, the best of them, and what mattered."""

import math

from optuna.importance import PedAnovaImportanceEvaluator, get_param_importances
from optuna.trial import FrozenTrial, TrialState
from rich import box
from rich.console import Console
from rich.table import Table

from hydra_plugins.spkexp_optuna._space import Space
from hydra_plugins.spkexp_optuna._study import DONE, ERROR, RUN_DIR, Trials, first_number

SHOWN = 5  # of the best trials
# With fewer finished trials the best tenth, by which importance is measured, is one trial.
MIN_TRIALS_FOR_IMPORTANCE = 10


def outcome_line(trials: Trials, number: int) -> str:
    """What became of the trial `number`, and the best so far."""
    trial = trials.study.get_trials(deepcopy=False)[number]
    name = f"trial {first_number(trial)}"
    if trial.state == TrialState.COMPLETE:
        best = trials.study.best_trial
        than = (
            "the best so far"
            if best.number == number
            else f"the best is {best.value:.4g} of trial {first_number(best)}"
        )
        return f"{name}: {trial.value:.4g}; {than}"
    if trial.state == TrialState.PRUNED:
        at = f" at {trial.value:.4g} after epoch {trial.last_step}" if trial.value is not None else ""
        return f"{name}: stopped early{at}"
    return f"{name}: failed: {trial.user_attrs[ERROR]}"


def summary(trials: Trials, space: Space, wanted: int, retries: bool) -> str:
    """Counts, the best trials with their run folders, importances, failures, and how to go on.

    wanted: n_trials; retries: the next start runs failed trials again.
    """
    finished = sorted(trials.having(TrialState.COMPLETE), key=lambda trial: (trial.value or 0.0, trial.number))
    pruned, failed = trials.having(TrialState.PRUNED), trials.having(TrialState.FAIL)
    done = len(trials.having(*DONE))
    lines = [
        f"search {trials.name}: {len(finished)} finished, {len(pruned)} stopped early, {len(failed)} failed "
        f"of {wanted} trials",
    ]
    if finished:
        lines += [_table(finished[:SHOWN], space), *_best(finished[0], space), *_importances(trials, len(finished))]
    else:
        lines.append("no trial has finished, so there is no best one")
    for trial in failed:
        where = f" ({trial.user_attrs[RUN_DIR]})" if RUN_DIR in trial.user_attrs else ""
        lines.append(f"trial {first_number(trial)} failed: {trial.user_attrs.get(ERROR, 'no reason given')}{where}")
    more = "" if done < wanted else f" with hydra.sweeper.n_trials above {done}"
    again = ", which runs failed trials again" if failed and retries else ""
    lines.append(f"go on: the same command{more}{again}")
    return "\n".join(lines)


def _table(best: list[FrozenTrial], space: Space) -> str:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("trial", justify="right")
    table.add_column("value", justify="right")
    for key in space.distributions:
        table.add_column(key.lstrip("+"), justify="right", overflow="fold")
    for trial in best:
        texts = [override.partition("=")[2] for override in _drawn(trial, space)]
        table.add_row(str(first_number(trial)), f"{trial.value:.4g}", *(_short(text) for text in texts))
    console = Console(width=max(80, 16 + 26 * len(space.distributions)), color_system=None)
    with console.capture() as captured:
        console.print(table)
    return "\n".join(line.rstrip() for line in captured.get().strip("\n").splitlines())


def _short(text: str) -> str:
    try:
        number = float(text)
    except ValueError:
        return text
    return f"{number:.4g}" if math.isfinite(number) and "." in text else text


def _drawn(trial: FrozenTrial, space: Space) -> list[str]:
    return space.overrides(trial.params)[len(space.fixed) :]


def _best(trial: FrozenTrial, space: Space) -> list[str]:
    lines = [f"best: trial {first_number(trial)}, {trial.value:.6g}", f"  {' '.join(_drawn(trial, space))}"]
    if RUN_DIR in trial.user_attrs:
        lines.append(f"  run folder: {trial.user_attrs[RUN_DIR]}")
    return lines


def _importances(trials: Trials, finished: int) -> list[str]:
    """PED-ANOVA (Watanabe et al. 2023): how far the values of the best tenth differ from those of all trials."""
    if finished < MIN_TRIALS_FOR_IMPORTANCE:
        return []
    found = get_param_importances(trials.study, evaluator=PedAnovaImportanceEvaluator())
    return ["importance: " + ", ".join(f"{key} {share:.2f}" for key, share in found.items())]
