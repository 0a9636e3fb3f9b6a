"""From the command line to a checked config: Hydra composes it, mistakes are named and end with exit code 2."""

import logging
import os
import pkgutil
import signal
import sys
import textwrap
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Protocol

from hydra import main as hydra_main
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from spkexp.command_line import CommandLine
from spkexp.compose import check_all
from spkexp.config import check, config_folder
from spkexp.errors import ConfigError, UserError

EXIT_USER = 2
# Hydra's own pages: not checked first, unless there are files that may be somebody else's.
_PAGES = {"--help", "-h", "--hydra-help", "--version", "--shell-completion", "-sc"}

Task = Callable[[DictConfig, list[str]], Any]


class Jobs(Protocol):
    """How a command runs several jobs: `spkexp.sweep`."""

    def run_sweep(self, overrides: list[str], first: DictConfig, start: Callable[[list[str]], None]) -> int:
        """Call start(overrides to add), which runs all jobs. first: the first one's config. Returns the exit code."""

    def run_job(self, task: Task, cfg: DictConfig, overrides: list[str]) -> dict[str, Any]:
        """One job, in whatever process a launcher put it; returns what became of it."""


@contextmanager
def errors_to_exit_codes() -> Iterator[None]:
    """Print a user's mistake without a traceback and exit 2; on Ctrl-C exit 130."""
    try:
        yield
    except ConfigError as error:
        _record(str(error))
        if os.environ.get("RANK", "0") == "0":  # the same config on every rank: say it once
            count = len(error.mistakes)
            print(f"spkexp: {count} mistake{'s' * (count != 1)} in the {error.where}", file=sys.stderr)
            for mistake in error.mistakes:
                print(f"  {mistake}", file=sys.stderr)
        sys.exit(EXIT_USER)
    except UserError as error:
        _record(str(error))
        print(f"spkexp: {error}", file=sys.stderr)
        sys.exit(EXIT_USER)
    except KeyboardInterrupt:
        print("spkexp: interrupted", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(128 + signal.SIGPIPE)  # the reader has seen enough: no failure
    except Exception:  # of whatever kind: a fault of ours, that the run's log must have and Python then reports
        _record(traceback.format_exc())
        raise


def _record(text: str) -> None:
    """Put an error into the run's train.log, if there is one yet; the terminal shows it in a way of its own."""
    for handler in logging.getLogger().handlers:
        if isinstance(handler, logging.FileHandler):
            handler.handle(logging.LogRecord("spkexp", logging.ERROR, __file__, 0, text, None, None))


def hydra_command(task: Task, jobs: Jobs | None = None) -> Callable[[], None]:
    """Make `task(cfg, overrides)` a command that composes conf/config.yaml with the command line's overrides.

    jobs: runs a sweep (-m), all jobs of which are checked before the first one starts; None: there are no sweeps.
    """

    specification = getattr(sys.modules["__main__"], "__spec__", None)
    if task.__module__ == "__main__" and specification is not None:  # launchers need a name that other processes know
        task = pkgutil.resolve_name(f"{specification.name}:{task.__qualname__}")

    def job(cfg: DictConfig) -> Any:
        hydra_config = HydraConfig.get()
        overrides = list(hydra_config.overrides.task)
        OmegaConf.resolve(cfg)  # so that it means the same outside Hydra
        with errors_to_exit_codes():
            check(cfg)  # again: what ${now:…} and ${hydra:…} stand for may be something else by now
        if jobs is not None and hydra_config.mode == RunMode.MULTIRUN:
            return jobs.run_job(task, cfg, overrides)
        with errors_to_exit_codes():
            task(cfg, overrides)
        return None

    def start(more: list[str]) -> None:
        sys.argv = [*sys.argv, *more]
        OmegaConf.register_new_resolver("config_groups", _config_groups, replace=True)
        # Hydra names the program after the module that holds the task; `job` lies in this one.
        decorate = hydra_main(version_base="1.3", config_path=str(config_folder()), config_name="config")
        decorate(job)()

    def entry() -> None:
        arguments = sys.argv[1:]
        with errors_to_exit_codes():
            line = CommandLine.read(arguments)
            if _PAGES & set(arguments) and line.config_dir is None:
                start([])
                return
            if line.multirun and jobs is None:
                raise UserError("-m: this command takes one config")
            if line.multirun and "TORCHELASTIC_RUN_ID" in os.environ:
                raise UserError(
                    "-m does not work under torchrun: every rank would run the whole sweep; start it without, and "
                    "trainer.nproc=N gives every job N processes"
                )
            if line.multirun and line.shows:
                raise UserError("--cfg, --info: show one config; leave -m out")
            sys.argv[1:] = [*line.options, *line.overrides]  # Hydra wants all overrides side by side
            first = check_all(line.overrides, line.multirun, line.config_dir, line.shows)
            if jobs is not None and line.multirun and not line.shows:
                sys.exit(jobs.run_sweep(line.overrides, first, start))
            start([])

    return entry


def _config_groups() -> str:
    """The groups of conf/ and their options for --help, 80 columns wide."""
    root = config_folder()
    paragraphs = []
    inner = ("hydra", "experiments")  # of the studies the names, in a wheel too, where they are no link
    folders = (
        path for path in root.rglob("*") if path.is_dir() and not {*path.relative_to(root).parts[:-1]} & {*inner}
    )
    for folder in sorted(path for path in folders if path.name != "hydra"):
        text = f"{folder.relative_to(root)}: {', '.join(sorted(file.stem for file in folder.glob('*.yaml')))}"
        paragraphs.append(textwrap.fill(text, 78, subsequent_indent="    "))
    return textwrap.indent("\n".join(paragraphs), "  ")


class _LogFile(logging.FileHandler):
    """One that a full disk does not turn into a traceback for every line: the run will tell, or finds room again."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 (logging's name)
        if not isinstance(sys.exception(), OSError):
            super().handleError(record)

    def close(self) -> None:
        with suppress(OSError):
            super().close()


def set_up_logging(file: Path | None = None) -> None:
    """Log lines to stderr as they are, and with time and level to `file` as well."""
    root = logging.getLogger()
    for handler in list(root.handlers):
        root.removeHandler(handler)
        handler.close()
    root.setLevel(logging.WARNING)
    logging.getLogger("spkexp").setLevel(logging.INFO)
    console = logging.StreamHandler(sys.stderr)
    console.setFormatter(logging.Formatter("%(message)s"))
    if os.environ.get("RANK", "0") != "0":  # every process does the same: one of them says so
        console.setLevel(logging.WARNING)
    root.addHandler(console)
    if file is not None:
        handler = _LogFile(file, encoding="utf-8")
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
        root.addHandler(handler)
