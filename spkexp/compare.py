"""`python -m spkexp.compare`: runs side by side, in a table and in wandb."""

import json
import shutil
import sys
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, model_validator

from spkexp.arguments import parse
from spkexp.cli import errors_to_exit_codes, set_up_logging
from spkexp.errors import ConfigError, UserError
from spkexp.sections import Text

HELP = """
NAME
  spkexp.compare - runs side by side: error rates, costs, and what differs

SYNOPSIS
  python -m spkexp.compare [RUN ...] [KEY=VALUE ...] [--wandb]

DESCRIPTION
  Prints one table of all runs, the best first: EER in percent with its 95 %
  interval, minDCF, parameters, training speed, and the config keys in which
  the runs differ. A run without results is listed too, with the reason.

  RUN is a run folder, or the folder of a sweep (runs/sweeps/GROUP), which
  stands for all its jobs. Without any: all runs below ./runs.

KEYS
  trials=NAME      the trial list that the runs are ranked by; default: test,
                   or else the list that most of them have
  output=FILE      with --wandb: write the workspace's definition there, too

OPTIONS
  --wandb          save a workspace in wandb that compares the runs: curves,
                   error rates by model and group, what the runs differ in,
                   and how much each hyper-parameter matters. It goes to the
                   project of the runs (tracking.project, tracking.entity) and
                   shows their groups (tracking.group), or where one has none
                   the runs by name; without RUN the whole project.

EXAMPLES
  python -m spkexp.compare runs/2026-11-21/*
  python -m spkexp.compare runs/sweeps/sweep-1f2e3d4c trials=val
  python -m spkexp.compare --wandb output=workspace.json
"""
ROOT = Path("runs")


class Arguments(BaseModel):
    model_config = ConfigDict(extra="forbid")

    runs: list[Text] = []
    trials: Text | None = None
    output: Text | None = None
    wandb: bool = False

    @model_validator(mode="before")
    @classmethod
    def _take_option(cls, values: dict[str, Any]) -> dict[str, Any]:
        """`--wandb` comes among the runs."""
        free = values.get("runs", [])
        return {**values, "runs": [run for run in free if run != "--wandb"], "wandb": "--wandb" in free}


def main() -> None:
    """Print the table, and with --wandb save the workspace."""
    with errors_to_exit_codes():
        arguments = parse(Arguments, HELP, positional="runs")
        mistakes = [f"{run}: no such option; there is --wandb" for run in arguments.runs if run.startswith("--")]
        if arguments.output and not arguments.wandb:
            mistakes.append("output: only with --wandb; it is the workspace's definition")
        if mistakes:
            raise ConfigError(mistakes)
        from spkexp.report.comparison import all_runs, comparison, comparison_table, read_runs

        set_up_logging()
        places = [Path(run) for run in arguments.runs]
        runs = read_runs(places) if places else all_runs(ROOT)
        if not runs:
            raise UserError(f"no runs below {ROOT.resolve()}; name run folders: python -m spkexp.compare RUN ...")
        columns = shutil.get_terminal_size().columns if sys.stdout.isatty() else 80
        print(comparison_table(comparison(runs, arguments.trials), max(80, columns)), flush=True)
        if arguments.wandb:
            from spkexp.report.dashboard import definition, save, tracked, workspace

            entity, project, known = tracked(runs)
            compared = comparison(known, arguments.trials)

            def make(entity: str) -> Any:
                return workspace(compared, entity, project, everything=not places)

            if arguments.output:
                _write(Path(arguments.output), definition(make(entity or "")))
            print(f"workspace: {save(make, entity)}")


def _write(file: Path, content: dict[str, Any]) -> None:
    try:
        file.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    except OSError as error:
        raise UserError(f"output={file}: cannot be written: {error.strerror}") from error


if __name__ == "__main__":
    main()
