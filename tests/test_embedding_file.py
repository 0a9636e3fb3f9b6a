"""Files of embeddings: what is written comes back to the bit, and other programs' readers see the same."""

import logging
import os
import pickle
import struct
from pathlib import Path

import h5py
import kaldiio
import numpy as np
import polars as pl
import pytest

from spkexp.errors import UserError
from spkexp.scoring.embedding_file import read_embeddings, write_embeddings

EXTENSIONS = [".h5", ".hdf5", ".npz", ".parquet", ".ark"]
IDS = ["id10001/ß/1", "話者-2", "x", "aé"]
# Values that a detour over text or half precision would not bring back.
ROWS = np.array([[1 / 3, -1e-38], [3.4e38, 0.1], [-0.0, 1e-45], [7.0, 2**-149]], dtype=np.float32)


@pytest.mark.parametrize("extension", EXTENSIONS)
def test_it_comes_back_to_the_bit(tmp_path: Path, extension: str) -> None:
    file = tmp_path / "nëw folder" / f"emb{extension}"
    assert write_embeddings(file, IDS, ROWS, {"speaker": ["a", None, "ü", "d"], "duration": [1.5, None, 2.0, 3.0]}) == 0
    ids, rows = read_embeddings(file)
    assert ids == IDS
    assert rows.dtype == np.float32
    assert rows.tobytes() == ROWS.tobytes()
    assert not [left for left in file.parent.iterdir() if "partial" in left.name]


@pytest.mark.parametrize("extension", EXTENSIONS)
def test_unreadable_utterances_are_left_out_and_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, extension: str
) -> None:
    rows = ROWS.copy()
    rows[1, 1] = np.nan
    caplog.set_level(logging.WARNING)
    file = tmp_path / f"emb{extension}"
    assert write_embeddings(file, IDS, rows, {"speaker": list("abcd")}) == 1
    assert "1 embeddings are left out" in caplog.text
    ids, found = read_embeddings(file)
    assert ids == [IDS[0], *IDS[2:]]
    np.testing.assert_array_equal(found, ROWS[[0, 2, 3]])
    if extension == ".parquet":
        assert pl.read_parquet(file)["speaker"].to_list() == ["a", "c", "d"]


@pytest.mark.parametrize("extension", EXTENSIONS)
def test_of_none_readable_is_a_file_of_none(tmp_path: Path, extension: str) -> None:
    file = tmp_path / f"emb{extension}"
    assert write_embeddings(file, IDS, np.full((4, 2), np.nan, dtype=np.float32)) == 4
    ids, rows = read_embeddings(file)
    assert ids == []
    assert len(rows) == 0


def test_others_read_the_same(tmp_path: Path) -> None:
    columns = {"speaker": ["a", None, "ü", "d"], "duration": [1.5, None, 2.0, 3.0], "count": [1, 2, 3, 4]}
    for extension in EXTENSIONS:
        write_embeddings(tmp_path / f"emb{extension}", IDS, ROWS, columns)
    with h5py.File(tmp_path / "emb.h5") as file:
        assert [name.decode() for name in file["id"]] == IDS
        assert [name.decode() for name in file["speaker"]] == ["a", "", "ü", "d"]
        np.testing.assert_array_equal(file["duration"], [1.5, np.nan, 2.0, 3.0])
        assert file["embedding"].dtype == np.float32
    with np.load(tmp_path / "emb.npz") as arrays:  # pickles are refused by default
        assert arrays["speaker"].tolist() == ["a", "", "ü", "d"]
        assert arrays["count"].tolist() == [1, 2, 3, 4]
    table = pl.read_parquet(tmp_path / "emb.parquet")
    assert table.columns == ["id", "embedding", "speaker", "duration", "count"]
    assert table.schema["embedding"] == pl.Array(pl.Float32, 2)
    assert table["duration"].to_list() == columns["duration"]
    for found in (dict(kaldiio.load_ark(str(tmp_path / "emb.ark"))), dict(kaldiio.load_scp(str(tmp_path / "emb.scp")))):
        assert list(found) == IDS
        assert np.stack(list(found.values())).tobytes() == ROWS.tobytes()
    assert pl.read_csv(tmp_path / "emb.csv")["speaker"].to_list() == ["a", None, "ü", "d"]


def test_what_others_wrote_is_read(tmp_path: Path) -> None:
    kaldiio.save_ark(str(tmp_path / "theirs.ark"), {"a": ROWS[0], "b": ROWS[1].astype(np.float64)})
    ids, rows = read_embeddings(tmp_path / "theirs.ark")
    assert ids == ["a", "b"]
    np.testing.assert_array_equal(rows, ROWS[:2])
    pl.DataFrame({"id": ["a", "b"], "embedding": ROWS[:2].astype(float).tolist()}).write_parquet(tmp_path / "l.parquet")
    np.testing.assert_array_equal(read_embeddings(tmp_path / "l.parquet")[1], ROWS[:2])


