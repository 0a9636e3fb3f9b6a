"""A run's twin in wandb.

A run that was stopped goes on in the same wandb run, with every step once:

- Offline, `wandb sync` puts one segment of a run in the place of another, so each segment is the whole run: it begins
  with what metrics.jsonl holds, and those before it are marked as done with.
- Online, the server says up to where it has the run. What it lacks comes from metrics.jsonl (a kill takes what wandb
  had not sent), and what training measures a second time on its way from the checkpoint is left out.
"""

import logging
import os
import secrets
import socket
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, cast
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

from omegaconf import DictConfig, OmegaConf

from spkexp.changes import changes, override
from spkexp.scoring.verification import Scored
from spkexp.sections import Tracking
from spkexp.wandb_tables import confusion_content, embeddings_content, results_content

log = logging.getLogger(__name__)
CONNECT_SECONDS = 3.0
INIT_SECONDS = 30.0
FINISH_SECONDS = 60.0  # that the end of a run waits for uploads
_LONGEST_TAG = 64  # letters that wandb takes
_PORTS = {"https": 443, "socks5": 1080, "socks5h": 1080}  # where an address names none; else 80

Mode = Literal["online", "offline"]


class WandbRun:
    """A wandb run that training cannot fail or wait for: what goes wrong is said once, and it is left alone after."""

    def __init__(self, run: Any, folder: Path, label: str) -> None:
        """label: the column that the run learns."""
        self._run: Any = run
        self._folder, self._label = folder, label
        # Strictly less than this is on the server. Two lines can share a step, so the last one's may be half there.
        self._known = _step(run.summary.get("step")) if run.resumed else 0

    @staticmethod
    def start(
        folder: Path, config: DictConfig, settings: Tracking, logged: Sequence[Mapping[str, Any]]
    ) -> "WandbRun | None":
        """logged: the lines of metrics.jsonl that a resumed run goes on from. None, and a warning, if it cannot be."""
        # wandb's own crash reports use the network even offline, and where nobody answers they hold up the end of the
        # process for 10 s. It reads both variables when it is imported.
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
        os.environ.setdefault("WANDB_SILENT", "true")
        try:
            run = _start(folder, _describe(config, settings), "online" if settings.wandb == "online" else "offline")
            run.define_metric("step")
            run.define_metric("*", step_metric="step")
            twin = WandbRun(run, folder, OmegaConf.select(config, "data.label") or "speaker")
        except Exception as error:  # whatever it is, the run matters more than its dashboard
            log.warning("tracking: wandb is off, it cannot start: %s: %s", type(error).__name__, error)
            return None
        for line in logged:
            twin.log(line)
        return twin

    def log(self, line: Mapping[str, Any]) -> None:
        """A line of metrics.jsonl."""
        if line["step"] >= self._known:
            # An offline wandb run counts its own steps from 0, so `step` is a metric of ours.
            self._attempt(lambda run: run.log(flatten(line)))

    def summarise(self, results: dict[str, Any], plots: Sequence[Path], scored: Mapping[str, Scored]) -> None:
        """Results for wandb's summary; pictures and tables under plots/, tables/ and embeddings/."""

        def send(run: Any) -> None:
            import wandb

            run.summary.update(flatten(results))
            tables = {"tables/results": results_content(results)} if results["trials"] else {}
            for file in sorted((self._folder / "scores").glob("confusion-*.csv")):
                tables[f"tables/{file.stem}"] = confusion_content(file)
            for name, one in scored.items():
                tables[f"embeddings/{name}"] = embeddings_content(one, self._label)
            media: dict[str, Any] = {f"plots/{plot.stem}": wandb.Image(str(plot)) for plot in plots}
            # Mixed columns (an interval that is not known, classes called 1 and a) are not for wandb to judge.
            media |= {n: wandb.Table([*t.columns], t.rows, allow_mixed_types=True) for n, t in tables.items()}
            if media:
                run.log(media)

        self._attempt(send)

    def close(self) -> None:
        """End the run, in FINISH_SECONDS at most: what wandb has not sent by then is on disk."""

        def finish(run: Any) -> None:
            try:
                run.finish()
            except TimeoutError:
                log.warning(
                    "tracking: wandb had not sent everything in %g s; `wandb sync --include-online %s` sends the rest",
                    FINISH_SECONDS,
                    run.settings.sync_dir,
                )

        self._attempt(finish)
        self._run = None

    def _attempt(self, action: Callable[[Any], None]) -> None:
        if self._run is None:
            return
        try:
            action(self._run)
        except Exception as error:  # wandb's process may be gone, its disk full: training goes on
            self._run = None
            log.warning(
                "tracking: wandb is off from here on: %s: %s; metrics.jsonl goes on", type(error).__name__, error
            )


