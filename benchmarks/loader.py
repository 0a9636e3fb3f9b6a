"""One epoch over a tree of VoxCeleb2's shape, 5,994 speakers and 1,092,009 files: the loader's rate and memory.

    OMP_NUM_THREADS=1 python benchmarks/loader.py [--workers 2] [--fraction 1.0] [--output FILE]

The files are hard links to 2,000 wav files of 4 to 12 s of real speech (16 kHz, 16 bits), so that opening, seeking and
listing cost what they cost, while the samples come from the page cache. Measured are: listing the tree and reading all
headers (once), the start from the manifest to the first batch, and the epoch: plain crops of 2 s, and crops with what
augmentation needs (one of three speeds, a noise and an impulse response a row). Nothing is trained; the batches are
taken as fast as they come. Memory is the proportional set size (PSS) of the process and its workers together.
"""

import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
from common import parser, write

SHARED = Path(__file__).resolve().parents[2] / "shared/data"
SPEAKERS, UTTERANCES, PER_VIDEO, SOURCES = 5_994, 1_092_009, 8, 2_000
BATCH = 128


def make_tree(root: Path, fraction: float) -> int:
    """id00000/VIDEO/00001.wav as in VoxCeleb2; returns the number of files."""
    speech = [soundfile.read(path, dtype="int16")[0] for path in sorted(SHARED.glob("LibriSpeech/*/*/*/*.flac"))]
    rng = np.random.default_rng(0)
    sources = root / "sources"
    sources.mkdir()
    for number in range(SOURCES):
        wave = np.concatenate([speech[i] for i in rng.integers(len(speech), size=4)])[: rng.integers(64_000, 192_000)]
        soundfile.write(sources / f"{number}.wav", wave, 16_000, subtype="PCM_16")
    speakers = round(SPEAKERS * fraction)
    share = np.diff(np.round(np.linspace(0, UTTERANCES * fraction, speakers + 1)).astype(int))
    count = 0
    for speaker in range(speakers):
        for utterance in range(share[speaker]):
            if utterance % PER_VIDEO == 0:
                folder = f"{root}/dev/wav/id{speaker:05d}/{utterance // PER_VIDEO:011d}"
                os.makedirs(folder)
            os.link(f"{sources}/{rng.integers(SOURCES)}.wav", f"{folder}/{utterance % PER_VIDEO + 1:05d}.wav")
            count += 1
    return count


def memory_mb() -> dict[str, float]:
    """PSS of this process and of its children, MB."""
    pids = [os.getpid(), *(int(pid) for pid in Path(f"/proc/self/task/{os.getpid()}/children").read_text().split())]
    sizes = [int(Path(f"/proc/{pid}/smaps_rollup").read_text().split("Pss:")[1].split()[0]) / 1024 for pid in pids]
    return {"main": round(sizes[0]), "workers": round(sum(sizes[1:])), "total": round(sum(sizes))}


def epoch(batches: Iterator[Any], count: int, began: float) -> dict[str, Any]:
    next(batches)
    first = time.perf_counter()
    points: list[dict[str, Any]] = []
    done, mark = 0, (time.perf_counter(), 0)
    for number, batch in enumerate(batches, 1):
        done = number * BATCH
        if len(points) < 10 and number * 10 >= (len(points) + 1) * (count - 1):
            now = time.perf_counter()
            rate = (done - mark[1]) / (now - mark[0])
            points.append({"utterances": done, "per_second": round(rate), "memory_mb": memory_mb()})
            mark = (now, done)
        if batch.bad:
            raise RuntimeError(str(batch.bad))
    seconds = time.perf_counter() - first
    return {
        "first_batch_seconds": round(first - began, 2),
        "epoch_seconds": round(seconds, 1),
        "utterances_per_second": round(done / seconds),
        "over_the_epoch": points,
    }


def main() -> None:
    arguments = parser(__doc__, "loader")
    arguments.add_argument("--workers", type=int, default=2)
    arguments.add_argument("--fraction", type=float, default=1.0, help="of VoxCeleb2's speakers")
    given = arguments.parse_args()
    with tempfile.TemporaryDirectory(prefix="spkexp loader ") as folder:
        root = Path(folder) / "VoxCeleb2"
        root.mkdir()
        files = make_tree(root, given.fraction)
        figures = measure(root, files, given.workers)
    write(
        given.output,
        "a tree of VoxCeleb2's shape: preparing it, starting, and one epoch of 2-s crops by the loader alone",
        {"files": files, "workers": given.workers, "batch": BATCH, **figures},
        "torch",
        "polars",
        "soundfile",
    )


def measure(root: Path, files: int, workers: int) -> dict[str, Any]:
    from spkexp import build, corpus
    from spkexp.cli import set_up_logging
    from spkexp.compose import compose_config
    from spkexp.data.dataset import Crops, Parts, loader

    set_up_logging()
    overrides = [
        "data=voxceleb2",
        f"data.root='{root}'",
        f"data.cache_dir='{root.parent}/cache'",
        "data.corpus.subsets=[dev]",
        f"augment.musan='{SHARED}'",
        f"augment.rirs='{SHARED}/rir'",
    ]
    steps = "augment.waveform.steps"
    augmented = [
        "augment=noise_reverb",
        "augment.speeds=[0.9,1.1]",
        "augment.speed_copies=one",
        f"{steps}.reverb.choices.simulated.source.include=['**']",
        f"{steps}.reverb.choices.measured=null",
        f"{steps}.reverb.probability=1",
        f"{steps}.noise.probability=1",
        f"{steps}.noise.kinds.babble=null",
        f"{steps}.noise.kinds.music=null",
    ]
    figures: dict[str, Any] = {}
    for name, changes in (("plain", ["augment=none"]), ("augmented", augmented)):
        cfg = compose_config([*changes, *overrides])
        if "prepare_seconds" not in figures:
            began = time.perf_counter()
            corpus.table(cfg)
            figures["prepare_seconds"] = round(time.perf_counter() - began, 1)
        began = time.perf_counter()
        cfg.data.split.fractions = [1.0, 0.0, 0.0]
        train = corpus.data(cfg).train
        augmentation = build.augmentation(cfg.augment.waveform, "augment.waveform", 16_000)
        sampler = build.sampler(cfg, train, BATCH)
        crops = Crops(train, corpus.reading(cfg), 2.0, "wrap", 0, cfg.augment.speed_copies == "one", augmentation)
        time.sleep(1.0)  # building a model takes longer; by then polars has given back what the table needed
        parts = Parts(sampler, 0, range(sampler.steps_per_epoch), 1, 1, 0)
        batches = iter(loader(crops, parts, workers, pin=False))
        figures[name] = epoch(batches, sampler.steps_per_epoch, began)
    return figures


if __name__ == "__main__":
    main()
