"""Two small corpora of real speech in LibriSpeech's folder layout, from the corpus folder of the studies.

    python experiments/seeds/small_corpus.py FOLDER OUTPUT      # FOLDER has utterances.csv

OUTPUT/mini_librispeech/LibriSpeech/train-clean-5                           the layout of Mini LibriSpeech
OUTPUT/librispeech/LibriSpeech/{train-clean-100,dev-clean,test-clean}       that of LibriSpeech

Both have the same 28 speakers, as many as Mini LibriSpeech, with up to 54 seconds of each: in the first as up to 18
utterances of 3 s, in the second as up to 54 of 1 s, Mini LibriSpeech's mean number. 23 are speakers of the Arabic
speech commands, whose clips are recordings of their own, of 1 s: an utterance of 3 s is three of them. The other 5 are
LibriSpeech's of test-other, whose recordings are cut into pieces: 2 make dev-clean and 3 test-clean. (LibriSpeech's 120
speakers of train-clean-100 have one recording of 6 s each here, too little to train on some of it and to ask about the
rest.)

A speaker's clips have one place and microphone, and the pieces of a recording have its room and day: a voice is told
apart more easily by them than in LibriSpeech itself, whose speakers have several chapters.
"""

import sys
from pathlib import Path

import numpy as np
import polars as pl
import soundfile

RATE = 16_000  # samples of a piece: 1 s
SPEAKERS, PIECES = 28, 54


def pieces(source: Path) -> list[tuple[Path, int]]:
    """(file, first sample) of each whole second."""
    return [(source, start) for start in range(0, soundfile.info(source).frames - RATE + 1, RATE)]


def write(folder: Path, speaker: str, parts: list[tuple[Path, int]], seconds: int) -> None:
    """SPEAKER/CHAPTER/SPEAKER-CHAPTER-UTTERANCE.flac below `folder`, of one chapter; `seconds` pieces an utterance."""
    place = folder / speaker / "1"
    place.mkdir(parents=True, exist_ok=True)
    waves = [soundfile.read(file, frames=RATE, start=start, dtype="int16")[0] for file, start in parts[:PIECES]]
    for number in range(len(waves) // seconds):
        wave = np.concatenate(waves[number * seconds : (number + 1) * seconds])
        soundfile.write(place / f"{speaker}-1-{number:04d}.flac", wave, RATE)


def main() -> None:
    folder, output = Path(sys.argv[1]), Path(sys.argv[2])
    table = pl.read_csv(folder / "utterances.csv", infer_schema=False).sort("path")
    english = table.filter(split="test-other")
    arabic = table.filter(corpus="arabic_speech_commands")
    people = english["speaker"].unique().sort().to_list()
    subsets = dict(zip(people, ["dev-clean"] * 2 + ["test-clean"] * 3, strict=True))
    subsets |= dict.fromkeys(arabic["speaker"].unique().sort()[: SPEAKERS - len(people)], "train-clean-100")
    for speaker, subset in subsets.items():
        files = [folder / path for path in table.filter(speaker=speaker)["path"]]
        parts = [piece for file in files for piece in pieces(file)]
        write(output / "mini_librispeech/LibriSpeech/train-clean-5", speaker, parts, 3)
        write(output / "librispeech/LibriSpeech" / subset, speaker, parts, 1)


if __name__ == "__main__":
    main()
