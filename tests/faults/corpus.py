"""A small corpus, and the settings of runs on it whose share of writing checkpoints is large."""

from pathlib import Path

import polars as pl
import soundfile

from spkexp.data.shards import ShardWriter
from tests.conftest import voice

TINY = (
    "augment=none",
    "data.crop_seconds=0.4",
    "data.num_workers=0",
    "model.features.num_mels=24",
    "model.embedding_size=16",
    "trainer.batch_size=8",
    "trainer.log_every=1",
    "trainer.validate_every=3",
    "trainer.checkpoint_steps=1",
    "scoring.bootstrap=20",
    "tracking.wandb=off",
)
ECAPA = (
    "model.encoder.channels=16",
    "model.encoder.aggregation_channels=32",
    "model.encoder.se_channels=8",
    "model.encoder.res2net_scale=4",
)
TRANSFORMER = ("model.encoder.channels=16", "model.encoder.feedforward_channels=32", "model.encoder.num_layers=1")
STEPS_PER_EPOCH = 4  # of 32 training utterances, with TINY


def write_corpus(root: Path) -> Path:
    """48 wav files of 0.6 to 0.7 s of six speakers below `root`, two of whom validate; returns `root`.

    root/manifest.csv lists them, root/shards holds them once more as tar shards.
    """
    (root / "shards").mkdir(parents=True)
    rows = []
    with ShardWriter(root / "shards", 100_000) as shards:
        for speaker in range(6):
            for number in range(8):
                name, wave = f"spk{speaker}-{number}", voice(speaker, number, 0.6 + 0.05 * (number % 3))
                file = root / f"{name}.wav"
                soundfile.write(file, wave, 16_000, subtype="PCM_16")
                labels = {"speaker": f"s{speaker}", "split": "train" if speaker < 4 else "val"}
                rows.append({"id": name, "path": file.name, "duration": len(wave) / 16_000, **labels})
                shards.add(name, "wav", file.read_bytes(), {"duration": len(wave) / 16_000, **labels})
    pl.DataFrame(rows).write_csv(root / "manifest.csv")
    return root


def arguments(corpus: Path, folder: Path, *more: str) -> list[str]:
    """Of `spkexp.train`, for a run in `folder` on what `write_corpus` wrote; in shards if `more` has their sampler."""
    if "data/sampler=shards" in more:
        data = ["data=shards", f"data.root='{corpus}/shards'", "data.sampler.open_shards=3"]
    else:
        data = ["data=manifest", f"data.manifest='{corpus}/manifest.csv'"]
    model = TRANSFORMER if "model=transformer" in more else ECAPA
    return [*TINY, *model, *data, f"run_dir='{folder}'", *more]
