"""`python -m spkexp.compare`: runs side by side, in tables, plots, a page, and in wandb."""

import json
import shutil
import sys
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict, field_validator, model_validator

from spkexp.arguments import parse
from spkexp.cli import errors_to_exit_codes, set_up_logging
from spkexp.errors import ConfigError, UserError
from spkexp.sections import Text
from spkexp.types import NonNegativeInt

if TYPE_CHECKING:
    from spkexp.report.comparison.runs import Run

HELP = """
NAME
  spkexp.compare - runs side by side: error rates with intervals, significance,
  costs, and what differs

SYNOPSIS
  python -m spkexp.compare [RUN ...] [KEY=VALUE ...] [--wandb]

DESCRIPTION
  Prints the runs, the best first: error rates with 95 % intervals, whether a
  run differs significantly from the best, parameters, MACs, training time and
  speed, and the config keys in which they differ. Runs that differ in their
  seed alone are one row. A run without results is listed too, with the reason.

  Intervals and p-values come from the scores that the runs kept
  (scoring.save_scores): a bootstrap over the speakers of the trials, with the
  same draws for all runs. The column p is of the difference from the best,
  after Holm's correction for as many rows as are tested; a mark means p < .05.

  RUN is a run folder, or the folder of a sweep (runs/sweeps/GROUP), which
  stands for all its jobs. Without any: all runs below ./runs.

KEYS
  trials=NAME      the trial list that the runs are ranked by; default: test,
                   or else the list that most of them have
  metric=KEY       what sorts them: eer (default), min_dcf.0.01, auc, min_cllr,
                   rocch_eer, cllr, act_dcf.0.01; accuracy, macro_f1
  reference=RUN    the run that the others are held against; default: the best
  seeds=combined   one row for all seeds of a configuration; apart: one each
  bootstrap=1000   replicates; 0: no tests, and intervals as results.json has
  settings=shown   hidden: leave out the keys that the rows differ in, and
                   their plots
  format=terminal  or markdown, latex, csv, json: what is printed
  output=DIR       write comparison.html, .md, .tex, .csv and .json, and the
                   plots (PNG, curves.json) into DIR/plots
  workspace=FILE   with --wandb: write the workspace's definition there, too

OPTIONS
  --wandb          save a workspace in wandb that compares the runs: curves,
                   error rates by model and group, what the runs differ in,
                   and how much each hyper-parameter matters. It goes to the
                   project of the runs (tracking.project, tracking.entity) and
                   shows their groups (tracking.group), or where one has none
                   the runs by name; without RUN the whole project.

EXAMPLES
  python -m spkexp.compare runs/2026-11-21/*
  python -m spkexp.compare runs/sweeps/sweep-1f2e3d4c output=comparison
  python -m spkexp.compare runs/a runs/b format=latex > table.tex
  python -m spkexp.compare --wandb workspace=workspace.json
"""
ROOT = Path("runs")


class Arguments(BaseModel):
    model_config = ConfigDict(extra="forbid")

    runs: list[Text] = []
    trials: Text | None = None
    metric: Text | None = None
    reference: Text | None = None
    seeds: Literal["combined", "apart"] = "combined"
    bootstrap: NonNegativeInt = 1000
    settings: Literal["shown", "hidden"] = "shown"
    format: Literal["terminal", "markdown", "latex", "csv", "json"] = "terminal"
    output: Text | None = None
    workspace: Text | None = None
    wandb: bool = False

    @model_validator(mode="before")
    @classmethod
    def _take_option(cls, values: dict[str, Any]) -> dict[str, Any]:
        """`--wandb` comes among the runs."""
        free = values.get("runs", [])
        return {**values, "runs": [run for run in free if run != "--wandb"], "wandb": "--wandb" in free}

    @field_validator("format", mode="before")
    @classmethod
    def _name_the_page(cls, form: Any) -> Any:
        if form == "html":
            raise ValueError("html is not printed; output=DIR writes the page, DIR/comparison.html")
        return form


