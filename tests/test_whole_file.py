"""Files that are there whole or not at all, whoever else writes them."""

import stat
from pathlib import Path

import pytest

from spkexp.whole_file import replacing, write_json, write_secret, write_text


def test_two_writers_do_not_meet(tmp_path: Path) -> None:
    """In one process even: two threads, or two machines whose processes have one number."""
    file = tmp_path / "a folder ü" / "scores.txt"
    with replacing(file) as first, replacing(file) as second:
        first.write_text("first")
        second.write_text("second")
        assert not file.exists()
    assert file.read_text() == "first"  # which ended last
    assert list(file.parent.iterdir()) == [file]


def test_what_fails_leaves_the_former_and_no_rubbish(tmp_path: Path) -> None:
    file = tmp_path / "groups"
    write_text(file, "former ü")

    def fail() -> None:
        with replacing(file) as temporary:
            temporary.write_text("half")
            raise OSError("no space left")

    with pytest.raises(OSError, match="no space left"):
        fail()
    with pytest.raises(TypeError):
        write_json(file, {"a": object()})
    assert file.read_text(encoding="utf-8") == "former ü"
    assert list(tmp_path.iterdir()) == [file]


def test_a_secret_is_for_its_owner_alone(tmp_path: Path) -> None:
    file = tmp_path / "secret"
    file.write_text("seen by all")
    file.chmod(0o644)
    write_secret(file, "hidden")
    assert (file.read_text(), stat.S_IMODE(file.stat().st_mode)) == ("hidden", 0o600)
