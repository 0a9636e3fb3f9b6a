"""JSON files that are written in one go: a reader, or a kill, never meets half of one."""

import json
import os
import socket
from pathlib import Path
from typing import Any


def write_json(file: Path, content: Any) -> None:
    """Whoever reads sees what was there before or all of what is there now, whatever process writes beside this one."""
    temporary = file.with_name(f".{file.name}.{socket.gethostname()}-{os.getpid()}.partial")
    temporary.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    temporary.replace(file)
