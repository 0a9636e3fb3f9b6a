"""`python -m spkexp.embed`: what goes in, what comes out, and that nothing but time is lost by a kill."""

import io
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import polars as pl
import pytest
import soundfile
import torch
from torch import nn

from spkexp import build, durable
from spkexp.data import audio, rttm
from spkexp.data.rttm import Segment
from spkexp.diarization import settings as diarization
from spkexp.diarization.pipeline import diarize
from spkexp.embedding import partial
from spkexp.embedding.inputs import unique_names
from spkexp.embedding.windows_file import read_windows
from spkexp.errors import UserError
from spkexp.lock import hold
from spkexp.models.speaker import SpeakerModel
from spkexp.scoring.embedding_file import read_embeddings
from spkexp.scoring.sliding import embed_sliding
from tests.conftest import Run, voice
from tests.inference_tools import tiny_model, write_results

SECONDS = [1.3, 0.5, 2.4, 0.9, 1.7, 3.1]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model(tmp_path_factory.mktemp("model ü") / "portable")


@pytest.fixture(scope="module")
def module(model: Path) -> SpeakerModel:
    return build.trained_model(model)[0]


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """Six recordings in three folders, of which two have one name but for the extension, and what is no audio."""
    root = tmp_path / "my speech ü"
    names = ["a/one.wav", "a/two.flac", "b c/one.flac", "b c/one.wav", "three.wav", "a/.hidden.wav"]
    for number, name in enumerate(names):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(root / name, voice(number, 0, SECONDS[number]), 16_000, subtype="PCM_16")
    (root / "notes.txt").write_text("no audio")
    return root


IDS = ["three", "a/one", "a/two", "b c/one.flac", "b c/one.wav"]
FILES = ["three.wav", "a/one.wav", "a/two.flac", "b c/one.flac", "b c/one.wav"]


def alone(module: SpeakerModel, file: Path, first: int = 0, last: int | None = None) -> np.ndarray:
    """The embedding of a stretch of a file by itself, by the model as it is."""
    wave = torch.from_numpy(audio.read(file, resample=True, mix_channels=True)[first:last])[None]
    with torch.inference_mode():
        return module(wave, torch.tensor([wave.shape[1]]))[0].numpy()


def assert_close(found: np.ndarray, expected: list[np.ndarray]) -> None:
    np.testing.assert_allclose(found, np.stack(expected), atol=1e-5 * np.abs(expected).max())


def test_a_folder(run_command: Run, model: Path, module: SpeakerModel, corpus: Path, tmp_path: Path) -> None:
    output = tmp_path / "new" / "emb.h5"
    done = run_command("embed", f"model={model}", f"input={corpus}", f"output={output}", "batch_seconds=4")
    assert (done.code, done.out) == (0, f"{output}: 5 embeddings, 24 numbers each\n")
    ids, rows = read_embeddings(output)
    assert ids == IDS
    assert_close(rows, [alone(module, corpus / name) for name in FILES])
    with h5py.File(output) as file:
        np.testing.assert_allclose(file["duration"][:], [1.7, 1.3, 0.5, 2.4, 0.9])
    assert [path.name for path in output.parent.iterdir()] == ["emb.h5"]  # nothing is left beside it


def test_names_are_paths_without_extension_where_that_tells_them_apart() -> None:
    assert unique_names(["a.wav", "b/a.wav", "b/a.flac"]) == ["a", "b/a.wav", "b/a.flac"]
    assert unique_names(["a.wav", "a.flac", "a.wav.mp3"]) == ["a.wav", "a.flac", "a.wav.mp3"]


def test_a_manifest_and_its_columns(
    run_command: Run, model: Path, module: SpeakerModel, corpus: Path, tmp_path: Path
) -> None:
    manifest, output = tmp_path / "m.csv", tmp_path / "emb.parquet"
    lines = ["ID,wav,spk_id,language", "x,three.wav,s1,ca", "007,a/one.wav,s0,", "y,a/two.flac,s1,ca"]
    manifest.write_text("\n".join(lines), encoding="utf-8")
    done = run_command("embed", f"model={model}", f"input={manifest}", f"data.root={corpus}", f"output={output}")
    assert done.code == 0
    table = pl.read_parquet(output)
    assert table.columns == ["id", "embedding", "speaker", "language", "duration"]
    assert table["id"].to_list() == ["x", "007", "y"]
    assert table["speaker"].to_list() == ["s1", "s0", "s1"]
    assert table["language"].to_list() == ["ca", None, "ca"]
    assert_close(table["embedding"].to_numpy(), [alone(module, corpus / name) for name in FILES[:3]])


