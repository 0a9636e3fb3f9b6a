"""Loading a manifest of VoxCeleb2's size: seconds and memory, and what four workers add; beside SpeechBrain.

    OMP_NUM_THREADS=1 python benchmarks/manifest.py [--repeats 5] [--rows 1092009] [--output FILE]

Each measurement is a process of its own, which imports first and measures then. "held" is what the process has more
than before, a second after loading; "peak" is the most that it had in between. For the epoch four worker processes go
through all rows in batches of 256 by torch's DataLoader and take from each row what reading it would need (path, label
and length; no audio is read); memory is the proportional set size (PSS) of all five, imports included.
"""

import gc
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from common import parser, write

SPEAKERS, BATCH, WORKERS = 5_994, 256, 4


def make(folder: Path, rows: int) -> None:
    """The same table as SpeechBrain's CSV and as ours, in CSV and Parquet."""
    import polars as pl  # here, for spkexp sets polars' allocator up when it is imported before it

    rng = np.random.default_rng(0)
    speaker = np.sort(rng.integers(SPEAKERS, size=rows))
    video = rng.integers(10**11, size=rows // 8 + 1)[np.arange(rows) // 8]
    ids = [f"id{s:05d}/{v:011d}/{i % 500:05d}" for s, v, i in zip(speaker, video, range(rows), strict=True)]
    paths = [f"/corpora/voxceleb2/dev/wav/{name}.wav" for name in ids]
    duration = rng.uniform(4, 20, rows).round(3)
    names = [f"id{s:05d}" for s in speaker]
    ours = pl.DataFrame({"id": ids, "path": paths, "duration": duration, "speaker": names})
    ours.write_csv(folder / "ours.csv")
    ours.write_parquet(folder / "ours.parquet")
    theirs = {"ID": ids, "duration": duration, "wav": paths, "start": [0] * rows, "stop": [32_000] * rows}
    pl.DataFrame({**theirs, "spk_id": names}).write_csv(folder / "speechbrain.csv")


def status(key: str) -> float:
    return int(Path("/proc/self/status").read_text().split(f"{key}:")[1].split()[0]) / 1024


def total_pss() -> float:
    pids = [str(os.getpid()), *Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()]
    sizes = [Path(f"/proc/{pid}/smaps_rollup").read_text().split("Pss:")[1].split()[0] for pid in pids]
    return sum(map(int, sizes)) / 1024


def load_ours(file: str) -> Any:
    from spkexp.data.manifest import read_table
    from spkexp.data.utterances import Utterances

    return Utterances.of(read_table(file, None), "speaker")


def load_speechbrain(file: str) -> Any:
    from speechbrain.dataio.dataset import DynamicItemDataset

    return DynamicItemDataset.from_csv(file)


def epoch_ours(utterances: Any) -> Any:
    from torch.utils.data import BatchSampler, DataLoader, RandomSampler

    class Rows:
        def __len__(self) -> int:
            return len(utterances)

        def __getitems__(self, items: list[int]) -> list[tuple[str, int, float]]:
            return [(utterances.path[i], int(utterances.label[i]), utterances.duration[i]) for i in items]

    rows: Any = Rows()
    sampler = BatchSampler(RandomSampler(rows), BATCH, drop_last=True)
    return DataLoader(rows, batch_sampler=sampler, num_workers=WORKERS, collate_fn=len)


def epoch_speechbrain(dataset: Any) -> Any:
    from torch.utils.data import DataLoader

    dataset.set_output_keys(["wav", "spk_id", "duration"])
    return DataLoader(dataset, BATCH, shuffle=True, num_workers=WORKERS, collate_fn=len)


def measure(kind: str, file: str, epoch: bool) -> None:
    load, run = (load_speechbrain, epoch_speechbrain) if kind == "speechbrain" else (load_ours, epoch_ours)
    import torch  # noqa: F401 - of the imports, not of the manifest

    if kind == "speechbrain":
        import speechbrain.dataio.dataset  # noqa: F401
    else:
        import spkexp.data.manifest
        import spkexp.data.utterances  # noqa: F401
    before, began = status("VmRSS"), time.perf_counter()
    loaded = load(file)
    seconds = time.perf_counter() - began
    peak = status("VmHWM") - before
    gc.collect()
    time.sleep(3)
    figures = {"seconds": seconds, "held_mb": status("VmRSS") - before, "peak_mb": peak}
    if epoch:
        began = time.perf_counter()
        memory = 0.0
        batches = run(loaded)
        rows = 0
        for number, batch in enumerate(batches, 1):
            rows += batch
            if number == len(batches) - WORKERS:  # while the workers still live
                memory = total_pss()
        figures |= {"epoch_rows": rows, "epoch_seconds": time.perf_counter() - began, "five_processes_mb": memory}
    print(json.dumps(figures))


def main() -> None:
    arguments = parser(__doc__, "manifest")
    arguments.add_argument("--repeats", type=int, default=5)
    arguments.add_argument("--rows", type=int, default=1_092_009)
    arguments.add_argument("--measure", nargs=3, help="for the processes that this one starts")
    given = arguments.parse_args()
    if given.measure:
        kind, file, epoch = given.measure
        return measure(kind, file, epoch == "1")
    results: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as folder:
        make(Path(folder), given.rows)
        cases = {
            "spkexp, Parquet": ("spkexp", "ours.parquet"),
            "spkexp, CSV": ("spkexp", "ours.csv"),
            "SpeechBrain, CSV": ("speechbrain", "speechbrain.csv"),
        }
        turns: dict[str, list[dict[str, float]]] = {name: [] for name in cases}
        for turn in range(given.repeats):
            for name, (kind, file) in cases.items():
                command = [sys.executable, __file__, "--measure", kind, f"{folder}/{file}", str(int(turn == 0))]
                done = subprocess.run(command, capture_output=True, text=True, check=True)
                turns[name].append(json.loads(done.stdout))
        for name, found in turns.items():
            results[name] = {key: round(median(t[key] for t in found if key in t), 3) for key in found[0]}
    write(
        given.output,
        "a manifest of VoxCeleb2's size: loading it, and four workers after an epoch",
        {
            "rows": given.rows,
            "asked_at_most": {"seconds": 0.5, "held_mb": 150, "five_processes_mb": 1000},
            "repeats": given.repeats,
            "results": results,
        },
        "polars",
        "speechbrain",
        "torch",
    )
    return None


if __name__ == "__main__":
    main()
