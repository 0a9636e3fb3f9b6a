"""The folder that a run leaves behind."""

import json
import os
import platform
import secrets
import subprocess
import sys
from datetime import datetime
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf

from spkexp.errors import UserError


def create(cfg: DictConfig) -> Path:
    """Make the run folder: cfg.run_dir, or runs/<date>/<time>-<model>-<data>-<id> below the current folder.

    Raises UserError where it exists with something in it, or cannot be made.
    """
    if cfg.run_dir is not None:
        folder = Path(cfg.run_dir).expanduser()
    else:
        now = datetime.now()
        name = f"{now:%H%M%S}-{cfg.names.model}-{cfg.names.data}-{secrets.token_hex(2)}"
        folder = Path("runs", f"{now:%Y-%m-%d}", name)
    taken = UserError(
        f"run_dir: {folder} exists and is not empty; resume={folder} goes on with a run that is there, "
        "else choose another run_dir"
    )
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if any(folder.iterdir()):
            raise taken
        # Of two runs that come here at once, one makes the file.
        with (folder / "config.yaml").open("x", encoding="utf-8") as file:
            OmegaConf.save(cfg, file)
    except OSError as error:
        if isinstance(error, FileExistsError) and folder.is_dir():
            raise taken from None
        raise UserError(f"run_dir: {folder} cannot be written: {error.strerror}; set run_dir=DIR") from error
    return folder


def update_config(cfg: DictConfig, folder: Path) -> None:
    """Make `cfg` the config that the next resume of the run goes by."""
    temporary = folder / ".config.yaml.partial"
    OmegaConf.save(cfg, temporary)
    temporary.replace(folder / "config.yaml")


def environment() -> dict[str, Any]:
    """What a reader needs to know to repeat the run: command, code, packages, hardware."""
    code = Path(__file__).resolve().parent.parent
    diff = _git(code, "diff", "HEAD")
    return {
        "command": [sys.executable, *sys.orig_argv[1:]],
        "started": datetime.now().astimezone().isoformat(timespec="seconds"),
        "host": platform.node(),
        "platform": platform.platform(),
        "python": platform.python_version(),
        "cpu_cores": os.cpu_count(),
        "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
        "processes": int(os.environ.get("WORLD_SIZE", "1")),
        "threads": torch.get_num_threads(),
        "git": {"commit": _git(code, "rev-parse", "HEAD"), "modified": bool(diff) if diff is not None else None},
        "packages": {d.name: d.version for d in sorted(distributions(), key=lambda d: d.name.lower())},
    }


def record_environment(folder: Path) -> None:
    """Write environment.json; each later start of the same run is appended to its "resumed"."""
    file = folder / "environment.json"
    now = environment()
    if file.exists():
        first = json.loads(file.read_text(encoding="utf-8"))
        write_json(file, first | {"resumed": [*first.get("resumed", []), now]})
    else:
        write_json(file, now)


def _git(folder: Path, *arguments: str) -> str | None:
    """Output of git in the package's own checkout; None where it is not one."""
    if not (folder / ".git").exists():
        return None
    try:
        done = subprocess.run(["git", "-C", str(folder), *arguments], capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def write_json(file: Path, content: Any) -> None:
    """Write `file` in one go, so that a reader or a kill never sees half of it."""
    temporary = file.with_name(f".{file.name}.partial")
    temporary.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    temporary.replace(file)
