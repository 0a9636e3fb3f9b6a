"""A copy of the validation and test recordings in a noise that no study trains on.

    python experiments/augmentation/noisy.py FOLDER OUTPUT [SNR_DB]

FOLDER has the corpora and noise/boiler.flac. OUTPUT takes the recordings under the same paths, so that
`python -m spkexp.evaluate model=RUN data.root=OUTPUT output=DIR` scores the same trials in noise. SNR_DB: the ratio of
mean squares over a recording; 5 unless given.
"""

import sys
from pathlib import Path

import numpy as np
import polars as pl
import soundfile

from spkexp.counter import generator

STUDY = Path(__file__).resolve().parents[1]


def noisy(speech: np.ndarray, noise: np.ndarray, snr_db: float, number: int) -> np.ndarray:
    """(T,) speech with a stretch of the noise (at least T samples), which recording `number` alone determines."""
    start = generator(number).integers(len(noise) - len(speech) + 1)
    stretch = noise[start : start + len(speech)]
    gain = np.sqrt(np.square(speech).mean() / np.square(stretch).mean() / 10 ** (snr_db / 10))
    mixed = speech + gain * stretch
    return mixed / max(1.0, np.abs(mixed).max())


def main() -> None:
    folder, output = Path(sys.argv[1]), Path(sys.argv[2])
    snr_db = float(sys.argv[3]) if len(sys.argv) > 3 else 5.0
    noise, noise_rate = soundfile.read(folder / "noise" / "boiler.flac")
    table = pl.read_csv(STUDY / "real_speech.csv", infer_schema=False).filter(pl.col("split") != "train")
    for number, path in enumerate(table["path"]):
        speech, rate = soundfile.read(folder / path)
        if rate != noise_rate:
            sys.exit(f"{folder / path}: {rate} Hz, and the noise {noise_rate} Hz")
        looped = np.tile(noise, 1 + len(speech) // len(noise))
        (output / path).parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(output / path, noisy(speech, looped, snr_db, number), rate)
    print(f"{len(table)} recordings at {snr_db:g} dB in {output}")


if __name__ == "__main__":
    main()