@pytest.mark.parametrize("extension", ["h5", "npz", "parquet", "ark"])
def test_windows_come_back_by_recording(
    run_command: Run, model: Path, module: SpeakerModel, corpus: Path, tmp_path: Path, extension: str
) -> None:
    output, manifest = tmp_path / f"emb.{extension}", tmp_path / "m.csv"
    rows = [("x y" if extension != "ark" else "x", "three.wav", "s1"), ("a/1", "a/one.wav", "s0")]
    pl.DataFrame(rows, schema=["id", "path", "speaker"], orient="row").write_csv(manifest)
    arguments = [f"model={model}", f"input={manifest}", f"data.root={corpus}", f"output={output}", "batch_seconds=2"]
    done = run_command("embed", *arguments, "window=.8", "step=25%")
    assert done.out == f"{output}: 10 embeddings of 2 recordings, 24 numbers each\n"
    ids, _ = read_embeddings(output)
    assert ids == [f"{rows[0][0]}/{n:06d}" for n in range(6)] + [f"a/1/{n:06d}" for n in range(4)]
    found = read_windows(output)
    assert list(found) == [rows[0][0], "a/1"]
    for name, path, _ in rows:
        expected = embed_sliding(module, corpus / path, 0.8, 0.2)
        np.testing.assert_allclose(found[name].start, expected.start, atol=1e-9)
        np.testing.assert_allclose(found[name].end, expected.end, atol=1e-9)
        assert_close(found[name].embeddings, list(expected.embeddings))
    assert found["a/1"].start.tolist() == pytest.approx([0, 0.2, 0.4, 0.5])  # 1.3 s: the last ends with it
    if extension == "parquet":
        assert pl.read_parquet(output)["speaker"].to_list() == ["s1"] * 6 + ["s0"] * 4


def test_what_holds_no_windows(run_command: Run, model: Path, corpus: Path, tmp_path: Path) -> None:
    for extension in ("h5", "npz", "parquet", "ark"):
        output = tmp_path / f"emb.{extension}"
        run_command("embed", f"model={model}", f"input={corpus / 'three.wav'}", f"output={output}")
        with pytest.raises(UserError, match=rf"emb\.{extension}: holds no windows .*recording, start, end"):
            read_windows(output)


def test_segments_of_an_rttm(run_command: Run, model: Path, module: SpeakerModel, corpus: Path, tmp_path: Path) -> None:
    file, output = tmp_path / "s.rttm", tmp_path / "emb.parquet"
    turns = [("two", 0.1, 0.3, "A"), ("three", 0.5, 1.5, "B"), ("two", 0.25, 0.6, "B"), ("three", 0.0, 0.25, "A")]
    rttm.write(file, [Segment(*turn) for turn in turns])
    arguments = [f"model={model}", f"input={corpus}", f"output={output}", f"segments={file}"]
    done = run_command("embed", *arguments)
    assert done.code == 0
    assert "has none in 3 of 5 recordings" in done.err
    assert "1 segment cut off at the end of the recording, by up to 0.100 s" in done.err
    table = pl.read_parquet(output)
    assert table["id"].to_list() == ["a/two/000000", "three/000000", "a/two/000001", "three/000001"]
    assert table["recording"].to_list() == ["a/two", "three", "a/two", "three"]
    assert table["speaker"].to_list() == ["A", "B", "B", "A"]
    assert table["start"].to_list() == [0.1, 0.5, 0.25, 0.0]
    assert table["end"].to_list() == pytest.approx([0.3, 1.5, 0.5, 0.25])
    stretches = [("a/two.flac", 1600, 4800), ("three.wav", 8000, 24_000), ("a/two.flac", 4000, 8000)]
    assert_close(
        table["embedding"].to_numpy(),
        [alone(module, corpus / name, *where) for name, *where in (*stretches, ("three.wav", 0, 4000))],
    )
    # Windows of segments: at the times of the recording.
    run_command("embed", *arguments, "window=.4", "step=.4")
    found = read_windows(output)["three"]
    assert found.start.tolist() == pytest.approx([0, 0.5, 0.9, 1.1])
    assert found.end.tolist() == pytest.approx([0.25, 0.9, 1.3, 1.5])
    assert_close(found.embeddings[2:3], [alone(module, corpus / "three.wav", 14_400, 20_800)])
    rttm.write(file, [Segment("nobody", 0, 1, "A"), Segment("three", 1.7, 2.0, "A"), Segment("three", 1.0, 2.0, "A")])
    refused = run_command("embed", *arguments)
    assert refused.code == 2
    assert "a segment begins at 1.7 s, but three ends at 1.700 s (1 such segment of 2; on_error=skip" in refused.err
    done = run_command("embed", *arguments, "on_error=skip")
    assert done.code == 0
    assert "1 of 2 recordings left out, not in the input: nobody" in done.err
    assert pl.read_parquet(output)["id"].to_list() == ["three/000001"]
    rttm.write(file, [Segment("nobody", 0, 1, "A")])
    for more in ([], ["diarize=true", f"output={tmp_path / 'a.rttm'}"]):
        refused = run_command("embed", *arguments, "on_error=skip", *more)
        assert refused.code == 2
        assert "speaks of nobody, which is no recording of the input (such as three), and of none" in refused.err


