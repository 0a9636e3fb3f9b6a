"""Tar shards: written, listed as a corpus, and read."""

import csv
import gzip
import os
import shutil
import subprocess
import sys
from pathlib import Path
from urllib.parse import unquote

import numpy as np
import polars as pl
import pytest
import soundfile

from spkexp.data import audio
from spkexp.data.corpora.shards import Shards
from spkexp.data.dataset import Crops, Reading
from spkexp.data.shards import ShardWriter
from spkexp.data.tar_index import member_key
from spkexp.data.utterances import Utterances
from spkexp.errors import AudioError, UserError
from tests.audio_files import RATE, integers
from tests.tar_files import GOOD, labels, make_tar, samples_of, wav

IDS = ["plain", "id10012/1zcIwhmdeo4/00001.wav", "mit Leer 語音", "/a/../b", "50%.5", "x" * 150, "a\tb"]


def test_what_is_written_is_read_bit_for_bit(tmp_path: Path) -> None:
    folder = tmp_path / "shards ü"
    frames = [700 + 13 * number for number in range(len(IDS))]
    with ShardWriter(folder, 7_000) as writer:
        for number, name in enumerate(IDS):
            meta = {
                "speaker": f"s{number % 2}",
                "duration": frames[number] / RATE,
                "keyword": None,
                "age": float("nan"),
            }
            writer.add(name, "wav", wav(number, frames[number]), meta)
    written = writer.table()
    assert written["id"].to_list() == IDS
    assert written["path"].n_unique() > 2  # 1.5 kB of samples and 2 kB of headers and labels each
    assert all((folder / name).stat().st_size <= 7_000 for name in written["path"])
    assert sorted(os.listdir(folder)) == sorted(set(written["path"]))
    assert ShardWriter.finished(folder).equals(written)
    found = Shards().table(folder)
    assert found.columns == ["id", "path", "offset", "bytes", "speaker", "duration"]
    assert found["id"].to_list() == IDS
    assert found["speaker"].to_list() == ["s0", "s1", "s0", "s1", "s0", "s1", "s0"]
    for number, row in enumerate(found.iter_rows(named=True)):
        assert row["duration"] == frames[number] / RATE
        np.testing.assert_array_equal(samples_of(row), integers(frames[number], seed=number)[:, 0] / 32768)


def test_keys_are_reversible_safe_and_whole_for_webdataset() -> None:
    for name in IDS:
        key = member_key(name)
        assert "." not in key
        assert not key.startswith("/")
        assert unquote(key) == name
    assert member_key("a%2Eb") != member_key("a.b")


def test_the_program_tar_reads_ours(tmp_path: Path) -> None:
    with ShardWriter(tmp_path, 10**6) as writer:
        for number, name in enumerate(IDS[:3]):
            writer.add(name, "flac", wav(number), {"speaker": "s"})
    listed = subprocess.run(["tar", "tf", "shard-000000.tar"], cwd=tmp_path, capture_output=True, check=True)
    assert listed.stderr == b""
    assert len(listed.stdout.splitlines()) == 6
    assert listed.stdout.splitlines()[2:4] == [
        b"id10012/1zcIwhmdeo4/00001%2Ewav.flac",
        b"id10012/1zcIwhmdeo4/00001%2Ewav.json",
    ]
    out = subprocess.run(
        ["tar", "xOf", "shard-000000.tar", "plain.flac"], cwd=tmp_path, capture_output=True, check=True
    )
    assert out.stdout == wav(0)


