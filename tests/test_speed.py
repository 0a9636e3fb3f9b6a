"""Speed perturbation: rows of their own, and audio that is really faster."""

import numpy as np
import polars as pl
import pytest

from spkexp.augment.speed import change_speed, with_speed_copies
from spkexp.data.dataset import Crops, Reading
from spkexp.data.manifest import Utterances, read_table
from tests.conftest import Corpus

TABLE = pl.DataFrame({"id": ["u", "v"], "path": ["p", "q"], "duration": [1.8, 0.9], "speaker": ["a", "b"]})


def test_copies_are_rows_with_speakers_of_their_own() -> None:
    table = with_speed_copies(TABLE, "speaker", [0.9, 1.0, 1.1])
    assert table["id"].to_list() == ["u", "v", "u@0.9", "v@0.9", "u@1.1", "v@1.1"]
    assert table["speaker"].to_list() == ["a", "b", "a@0.9", "b@0.9", "a@1.1", "b@1.1"]
    assert table["duration"].to_list() == pytest.approx([1.8, 0.9, 2.0, 1.0, 1.8 / 1.1, 0.9 / 1.1])
    assert len(Utterances.of(table, "speaker").label_names) == 6
    assert with_speed_copies(TABLE, "speaker", []).equals(TABLE)


def test_another_label_stays() -> None:
    table = with_speed_copies(TABLE.with_columns(pl.Series("language", ["x", "y"])), "language", [0.9])
    assert table["language"].to_list() == ["x", "y", "x", "y"]
    assert table["speaker"].to_list() == ["a", "b", "a", "b"]


@pytest.mark.parametrize("speed", [0.9, 1.1])
def test_a_tone_moves_by_the_factor(speed: float) -> None:
    time = np.arange(32_000) / 16_000
    wave = change_speed(np.sin(2 * np.pi * 1000 * time).astype(np.float32), speed)
    assert len(wave) == round(32_000 / speed)
    spectrum = np.abs(np.fft.rfft(wave * np.hanning(len(wave))))
    assert np.argmax(spectrum) * 16_000 / len(wave) == pytest.approx(1000 * speed, abs=1)
    # Against the tone itself at the new pitch, away from the ends.
    expected = np.sin(2 * np.pi * 1000 * speed * np.arange(len(wave)) / 16_000)
    np.testing.assert_allclose(wave[500:-500], expected[500:-500], atol=2e-3)


def test_crops_of_copies_have_the_crops_length(make_corpus: Corpus) -> None:
    table = with_speed_copies(read_table(make_corpus(speakers=3, utterances=2), None), "speaker", [0.9, 1.1])
    utterances = Utterances.of(table, "speaker")
    crops = Crops(utterances, Reading(16_000, False, False), 0.5, "pad", seed=0)
    batch = crops.__getitems__([(0, item) for item in range(len(utterances))])
    assert batch.lengths.unique().tolist() == [8000]
    assert batch.bad == []
    # Longer than the file played faster: what there is, at its new length.
    longer = Crops(utterances, Reading(16_000, False, False), 5.0, "pad", seed=0)
    lengths = longer.__getitems__([(0, item) for item in range(len(utterances))]).lengths
    np.testing.assert_allclose(lengths, utterances.duration * 16_000, atol=1)