def test_paths_from_standard_input(
    run_command: Run, model: Path, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(corpus)
    lines = "b c/one.wav\n\n./a/two.flac\r\n"
    arguments = [f"model={model}", "input=-", f"output={tmp_path / 'emb.npz'}"]

    def given(content: bytes) -> None:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))

    given(lines.encode())
    assert run_command("embed", *arguments).code == 0
    assert read_embeddings(tmp_path / "emb.npz")[0] == ["b c/one", "./a/two"]
    for content, message in (
        (b"\n \n", "standard input holds no path"),
        (b"a.wav\nb.wav\na.wav\n", "line 3 names a.wav again, after line 1"),
        (b"a.wav\n\xff.wav\n", "line 2 is not UTF-8"),
        (b"gone.wav\n", "gone.wav: no such file (1 such file of 1; on_error=skip"),
    ):
        given(content)
        done = run_command("embed", *arguments)
        assert done.code == 2
        assert message in done.err


def test_rates_and_channels(run_command: Run, model: Path, module: SpeakerModel, tmp_path: Path) -> None:
    file, output = tmp_path / "x.wav", tmp_path / "emb.npz"
    wave = voice(1, 0, 1.0)
    soundfile.write(file, np.stack([wave, -0.5 * wave], axis=1), 8000)
    arguments = [f"model={model}", f"input={file}", f"output={output}"]
    done = run_command("embed", *arguments)
    assert "1 recording, 2.0 s, whole" in done.err
    assert "other rates than 16000 Hz are resampled, several channels averaged" in done.err
    assert_close(read_embeddings(output)[1], [alone(module, file)])
    refused = run_command("embed", *arguments, "resample=false")
    assert refused.code == 2
    assert "sampled at 8000 Hz, expected 16000 Hz; set resample=true to resample it" in refused.err
    refused = run_command("embed", *arguments, "mix_channels=false")
    assert "2 channels, expected 1; set mix_channels=true to average them" in refused.err


