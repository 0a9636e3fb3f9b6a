"""What is tried: for each kind of file, sound ones to begin with, and the readers that must bear damaged ones."""

import io
import json
import os
import shutil
import tarfile
import tempfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import h5py
import numpy as np
import polars as pl
import soundfile
import torch
from omegaconf import OmegaConf
from safetensors.torch import save_file

from spkexp import archives, build, checkpoint, durable, foreign, saved_config
from spkexp.compose import check_all, compose_config
from spkexp.config import check
from spkexp.data import audio, rttm, tar_index
from spkexp.data.manifest import read_table
from spkexp.data.trial_lists import read_trials
from spkexp.scoring.embedding_file import read_embeddings, write_embeddings
from tests.audio_files import encode

NAMES = "label.txt"


@dataclass(frozen=True)
class Target:
    """seeds: sound files, made in a folder; read: reads one, in a folder of its own, with what it raises."""

    seeds: Callable[[Path], list[bytes]]
    read: Callable[[Path, bytes], None]


def _audio(folder: Path) -> list[bytes]:
    wave = np.sin(np.arange(4000) / 7).astype(np.float32) / 3
    forms = {
        "a.wav": "PCM_16", "b.wav": "FLOAT", "c.wav": "ULAW", "d.wav": "IMA_ADPCM", "a.flac": "PCM_16",
        "a.ogg": "VORBIS", "b.ogg": "OPUS", "a.mp3": "MPEG_LAYER_III", "a.aiff": "PCM_16", "a.caf": "ALAC_16",
        "a.au": "PCM_16",
    }  # fmt: skip
    found = []
    for name, subtype in forms.items():
        soundfile.write(folder / name, np.stack([wave, wave], 1) if name[0] == "b" else wave, 16_000, subtype=subtype)
        found.append((folder / name).read_bytes())
    for name, codec in (("a.m4a", "aac"), ("a.aac", "aac"), ("a.webm", "libopus"), ("a.mkv", "aac"), ("a.mp4", "aac")):
        rate = 48_000 if codec == "libopus" else 16_000
        encode(folder / name, wave, rate, codec)
        found.append((folder / name).read_bytes())
    return found


