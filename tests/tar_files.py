"""Tars of audio files made by hand, for the tests of what reads them."""

import io
import json
import tarfile
from pathlib import Path
from typing import Any

import numpy as np

from spkexp.data import audio
from tests.audio_files import integers, pcm, riff

Member = tuple[str | tarfile.TarInfo, bytes]


def wav(seed: int, frames: int = 700) -> bytes:
    return riff(pcm(), integers(frames, seed=seed).tobytes())


def make_tar(path: Path, members: list[Member], form: int = tarfile.PAX_FORMAT) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=form) as tar:
        for member, content in members:
            info = tarfile.TarInfo(member) if isinstance(member, str) else member
            if info.isreg():
                info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def labels(**fields: Any) -> bytes:
    return json.dumps(fields).encode()


def samples_of(row: dict[str, Any]) -> np.ndarray:
    return audio.read(row["path"], part=(row["offset"], row["bytes"]))


GOOD: list[Member] = [("a.wav", wav(0)), ("a.json", labels(speaker="s"))]