def main() -> None:
    """Print the comparison, write it where output= says, and with --wandb save the workspace."""
    with errors_to_exit_codes():
        arguments = parse(Arguments, HELP, positional="runs")
        mistakes = [mistake for run in arguments.runs if (mistake := _no_run(run)) is not None]
        if arguments.workspace and not arguments.wandb:
            mistakes.append("workspace: only with --wandb; output=DIR writes tables, plots and a page")
        if mistakes:
            raise ConfigError(mistakes)
        from spkexp.report.comparison.content import content_of
        from spkexp.report.comparison.files import text_of, write_files
        from spkexp.report.comparison.ranking import comparison

        set_up_logging()
        runs, reference = _runs(arguments)
        compared = comparison(runs, arguments.trials, arguments.metric, arguments.seeds)
        content = content_of(compared, reference, arguments.bootstrap)
        if arguments.settings == "hidden":
            content |= {"differing": [], "effects": {}}
        page = write_files(Path(arguments.output), content) if arguments.output else None
        columns = shutil.get_terminal_size().columns if sys.stdout.isatty() else 80
        folder = None if page is None else page.parent
        print(text_of(content, arguments.format, max(80, columns), folder).rstrip("\n"), flush=True)
        # What is no table must not get into a file that stdout was sent to.
        aside = sys.stdout if arguments.format == "terminal" else sys.stderr
        if page is not None:
            print(f"\nwritten: {page}, and tables and plots beside it", file=aside, flush=True)
        if arguments.wandb:
            print(f"workspace: {_save_workspace(runs, arguments)}", file=aside, flush=True)


def _no_run(argument: str) -> str | None:
    """What is wrong with an argument that was taken for a run, though it looks like something else."""
    if argument.startswith("--"):
        return f"{argument}: no such option; there is --wandb"
    key, equals, _ = argument.partition("=")
    if not equals or "/" in key or Path(argument).exists():
        return None
    keys = [name for name in Arguments.model_fields if name not in ("runs", "wandb")]
    close = get_close_matches(key, keys, n=1)
    return f"{key}: no such key; " + (f"did you mean '{close[0]}'?" if close else f"there are {', '.join(keys)}")


def _runs(arguments: Arguments) -> "tuple[list[Run], Run | None]":
    """All runs, and the one that the others are held against, if one is named. Raises UserError."""
    from spkexp.report.comparison.ranking import comparison
    from spkexp.report.comparison.runs import all_runs, read_runs

    places = [Path(run) for run in arguments.runs]
    runs = read_runs(places) if places else all_runs(ROOT)
    if not runs:
        raise UserError(f"no runs below {ROOT.resolve()}; name run folders: python -m spkexp.compare RUN ...")
    if arguments.reference is None:
        return runs, None
    place = Path(arguments.reference)
    named = [run for run in runs if run.folder is not None and run.folder.resolve() == place.resolve()]
    named = named or [run for run in runs if arguments.reference in (run.name, run.folder and run.folder.name)]
    if named:
        return runs, named[0]
    compared = comparison(runs, arguments.trials, arguments.metric, arguments.seeds)
    names = {compared.name(row): row for row in reversed(compared.rows)}  # of two with one name the better one
    if arguments.reference in names:
        return runs, names[arguments.reference].runs[0]
    if not (place / "config.yaml").is_file():
        raise UserError(
            f"reference={place}: no such run; it is a run folder, or the name of one that is compared: "
            f"{', '.join(reversed(names))}"
        )
    (reference,) = read_runs([place])
    return [*runs, reference], reference


def _save_workspace(runs: "list[Run]", arguments: Arguments) -> str:
    """Returns its address."""
    from spkexp.report.comparison.ranking import comparison
    from spkexp.report.dashboard import definition, save, tracked, workspace

    entity, project, known = tracked(runs)
    compared = comparison(known, arguments.trials, arguments.metric, "apart")  # wandb has runs, no configurations

    def make(entity: str) -> Any:
        return workspace(compared, entity, project, everything=not arguments.runs)

    if arguments.workspace:
        _write(Path(arguments.workspace), definition(make(entity or "")))
    return save(make, entity)


def _write(file: Path, content: dict[str, Any]) -> None:
    try:
        file.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    except OSError as error:
        raise UserError(f"workspace={file}: cannot be written: {error.strerror}") from error


if __name__ == "__main__":
    main()
