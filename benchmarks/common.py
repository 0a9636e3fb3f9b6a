"""What every benchmark says beside its figures, and where it puts them."""

import argparse
import json
import os
import platform
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"


def parser(description: str | None, name: str) -> argparse.ArgumentParser:
    """Arguments with --output, by default benchmarks/results/`name`.json."""
    arguments = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--output", type=Path, default=RESULTS / f"{name}.json", help="where to write the figures")
    return arguments


def write(output: Path, description: str, figures: dict[str, Any], *packages: str) -> None:
    """Print the figures and write them with date, machine and the versions of `packages`."""
    content = {
        "benchmark": description,
        "date": date.today().isoformat(),
        "machine": f"{platform.machine()}, {_cpu_name()}, {os.cpu_count()} cores",
        "versions": {name: version(name) for name in packages},
        **figures,
    }
    text = json.dumps(content, indent=2, ensure_ascii=False)
    print(text)
    output.write_text(text + "\n", encoding="utf-8")


def rounded(seconds: list[float]) -> list[float]:
    return [round(value, 2) for value in seconds]


def _cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown CPU")
