"""`python -m spkexp.embed` beside the bare forward of its model, and a recording of three hours.

    python benchmarks/inference.py [--repeats 5] [--models NAME ...] [--device cpu] [--output FILE]

Throughput: wav files of 1 to 15 s, 16 bits, of noise, whole. "embed" is everything from the list of files to the file
of embeddings: listing, headers, reading, batches, model, parts, output; the imports and the loading of the model, which
do not grow with the files, are left out. "bare" is the model on the same batches, which lie in memory (on a GPU: in
pinned memory) already. The two take turns, in a process with one thread a core; "seconds" are medians, and "share" is
the median of the turns' bare / embed. "cpu_share" is the same of the process's CPU time, which other programs on the
machine change less.

Three hours: one wav file in windows of 2 s, 1 s apart, in a process of its own, as is the same of ten minutes.
"""

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any
from unittest.mock import patch

import numpy as np
import soundfile
import torch
from common import parser, rounded, write

from spkexp import build, checkpoint
from spkexp.compose import compose_config
from spkexp.data.dataset import Reading, loader
from spkexp.embedding.inputs import listed, measured, state_of, whole
from spkexp.embedding.run import Request, Settings, embed
from spkexp.scoring.extract import batches_of
from spkexp.scoring.sliding import inference

RATE = 16_000
BATCH_SECONDS = 240.0
FILES = {"ecapa_small": 150, "ecapa": 40, "resnet34": 40}  # on a CPU; ten times as many on a GPU
HOURS, SHORT = 3.0, 1 / 6


def make_model(name: str, folder: Path) -> Path:
    """With random weights: speed is the same."""
    cfg = compose_config([f"model={name}"])
    torch.manual_seed(0)
    checkpoint.save_portable(folder / name, build.model(cfg.model), None, cfg, [])
    return folder / name


def make_files(folder: Path, count: int) -> float:
    """`count` files; returns their seconds."""
    rng = np.random.default_rng(0)
    folder.mkdir()
    seconds = rng.uniform(1, 15, count).round(2)
    for number, length in enumerate(seconds.tolist()):
        wave = rng.normal(0, 0.1, round(length * RATE)).astype(np.float32)
        soundfile.write(folder / f"{number:05d}.wav", wave, RATE, subtype="PCM_16")
    return float(seconds.sum())


def request(model: Path, source: Path, output: Path) -> Request:
    return Request(str(model), str(source), output, None, None, "raise", "fp32", None, ())


def bare(model: Any, source: Path, scratch: Path, device: torch.device) -> Callable[[], None]:
    """What runs the model on the batches of `source`."""
    table = listed(str(source), None)
    utterances = whole(measured(table, scratch, state_of(table), "")[0]).utterances()
    dataset, batches = batches_of(utterances, Reading(RATE, False, False), BATCH_SECONDS)
    ready = list(loader(dataset, batches, 0, pin=device.type == "cuda"))

    def work() -> None:
        with inference(model, "fp32"):
            for batch in ready:
                rows = model(batch.waveform.to(device, non_blocking=True), batch.lengths)
        rows.cpu()

    return work


def timed(work: Callable[[], Any]) -> tuple[float, float]:
    """(seconds, seconds of CPU)."""
    began, cpu = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - began, time.process_time() - cpu


def throughput(name: str, repeats: int, device: torch.device, folder: Path) -> dict[str, Any]:
    count = FILES[name] * (10 if device.type == "cuda" else 1)
    model, source = make_model(name, folder), folder / f"files-{name}"
    seconds = make_files(source, count)
    loaded = build.trained_model(model)
    settings = Settings(None, None, BATCH_SECONDS, True, True)
    forward = bare(loaded[0].to(device), source, folder / "scratch", device)

    def command() -> None:
        with patch.object(build, "trained_model", lambda *_: loaded):
            embed(request(model, source, folder / f"{name}.h5"), settings, device)

    command(), forward()  # to warm up
    turns = [(timed(forward), timed(command)) for _ in range(repeats)]
    walls = {"bare": [one[0] for one, _ in turns], "embed": [two[0] for _, two in turns]}
    return {
        "files": count,
        "audio_seconds": round(seconds),
        "seconds": {what: round(median(values), 2) for what, values in walls.items()},
        "turns": {what: rounded(values) for what, values in walls.items()},
        "times_real_time": round(seconds / median(walls["embed"]), 1),
        "share": round(median(one[0] / two[0] for one, two in turns), 3),
        "cpu_share": round(median(one[1] / two[1] for one, two in turns), 3),
    }


def peak_mb() -> int:
    """The most memory that this process had, files that are mapped included. (What getrusage says begins with what the
    process that started this one had.)"""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) // 1024 for line in lines if line.startswith("VmHWM"))


def long(hours: float, device: str) -> None:
    """For a process of its own: one recording in windows."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model, file = make_model("ecapa_small", folder), folder / "long.wav"
        rng = np.random.default_rng(0)
        with soundfile.SoundFile(file, "w", RATE, 1, subtype="PCM_16") as stream:
            for _ in range(round(hours * 60)):
                stream.write(rng.normal(0, 0.1, 60 * RATE).astype(np.float32))
        before = peak_mb()
        settings = Settings(2.0, 1.0, BATCH_SECONDS, True, True)
        seconds, cpu = timed(lambda: embed(request(model, file, folder / "o.h5"), settings, torch.device(device)))
        figures = {"hours": round(hours, 2), "seconds": round(seconds, 1), "cpu_seconds": round(cpu, 1)}
        print(json.dumps(figures | {"peak_mb": peak_mb(), "peak_mb_before": before}))


def main() -> None:
    arguments = parser(__doc__, "inference")
    arguments.add_argument("--repeats", type=int, default=5)
    arguments.add_argument("--models", nargs="*", choices=FILES, default=list(FILES))
    arguments.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    arguments.add_argument("--long", type=float, help="for the processes that this one starts")
    given = arguments.parse_args()
    if given.long:
        return long(given.long, given.device)
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as name:
        for model in given.models:
            results[model] = throughput(model, given.repeats, torch.device(given.device), Path(name))
            print(model, results[model], flush=True)
    for what, hours in (("ten_minutes", SHORT), ("three_hours", HOURS)):
        command = [sys.executable, __file__, "--long", str(hours), "--device", given.device]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        results[what] = json.loads(done.stdout.splitlines()[-1])
        print(what, results[what], flush=True)
    where = {"device": torch.cuda.get_device_name() if given.device == "cuda" else "cpu"}
    where |= {"threads": torch.get_num_threads()}
    figures = {**where, "asked_at_least": {"share": 0.9}, "results": results}
    write(given.output, "spkexp.embed beside the bare forward", figures, "torch")
    return None


if __name__ == "__main__":
    main()