def test_a_killed_writer_is_taken_up(tmp_path: Path) -> None:
    script = (
        "import os, sys; from pathlib import Path; from spkexp.data.shards import ShardWriter\n"
        "writer = ShardWriter(Path(sys.argv[1]), 8000)\n"
        "for number in range(7): writer.add(f'u{number}', 'wav', bytes([number]) * 1400, {'speaker': 's'})\n"
        "os.kill(os.getpid(), 9)\n"
    )
    killed = subprocess.run([sys.executable, "-c", script, str(tmp_path)], check=False)
    assert killed.returncode == -9
    assert ".shard-000003.tar.partial" in os.listdir(tmp_path)
    # Two utterances a shard: 2 * (512 + 1536 + 512 + 512) bytes and 1024 for the end.
    finished = ShardWriter.finished(tmp_path)
    whole = finished["id"].to_list()
    assert whole == [f"u{number}" for number in range(6)]
    with ShardWriter(tmp_path, 8000) as writer:
        for number in range(7):
            assert (f"u{number}" in writer) == (number < 6)
            if f"u{number}" not in writer:
                writer.add(f"u{number}", "wav", bytes([number]) * 1400, {"speaker": "s"})
        with pytest.raises(UserError, match="the id 'u0' is empty, or in a shard already"):
            writer.add("u0", "wav", b"x", {})
    assert not list(tmp_path.glob(".*"))
    assert writer.table()["id"].to_list() == [f"u{number}" for number in range(7)]
    for number, row in enumerate(writer.table().iter_rows(named=True)):
        content = (tmp_path / row["path"]).read_bytes()[row["offset"] :][: row["bytes"]]
        assert content == bytes([number]) * 1400


def test_a_full_disk_and_a_forbidden_folder(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"proc/none: cannot be written: .*choose another folder"):
        ShardWriter(Path("/proc/none"), 1000)
    # What a full disk does to a process, a limit of the file size does too.
    script = (
        "import resource, signal, sys; from pathlib import Path; from spkexp.data.shards import ShardWriter\n"
        "from spkexp.errors import UserError\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN); resource.setrlimit(resource.RLIMIT_FSIZE, (20000, 20000))\n"
        "try:\n"
        "    with ShardWriter(Path(sys.argv[1]), 10**6) as writer:\n"
        "        for number in range(50): writer.add(f'u{number}', 'wav', bytes(9000), {})\n"
        "except UserError as error: print(error)\n"
    )
    folder = tmp_path / "full"
    ended = subprocess.run([sys.executable, "-c", script, folder], capture_output=True, text=True, check=True)
    assert ended.stdout == (
        f"{folder}: cannot be written: File too large; make room or choose another folder, and run the command again "
        f"to go on\n"
    )
    assert ended.stderr == ""
    assert os.listdir(folder) == []


def test_roots_that_are_no_folder_of_tars(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"data.root=.*nowhere: no such folder"):
        Shards().table(tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"data.root=.*: holds no .tar"):
        Shards().table(tmp_path)
    (tmp_path / "x.tar.gz").write_bytes(gzip.compress(b"x"))
    with pytest.raises(UserError, match=r"x.tar.gz: is compressed \(1 such tars\).*gzip -d"):
        Shards().table(tmp_path)
    make_tar(tmp_path / "x.tar", GOOD)
    assert len(Shards().table(tmp_path)) == 1
    make_tar(tmp_path / "y.tar", GOOD)
    with pytest.raises(UserError, match=r"y.tar: its utterance 'a' is in .*x.tar too"):
        Shards().table(tmp_path)


def test_shards_for_another_task_need_no_speaker(tmp_path: Path) -> None:
    make_tar(tmp_path / "x.tar", [("a.wav", wav(0)), ("a.json", labels(keyword="yes"))])
    table = Shards().table(tmp_path)
    assert table.select("id", "speaker", "keyword").rows() == [("a", None, "yes")]


