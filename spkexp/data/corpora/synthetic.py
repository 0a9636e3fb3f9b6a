"""The built-in corpus of synthetic voices: made once, kept in a cache, the same on every machine of a kind."""

import hashlib
import json
import logging
import os
import secrets
import shutil
import time
import wave
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from spkexp.counter import generator
from spkexp.data.manifest import read_table
from spkexp.data.recording import draw_recording, record
from spkexp.data.synthetic import SAMPLE_RATE, draw_manner, draw_voice, speak
from spkexp.errors import UserError
from spkexp.types import NonNegativeInt, PositiveInt

log = logging.getLogger(__name__)

# Raise this whenever the voices or their recordings change: folders made before are then made anew.
VERSION = 1
HEADER_BYTES = 44  # of a PCM file as `wave` writes it
# A half-made folder in which nothing has happened for so long has no owner any more.
ABANDONED_SECONDS = 3600.0


class Synthetic:
    """Source-filter voices (`spkexp.data.synthetic`), each in several recording sessions (`spkexp.data.recording`).

    seconds: shortest and longest utterance; lengths between are equally likely.
    train_utterances, eval_utterances: of a speaker, dealt to its sessions in turn.
    """

    MADE = True  # under whatever root it is given

    def __init__(
        self,
        train_speakers: PositiveInt,
        val_speakers: PositiveInt,
        test_speakers: PositiveInt,
        train_utterances: PositiveInt,
        eval_utterances: PositiveInt,
        sessions: PositiveInt,
        seconds: list[float],
        seed: NonNegativeInt,
    ) -> None:
        if len(seconds) != 2 or not 0.5 <= seconds[0] <= seconds[1]:
            raise UserError(
                f"data.corpus.seconds: expected [shortest, longest], 0.5 <= shortest <= longest, got {list(seconds)}"
            )
        self.seconds = (float(seconds[0]), float(seconds[1]))
        self.sessions = sessions
        self.seed = seed
        # Test voices have the first numbers, so that more voices to train on leave the others as they are.
        self.splits = [
            ("test", test_speakers, eval_utterances),
            ("val", val_speakers, eval_utterances),
            ("train", train_speakers, train_utterances),
        ]

    def table(self, root: Path) -> pl.DataFrame:
        """id, path, duration (s), speaker, session and split of every utterance; made under `root` if not there.

        Processes that come at the same time each make the voices and use those of the first to finish.
        """
        settings = {
            "version": VERSION,
            "splits": self.splits,
            "sessions": self.sessions,
            "seconds": self.seconds,
            "seed": self.seed,
        }
        digest = hashlib.sha256(json.dumps(settings).encode()).hexdigest()[:12]
        folder = Path(root).expanduser() / f"voices-{digest}"
        try:
            if not folder.exists():
                self._make(folder, settings)
            return _read(folder)
        except OSError as error:
            raise UserError(
                f"{root}: cannot hold the synthetic voices: {error.strerror or error}; "
                "choose a folder that can be written with data.root=..."
            ) from error

    def _make(self, folder: Path, settings: dict[str, Any]) -> None:
        """Everything in a hidden folder beside `folder`, which gets its name when it is whole."""
        rows = self._rows()
        speakers = sum(count for _, count, _ in self.splits)
        log.info("making %s synthetic utterances of %d speakers in %s (once)…", f"{len(rows):,}", speakers, folder)
        start = time.monotonic()
        folder.parent.mkdir(parents=True, exist_ok=True)
        _remove_abandoned(folder.parent)
        partial = folder.with_name(f".{folder.name}-{os.getpid()}-{secrets.token_hex(4)}")
        partial.mkdir()
        try:
            # Threads: nearly all the time is spent in numpy, which lets others run meanwhile.
            pool = ThreadPoolExecutor(min(8, os.cpu_count() or 1))
            try:
                list(pool.map(lambda row: self._write(partial, row), rows))
            finally:
                pool.shutdown(cancel_futures=True)
            columns = ["id", "path", "duration", "speaker", "session", "split"]
            pl.DataFrame(rows).select(columns).write_csv(partial / "manifest.csv")
            (partial / "settings.json").write_text(json.dumps(settings, indent=1) + "\n", encoding="utf-8")
            try:
                partial.rename(folder)
            except OSError:
                if not folder.exists():
                    raise
                log.info("%s: another process was faster; using its voices", folder)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
        log.info("made them in %.0f s", time.monotonic() - start)

    def _rows(self) -> list[dict[str, Any]]:
        rows = []
        voice = 0
        for split, speakers, utterances in self.splits:
            for _ in range(speakers):
                voice += 1
                for i in range(utterances):
                    session, number = i % self.sessions + 1, i // self.sessions + 1
                    speaker = f"voice{voice:04d}"
                    name = f"{speaker}-s{session}-{number:02d}"
                    samples = length(self.seed, voice, session, number, self.seconds)
                    rows.append(
                        {
                            "id": name,
                            "path": f"{{data_root}}/{speaker}/{name}.wav",
                            "duration": samples / SAMPLE_RATE,
                            "speaker": speaker,
                            "session": f"{speaker}-s{session}",
                            "split": split,
                            "counter": (voice, session, number),
                            "samples": samples,
                        }
                    )
        return rows

    def _write(self, folder: Path, row: dict[str, Any]) -> None:
        voice, session, number = row["counter"]
        samples = utterance(self.seed, voice, session, number, row["samples"])
        path = Path(row["path"].format(data_root=folder))
        path.parent.mkdir(exist_ok=True)
        with wave.open(str(path), "wb") as file:
            file.setparams((1, 2, SAMPLE_RATE, len(samples), "NONE", ""))
            file.writeframes(samples.astype("<i2").tobytes())


def length(seed: int, speaker: int, session: int, number: int, seconds: tuple[float, float]) -> int:
    """Samples of an utterance: a whole number of hundredths of a second within `seconds`."""
    drawn = generator(seed, speaker, session, number, 1).uniform(*seconds)
    return round(drawn * 100) * SAMPLE_RATE // 100


def utterance(seed: int, speaker: int, session: int, number: int, samples: int) -> NDArray[np.int16]:
    """(samples,) of utterance `number` of a session of a speaker; all three count from 1, for 0 is what is shared.

    Depends on its arguments alone. Bits may differ between versions of numpy and kinds of processor.
    """
    voice = draw_voice(generator(seed, speaker, 0, 0, 0))
    shared = generator(seed, speaker, session, 0, 0)
    manner, recording = draw_manner(shared), draw_recording(shared)
    rng = generator(seed, speaker, session, number, 0)
    return record(speak(voice, manner, samples, rng), recording, rng)


def _read(folder: Path) -> pl.DataFrame:
    table = read_table(folder / "manifest.csv", folder)
    for path, duration in table.select("path", "duration").iter_rows():
        file = Path(path)
        if not file.is_file() or file.stat().st_size != HEADER_BYTES + 2 * round(duration * SAMPLE_RATE):
            raise UserError(f"{path}: missing or cut short; remove {folder}, and it is made again")
    return table


def _remove_abandoned(root: Path) -> None:
    """Half-made folders of processes that were killed."""
    for partial in root.glob(".voices-*"):
        with suppress(FileNotFoundError):  # another process may have finished or removed it
            if time.time() - partial.stat().st_mtime > ABANDONED_SECONDS:
                log.info("removing %s, left by a process that was killed", partial)
                shutil.rmtree(partial, ignore_errors=True)