def test_an_archive_of_before_is_replaced_with_its_index(tmp_path: Path) -> None:
    file = tmp_path / "emb.ark"
    write_embeddings(file, IDS, ROWS)
    write_embeddings(file, ["one"], ROWS[3:])
    (found,) = kaldiio.load_scp(str(tmp_path / "emb.scp")).items()
    assert found[0] == "one"
    np.testing.assert_array_equal(found[1], ROWS[3])


@pytest.mark.parametrize("name", ["two words", "tab\tbed", "no\u00a0break", "", "line\n"])
def test_a_name_that_kaldi_cannot_have_is_named(tmp_path: Path, name: str) -> None:
    with pytest.raises(UserError, match="no blanks") as error:
        write_embeddings(tmp_path / "emb.ark", ["fine", name], ROWS[:2])
    assert repr(name) in str(error.value)
    assert list(tmp_path.iterdir()) == []
    write_embeddings(tmp_path / "emb.h5", ["fine", name], ROWS[:2])
    assert read_embeddings(tmp_path / "emb.h5")[0] == ["fine", name]


@pytest.mark.parametrize("use", [write_embeddings, lambda file, *_: read_embeddings(file)])
def test_an_unknown_extension_lists_the_known(tmp_path: Path, use: object) -> None:
    with pytest.raises(UserError, match=r"emb\.pkl: .*\.h5, \.hdf5, \.npz, \.parquet, \.ark"):
        use(tmp_path / "emb.pkl", IDS, ROWS)  # type: ignore[operator]


def test_mistakes(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="'x' is the name of more than one"):
        write_embeddings(tmp_path / "emb.h5", ["x", "y", "x", "z"], ROWS)
    with pytest.raises(ValueError, match="4 embeddings"):
        write_embeddings(tmp_path / "emb.h5", IDS[:3], ROWS)
    with pytest.raises(ValueError, match="id would be there twice"):
        write_embeddings(tmp_path / "emb.h5", IDS, ROWS, {"id": IDS})
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot be written"):
        write_embeddings(tmp_path / "file" / "emb.npz", IDS, ROWS)


class Bomb:
    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return os.mkdir, (str(self.file),)


def test_reading_runs_no_code(tmp_path: Path) -> None:
    target = tmp_path / "struck"
    # kaldiio's archives and NumPy's files can hold pickles.
    (tmp_path / "emb.ark").write_bytes(b"a PKL" + pickle.dumps(Bomb(target)))
    np.savez(tmp_path / "emb.npz", id=np.array(["a"]), embedding=np.array([Bomb(target)], dtype=object))
    for name in ("emb.ark", "emb.npz"):
        with pytest.raises(UserError, match="holds no embeddings"):
            read_embeddings(tmp_path / name)
    assert not target.exists()


@pytest.mark.parametrize("extension", EXTENSIONS)
def test_a_file_that_is_none_of_embeddings_is_named(tmp_path: Path, extension: str) -> None:
    file = tmp_path / f"emb{extension}"
    with pytest.raises(UserError, match="no such file"):
        read_embeddings(file)
    file.write_bytes(b"something else")
    with pytest.raises(UserError, match=f"emb{extension}: holds no embeddings"):
        read_embeddings(file)
    write_embeddings(file, IDS, ROWS)
    file.write_bytes(file.read_bytes()[:-3])
    with pytest.raises(UserError, match=f"emb{extension}: holds no embeddings"):
        read_embeddings(file)


def test_archives_of_matrices_and_of_other_lengths_are_refused(tmp_path: Path) -> None:
    kaldiio.save_ark(str(tmp_path / "m.ark"), {"a": ROWS})
    with pytest.raises(UserError, match="byte 2 is not the beginning of a binary vector"):
        read_embeddings(tmp_path / "m.ark")
    kaldiio.save_ark(str(tmp_path / "l.ark"), {"a": ROWS[0], "b": np.zeros(3, dtype=np.float32)})
    with pytest.raises(UserError, match=r"l\.ark: holds no embeddings"):
        read_embeddings(tmp_path / "l.ark")
    for size in (-1, -3, 2**30):  # a step backwards would never come to an end
        (tmp_path / "n.ark").write_bytes(b"a \0BFV \4" + struct.pack("<i", size) + bytes(8))
        with pytest.raises(UserError, match=r"n\.ark: holds no embeddings"):
            read_embeddings(tmp_path / "n.ark")
    (tmp_path / "n.ark").write_bytes(b"a \0BFV \4\2\0")
    with pytest.raises(UserError, match=r"n\.ark: holds no embeddings"):
        read_embeddings(tmp_path / "n.ark")