def test_the_index_beside_the_shards(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with ShardWriter(tmp_path, 5_000) as writer:
        for number in range(6):
            writer.add(f"u{number}", "wav", wav(number), {"speaker": "from the tar"})
    at = tmp_path / "manifest.parquet"
    table = writer.table().with_columns(pl.lit("from the index").alias("speaker"))
    table.write_parquet(at)
    found = Shards().table(tmp_path)
    assert set(found["speaker"]) == {"from the index"}
    np.testing.assert_array_equal(samples_of(found.row(5, named=True)), integers(700, seed=5)[:, 0] / 32768)

    table.with_columns(pl.col("offset") + 512).write_parquet(at)  # of other tars
    assert set(Shards().table(tmp_path)["speaker"]) == {"from the tar"}
    assert "does not fit" in caplog.text
    table.write_parquet(at)
    make_tar(tmp_path / "more.tar", GOOD)
    assert len(Shards().table(tmp_path)) == 7
    assert "does not know" in caplog.text
    (tmp_path / "more.tar").unlink()
    (tmp_path / "shard-000001.tar").unlink()
    with pytest.raises(UserError, match=r"shard-000001.tar: no such shard, though .*manifest.parquet names it"):
        Shards().table(tmp_path)
    at.unlink()
    assert 0 < len(Shards().table(tmp_path)) < 6


def test_a_shard_that_shrinks_or_goes_while_it_is_read(tmp_path: Path) -> None:
    path = make_tar(tmp_path / "x.tar", GOOD)
    row = Shards().table(tmp_path).row(0, named=True)
    part = (row["offset"], row["bytes"])
    expected = audio.read(path, part=part)
    # Replaced by a file of the same name: the descriptor that was kept is of the old one.
    make_tar(tmp_path / "new", [("a.wav", wav(9)), ("a.json", labels(speaker="s"))]).rename(path)
    np.testing.assert_array_equal(audio.read(path, part=part), integers(700, seed=9)[:, 0] / 32768)
    assert not np.array_equal(audio.read(path, part=part), expected)
    os.truncate(path, part[0] + part[1] - 1)
    message = (
        rf"x.tar: its bytes {part[0]} to {sum(part)} are asked for, but it ends at {sum(part) - 1}; .*prepare again"
    )
    with pytest.raises(AudioError, match=message):
        audio.read_crop(path, 100, 0.5, part=part)
    path.unlink()
    with pytest.raises(AudioError, match=r"x.tar: no such file"):
        audio.info(path, part)


def test_the_real_clips_packed(tmp_path: Path, shared_data: Path) -> None:
    with (shared_data / "utterances.csv").open(encoding="utf-8") as file:
        rows = [row for number, row in enumerate(csv.DictReader(file)) if number % 60 == 0]
    with ShardWriter(tmp_path, 300_000) as writer:
        for row in rows:
            writer.add(row["path"], "flac", (shared_data / row["path"]).read_bytes(), {"speaker": row["speaker"]})
    table = Shards().table(tmp_path)
    assert table["path"].n_unique() > 1
    assert dict(table.select("id", "speaker").iter_rows()) == {row["path"]: row["speaker"] for row in rows}
    for row in table.iter_rows(named=True):
        whole = soundfile.read(shared_data / row["id"], dtype="float32")[0]
        np.testing.assert_array_equal(samples_of(row), whole)
        np.testing.assert_array_equal(
            audio.read(row["path"], 1_000, 9_000, part=(row["offset"], row["bytes"])), whole[1_000:10_000]
        )
    shutil.rmtree(tmp_path)
    with pytest.raises(AudioError, match="no such file"):
        samples_of(row)


def test_a_deleted_shard_is_named_and_training_goes_on(tmp_path: Path) -> None:
    with ShardWriter(tmp_path, 9_000) as writer:
        for number in range(12):
            writer.add(f"u{number}", "wav", wav(number), {"speaker": f"s{number % 2}", "duration": 700 / RATE})
    table = Shards().table(tmp_path)
    gone = table["path"][0]
    lost = set(table.filter(pl.col("path") == gone)["id"])
    assert 0 < len(lost) < 6
    crops = Crops(Utterances.of(table, "speaker"), Reading(RATE, False, False), 0.02, "wrap", 0, False, None)
    keys = [(0, item, 0) for item in range(12)]
    assert crops.__getitems__(keys).bad == []
    os.unlink(gone)  # its descriptor is open by now
    batch = crops.__getitems__(keys)
    assert len(batch.waveform) == 12
    assert {bad.id for bad in batch.bad} == lost
    assert all(bad.reason.startswith(f"{gone}: no such file") for bad in batch.bad)
    for wave, item, length in zip(batch.waveform, batch.item.tolist(), batch.lengths.tolist(), strict=True):
        assert table["id"][item] not in lost
        whole = integers(700, seed=int(table["id"][item][1:]))[:, 0] / 32768
        windows = np.lib.stride_tricks.sliding_window_view(whole.astype(np.float32), length)
        assert (windows == wave[:length].numpy()).all(axis=1).any()
