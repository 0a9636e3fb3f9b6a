"""What lies in tars. They are made by tarfile and by the program `tar`, whole and broken."""

import gzip
import subprocess
import tarfile
from pathlib import Path

import numpy as np
import pytest

from spkexp.data.corpora.shards import Shards
from spkexp.data.tar_index import index
from spkexp.errors import UserError
from tests.audio_files import integers
from tests.tar_files import GOOD, Member, labels, make_tar, samples_of, wav


def test_a_field_that_is_empty_in_one_tar(tmp_path: Path) -> None:
    make_tar(tmp_path / "a.tar", [("a.wav", wav(0)), ("a.json", labels(speaker="s", language=None, duration=None))])
    make_tar(tmp_path / "b.tar", [("b.wav", wav(1)), ("b.json", labels(speaker="s", language="de", duration=0.5))])
    table = Shards().table(tmp_path)
    assert table.select("id", "language", "duration").rows() == [("a", None, None), ("b", "de", 0.5)]


def test_wespeaker_and_webdataset_layouts(tmp_path: Path) -> None:
    # WeSpeaker: speaker first, keys that end in .wav themselves, GNU long names
    long = "id10001/" + "x" * 120 + ".wav"
    members: list[Member] = [
        ("id10001/a/00001.wav.spk", b"id10001"),
        ("id10001/a/00001.wav.wav", wav(0)),
        (f"{long}.spk", b"id10001\n"),
        (f"{long}.wav", wav(1)),
    ]
    make_tar(tmp_path / "shards_000000000.tar", members, tarfile.GNU_FORMAT)
    members = [
        ("./0001.cls", b"17"),
        ("./0001.mic1.wav", wav(2)),
        ("./0001.mic2.wav", wav(3)),
        ("._0001.wav", b"of a Mac"),
        ("0002.jpg", b"picture"),
        ("0002.txt", "Zoë".encode()),
        ("0002.wav", wav(4)),
        ("0003.json", labels(spk_id="s3", language="de", ages=[3, 4], start=7, path="/etc/passwd")),
        ("0003.txt", b"what was said here"),
        ("0003.WAV", wav(5)),
    ]
    make_tar(tmp_path / "web" / "data ü.tar", members)
    found = Shards().table(tmp_path)
    rows = {row["id"]: row for row in found.iter_rows(named=True)}
    speakers = {name: row["speaker"] for name, row in rows.items()}
    assert speakers == {
        "id10001/a/00001.wav": "id10001",
        long: "id10001",
        "0001.mic1": "17",
        "0001.mic2": "17",
        "0002": "Zoë",
        "0003": "s3",
    }
    assert set(found.columns) == {"id", "path", "offset", "bytes", "speaker", "duration", "language", "ages"}
    assert (rows["0003"]["language"], rows["0003"]["ages"]) == ("de", "[3, 4]")
    for number, row in enumerate(rows.values()):
        np.testing.assert_array_equal(samples_of(row), integers(700, seed=number)[:, 0] / 32768)


def test_tars_by_the_program_tar(tmp_path: Path) -> None:
    source = tmp_path / "in"
    (source / "ein Ordner").mkdir(parents=True)
    for number in range(3):
        (source / "ein Ordner" / f"語{number}.wav").write_bytes(wav(number))
        (source / "ein Ordner" / f"語{number}.spk").write_text(f"s{number}")
    for form in ("gnu", "pax", "ustar"):
        root = tmp_path / form
        root.mkdir()
        subprocess.run(["tar", "cf", root / "x.tar", f"--format={form}", "-C", source, "."], check=True)
        found = Shards().table(root).sort("id")
        assert found["id"].to_list() == [f"ein Ordner/語{number}" for number in range(3)], form
        assert found["speaker"].to_list() == ["s0", "s1", "s2"]
        for number, row in enumerate(found.iter_rows(named=True)):
            np.testing.assert_array_equal(samples_of(row), integers(700, seed=number)[:, 0] / 32768)


