"""Which version of the code this is: what a run's environment.json keeps, and its results are held against later."""

import hashlib
import subprocess
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any


@cache  # what this process has imported stays the same, whatever becomes of the files
def code_state() -> dict[str, Any]:
    """commit and modified, and of the changes since the commit a `diff`, 12 hex digits; None outside a checkout."""
    folder = Path(__file__).resolve().parent.parent
    diff = _git(folder, "diff", "HEAD")
    digits = hashlib.sha256(diff.encode()).hexdigest()[:12] if diff else None
    modified = bool(diff) if diff is not None else None
    return {"commit": _git(folder, "rev-parse", "HEAD"), "modified": modified, "diff": digits}


def package_version() -> str | None:
    """spkexp's own; None where it is not installed."""
    try:
        return version("spkexp")
    except PackageNotFoundError:
        return None


def _git(folder: Path, *arguments: str) -> str | None:
    """Output of git in the package's own checkout; None where it is not one."""
    if not (folder / ".git").exists():
        return None
    try:
        command = ["git", "-C", str(folder), *arguments]
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