def break_off(file: Path, seconds: float) -> None:
    """A FLAC whose header promises more than decodes: only reading it tells."""
    soundfile.write(file, voice(2, 1, seconds), 16_000)
    content = file.read_bytes()
    file.write_bytes(content[: len(content) // 2])


@pytest.mark.parametrize("window", [None, 0.4])
def test_what_cannot_be_read(
    run_command: Run, model: Path, module: SpeakerModel, corpus: Path, tmp_path: Path, window: float | None
) -> None:
    (corpus / "empty.wav").touch()
    break_off(corpus / "half.flac", 1.8)
    output = tmp_path / "emb.npz"
    arguments = [f"model={model}", f"input={corpus}", f"output={output}", "batch_seconds=1"]
    arguments += [f"window={window}"] if window else []
    refused = run_command("embed", *arguments)
    assert refused.code == 2
    assert "empty.wav: the file is empty (0 bytes) (1 such file of 7; on_error=skip leaves them out)" in refused.err
    (corpus / "empty.wav").unlink()
    refused = run_command("embed", *arguments)
    assert refused.code == 2
    assert "half.flac: truncated" in refused.err
    assert "(on_error=skip leaves such files out)" in refused.err
    assert not output.exists()
    (corpus / "empty.wav").touch()
    done = run_command("embed", *arguments, "on_error=skip")
    assert done.code == 0
    for line in ("skipped empty: ", "skipped half: ", "skipped 2 of 7"):
        assert line in done.err
    ids, rows = read_embeddings(output)
    if window is None:
        assert ids == IDS
        assert_close(rows, [alone(module, corpus / name) for name in FILES])
    else:
        assert list(read_windows(output)) == IDS  # of half a recording nothing
    for path in corpus.rglob("*.*"):
        path.write_bytes(b"no audio")
    refused = run_command("embed", *arguments, "on_error=skip")
    assert refused.code == 2
    assert "none of its 7 files can be read" in refused.err


class Killed(BaseException):
    """What nothing handles: as to the files, a kill at this place."""


def killed_after(batches: int, command: Callable[[], Any]) -> None:
    """Run `command` up to the batch that comes after so many."""
    calls = 0

    def kill(module: nn.Module, given: Any) -> None:
        nonlocal calls
        calls += isinstance(module, SpeakerModel)
        if calls > batches:
            raise Killed

    hook = nn.modules.module.register_module_forward_pre_hook(kill)
    with pytest.raises(Killed):
        command()
    hook.remove()


@pytest.mark.parametrize(("window", "extension"), [(None, "h5"), (0.4, "npz")])
def test_a_kill_costs_nothing_but_time(
    run_command: Run,
    model: Path,
    corpus: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    window: float | None,
    extension: str,
) -> None:
    """The output is the same to the last bit, and what was done is not done again."""
    break_off(corpus / "half.flac", 1.8)
    monkeypatch.setattr(partial, "PART_SECONDS", 0.0)

    def command(output: Path, *more: str) -> Any:
        arguments = [f"model={model}", f"input={corpus}", "batch_seconds=1", "on_error=skip"]
        arguments += [f"window={window}"] if window else []
        return run_command("embed", *arguments, f"output={output}", *more)

    whole, resumed = tmp_path / f"whole.{extension}", tmp_path / f"resumed.{extension}"
    computed: list[int] = []
    hook = nn.modules.module.register_module_forward_pre_hook(
        lambda m, given: computed.append(len(given[0])) if isinstance(m, SpeakerModel) else None
    )
    command(whole)
    everything = len(computed)
    for batches in (2, 1):
        killed_after(batches, lambda: command(resumed))
        assert not resumed.exists()
    computed.clear()
    done = command(resumed)
    hook.remove()
    assert done.code == 0
    assert "going on: " in done.err
    # Each of the two kept what it had, but for the batch that was not yet fetched from the device when it was killed.
    assert everything - 3 <= len(computed) <= everything - 1
    assert resumed.read_bytes() == whole.read_bytes()
    assert "skipped half: " in done.err
    assert not resumed.with_name(f"{resumed.name}.partial").exists()


def test_what_changed_since_a_kill_starts_anew(
    run_command: Run, model: Path, module: SpeakerModel, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(partial, "PART_SECONDS", 0.0)
    output = tmp_path / "emb.npz"
    arguments = [f"input={corpus}", f"output={output}", "batch_seconds=1"]
    killed_after(3, lambda: run_command("embed", f"model={model}", *arguments))
    other = tiny_model(tmp_path / "other", seed=1)
    done = run_command("embed", f"model={other}", *arguments)
    assert "is of another model; starting anew" in done.err
    assert_close(read_embeddings(output)[1], [alone(build.trained_model(other)[0], corpus / name) for name in FILES])
    killed_after(3, lambda: run_command("embed", f"model={model}", *arguments))
    os.utime(corpus / "three.wav", (1, 1))  # written over
    assert "is of another inputs; starting anew" in run_command("embed", f"model={model}", *arguments).err
    killed_after(3, lambda: run_command("embed", f"model={model}", *arguments, "window=.5"))
    done = run_command("embed", f"model={model}", *arguments)
    assert "is of another step, window; starting anew" in done.err
    assert_close(read_embeddings(output)[1], [alone(module, corpus / name) for name in FILES])
    # A part that the crash of a machine damaged is made again.
    killed_after(3, lambda: run_command("embed", f"model={model}", *arguments))
    part = min(tmp_path.glob("emb.npz.partial/parts/*"))
    part.write_bytes(part.read_bytes()[:-40])
    done = run_command("embed", f"model={model}", *arguments)
    assert "its batches are embedded again" in done.err
    assert_close(read_embeddings(output)[1], [alone(module, corpus / name) for name in FILES])


def test_a_second_command_on_the_same_output_is_refused(
    run_command: Run, model: Path, corpus: Path, tmp_path: Path
) -> None:
    output = tmp_path / "emb.npz"
    arguments = [f"model={model}", f"input={corpus}", f"output={output}"]
    with hold(tmp_path / "emb.npz.partial" / "lock", "", ""):
        refused = run_command("embed", *arguments)
        assert refused.code == 2
        assert f"emb.npz: process {os.getpid()} on " in refused.err
        assert "is writing it; wait for that, or choose another output" in refused.err
    assert run_command("embed", *arguments).code == 0


def test_who_speaks_when(run_command: Run, tmp_path: Path) -> None:
    """The command hands on what it was given; what is made of it is the business of tests/test_diarization.py."""
    model = tiny_model(tmp_path / "model")
    wave = np.concatenate([voice(speaker, number, 3.0) for number, speaker in enumerate([0, 5, 0])])
    soundfile.write(tmp_path / "talk.wav", wave, 16_000)
    output, speech = tmp_path / "talk.rttm", tmp_path / "speech.rttm"
    rttm.write(speech, [Segment("talk", 0.0, 5.0, "x"), Segment("a", 0, 1, "x"), Segment("talk", 6.0, 9.0, "x")])
    arguments = [f"model={model}", f"input={tmp_path / 'talk.wav'}", f"output={output}", f"segments={speech}"]
    done = run_command("embed", *arguments, "diarize=true", "num_speakers=2", "step=25%", "min_turn=0")
    settings = diarization.Settings(window=1.5, step=0.375, num_speakers=2, min_turn=0)
    loaded = build.trained_model(model)[0]
    expected = diarize(loaded, tmp_path / "talk.wav", settings, recording="talk", speech=[(0.0, 5.0), (6.0, 9.0)])
    assert (done.code, done.out.partition(": ")[2]) == (
        0,
        f"{len(expected)} turns of 2 speakers in 1 recording, 8.0 s of speech\n",
    )
    assert "1 of 2 recordings left out, not in the input: a\n" in done.err
    for found, wanted in zip(rttm.read(output), expected, strict=True):
        assert (found.recording, found.speaker) == ("talk", wanted.speaker)
        assert (found.start, found.end) == pytest.approx((wanted.start, wanted.end), abs=0.001)
    refused = run_command("embed", *arguments, "diarize=true", "clustering=agglomerative")
    assert refused.code == 2
    assert "threshold: the model comes with none" in refused.err
    write_results(model, threshold=0.3)
    done = run_command("embed", *arguments, "diarize=true", "clustering=agglomerative")
    assert "threshold 0.300, at the equal error rate" in done.err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["model=m", "input=x"], "output: missing; give it as output=VALUE"),
        (["model=m", "input=x", "output=a.h5", "step=.1"], "step: is from one window to the next, and there are none"),
        (["model=m", "input=x", "output=a.h5", "window=1", "step=2"], "step=2: expected seconds"),
        (["model=m", "input=x", "output=a.h5", "windows=1"], "did you mean 'window'?"),
        (["model=m", "input=x", "output=a.h5", "num_speakers=2"], "num_speakers: is of diarization; give diarize=true"),
        (["model=m", "input=x", "output=a.rttm", "diarize=true", "resample=false"], "diarize: always resamples"),
        (["model=m", "input=x", "output=a.rttm", "diarize=true", "threshold=.3"], "give clustering=agglomerative, too"),
        (["model={model}", "input=x", "output=a.h5", "diarize=true"], "choose a name that ends in .rttm"),
        (["model={model}", "input=x", "output=a.txt"], "a.txt: embeddings are written as .h5"),
        (["model={model}", "input=x", "output={here}/d.h5"], "d.h5: is a folder; name a file in it"),
        (["model={model}", "input=nowhere", "output=a.h5"], "input=nowhere: no such file or folder"),
        (["model={model}", "input={here}", "output=a.h5"], "no file below it ends in .wav, .flac"),
        (
            ["model={model}", "input={here}", "output=a.h5", "data.root=x"],
            "data.root: is where the paths of a manifest",
        ),
        (["model={model}", "input={here}/m.csv", "output=a.h5"], "the column embedding of the manifest"),
        (["model=gone", "input=x", "output=a.h5"], "gone"),
        (["model={model}", "input={here}/x.wav", "output=/proc/no/a.h5"], "output=/proc/no/a.h5: cannot be written"),
        (["model=m", "input=x", "output=a.h5", "device=gpu"], "device: must be one of auto, cpu, cuda; got 'gpu'; did"),
        (["model=m", "input=x", "output=a.h5", "device=cuda:1"], "CUDA_VISIBLE_DEVICES=1 before the command"),
    ],
)
def test_mistakes(
    run_command: Run, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "d.h5").mkdir()
    (tmp_path / "m.csv").write_text("id,path,duration,embedding\na,x.wav,1,3\n")
    if "x.wav" in " ".join(arguments):
        soundfile.write(tmp_path / "x.wav", voice(0, 0, 0.5), 16_000)
    done = run_command("embed", *(argument.format(model=model, here=tmp_path) for argument in arguments))
    assert done.code == 2
    assert message in done.err
    assert not list(tmp_path.glob("*.partial"))


