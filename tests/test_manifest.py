"""Manifests in every format, and what is wrong with them named by file and line."""

import json
import pickle
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from spkexp.data.headers import HeaderParts, read_headers
from spkexp.data.load import require_label, usable
from spkexp.data.manifest import filter_table, read_table
from spkexp.data.utterances import Strings, Utterances
from spkexp.errors import UserError
from tests.conftest import Corpus


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def test_csv_keeps_leading_zeros_and_order(tmp_path: Path) -> None:
    file = write(tmp_path / "m.csv", "path,speaker,duration\nb/2.wav,00000020,1.5\n/abs/ä 1.wav,00000007,2\n")
    table = read_table(file, None)
    assert table["speaker"].to_list() == ["00000020", "00000007"]
    assert table["path"].to_list() == [f"{tmp_path}/b/2.wav", "/abs/ä 1.wav"]
    assert table["id"].to_list() == ["b/2.wav", "/abs/ä 1.wav"]
    assert table["duration"].to_list() == [1.5, 2.0]


def test_speechbrain_json_and_csv(tmp_path: Path) -> None:
    entries = {
        "u1": {"wav": "{data_root}/a.wav", "length": 1.25, "spk_id": "x"},
        "u2": {"wav": "{data_root}/b.wav", "length": 2, "spk_id": "y"},
    }
    table = read_table(write(tmp_path / "m.json", json.dumps(entries)), tmp_path)
    assert table.select("id", "path", "duration", "speaker").rows() == [
        ("u1", f"{tmp_path}/a.wav", 1.25, "x"),
        ("u2", f"{tmp_path}/b.wav", 2.0, "y"),
    ]
    text = "ID,duration,wav,start,stop,spk_id\nu_0_3,9.0,$data_root/a.wav,16000,64000,x\n"
    chunk = read_table(write(tmp_path / "sb.csv", text), tmp_path)
    assert chunk["duration"].to_list() == [3.0]
    utterances = Utterances.of(chunk, "speaker")
    assert utterances.segment(0, 16_000) == (16_000, 64_000)
    assert utterances.path[0] == f"{tmp_path}/a.wav"


def test_parquet_and_kaldi(tmp_path: Path) -> None:
    pl.DataFrame({"id": ["a"], "path": ["a.wav"], "speaker": ["s"], "duration": [1.0], "age": [33]}).write_parquet(
        tmp_path / "m.parquet"
    )
    assert read_table(tmp_path / "m.parquet", None).select("id", "age").rows() == [("a", "33")]
    kaldi = tmp_path / "kaldi"
    kaldi.mkdir()
    write(kaldi / "wav.scp", "u1 /x/a b.wav\nu2 /x/c.wav\n")
    write(kaldi / "utt2spk", "u2 s2\nu1 s1\n")
    assert read_table(kaldi, None).select("id", "path", "speaker").rows() == [
        ("u1", "/x/a b.wav", "s1"),
        ("u2", "/x/c.wav", "s2"),
    ]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("m.csv", "", "m.csv: the manifest is empty"),
        ("m.csv", "path,speaker\n", "m.csv: the manifest has no rows"),
        ("m.csv", "name,speaker\nx,y\n", "m.csv: no column for the audio file"),
        ("m.csv", "id,path,speaker\na,x,s\na,y,s\nb,z,s\n", "m.csv: id a stands in more than one row"),
        ("m.csv", "path,speaker,duration\nx,s,1\ny,s,long\n", "m.csv:3: duration is no number: 'long'"),
        ("m.csv", "path,speaker\nx,s\n,s\n", "m.csv:3: path is empty"),
        ("m.csv", "path,start,stop,speaker\nx,5,3,s\n", "m.csv:2: start 5 and stop 3 are no segment"),
        (
            "m.csv",
            "path,start,stop,speaker\nx,0.5,1.25,s\n",
            "m.csv:2: start is no whole number: '0.5'; it counts samp",
        ),
        ("m.csv", "path,start,stop,speaker\nx,1,2,s\ny,nan,3,s\n", "m.csv:3: start is no number: 'nan'"),
        ("m.csv", "path,speaker, path\nx,s,y\n", "m.csv: two columns are called 'path'; rename or remove one"),
        ("m.csv", "path,speaker,offset\nx,s,512\n", "m.csv: offset and bytes (of a file in a tar) come together"),
        ("m.csv", "path,bytes,offset,speaker\nx,,,s\ny,9,,s\n", "m.csv:3: offset None and bytes 9 are no part of a fi"),
        ("m.csv", "path,bytes,offset\ny,9,-1\n", "m.csv:2: offset -1 and bytes 9 are no part of a file; give both"),
        ("m.json", '{"a": {"wav": "x", "length": "long"}}', "m.json: row 1 (id a): duration is no number: 'long'"),
        ("m.json", '{"a": {"wav": "x"},\n}', "m.json:2: not JSON"),
        ("m.json", "[1]", "m.json: expected"),
        ("m.parquet", "not parquet", "m.parquet: cannot be read as parquet"),
        ("m.xlsx", "x", "m.xlsx: unknown kind of manifest"),
    ],
)
def test_mistakes_are_named(tmp_path: Path, name: str, text: str, message: str) -> None:
    with pytest.raises(UserError) as caught:
        read_table(write(tmp_path / name, text), None)
    assert str(tmp_path / message) in str(caught.value)


