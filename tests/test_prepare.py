"""Manifests made once, and `python -m spkexp.prepare` as a user meets it."""

import json
import logging
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import polars as pl
import pytest
import soundfile

from spkexp import __main__, corpus, prepare
from spkexp.compose import compose_config
from spkexp.data import headers, prepared, tree_state
from spkexp.data.corpora.librispeech import LibriSpeech
from spkexp.data.files import writing
from spkexp.data.manifest import read_table
from spkexp.data.prepared import Source, corpus_source, manifest_source
from spkexp.errors import UserError
from spkexp.train import with_absolute_paths
from tests.audio_files import RATE, encode, integers, tones
from tests.conftest import Run
from tests.tar_files import make_tar, wav

LINE = "utterances in"  # what the log says of a manifest that was made


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "my cache ü"


@pytest.fixture(autouse=True)
def _log(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="spkexp")


def librispeech(root: Path, speakers: int = 3, utterances: int = 2) -> Path:
    for speaker in range(1, speakers + 1):
        add_speaker(root, speaker, utterances)
    return root


def add_speaker(root: Path, speaker: int, utterances: int = 2) -> None:
    chapter = root / "train-clean-100" / str(speaker) / "7"
    chapter.mkdir(parents=True)
    for i in range(utterances):
        wave = integers(1600 * speaker + 100 * i, seed=speaker)
        soundfile.write(chapter / f"{speaker}-7-{i:04d}.flac", wave, RATE, subtype="PCM_16")


def source_of(root: Path) -> Source:
    corpus = LibriSpeech(train="auto", closed_set=False)
    node = {"_target_": "spkexp.data.corpora.librispeech.LibriSpeech", "train": "auto", "closed_set": False}
    return corpus_source(node, root, lambda: corpus.table(root))


def spoil(folder: Path) -> None:
    """Overwrite every file in place: whoever opens one now finds no audio. Times of folders stay."""
    for path in folder.rglob("*.*"):
        path.write_bytes(b"nothing")


def test_made_once_and_never_opened_again(tmp_path: Path, cache: Path, caplog: pytest.LogCaptureFixture) -> None:
    root = librispeech(tmp_path / "Libri ü")
    first = prepared.prepare(source_of(root), cache, keep=False)
    assert first.file is not None
    assert first.file.parent == cache
    assert re.fullmatch(r"librispeech-[0-9a-f]{12}\.parquet", first.file.name)
    assert first.table["duration"].to_list() == [0.1, 0.10625, 0.2, 0.20625, 0.3, 0.30625]
    facts = json.loads(first.file.with_suffix(".json").read_text(encoding="utf-8"))
    assert facts == first.facts
    assert (facts["utterances"], facts["speakers"], facts["broken"]) == (6, 3, [])
    assert facts["root"] == str(root.resolve())
    assert facts["splits"] == {"train": {"utterances": 6, "speakers": 3, "hours": round(1.21875 / 3600, 4)}}
    assert sorted(path.suffix for path in cache.iterdir()) == [".json", ".lock", ".parquet"]
    spoil(root)
    caplog.clear()
    again = prepared.prepare(source_of(root), cache, keep=False)
    assert again.table.equals(first.table)
    [record] = [record for record in caplog.records if record.levelno == logging.INFO]
    assert record.getMessage() == (
        f"{first.file}: made {facts['made']}; python -m spkexp.prepare … refresh=true makes it anew"
    )
    # What the listing found missing is said again, though nothing is listed.
    assert [record.getMessage() for record in caplog.records if record.levelno > logging.INFO] == facts["warnings"]
    assert "3 of 251 speakers" in facts["warnings"][0]
    with pytest.raises(UserError, match="no such folder"):  # the corpus's own error
        prepared.prepare(source_of(tmp_path / "nowhere"), cache, keep=False)