def _read_audio(folder: Path, content: bytes) -> None:
    file = folder / "a"
    file.write_bytes(content)
    facts = audio.info(file)
    audio.read(file, resample=True, mix_channels=True)
    audio.read_crop(file, 100, 0.7, resample=True, mix_channels=True)
    audio.read(file, start=facts.frames_at(16_000) // 2, frames=1, resample=True, mix_channels=True)


def _tables(folder: Path) -> list[bytes]:
    """The first byte says the extension."""
    frame = pl.DataFrame(
        {"id": ["a", "b"], "path": ["a.wav", "x/b ü.wav"], "duration": [1.5, 2.0], "speaker": ["s", "t"]}
    )
    frame.write_parquet(folder / "a.parquet")
    entries = {"a": {"wav": "{data_root}/a.wav", "length": 1.5, "spk_id": "s"}, "b": {"wav": "b", "length": None}}
    segments = "ID,duration,wav,start,stop,spk_id\na--0,3.0,/x/a.wav,0,48000,s\n"
    return [
        b"c" + frame.write_csv().encode(), b"t" + frame.write_csv(separator="\t").encode(), b"c" + segments.encode(),
        b"j" + json.dumps(entries).encode(), b"p" + (folder / "a.parquet").read_bytes(),
        b"k" + b"a a.wav\nb /x/b.wav\n\0a s\nb t\n", b"k" + b"a touch pwned |\n\0a s\n",
    ]  # fmt: skip


def _read_table(folder: Path, content: bytes) -> None:
    kind, content = content[:1], content[1:]
    if kind == b"k":
        scp, _, utt2spk = content.partition(b"\0")
        (folder / "wav.scp").write_bytes(scp)
        (folder / "utt2spk").write_bytes(utt2spk)
        read_table(folder, None)
        return
    extension = {b"c": "csv", b"t": "tsv", b"j": "json", b"p": "parquet"}.get(kind, "csv")
    (folder / f"a.{extension}").write_bytes(content)
    read_table(folder / f"a.{extension}", None)


def _trials(_: Path) -> list[bytes]:
    return [
        b"1 a.wav b.wav\n0 a.wav c.wav\n", b"a b target\na c nontarget\n", b"a b 1\na c 0\n", b"a b tgt\na c imp\n",
        b"a b\nc d\n", b"\xef\xbb\xbf1\ta\tb\r\n0\ta\tc\r\n",
    ]  # fmt: skip


def _read_trials(folder: Path, content: bytes) -> None:
    (folder / "trials.txt").write_bytes(content)
    read_trials(folder / "trials.txt")


def _segments(_: Path) -> list[bytes]:
    return [
        b"SPEAKER r 1 0.00 1.50 <NA> <NA> a <NA> <NA>\nSPEAKER r 1 1.50 2.25 <NA> <NA> b%20c <NA> <NA>\n",
        b";; x\nSPEAKER r\t1 1e1 .5 <NA> <NA> a <NA>\nSPKR-INFO r 1 <NA> <NA> <NA> unknown a <NA> <NA>\n",
    ]


def _read_segments(folder: Path, content: bytes) -> None:
    (folder / "a.rttm").write_bytes(content)
    rttm.read(folder / "a.rttm")


SMALL = ["model=xvector", "model.encoder.channels=[4,4,4,4,6]", "model.embedding_size=4", "model.features.num_mels=8"]


@cache
def small_model() -> dict[str, bytes]:
    """The files of a small model with its head."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name, "model")
        cfg = compose_config(SMALL)
        OmegaConf.resolve(cfg)
        model = build.model(cfg.model)
        head = torch.nn.Module()
        head.weight = torch.nn.Parameter(torch.zeros(3, 4))
        checkpoint.save_portable(folder, model, head, cfg, ["a", "b", "ü"])
        return {file.name: file.read_bytes() for file in folder.iterdir()}


def _configs(_: Path) -> list[bytes]:
    return [small_model()["config.yaml"]]


def _read_config(folder: Path, content: bytes) -> None:
    for name, other in small_model().items():
        if name != durable.SUMS:
            (folder / name).write_bytes(other)
    (folder / "config.yaml").write_bytes(content)
    build.trained_model(folder)
    check(saved_config.read(folder / "config.yaml"))


def _overrides(_: Path) -> list[bytes]:
    return [
        b"seed=3", b"model=xvector model.encoder.channels=[4,4,4,4,6]", b"trainer.param_groups={a:{match:x}}",
        b"-m seed=0,1,2", b"+model.x=1", b"~loss.margin", b"loss={_target_:os.system}", b"data.root=${oc.env:HOME}",
        b"trust=[os] model.encoder._target_=os.system", b"-m seed=interval(0,1)", b"hydra.launcher._target_=os.system",
    ]  # fmt: skip


def _read_overrides(_: Path, content: bytes) -> None:
    words = content.decode("utf-8", "replace").replace("\0", "").split()
    check_all([word for word in words if word[:1] != "-"], "-m" in words)


def _checkpoints(folder: Path) -> list[bytes]:
    """The first byte says the file."""
    tensors = {"a": torch.zeros(3, 4), "b.c": torch.arange(5), "d": torch.zeros(2, dtype=torch.bfloat16)}
    save_file(tensors, folder / "a.safetensors")
    torch.save({"state_dict": tensors, "epoch": 3, "x": [1, (2.5, "y")]}, folder / "a.pt")
    torch.save(tensors, folder / "b.pt", _use_new_zipfile_serialization=False)
    (folder / "plain.pt").write_bytes(_plain_pickle())
    return [
        b"s" + (folder / "a.safetensors").read_bytes(), b"t" + (folder / "a.pt").read_bytes(),
        b"t" + (folder / "b.pt").read_bytes(), b"t" + (folder / "plain.pt").read_bytes(),
        b"m" + small_model()["model.safetensors"],
        b"l" + small_model()["labels.json"], b"h" + small_model()[durable.SUMS],
    ]  # fmt: skip


def _plain_pickle() -> bytes:
    import pickle

    return pickle.dumps({"a": [1, 2], "b": ("c", 1.5)}, protocol=2)


def _read_checkpoint(folder: Path, content: bytes) -> None:
    kind, content = content[:1], content[1:]
    if kind in (b"s", b"t"):
        file = folder / ("a.safetensors" if kind == b"s" else "a.pt")
        file.write_bytes(content)
        foreign.read_tensors(file)
        return
    changed = {b"m": "model.safetensors", b"l": "labels.json"}.get(kind, durable.SUMS)
    for name, other in small_model().items():
        if name != durable.SUMS or changed == durable.SUMS:
            (folder / name).write_bytes(other)
    (folder / changed).write_bytes(content)
    model, cfg, place = build.trained_model(folder)
    build.trained_head(cfg, place, model.embedding_size)


def _embeddings(folder: Path) -> list[bytes]:
    """The first byte says the extension."""
    rows = np.arange(12, dtype=np.float32).reshape(3, 4)
    found = []
    for letter, extension in EXTENSIONS.items():
        write_embeddings(
            folder / f"a{extension}", ["a", "b ü".replace(" ", ""), "c"], rows, {"speaker": ["x", "y", "z"]}
        )
        found.append(letter + (folder / f"a{extension}").read_bytes())
    np.savez_compressed(folder / "b.npz", id=np.array(["a", "b"]), embedding=rows[:2])
    with h5py.File(folder / "b.h5", "w", libver="latest") as file:
        file.create_dataset("id", data=["a", "b"])
        file.create_dataset("embedding", data=rows[:2], compression="gzip", chunks=(1, 4))
    return [*found, b"n" + (folder / "b.npz").read_bytes(), b"h" + (folder / "b.h5").read_bytes()]


EXTENSIONS = {b"h": ".h5", b"n": ".npz", b"p": ".parquet", b"a": ".ark"}


def _read_embeddings(folder: Path, content: bytes) -> None:
    file = folder / f"a{EXTENSIONS.get(content[:1], '.h5')}"
    file.write_bytes(content[1:])
    read_embeddings(file)


def _archives(_: Path) -> list[bytes]:
    found = []
    members = {"model/config.yaml": b"a: 1\n", "model/b/labels.json": b"[]", "model/w": bytes(3000)}
    for mode in ("w", "w:gz"):
        stream = io.BytesIO()
        with tarfile.open(fileobj=stream, mode=mode, format=tarfile.PAX_FORMAT) as tar:
            for name, content in members.items():
                member = tarfile.TarInfo(name if mode == "w" else name + "ü" * 60)
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
        found.append(stream.getvalue())
    for kind in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        stream = io.BytesIO()
        with zipfile.ZipFile(stream, "w", kind) as archive:
            for name, content in members.items():
                archive.writestr(name, content)
        found.append(stream.getvalue())
    return found


def _read_archive(folder: Path, content: bytes) -> None:
    (folder / "x").mkdir()
    inside = folder / "x" / "inside"
    inside.mkdir()
    (folder / "x" / "a").write_bytes(content)
    try:
        archives.unpack(folder / "x" / "a", inside)
    finally:
        assert {path.name for path in folder.iterdir()} == {"x"}, "written outside"
        assert {path.name for path in (folder / "x").iterdir()} == {"a", "inside"}, "written outside"
        for parent, folders, files in os.walk(inside):
            assert not any(os.path.islink(os.path.join(parent, name)) for name in (*folders, *files)), "a link"


def _shards(_: Path) -> list[bytes]:
    found = []
    for form in (tarfile.PAX_FORMAT, tarfile.GNU_FORMAT):
        stream = io.BytesIO()
        with tarfile.open(fileobj=stream, mode="w", format=form) as tar:
            for name, content in (
                ("a.json", b'{"speaker": "s", "x": [1]}'),
                ("a.wav", bytes(99)),
                ("ü" * 70 + ".spk", b"t"),
            ):
                member = tarfile.TarInfo(name)
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
        found.append(stream.getvalue()[:5000] + bytes(1024))
    return found


def _read_shard(folder: Path, content: bytes) -> None:
    (folder / "a.tar").write_bytes(content)
    tar_index.index(str(folder / "a.tar"))


TARGETS = {
    "audio": Target(_audio, _read_audio),
    "manifests": Target(_tables, _read_table),
    "trials": Target(_trials, _read_trials),
    "rttm": Target(_segments, _read_segments),
    "configs": Target(_configs, _read_config),
    "overrides": Target(_overrides, _read_overrides),
    "checkpoints": Target(_checkpoints, _read_checkpoint),
    "embeddings": Target(_embeddings, _read_embeddings),
    "archives": Target(_archives, _read_archive),
    "shards": Target(_shards, _read_shard),
}


@cache
def seeds(name: str) -> tuple[bytes, ...]:
    """The sound files of a target."""
    with tempfile.TemporaryDirectory() as folder:
        return tuple(TARGETS[name].seeds(Path(folder)))


def try_one(name: str, content: bytes, folder: Path) -> None:
    """Read `content` in the empty folder `folder`, which is emptied again; raises what is not the user's mistake."""
    from spkexp.errors import UserError

    try:
        TARGETS[name].read(folder, content)
    except UserError as error:
        if not str(error).strip():
            raise AssertionError("an error without words") from error
    finally:
        for path in folder.iterdir():
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink()