def test_kaldi_mistakes(tmp_path: Path) -> None:
    write(tmp_path / "wav.scp", "u1 sox a.wav -t wav - |\n")
    write(tmp_path / "utt2spk", "u1 s\n")
    with pytest.raises(UserError, match=r"wav.scp:1: is a command"):
        read_table(tmp_path, None)
    write(tmp_path / "wav.scp", "u1 a.wav\nu2 b.wav\n")
    with pytest.raises(UserError, match=r"utt2spk: has no line for u2"):
        read_table(tmp_path, None)
    with pytest.raises(UserError, match="no such manifest"):
        read_table(tmp_path / "none.csv", None)


@pytest.mark.parametrize("name", ["wav.scp", "utt2spk"])
def test_kaldi_lines_that_cannot_be_read(tmp_path: Path, name: str) -> None:
    good = {"wav.scp": "u1 a.wav\nu2 b.wav\n", "utt2spk": "u1 s\nu2 s\n"}
    for file, text in good.items():
        write(tmp_path / file, text)
    write(tmp_path / name, good[name].replace("\n", "\n\n", 1))
    with pytest.raises(UserError, match=rf"{name}:2: expected 'UTTERANCE .*', got ''; complete or remove the line"):
        read_table(tmp_path, None)
    (tmp_path / name).write_bytes((good[name] + "u3 ä\n").encode("latin-1"))
    with pytest.raises(UserError, match=rf"{name}:3: is not UTF-8 \(0xe4\); write it so"):
        read_table(tmp_path, None)


@pytest.mark.parametrize("column", ["speaker", "duration", "notes"])
@pytest.mark.parametrize("values", [[[1.5]], [b"\xff"]], ids=["lists", "bytes"])
def test_columns_that_are_neither_text_nor_numbers(tmp_path: Path, column: str, values: list) -> None:
    pl.DataFrame({"path": ["a.wav"], "speaker": ["s"]} | {column: values}).write_parquet(tmp_path / "m.parquet")
    with pytest.raises(UserError, match=rf"m.parquet: .*{column}"):
        read_table(tmp_path / "m.parquet", None)


def test_segments_lie_where_they_are_at_any_rate(tmp_path: Path) -> None:
    """start and stop count samples at 16 kHz, the model's rate or the file's notwithstanding."""
    file = write(tmp_path / "m.csv", "path,start,stop,speaker\na,16000,24000,s\n")
    utterances = Utterances.of(read_table(file, None), "speaker").with_speed_copies([0.5], own_labels=False)
    for item in range(2):
        assert utterances.segment(item, 16_000) == (16_000, 24_000)
        assert utterances.segment(item, 8_000) == (8_000, 12_000)


def test_filter(tmp_path: Path) -> None:
    table = read_table(write(tmp_path / "m.csv", "path,speaker,duration\na,x,1\nb,y,2\nc,y,3\n"), None)
    assert filter_table(table, "speaker = 'y' AND duration > 2")["id"].to_list() == ["c"]
    with pytest.raises(UserError, match=r"data.filter: .*columns path, speaker, duration, id"):
        filter_table(table, "spaker = 'y'")
    with pytest.raises(UserError, match=r"data.filter: no row of 3 meets"):
        filter_table(table, "duration > 100")


def test_labels(tmp_path: Path) -> None:
    table = read_table(write(tmp_path / "m.csv", "path,speaker\na,x\nb,\n"), None)
    with pytest.raises(UserError, match=r"data.label: 1 of 2 utterances have no speaker, the first is b"):
        require_label(table, "speaker")
    with pytest.raises(UserError, match=r"data.label: the table has no column 'language'"):
        require_label(table, "language")


def test_broken_files_are_named_and_counted(make_corpus: Corpus, tmp_path: Path) -> None:
    manifest = make_corpus(speakers=2, utterances=3)
    known = read_table(manifest, None)
    measured, broken = read_headers(known.drop("duration"), HeaderParts(tmp_path / "a", "s", ""))
    assert usable(measured, broken, "raise", 0.0) == (measured, [])
    assert measured["duration"].to_list() == known["duration"].to_list()
    Path(known["path"][1]).write_bytes(b"")
    measured, broken = read_headers(known.drop("duration"), HeaderParts(tmp_path / "b", "s", ""))
    Path(known["path"][1]).unlink()  # its header is not read again
    with pytest.raises(UserError, match=r"1\.wav: the file is empty \(0 bytes\) \(1 such files; .*refresh=true"):
        usable(measured, broken, "raise", 0.0)
    rows, left_out = usable(measured, broken, "skip", 0.5)
    assert (len(rows), left_out) == (5, broken)
    with pytest.raises(UserError, match=r"1 of 6 files cannot be used, more than data.max_bad_fraction=0.1"):
        usable(measured, broken, "skip", 0.1)
    wrong = known.with_columns(duration=pl.when(pl.col("id") == known["id"][2]).then(-1.0).otherwise("duration"))
    with pytest.raises(UserError, match=rf"{known['id'][2]}.wav: the duration -1.0 is no length; correct the manifest"):
        usable(wrong, [], "raise", 0.0)


def test_a_million_rows_are_columns() -> None:
    names = pl.Series([f"id{i:07d}/é" for i in range(50_000)])
    column = Strings(names)
    assert len(column) == 50_000
    for index in (0, 1, 777, 49_999):
        assert column[index] == names[index]
    # What a worker process gets is two arrays, not a list of objects.
    assert len(pickle.dumps(column)) < 50_000 * (len("id0000000/é".encode()) + 8) + 1000
    table = pl.DataFrame(
        {"id": ["u", "v", "w"], "path": ["1", "2", "3"], "duration": [1.0, 2.0, 3.0], "speaker": ["b", "a", "b"]}
    )
    utterances = Utterances.of(table, "speaker")
    assert utterances.label_names == ["a", "b"]
    np.testing.assert_array_equal(utterances.label, [1, 0, 1])
    assert utterances.segment(1, 16_000) is None
