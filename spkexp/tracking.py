"""What is measured goes to metrics.jsonl always, and to wandb where the config says so.

Tracking never stops or blocks a run: without a network or a key, wandb goes on offline and the log says so.
"""

import json
import logging
import os
import secrets
import socket
from pathlib import Path
from typing import Any, Literal, cast
from urllib.parse import urlsplit

from omegaconf import DictConfig, OmegaConf

from spkexp import distributed
from spkexp.sections import Tracking

log = logging.getLogger(__name__)
CONNECT_SECONDS = 3.0
INIT_SECONDS = 30.0


class Tracker:
    """Writes a run's metrics; only the main process's tracker writes anything."""

    def __init__(self, folder: Path, config: DictConfig, settings: Tracking, resume_step: int | None) -> None:
        """resume_step: the step that the run goes on from; what was logged after it is dropped, it comes again."""
        self._file = None
        self._wandb: Any = None
        if not distributed.is_main():
            return
        path = folder / "metrics.jsonl"
        if resume_step is not None:
            _drop_after(path, resume_step)
        self._file = path.open("a", encoding="utf-8")
        if settings.wandb != "off":
            self._wandb = _start_wandb(folder, config, settings)

    def log(self, step: int, metrics: dict[str, Any]) -> None:
        """One line: {"step": step, **metrics}."""
        if self._file is None:
            return
        self._file.write(json.dumps({"step": step, **metrics}) + "\n")
        self._file.flush()
        if self._wandb is not None:
            # An offline wandb run counts its own steps from 0 after a resume, so `step` is a metric of ours.
            self._wandb.log({"step": step, **_flatten(metrics)})

    def summarise(self, results: dict[str, Any], plots: list[Path]) -> None:
        """The run's final results and pictures, for wandb's summary."""
        if self._wandb is not None:
            import wandb

            self._wandb.summary.update(_flatten(results))
            self._wandb.log({f"plots/{plot.stem}": wandb.Image(str(plot)) for plot in plots})

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
        if self._wandb is not None:
            self._wandb.finish()


def _flatten(metrics: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in metrics.items():
        if isinstance(value, dict):
            flat |= _flatten(value, f"{prefix}{key}/")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def _drop_after(path: Path, step: int) -> None:
    """Leave the lines up to `step`; a line cut short by a kill goes too."""
    if not path.exists():
        return
    kept = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            if json.loads(line)["step"] <= step:
                kept.append(line)
        except (json.JSONDecodeError, KeyError):
            continue
    temporary = path.with_name(f".{path.name}.partial")
    temporary.write_text("".join(f"{line}\n" for line in kept), encoding="utf-8")
    temporary.replace(path)


def _start_wandb(folder: Path, config: DictConfig, settings: Tracking) -> Any:
    # wandb's own crash reports use the network even offline, and where nobody answers they hold up the end of the
    # process for 10 s. It reads both variables when it is imported.
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
    os.environ.setdefault("WANDB_SILENT", "true")
    mode: Literal["online", "offline"] = "online" if settings.wandb == "online" else "offline"
    try:
        import wandb

        if mode == "online" and (obstacle := _obstacle()):
            _warn_offline(folder, obstacle)
            mode = "offline"
        id_file = folder / "wandb" / "run_id"
        run_id = id_file.read_text() if id_file.exists() else secrets.token_hex(4)
        id_file.parent.mkdir(exist_ok=True)
        id_file.write_text(run_id)

        def start(mode: Literal["online", "offline"]) -> Any:
            return wandb.init(
                id=run_id,
                resume="allow" if mode == "online" else None,
                mode=mode,
                dir=str(folder),
                project=settings.project,
                entity=settings.entity,
                group=settings.group,
                tags=settings.tags,
                name=folder.name,
                config=cast(dict[str, Any], OmegaConf.to_container(config, resolve=True)),
                settings=wandb.Settings(init_timeout=INIT_SECONDS, silent=True),
            )

        try:
            run = start(mode)
        except wandb.errors.Error as error:
            if mode == "offline":
                raise
            _warn_offline(folder, str(error).splitlines()[0])
            wandb.teardown()
            run = start("offline")
        run.define_metric("step")
        run.define_metric("*", step_metric="step")
        return run
    except Exception as error:  # whatever it is, the run matters more than its dashboard
        log.warning("tracking: wandb is off, it cannot start: %s: %s", type(error).__name__, error)
        return None


def _warn_offline(folder: Path, reason: str) -> None:
    log.warning(
        "tracking: wandb goes on offline: %s; `wandb sync %s/wandb/offline-run-*` uploads it later", reason, folder
    )


def _obstacle() -> str | None:
    """Why wandb cannot go online, found out in seconds (its own attempt blocks for minutes); None: nothing."""
    import wandb

    url = urlsplit(wandb.setup().settings.base_url)
    port = url.port or (443 if url.scheme == "https" else 80)
    try:
        socket.create_connection((url.hostname or "", port), timeout=CONNECT_SECONDS).close()
    except OSError as error:
        return f"{url.hostname} cannot be reached ({error})"
    try:
        has_key = wandb.login(prompt=False)
    except Exception as error:  # it rejects a malformed key by raising
        return str(error).splitlines()[0]
    return None if has_key else "there is no API key; `wandb login` or WANDB_API_KEY gives one"