def flatten(metrics: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"val": {"eer": …}} as {"val/eer": …}."""
    flat: dict[str, Any] = {}
    for key, value in metrics.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{key}/")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def _step(value: Any) -> float:
    return value if isinstance(value, int | float) else 0


def _describe(config: DictConfig, settings: Tracking) -> dict[str, Any]:
    """What tells the run from others, as arguments of wandb.init."""
    content = cast(dict[str, Any], OmegaConf.to_container(config, resolve=True))
    changed = changes(content)
    names = content.get("names") or {}
    kinds = [names.get("model"), names.get("data"), ((content.get("loss") or {}).get("_target_") or "").split(".")[-1]]
    return {
        "project": settings.project,
        "entity": settings.entity,
        "group": settings.group,
        "job_type": "train" if content.get("init_from") is None else "fine-tune",
        "tags": list(dict.fromkeys([*settings.tags, *(kind for kind in kinds if kind and len(kind) <= _LONGEST_TAG)])),
        "notes": " ".join(override(key, value) for key, value in changed.items()) or "the defaults",
        "config": {**content, "changed": changed},
    }


def _start(folder: Path, description: Mapping[str, Any], mode: Mode) -> Any:
    import wandb

    if mode == "online" and (obstacle := obstacle_to_wandb()):
        _warn_offline(folder, obstacle)
        mode = "offline"
    id_file = folder / "wandb" / "run_id"
    run_id = id_file.read_text() if id_file.exists() else secrets.token_hex(4)
    id_file.parent.mkdir(exist_ok=True)
    id_file.write_text(run_id)
    before = list(id_file.parent.glob(f"*run-*/run-{run_id}.wandb"))

    def start(mode: Mode) -> Any:
        limits = wandb.Settings(
            init_timeout=INIT_SECONDS, finish_timeout=FINISH_SECONDS, finish_timeout_raises=True, silent=True
        )
        return wandb.init(
            id=run_id,
            resume="allow" if mode == "online" else None,
            # Of a sweep in one process: a job that failed has left its run open, and it is not this one's.
            reinit="finish_previous",
            mode=mode,
            dir=str(folder),
            name=folder.name,
            settings=limits,
            **description,
        )

    try:
        run = start(mode)
    except (wandb.errors.Error, TimeoutError) as error:
        if mode == "offline":
            raise
        _warn_offline(folder, str(error).splitlines()[0])
        wandb.teardown()
        run = start("offline")
    for file in before:
        file.with_name(f"{file.name}.synced").touch()  # as `wandb sync` marks what it passes over
    return run


def _warn_offline(folder: Path, reason: str) -> None:
    log.warning(
        "tracking: wandb goes on offline: %s; `wandb sync %s/wandb/offline-run-*` uploads it later", reason, folder
    )


def obstacle_to_wandb() -> str | None:
    """Why wandb cannot go online, found out in seconds (its own attempt blocks for minutes); None: nothing."""
    import wandb

    name, host, port = _way_to(wandb.setup().settings.base_url)
    try:
        socket.create_connection((host, port), timeout=CONNECT_SECONDS).close()
    except OSError as error:
        return f"{name} cannot be reached ({error})"
    try:
        has_key = wandb.login(prompt=False)
    except Exception as error:  # it rejects a malformed key by raising
        return str(error).splitlines()[0]
    return None if has_key else "there is no API key; `wandb login` or WANDB_API_KEY gives one"


def _way_to(address: str) -> tuple[str, str, int]:
    """(what it is, host, port) of the machine that a connection to `address` begins with: a proxy, or its own.

    The proxy is that of the variables http_proxy and https_proxy, which no_proxy makes exceptions from.
    """
    url = urlsplit(address)
    host = url.hostname or ""
    proxy = getproxies().get(url.scheme)
    if proxy is None or proxy_bypass(host):
        return host, host, url.port or _PORTS.get(url.scheme, 80)
    url = urlsplit(proxy if "://" in proxy else f"http://{proxy}")
    return f"the proxy {url.hostname}", url.hostname or "", url.port or _PORTS.get(url.scheme, 80)
