"""What the commands of the pages name: corpora, manifests, recordings, trial lists and runs, all of them small.

`quick` takes less than a second, and its RUN is a model of random weights. `whole` adds runs that were trained and
corpora that training can read.
"""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import polars as pl
import soundfile
import torch

from spkexp import build, checkpoint
from spkexp.compose import compose_config
from tests.audio_files import encode
from tests.conftest import SHARED, voice
from tests.conversion_tools import listed, random_tensors, write
from tests.inference_tools import tiny_model, write_results

RATE = 16_000
SECONDS = 0.7
# How many speakers each split of a manifest has, and how many utterances each of them.
SPLITS = {"train": 6, "val": 3, "test": 3}
UTTERANCES = 4
# The built-in voices, fewer and shorter.
SMALL_VOICES = {
    "data.corpus.train_speakers": "4",
    "data.corpus.val_speakers": "3",
    "data.corpus.test_speakers": "3",
    "data.corpus.train_utterances": "3",
    "data.corpus.eval_utterances": "2",
    "data.corpus.sessions": "1",
    "data.corpus.seconds": "[0.6,0.8]",
}
PUBLISHED = "published"  # what a test puts on the hub as user/name
TEACHER = "TEACHER"  # a run on the small voices
TINY = [
    *("model.embedding_size=16", "model.features.num_mels=24", "model.encoder.channels=16"),
    *("model.encoder.aggregation_channels=32", "model.encoder.se_channels=8", "model.encoder.res2net_scale=4"),
]


