"""CPU time to read a random 2-s crop of wav and of FLAC: spkexp's reader against SpeechBrain's recipe.

    OMP_NUM_THREADS=1 python benchmarks/audio.py [--repeats 9] [--output FILE]

The files are real speech (LibriSpeech test-other, up to 15 s), copied to a temporary folder in both formats, and in
the page cache. Both read the same crops to float32 torch tensors, taking turns; medians of the turns are printed.
"""

import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import numpy as np
import soundfile
import torch
from common import parser, write
from speechbrain.dataio import audio_io
from torch import Tensor

from spkexp.data import audio

SPEECH = Path(__file__).resolve().parents[2] / "shared/data/LibriSpeech/test-other"
CROP, CROPS = 32_000, 400


def speechbrain(path: str, start: int) -> Tensor:
    """As its VoxCeleb recipe reads: open, seek, read, transpose."""
    return audio_io.load(path, num_frames=CROP, frame_offset=start)[0].transpose(0, 1).squeeze(1)


def ours(path: str, start: int) -> Tensor:
    return torch.from_numpy(audio.read(path, start, CROP))


def cpu_ms(read: Callable[[str, int], Tensor], crops: list[tuple[str, int]]) -> float:
    began = time.process_time()
    for path, start in crops:
        read(path, start)
    return 1e3 * (time.process_time() - began) / len(crops)


def measure(files: dict[str, int], repeats: int) -> dict[str, float]:
    rng = np.random.default_rng(0)
    paths = rng.choice(list(files), CROPS)
    crops = [(str(path), int(rng.integers(files[str(path)] - CROP + 1))) for path in paths]
    for path, start in crops:
        if not torch.equal(ours(path, start), speechbrain(path, start)):
            raise RuntimeError(f"{path}: the two readers differ at {start}")
    turns = [(cpu_ms(speechbrain, crops), cpu_ms(ours, crops)) for _ in range(repeats)]
    theirs, mine = (median(column) for column in zip(*turns, strict=True))
    headers = []
    for _ in range(repeats):
        began = time.process_time()
        for path in files:
            audio.info(path)
        headers.append(1e3 * (time.process_time() - began) / len(files))
    return {
        "speechbrain_ms": round(theirs, 4),
        "spkexp_ms": round(mine, 4),
        "times_faster": round(theirs / mine, 2),
        "spkexp_info_ms": round(median(headers), 4),
    }


def main() -> None:
    arguments = parser(__doc__, "audio")
    arguments.add_argument("--repeats", type=int, default=9, help="turns of each reader")
    arguments.add_argument("--speech", type=Path, default=SPEECH, help="a folder with FLAC files of 16 kHz speech")
    given = arguments.parse_args()
    torch.set_num_threads(1)
    results = []
    with tempfile.TemporaryDirectory() as folder:
        for suffix in ("wav", "flac"):
            files = {}
            for source in sorted(given.speech.rglob("*.flac")):
                samples, rate = soundfile.read(source, dtype="int16")
                if len(samples) > CROP:
                    path = f"{folder}/{source.stem}.{suffix}"
                    soundfile.write(path, samples, rate, subtype="PCM_16")
                    files[path] = len(samples)
            if not files:
                arguments.error(f"{given.speech}: no FLAC file longer than 2 s")
            results.append({"format": suffix, "files": len(files), **measure(files, given.repeats)})
    write(
        given.output,
        "random 2-s crop of 16 kHz 16-bit speech to a float32 tensor, CPU time, one thread, page cache",
        {
            "speech": "LibriSpeech test-other, up to 15 s" if given.speech == SPEECH else str(given.speech),
            "asked_at_most_ms": {"wav": 0.1, "flac": 0.75},
            "repeats": given.repeats,
            "crops": CROPS,
            "results": results,
        },
        "soundfile",
        "speechbrain",
        "torch",
    )


if __name__ == "__main__":
    main()