def test_another_speaker_or_refresh_makes_it_anew(
    tmp_path: Path, cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    root = librispeech(tmp_path / "l")
    prepared.prepare(source_of(root), cache, keep=False)
    add_speaker(root, 9)
    found = prepared.prepare(source_of(root), cache, keep=False)
    assert "is older than the last change of what it lists; making it anew" in caplog.text
    assert found.table["speaker"].n_unique() == 4
    # One file replaced deep below is not seen until it is asked for.
    path = Path(found.table["path"][0])
    soundfile.write(path, integers(8000), RATE, subtype="PCM_16")
    assert prepared.prepare(source_of(root), cache, keep=False).table["duration"][0] == 0.1
    assert prepared.prepare(source_of(root), cache, keep=False, refresh=True).table["duration"][0] == 0.5
    assert prepared.prepare(source_of(root), cache, keep=False).table["duration"][0] == 0.5
    # Half a manifest, as of a full disk or another version, is none.
    assert found.file is not None
    found.file.write_bytes(found.file.read_bytes()[:100])
    caplog.clear()
    assert len(prepared.prepare(source_of(root), cache, keep=False).table) == 8
    assert "cannot be read" in caplog.text


def test_upper_folders_tell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    deep = tmp_path / "dev" / "aac" / "id1" / "video"
    deep.mkdir(parents=True)
    state = tree_state.state_of([tmp_path])
    assert tree_state.state_of([tmp_path]) == state
    (deep / "x.m4a").write_text("")  # four levels down
    assert tree_state.state_of([tmp_path]) == state
    (deep.parent / "video2").mkdir()  # changes id1, the third level
    changed = tree_state.state_of([tmp_path])
    assert changed != state
    monkeypatch.setattr(tree_state, "MAX_ENTRIES", 2)  # so that id1 is not looked at, dev/aac is
    few = tree_state.state_of([tmp_path])
    (deep.parent / "video3").mkdir()
    assert tree_state.state_of([tmp_path]) == few
    (deep.parent.parent / "id2").mkdir()
    assert tree_state.state_of([tmp_path]) != few


def test_lists_and_tars_written_over_in_place_tell(tmp_path: Path) -> None:
    names = ["vox2_meta.csv", "dev/shard-0.TAR", "dev/aac/y.m4a", "dev/aac/.hidden", "dev/aac/id1/list.txt", "beside"]
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("before")
    sources = [tmp_path / "dev", tmp_path / "vox2_meta.csv", tmp_path / "nowhere"]
    seen = []
    for name in names:
        before, times = tree_state.state_of(sources), (tmp_path / name).stat()
        (tmp_path / name).write_text("longer than before")
        os.utime(tmp_path / name, ns=(times.st_atime_ns, times.st_mtime_ns))  # its size alone
        seen.append(tree_state.state_of(sources) != before)
    assert seen == [True, True, False, False, True, False]
    before = tree_state.state_of(sources)
    (tmp_path / "vox2_meta.csv").write_text("LONGER than before")
    os.utime(tmp_path / "vox2_meta.csv", ns=(1, 1))
    assert tree_state.state_of(sources) != before
    before = tree_state.state_of(sources)
    (tmp_path / "nowhere").write_text("")
    assert tree_state.state_of(sources) != before


def m4a_manifest(folder: Path, rows: int, files: int = 1) -> Path:
    folder.mkdir()
    for i in range(files):
        encode(folder / f"f{i}.m4a", tones(0.5 + 0.1 * i, RATE), RATE)
    for i in range(files, rows):
        os.link(folder / f"f{i % files}.m4a", folder / f"f{i}.m4a")
    table = pl.DataFrame({"path": [f"f{i}.m4a" for i in range(rows)], "speaker": [f"s{i % 3}" for i in range(rows)]})
    table.write_csv(folder / "list.csv")
    return folder / "list.csv"


def test_durations_of_a_manifest_of_m4a(tmp_path: Path, cache: Path) -> None:
    file = m4a_manifest(tmp_path / "m", rows=7, files=3)
    source = manifest_source(file, None, lambda: read_table(file, None))
    found = prepared.prepare(source, cache, keep=False)
    expected = [0.5, 0.6, 0.7, 0.5, 0.6, 0.7, 0.5]
    assert found.table["duration"].to_list() == pytest.approx(expected, abs=1024 / RATE)
    for path in file.parent.glob("*.m4a"):
        path.unlink()
    assert prepared.prepare(source, cache, keep=False).table.equals(found.table)
    file.write_text(file.read_text() + "f99.m4a,s0\n")
    changed = prepared.prepare(source, cache, keep=False)
    assert changed.table["duration"].null_count() == 8
    assert "no such file" in changed.facts["broken"][-1]["reason"]


def test_what_needs_no_header_is_not_kept(tmp_path: Path, cache: Path) -> None:
    (tmp_path / "list.csv").write_text("path,speaker,duration\na.wav,s,1.5\n")
    source = manifest_source(tmp_path / "list.csv", None, lambda: read_table(tmp_path / "list.csv", None))
    found = prepared.prepare(source, cache, keep=False)
    assert (found.file, found.table["duration"].to_list()) == (None, [1.5])
    assert not cache.exists()
    assert prepared.prepare(source, cache, keep=True).file is not None


def test_a_corpus_that_changes_its_tree_while_it_lists(tmp_path: Path, cache: Path) -> None:
    def listing() -> pl.DataFrame:
        if not (tmp_path / "c" / "train-clean-100").exists():  # a download
            librispeech(tmp_path / "c")
        return LibriSpeech(train="auto", closed_set=False).table(tmp_path / "c")

    source = corpus_source({"_target_": "x.Y"}, tmp_path / "c", listing)
    assert len(prepared.prepare(source, cache, keep=False).table) == 6
    spoil(tmp_path / "c")
    assert prepared.prepare(source, cache, keep=False).table["duration"].null_count() == 0


KILLED = """
import os, signal, sys
from pathlib import Path
from spkexp.data import audio, headers, prepared
from spkexp.data.manifest import read_table
file = Path(sys.argv[1])
headers.PART_ROWS = 100
info, count = audio.info, 0
def counted(path, part=None):
    global count
    count += 1
    if count > 700:
        os.kill(os.getpid(), signal.SIGKILL)
    return info(path, part)
audio.info = counted
source = prepared.manifest_source(file, None, lambda: read_table(file, None))
prepared.prepare(source, Path(sys.argv[2]), keep=False, threads=1)
"""


def test_killed_half_way_it_goes_on(tmp_path: Path, cache: Path) -> None:
    file = m4a_manifest(tmp_path / "m", rows=1000)
    command = [sys.executable, "-c", KILLED, str(file), str(cache)]
    done = subprocess.run(command, cwd=Path(__file__).parents[1], check=False)
    assert done.returncode == -signal.SIGKILL
    parts = pl.concat([pl.read_parquet(path) for path in cache.rglob("0*.parquet")])
    assert 300 <= len(parts) <= 700
    assert not list(cache.glob("*.json"))
    for path in parts["path"]:  # what was read is not read again
        Path(path).unlink()
    source = manifest_source(file, None, lambda: read_table(file, None))
    found = prepared.prepare(source, cache, keep=False)
    assert found.table["duration"].to_list() == pytest.approx([0.5] * 1000, abs=1024 / RATE)
    assert not list(cache.glob("*.parts"))


def test_of_two_at_once_one_works(tmp_path: Path, cache: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = m4a_manifest(tmp_path / "m", rows=2000)
    found = []
    barrier = threading.Barrier(2)

    def work() -> None:
        source = manifest_source(file, None, lambda: read_table(file, None))
        barrier.wait()
        found.append(prepared.prepare(source, cache, keep=False, refresh=True))

    workers = [threading.Thread(target=work) for _ in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert found[0].table.equals(found[1].table)
    assert found[0].table["duration"].null_count() == 0
    assert caplog.text.count(LINE) == 1
    assert caplog.text.count("waiting for process") == 1


def test_what_lies_outside_of_the_root_counts(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Speakers' lists relative to where the user stands, edited in place; tars written anew; Kaldi's relative paths."""
    for place in ("here", "there"):
        (tmp_path / place).mkdir()
        (tmp_path / place / "utt2spk").write_text(f"a {place}\nb other\n")
        (tmp_path / place / "wav.scp").write_text("a a.wav\nb b.wav\n")
        for frames, name in ((1600, "a"), (3200, "b")):
            soundfile.write(tmp_path / place / f"{name}.wav", integers(frames), RATE, subtype="PCM_16")
    soundfile.write(tmp_path / "there" / "a.wav", integers(4800), RATE, subtype="PCM_16")
    pattern = "data.corpus.pattern='{utterance}'"
    arguments = ["data=folder", f"data.root={tmp_path}/here", pattern, "data.corpus.speakers=utt2spk"]
    cfg = compose_config([*arguments, f'data.cache_dir="{cache}"'])
    for place in ("here", "there", "here"):
        monkeypatch.chdir(tmp_path / place)
        assert corpus.table(cfg)[0]["speaker"].to_list() == [place, "other"]
    Path("utt2spk").write_text("a new\nb other\n")
    assert corpus.table(cfg)[0]["speaker"].to_list() == ["new", "other"]
    kaldi = compose_config(["data=manifest", f"data.manifest={tmp_path}/here", f'data.cache_dir="{cache}"'])
    assert corpus.table(kaldi)[0]["duration"].to_list() == [0.1, 0.2]
    monkeypatch.chdir(tmp_path / "there")
    assert corpus.table(kaldi)[0]["duration"].to_list() == [0.3, 0.2]
    # A run's config can be used from elsewhere.
    assert with_absolute_paths(cfg).data.corpus.speakers == f"{tmp_path}/there/utt2spk"


def test_a_tar_written_anew_in_place(tmp_path: Path, cache: Path) -> None:
    tar = tmp_path / "s/1/2/3/4/x.tar"  # deeper than folders are looked at
    cfg = compose_config(["data=shards", f"data.root={tmp_path}/s", f'data.cache_dir="{cache}"'])
    for order in ("ab", "ba"):
        members = [
            (f"{name}.{kind}", data) for name in order for kind, data in (("wav", wav(0)), ("spk", name.encode()))
        ]
        make_tar(tmp_path / "new.tar", members)
        tar.parent.mkdir(parents=True, exist_ok=True)
        tar.write_bytes((tmp_path / "new.tar").read_bytes())
        table = corpus.table(cfg)[0].sort("offset")
        assert table["speaker"].to_list() == list(order)


def test_half_written_parts_of_a_crash(tmp_path: Path, cache: Path, caplog: pytest.LogCaptureFixture) -> None:
    soundfile.write(tmp_path / "a.wav", integers(3200), RATE, subtype="PCM_16")
    table = pl.DataFrame({"id": ["a"], "path": [str(tmp_path / "a.wav")]})
    parts = headers.HeaderParts(cache, "s", "")
    assert len(parts.read()) == 0
    parts.append(pl.DataFrame([("gone", None, 7.0, None)], schema=headers.SCHEMA, orient="row"))
    (cache / "s/000001.parquet").write_bytes(b"")
    (cache / "s/000002.parquet").write_bytes((cache / "s/000000.parquet").read_bytes()[:-20])
    found, broken = headers.read_headers(table, headers.HeaderParts(cache, "s", ""))
    assert (found["duration"].to_list(), broken) == ([0.2], [])
    assert caplog.text.count("its headers are read again") == 2
    assert headers.HeaderParts(cache, "s", "").read()["path"].to_list() == ["gone", str(tmp_path / "a.wav")]


def test_a_full_disk_is_told() -> None:
    expected = r"m\.parquet: cannot be written: .*No space left.*; make room"
    with pytest.raises(UserError, match=expected), writing(Path("m.parquet"), "make room"):
        pl.DataFrame({"x": range(100)}).write_parquet("/dev/full")


def test_a_cache_that_cannot_be_written(tmp_path: Path) -> None:
    root = librispeech(tmp_path / "l", speakers=1)
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"cannot be written: .*; choose another folder with data\.cache_dir="):
        prepared.prepare(source_of(root), tmp_path / "file" / "cache", keep=False)


def test_headers_of_segments_and_shards(tmp_path: Path, cache: Path) -> None:
    """One header for a file, however many rows lie in it."""
    soundfile.write(tmp_path / "a.wav", integers(3200), RATE, subtype="PCM_16")
    soundfile.write(tmp_path / "b.flac", integers(1600), RATE, subtype="PCM_16")
    blob = [(tmp_path / name).read_bytes() for name in ("a.wav", "b.flac")]
    (tmp_path / "shard").write_bytes(b"x" * 512 + blob[0] + blob[1])
    table = pl.DataFrame(
        {
            "id": ["whole", "first", "second", "known"],
            "path": [str(tmp_path / "a.wav"), *[str(tmp_path / "shard")] * 2, "nowhere"],
            "offset": [None, 512, 512 + len(blob[0]), None],
            "bytes": [None, len(blob[0]), len(blob[1]), None],
            "duration": [None, None, None, 7.0],
        }
    )
    found, broken = headers.read_headers(table, headers.HeaderParts(cache, "s", ""))
    assert (found["duration"].to_list(), broken) == ([0.2, 0.2, 0.1, 7.0], [])
    assert found.columns == table.columns


@pytest.fixture
def run(run_command: Run, cache: Path) -> Run:
    """run(ARGUMENT, …) is `python -m spkexp.prepare ARGUMENT …` with a cache of its own."""
    return lambda *arguments: run_command("prepare", *arguments, f'data.cache_dir="{cache}"')


def test_the_command(run: Run, tmp_path: Path, cache: Path) -> None:
    root = librispeech(tmp_path / "corpus")
    bad = root / "train-clean-100/2/7/2-7-0000.flac"
    bad.write_bytes(b"")
    arguments = ["data=librispeech", f"data.root={root}"]
    done = run(*arguments)
    assert done.code == 0, done.err
    assert re.search(r"^ *train +3 +6 +0\.00$", done.out, re.MULTILINE)
    assert f"1 of them cannot be used:\n  {bad}: the file is empty" in done.out
    assert f"manifest: {cache}/librispeech-" in done.out
    output = tmp_path / "to"
    arguments += [f"output={output}", "format=flac", "cohort=1", "workers=1"]
    done = run(*arguments)
    assert done.code == 2
    assert "(1 such files; data.on_error=skip leaves them out)" in done.err
    done = run(*arguments, "data.on_error=skip", "data.max_bad_fraction=0.5")
    assert done.code == 0, done.err
    assert f"use it with: data=manifest data.manifest={output}" in done.out
    assert len((output / "cohort.txt").read_text().splitlines()) == 3
    # What was prepared is what training reads.
    manifest = ["data=manifest", f"data.manifest={output}", f'data.cache_dir="{cache}"']
    table, skipped = corpus.table(compose_config(manifest))
    assert (len(table), skipped) == (5, [])
    cfg = compose_config([*arguments[:2], f'data.cache_dir="{cache}"', "data.on_error=skip", "data.max_bad_fraction=1"])
    table, skipped = corpus.table(cfg)
    assert (len(table), [entry["id"] for entry in skipped]) == (5, ["2-7-0000"])
    # What had no readable header is among the losses.
    facts = json.loads((output / "prepare.json").read_text())
    assert [(entry["id"], entry["path"]) for entry in facts["broken"]] == [("2-7-0000", str(bad))]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["data.rot=x"], "data.rot"),
        (["trainer.epochs=3"], "trainer.epochs: prepare takes no 'trainer.epochs'; it takes data, data.KEY, model"),
        (["data=librispeech,manifest"], "data: prepare takes one value, not 'librispeech,manifest'"),
        (["-m"], "-m: no such option; there is --help"),
        (["trim_db=40"], "trim_db: is about the conversion; add output=DIR or leave it out"),
        (["data.filter=x"], "data.filter: is about the conversion"),
        (["output=x", "format=mp3"], "format: must be one of wav, flac; got 'mp3'"),
        (["output=x", "trim_db=-1"], "trim_db: must be > 0"),
        (["ouput=x"], "ouput: prepare takes no 'ouput'; did you mean 'output'?"),
    ],
)
def test_mistakes(run: Run, arguments: list[str], message: str) -> None:
    done = run(*arguments)
    assert (done.code, done.out) == (2, "")
    assert message in done.err


def test_the_help_page(run: Run) -> None:
    done = run("--help")
    assert done.code == 0
    assert max(map(len, done.out.splitlines())) <= 80
    keys = set(re.findall(r"^  ([a-z_]+)=", done.out, re.MULTILINE))
    assert keys == {"data", "model", *prepare.Arguments.model_fields} - {"overrides"}
    assert "prepare" in __main__.COMMANDS


def test_ctrl_c_says_how_to_go_on(tmp_path: Path, cache: Path) -> None:
    soundfile.write(tmp_path / "x.flac", integers(4 * RATE), RATE)
    (tmp_path / "c").mkdir()
    for i in range(3000):
        os.link(tmp_path / "x.flac", tmp_path / f"c/{i}.flac")
    rows = "".join(f"c/{i}.flac,s{i % 3},4.0\n" for i in range(3000))
    (tmp_path / "list.csv").write_text("path,speaker,duration\n" + rows)
    output = tmp_path / "to"
    arguments = ["data=manifest", f"data.manifest={tmp_path}/list.csv", f'data.cache_dir="{cache}"', f"output={output}"]
    command = [sys.executable, "-m", "spkexp.prepare", *arguments, "workers=2"]
    process = subprocess.Popen(
        command, cwd=Path(__file__).parents[1], stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    while len(list(output.rglob("*.wav"))) < 5:
        assert process.poll() is None
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does
    _, err = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "interrupted; the same command goes on where it stopped" in err
    assert "Traceback" not in err
    assert 5 <= len(list(output.rglob("*.wav"))) < 3000