def quick(folder: Path) -> None:
    """Recordings, manifests, lists, RUN as a portable model, and a checkpoint of another toolkit."""
    for number, name in enumerate(["a", "b", "c", "talk"]):
        soundfile.write(folder / f"{name}.wav", voice(number, number, 4.0 if name == "talk" else 1.2), RATE)
    (folder / "talks").mkdir()
    shutil.copy(folder / "talk.wav", folder / "talks" / "monday.wav")
    manifest(folder / "my.csv", folder / "recordings", 0)
    (folder / "FOLDER").symlink_to("recordings")
    manifest(folder / "mine.csv", folder / "others", 20)
    for name in ("trials.txt", "veri_test2.txt"):
        trials(folder / name, folder / "recordings")
    for run in ("RUN", PUBLISHED):
        write_results(tiny_model(folder / run))
    shapes = {
        name: tuple(size // 64 if size >= 128 else size for size in shape)
        for name, shape in listed("wespeaker_ecapa_c1024").shapes.items()
    }
    write(folder, "avg_model.pt", random_tensors(shapes))
    torch.save({"state_dict": {"a": torch.zeros(2)}}, folder / "FILE")
    if SHARED.is_dir():
        (folder.parent / "shared").mkdir(exist_ok=True)
        if not (folder.parent / "shared" / "data").exists():
            (folder.parent / "shared" / "data").symlink_to(SHARED)


def manifest(file: Path, folder: Path, first: int) -> None:
    """Speakers SPLITS from number `first` on with UTTERANCES each in `folder`, and a table of them."""
    rows = []
    for speaker, split in enumerate(split for split, count in SPLITS.items() for _ in range(count)):
        for number in range(UTTERANCES):
            name = f"s{first + speaker:02d}/{number}.wav"
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            wave = voice(first + speaker, number, SECONDS + 0.05 * number)
            soundfile.write(folder / name, wave, RATE, subtype="PCM_16")
            keyword, gender = f"word{number % 2}", "fm"[speaker % 2]
            row = (
                name[:-4],
                str(folder / name),
                len(wave) / RATE,
                name[:3],
                split,
                keyword,
                gender,
                "xy"[number % 2],
            )
            rows.append(row)
    columns = ["id", "path", "duration", "speaker", "split", "keyword", "gender", "language"]
    pl.DataFrame(rows, schema=columns, orient="row").write_csv(file)


def trials(file: Path, folder: Path) -> None:
    """All pairs of the test speakers' first three utterances below `folder`, in VoxCeleb's form."""
    speakers = sorted(path.name for path in folder.iterdir())[-SPLITS["test"] :]
    names = [f"{speaker}/{number}" for speaker in speakers for number in range(3)]
    pairs = [(a, b) for index, a in enumerate(names) for b in names[index + 1 :]]
    file.write_text("".join(f"{int(a[:3] == b[:3])} {a}.wav {b}.wav\n" for a, b in pairs), encoding="utf-8")


def whole(folder: Path, train: Callable[..., None]) -> None:
    """`quick`, corpora/, RUN, RUN2 and RUN3 trained by train(ARGUMENT, …), and the sweep that they are, as SWEEP."""
    quick(folder)
    for name, layout in CORPORA.items():
        layout(folder / "corpora" / name)
    (folder / "fast").mkdir()
    shutil.rmtree(folder / "RUN")
    small = [
        "trainer.epochs=1",
        "trainer.batch_size=8",
        "data.crop_seconds=0.5",
        "scoring.bootstrap=10",
        "augment=none",
    ]
    train("-m", "data=manifest", "data.manifest=my.csv", "seed=0,1,2", "tracking.group=GROUP", *small, *TINY)
    voices = [f"{key}={value}" for key, value in SMALL_VOICES.items()]
    train(
        f"run_dir={TEACHER}",
        "data.root=voices",
        "data.crop_seconds=0.5",
        "trainer.max_steps=2",
        "trainer.batch_size=4",
        *voices,
        *TINY,
    )
    (sweep,) = (folder / "runs" / "sweeps").iterdir()
    (folder / "SWEEP").symlink_to(sweep.relative_to(folder))
    runs = sorted(path.parent for path in (folder / "runs").glob("*/*/results.json"))
    for name, run in zip(("RUN", "RUN2", "RUN3"), runs, strict=True):
        (folder / name).symlink_to(run.relative_to(folder))


def untrained(overrides: list[str]) -> str:
    """The name of a portable folder in the current one, with random weights of the model that `overrides` describe."""
    cfg = compose_config(overrides)
    name = f"untrained-{cfg.names.model}"
    if not Path(name).exists():
        checkpoint.save_portable(Path(name), build.model(cfg.model), torch.nn.Identity(), cfg, [])
    return name


def _speech(file: Path, speaker: int, number: int) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    wave = voice(speaker, number, SECONDS)
    if file.suffix == ".m4a":
        encode(file, wave, RATE)
    else:
        soundfile.write(file, wave, RATE)


def _voxceleb1(root: Path) -> None:
    for index, speaker in enumerate(["id10001", "id10002", "id10003", "id11251", "id10270", "id10300", "id10309"]):
        for number in range(1, 5):
            _speech(root / "wav" / speaker / f"video{number % 2}" / f"{number:05d}.wav", index, number)


def _voxceleb2(root: Path) -> None:
    speakers = {"dev/aac": ["id00012", "id00015", "id00016", "id00018"], "test/aac": ["id00017", "id00061", "id09272"]}
    for place, names in speakers.items():
        for index, speaker in enumerate(names):
            for number in range(1, 5):
                _speech(root / place / speaker / f"video{number % 2}" / f"{number:05d}.m4a", index, number)


def _librispeech(root: Path) -> None:
    subsets = {"train-clean-100": range(19, 23), "train-clean-5": range(30, 34), "dev-clean": range(40, 43)}
    subsets |= {"test-clean": range(50, 53)}
    for subset, speakers in subsets.items():
        for speaker in speakers:
            for number in range(4):
                name = f"{speaker}-{speaker + 1000}-{number:04d}.flac"
                _speech(root / subset / str(speaker) / str(speaker + 1000) / name, speaker % 10, number)


def _mini_librispeech(root: Path) -> None:
    _librispeech(root / "LibriSpeech")


def _cnceleb(root: Path) -> None:
    one = root / "CN-Celeb_flac"
    for speaker in range(4):
        for number in range(1, 4):
            _speech(one / f"data/id0001{speaker}/singing-01-{number:03d}.flac", speaker, number)
            _speech(root / f"CN-Celeb2_flac/data/id1000{speaker}/vlog-01-{number:03d}.flac", speaker + 5, number)
    for speaker in range(3):
        _speech(one / f"eval/enroll/id0080{speaker}-enroll.flac", speaker, 0)
        for number in range(1, 4):
            _speech(one / f"eval/test/id0080{speaker}-singing-01-{number:03d}.flac", speaker, number)
            _speech(one / f"data/id0080{speaker}/singing-01-{number:03d}.flac", speaker, number)
    lists = {
        "dev/dev.lst": "".join(f"id0001{speaker}\n" for speaker in range(4)),
        "eval/lists/trials.lst": "".join(
            f"id0080{a}-enroll test/id0080{b}-singing-01-00{n}.wav {int(a == b)}\n"
            for a in range(3)
            for b in range(3)
            for n in (1, 2, 3)
        ),
        "eval/lists/enroll.map": "".join(
            f"id0080{speaker}-enroll id0080{speaker}/singing-01-001.wav id0080{speaker}/singing-01-002.wav\n"
            for speaker in range(3)
        ),
    }
    for name, text in lists.items():
        (one / name).parent.mkdir(parents=True, exist_ok=True)
        (one / name).write_text(text)
    (root / "CN-Celeb2_flac/spk.lst").write_text("".join(f"id1000{speaker}\n" for speaker in range(4)))


def _musan(root: Path) -> None:
    for kind in ("noise", "music", "speech"):
        for number in range(2):
            _speech(root / kind / "free" / f"{kind}-{number:04d}.wav", number, number)


def _rirs_noises(root: Path) -> None:
    rng = np.random.default_rng(0)
    room = (np.exp(-np.arange(800) / 100) * rng.normal(size=800) * 0.1).astype(np.float32)
    for name in (
        "simulated_rirs/smallroom/Room002/Room002-00001.wav",
        "real_rirs_isotropic_noises/RVB2014_type1_rir_largeroom1_near_angla.wav",
        "pointsource_noises/noise-free-sound-0000.wav",
    ):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(root / name, room, RATE)


CORPORA: dict[str, Callable[[Path], None]] = {
    "voxceleb1": _voxceleb1,
    "voxceleb2": _voxceleb2,
    "LibriSpeech": _librispeech,
    "mini_librispeech": _mini_librispeech,
    "cnceleb": _cnceleb,
    "musan": _musan,
    "RIRS_NOISES": _rirs_noises,
}


def copy(source: Path, to: Path) -> None:
    """`source` with its links, large files as hard links, so that a page may change what it has."""
    shutil.copytree(source, to, symlinks=True, copy_function=os.link)