def digests(folder: Path) -> dict[str, str]:
    """Every file below `folder`."""
    return {str(path): durable.digest(path) for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["input=m.csv", "output=m.ark"], "output=m.ark: its table would be written to m.csv, which is the input;"),
        (["input=pq.parquet", "output=pq.parquet"], "output=pq.parquet: is the input; name another output"),
        (["input=pq.parquet", "output=link.parquet"], "output=link.parquet: is the input"),
        (["input=kaldi", "output=kaldi/wav.ark"], "its index would be written to kaldi/wav.scp, which is the input's"),
        (["input=prepared", "output=prepared/manifest.parquet"], "is the input's manifest.parquet"),
        (["input=a.wav", "segments=x.rttm", "output=x.rttm", "diarize=true"], "is the file of segments"),
        (["input=archives.csv", "output=raw.ark"], "output=raw.ark: is an audio file of the input"),
        (["input=o.h5.partial/a.wav", "output=o.h5"], "is removed in the end, and "),
        (["input=inside.csv", "output=o.h5"], "o.h5.partial is removed in the end, and "),
    ],
)
def test_what_is_read_is_not_written_over(
    run_command: Run, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("a.wav", "raw.ark", "o.h5.partial/a.wav"):
        Path(name).parent.mkdir(exist_ok=True)
        soundfile.write(name, voice(0, 0, 0.5), 16_000, format="WAV")
    for name, audio_file in (("m", "a.wav"), ("archives", "raw.ark"), ("inside", "o.h5.partial/a.wav")):
        Path(f"{name}.csv").write_text(f"id,path,speaker\nx,{tmp_path / audio_file},s\n")
    Path("prepared").mkdir()
    for table in ("pq.parquet", "prepared/manifest.parquet"):
        pl.read_csv("m.csv").write_parquet(table)
    Path("link.parquet").symlink_to("pq.parquet")
    Path("kaldi").mkdir()
    Path("kaldi/wav.scp").write_text(f"x {tmp_path / 'a.wav'}\n")
    Path("kaldi/utt2spk").write_text("x s\n")
    rttm.write("x.rttm", [Segment("a", 0, 0.5, "s")])
    before = digests(tmp_path)
    done = run_command("embed", f"model={model}", *arguments)
    assert done.code == 2
    assert message in done.err
    assert digests(tmp_path) == before


def test_nothing_stays_of_a_refusal_without_work(run_command: Run, model: Path, tmp_path: Path) -> None:
    """Headers alone are no work; what a batch gave is, and stays: test_what_cannot_be_read goes on with it."""
    folder = tmp_path / "audio"
    folder.mkdir()
    break_off(folder / "half.flac", 1.8)
    for more, message in ((), "on_error=skip leaves"), (("on_error=skip",), "none of 1 can be embedded"):
        refused = run_command("embed", f"model={model}", f"input={folder}", f"output={tmp_path / 'a.npz'}", *more)
        assert refused.code == 2
        assert message in refused.err
        assert [path.name for path in tmp_path.iterdir()] == ["audio"]


def test_names_that_could_not_be_written_are_found_at_once(
    run_command: Run, model: Path, corpus: Path, tmp_path: Path
) -> None:
    refused = run_command("embed", f"model={model}", f"input={corpus}", f"output={tmp_path / 'a.ark'}")
    assert refused.code == 2
    assert "'b c/one.flac': a name in an archive of Kaldi has no blanks" in refused.err
    manifest = tmp_path / "m.csv"
    manifest.write_text(f"id,path\nx,{corpus}/three.wav\nx/000001,{corpus}/a/one.wav\n")
    refused = run_command("embed", f"model={model}", f"input={manifest}", f"output={tmp_path / 'a.h5'}", "window=1")
    assert "x/000001: would be the name of a recording and of a window of another" in refused.err


def test_an_embedding_that_is_not_finite_is_told(run_command: Run, corpus: Path, tmp_path: Path) -> None:
    model = tiny_model(tmp_path / "model")
    loaded, cfg, _ = build.trained_model(model)
    loaded.embedding.bias.data[0] = torch.nan
    from spkexp import checkpoint

    checkpoint.save_portable(model, loaded, None, cfg, [])
    refused = run_command("embed", f"model={model}", f"input={corpus}", f"output={tmp_path / 'a.h5'}")
    assert refused.code == 2
    assert "its embedding is not finite" in refused.err


def start(*arguments: str, launcher: Sequence[str] = ()) -> subprocess.Popen[str]:
    """The command as people start it."""
    command = [sys.executable, *(launcher or ["-m", "spkexp.embed"]), *arguments]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)


