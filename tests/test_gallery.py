"""A small gallery of speakers: who is nearest, what is nobody, and threads and files."""

import json
import sys
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

import spkexp
from spkexp.errors import UserError
from spkexp.inference.gallery import Gallery
from tests.conftest import voice
from tests.inference_tools import tiny_model, write_results

RNG = np.random.default_rng(0)
EAST, NORTH = np.array([[3.0, 0.0]], dtype=np.float32), np.array([[0.0, 0.1]], dtype=np.float32)
NORTHEAST = np.array([[5.0, 5.0]], dtype=np.float32)


def test_the_nearest_by_hand() -> None:
    gallery = Gallery(2)
    gallery.add("east", EAST)
    gallery.add("north", np.concatenate([NORTH, NORTH]))
    (first,) = gallery.search(np.array([[2.0, 1.0]], dtype=np.float32), top=5)
    assert [one.name for one in first] == ["east", "north"]
    np.testing.assert_allclose([one.score for one in first], [2 / 5**0.5, 1 / 5**0.5], rtol=1e-6)
    # Directions are added up, not embeddings: one further recording of the east is worth half of two of the north.
    gallery.add("north", EAST)
    ((nearest,),) = gallery.search(NORTH, top=1)
    assert nearest.name == "north"
    assert nearest.score == pytest.approx(2 / 5**0.5)
    gallery.forget("north")
    assert gallery.names == ("east",)
    assert [len(found) for found in gallery.search(np.concatenate([EAST, NORTH]), top=3)] == [1, 1]


def test_nonsense_is_named() -> None:
    gallery = Gallery(2)
    with pytest.raises(ValueError, match="nobody is enrolled yet"):
        gallery.search(EAST, top=1)
    with pytest.raises(KeyError, match="nobody is enrolled under"):
        gallery.forget("x")
    for name, rows in (("", EAST), (3, EAST), ("x", EAST[0]), ("x", EAST[:0]), ("x", np.ones((1, 3), np.float32))):
        with pytest.raises(ValueError, match="expected"):
            gallery.add(name, rows)  # type: ignore[arg-type]
    gallery.add("x", EAST)
    with pytest.raises(ValueError, match="top=0"):
        gallery.search(EAST, top=0)
    assert gallery.names == ("x",)


def test_threads_lose_nothing(request: pytest.FixtureRequest) -> None:
    request.addfinalizer(partial(sys.setswitchinterval, sys.getswitchinterval()))
    sys.setswitchinterval(1e-6)  # in the middle of everything
    gallery = Gallery(2)
    gallery.add("everybody", EAST)

    def work(thread: int) -> None:
        for number in range(40):
            gallery.add(f"{thread}-{number}", EAST)
            gallery.add("everybody", NORTH if thread % 2 else EAST)
            if number % 2:
                gallery.forget(f"{thread}-{number}")
            found = gallery.search(NORTHEAST, top=1000)[0]
            assert len(found) == len({one.name for one in found})
            assert f"{thread}-{number - number % 2}" in {one.name for one in found}

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, range(4)))
    assert set(gallery.names) == {"everybody"} | {
        f"{thread}-{number}" for thread in range(4) for number in range(0, 40, 2)
    }
    everybody = next(one for one in gallery.search(NORTHEAST, top=100)[0] if one.name == "everybody")
    assert everybody.score == pytest.approx(161 / np.hypot(81, 80) / 2**0.5)  # 81 of the east and 80 of the north


def test_a_file_and_back(tmp_path: Path) -> None:
    gallery, again = Gallery(2), Gallery(2)
    file = tmp_path / "eine Galerie ü.safetensors"
    gallery.save(file, "model")  # of nobody
    again.add("gone", EAST)
    again.load(file, "model")
    assert again.names == ()
    gallery.add("Zoë 'x' \n", RNG.normal(size=(3, 2)).astype(np.float32))
    gallery.add("東", EAST)
    gallery.save(file, "model")
    again.load(file, "model")
    assert again.names == gallery.names
    assert again.search(NORTHEAST, 2) == gallery.search(NORTHEAST, 2)
    for one in (gallery, again):  # the number of recordings is known, too
        one.add("Zoë 'x' \n", NORTH)
    assert again.search(NORTHEAST, 2) == gallery.search(NORTHEAST, 2)