def link(name: str, kind: bytes, target: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ([*GOOD, ("/etc/b.wav", wav(1))], r"refused: its member '/etc/b.wav' would be written outside"),
        ([*GOOD, ("x/../../b.wav", wav(1))], r"refused: its member 'x/../../b.wav' would be written outside"),
        (
            [*GOOD, (link("b.wav", tarfile.SYMTYPE, "/etc/passwd"), b"")],
            r"refused: its member 'b.wav' is a link, a dev",
        ),
        ([*GOOD, (link("b.wav", tarfile.LNKTYPE, "a.wav"), b"")], r"refused: its member 'b.wav' is a link, a dev"),
        ([*GOOD, (link("b.wav", tarfile.CHRTYPE), b"")], r"refused: its member 'b.wav' is a link, a device"),
        ([*GOOD, (link("b.wav", tarfile.FIFOTYPE), b"")], r"refused: its member 'b.wav' is a link, a device"),
        ([*GOOD, ("a.flac", b"fLaC")], r"'a.wav' and 'a.flac' are two audio files of one key"),
        ([*GOOD, ("a.wav", wav(1))], r"'a.wav' and 'a.wav' are two audio files of one key"),
        ([*GOOD, ("b.wav", wav(1))], r"its member 'b.wav' has no speaker: none of b.json, .spk, .cls and .txt"),
        ([*GOOD, ("b.wav", wav(1)), ("b.json", labels(age=3))], r"its utterance 'b' has no speaker \(1 of 2\)"),
        ([("b.wav", wav(1)), ("b.txt", b"many words")], r"its utterance 'b' has no speaker \(1 of 1\)"),
        ([*GOOD, ("b.json", b"{")], r"its member 'b.json' cannot be read as json: "),
        ([*GOOD, ("b.json", b"[1]")], r"its member 'b.json' is no object"),
        ([*GOOD, ("b.spk", b"\xff\xfe")], r"its member 'b.spk' cannot be read as spk: "),
        ([*GOOD, ("b.json", bytes(2 << 20))], r"its member 'b.json' has 2097152 bytes: too much for labels"),
        ([("a.json", labels(speaker="s"))], r"holds no audio file \(.wav, "),
        ([], r"holds no audio file \(.wav, "),
    ],
)
def test_bad_tars_are_refused_by_name(tmp_path: Path, members: list[Member], message: str) -> None:
    path = make_tar(tmp_path / "bad ü.tar", members)
    with pytest.raises(UserError, match=message) as caught:
        Shards().table(tmp_path)
    assert str(path) in str(caught.value)
    assert not (tmp_path / "a.wav").exists()  # nothing is unpacked


def test_a_cut_off_tar_is_refused_and_says_what_is_whole(tmp_path: Path) -> None:
    content = make_tar(tmp_path / "x.tar", [*GOOD, ("b.spk", b"t"), ("b.wav", wav(1, 5_000))]).read_bytes()
    path = tmp_path / "x.tar"
    last = content.index(b"b.wav")  # where the last header starts; its samples are 10,044 bytes
    end = last + 512 + 10_044
    cases = {
        last + 3_000: rf"x.tar: is cut off: its last member 'b.wav' ends at byte {end}, .*the 3 members before it",
        end - 1: r"is cut off: its last member 'b.wav'",
        end + 1: r"is cut off or broken after 'b.wav' \(unexpected end of data\); 4 members before that are whole",
        end + 196: rf"is cut off at byte {end + 196} after its member 'b.wav': no end mark; 4 members are whole",
        last + 100: r"is cut off at byte .* after its member 'b.spk': no end mark; 3 members are whole",
        100: r"is no tar, or broken from the beginning",
        0: r"is empty \(0 bytes\), not a tar",
    }
    assert (end + 196) % 512 == 0
    for length, message in cases.items():
        path.write_bytes(content[:length])
        with pytest.raises(UserError, match=message):
            index(str(path))
    path.write_bytes(content[:last] + b"#" * 512 + content[last + 512 :])
    with pytest.raises(UserError, match=rf"is broken at byte {last}, after its member 'b.spk'.*3 members are whole"):
        index(str(path))
    path.write_bytes(content + content)
    with pytest.raises(UserError, match=rf"goes on behind its end mark at byte {end + 196}"):
        index(str(path))
    path.write_text("no tar at all " * 100)
    with pytest.raises(UserError, match=r"is no tar, or broken from the beginning"):
        index(str(path))
    path.write_bytes(gzip.compress(content))
    with pytest.raises(UserError, match=r"x.tar: is compressed.* unpack it: gzip -d"):
        index(str(path))