# Parts every tenth of a second, where others are written every 15 s.
OFTEN = "from spkexp.embedding import partial; partial.PART_SECONDS = .1; from spkexp.embed import main; main()"


@pytest.mark.slow
def test_killed_for_good_and_interrupted(run_command: Run, model: Path, tmp_path: Path) -> None:
    """SIGKILL, twice, and SIGINT somewhere in the middle, then on to the end."""
    file, output = tmp_path / "long.wav", tmp_path / "resumed.h5"
    soundfile.write(file, np.concatenate([voice(number, number, 10.0) for number in range(6)]), 16_000)
    arguments = [f"model={model}", f"input={file}", "window=1", "step=.01", "batch_seconds=20", "device=cpu"]
    assert run_command("embed", *arguments, f"output={tmp_path / 'whole.h5'}").code == 0
    arguments.append(f"output={output}")
    for number in (signal.SIGKILL, signal.SIGKILL, signal.SIGINT):
        before = len(list(tmp_path.glob("resumed.h5.partial/parts/0*")))
        running = start(*arguments, launcher=["-c", OFTEN])
        while len(list(tmp_path.glob("resumed.h5.partial/parts/0*"))) < before + 2:
            assert running.poll() is None
            time.sleep(0.01)
        running.send_signal(number)
        _, err = running.communicate()
        assert running.returncode == (130 if number == signal.SIGINT else -number), err
        assert not output.exists()
    assert "keeps what is embedded so far; the same command goes on" in err
    assert "going on: " in run_command("embed", *arguments).err
    assert output.read_bytes() == (tmp_path / "whole.h5").read_bytes()


@pytest.mark.slow
def test_processes_write_what_one_does(run_command: Run, model: Path, corpus: Path, tmp_path: Path) -> None:
    arguments = [f"model={model}", f"input={corpus}", "batch_seconds=1", "device=cpu", "window=.4"]
    assert run_command("embed", *arguments, f"output={tmp_path / 'one.h5'}").code == 0
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "spkexp.embed"]
    running = start(*arguments, f"output={tmp_path / 'two.h5'}", launcher=launcher)
    out, err = running.communicate()
    assert running.returncode == 0, err
    assert (tmp_path / "two.h5").read_bytes() == (tmp_path / "one.h5").read_bytes()
    assert out.count("embeddings of 5 recordings") == 1