def test_files_that_are_no_gallery_are_refused(tmp_path: Path) -> None:
    file, gallery = tmp_path / "gallery", Gallery(2)
    gallery.add("x", EAST)
    gallery.save(file, "model")
    with pytest.raises(UserError, match="enrolled with other weights"):
        gallery.load(file, "another")
    with pytest.raises(UserError, match="no gallery of this model"):
        Gallery(3).load(file, "model")
    whole, count = file.read_bytes(), {"count": np.ones(1, dtype=np.int64)}
    pickled = tmp_path / "pickled.npz"
    np.savez(pickled, total=np.array([{}], dtype=object))
    damaged = [b"", b"x", whole[:-1], whole[: len(whole) // 2], b"\xff" * 8 + whole[8:], pickled.read_bytes()]
    for content in damaged:
        file.write_bytes(content)
        with pytest.raises(UserError, match=f"^{file}: is no gallery"):
            gallery.load(file, "model")
    total, one = {"total": np.ones((1, 2))} | count, '["x"]'
    cases = [
        *((count, one, "model"), (total, "3", "model"), (total, "[", "model"), (total, '["x", "y"]', "model")),
        *((total, '"x"', "model"), (total, "[3]", "model"), (total, one, None), (total, None, "model")),
        ({"total": np.full((1, 2), np.nan)} | count, one, "model"),
    ]
    for tensors, names, model in cases:
        about = {key: text for key, text in (("names", names), ("model", model)) if text is not None}
        save_file(tensors, file, metadata=about)
        with pytest.raises(UserError, match=f"^{file}: is no gallery"):
            gallery.load(file, "model")
    with pytest.raises(UserError, match="no such file"):
        gallery.load(tmp_path / "missing", "model")
    with pytest.raises(UserError, match="is no gallery"):
        gallery.load(tmp_path, "model")
    with pytest.raises(UserError, match="cannot be written"):
        gallery.save(file / "below a file", "model")
    assert gallery.names == ("x",)


def test_the_models_own(tmp_path: Path) -> None:
    """Names below the threshold are nobody's; without a threshold the nearest is named, and the reason said."""
    folder = tiny_model(tmp_path / "model")
    write_results(folder, 0.5)
    model, waves = spkexp.load(folder, device="cpu"), [voice(speaker, 0, 0.4) for speaker in range(3)]
    model.enroll("ann", waves[0])
    model.enroll("bob", [waves[1], waves[2][:4000]])
    rows = model.embed([waves[1], waves[2][:4000], waves[2]]).astype(np.float64)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    mean = rows[0] + rows[1]
    expected = float(mean @ rows[2] / np.linalg.norm(mean))
    found = model.identify(waves[2], top=2, threshold=-1)
    assert dict(found.candidates)["bob"] == pytest.approx(expected, abs=1e-5)  # type: ignore[union-attr]
    exact = model.identify(waves[0])
    assert (exact.name, exact.threshold) == ("ann", 0.5)  # type: ignore[union-attr]
    assert exact.score == pytest.approx(1.0, abs=1e-5)  # type: ignore[union-attr]
    nobody = model.identify([waves[0], waves[1]], threshold=1.1)
    assert [(one.name, one.candidates[0].name) for one in nobody] == [(None, "ann"), (None, "bob")]  # type: ignore[union-attr]

    (folder / "results.json").write_text(json.dumps({"trials": {}}))
    undecided = spkexp.load(folder, device="cpu")
    model.save_gallery(tmp_path / "gallery")
    undecided.load_gallery(tmp_path / "gallery")
    far = undecided.identify(np.random.default_rng(0).normal(0, 0.1, 8000))
    assert (far.name is not None, far.threshold) == (True, None)  # type: ignore[union-attr]
    assert "no validation results" in far.reason  # type: ignore[union-attr]
    other = spkexp.load(tiny_model(tmp_path / "other", seed=1), device="cpu")
    with pytest.raises(UserError, match="other weights"):
        other.load_gallery(tmp_path / "gallery")
    with pytest.raises(ValueError, match="no recording to enrol"):
        model.enroll("x", [])
