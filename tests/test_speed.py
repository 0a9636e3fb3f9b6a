"""Speed perturbation: rows of their own, and audio that is really faster."""

import numpy as np
import polars as pl
import pytest

from spkexp.augment.speed import change_speed
from spkexp.data.dataset import Crops, Reading
from spkexp.data.manifest import read_table
from spkexp.data.utterances import Utterances
from tests.conftest import Corpus

TABLE = pl.DataFrame({"id": ["u", "v"], "path": ["p", "q"], "duration": [1.8, 0.9], "speaker": ["a", "b"]})


def test_copies_have_speakers_of_their_own() -> None:
    copies = Utterances.of(TABLE, "speaker").with_speed_copies([0.9, 1.0, 1.1], own_labels=True)
    assert [copies.id[item] for item in range(6)] == ["u", "v", "u@0.9", "v@0.9", "u@1.1", "v@1.1"]
    assert [copies.path[item] for item in range(6)] == ["p", "q"] * 3
    assert [copies.label_names[label] for label in copies.label] == ["a", "b", "a@0.9", "b@0.9", "a@1.1", "b@1.1"]
    assert copies.duration.tolist() == pytest.approx([1.8, 0.9, 2.0, 1.0, 1.8 / 1.1, 0.9 / 1.1])
    assert [copies.speed_of(item) for item in range(6)] == [1.0, 1.0, 0.9, 0.9, 1.1, 1.1]
    assert (len(copies), copies.rows) == (6, 2)
    plain = Utterances.of(TABLE, "speaker")
    assert plain.with_speed_copies([1.0], own_labels=True) is plain
    assert len({plain.digest(), copies.digest(), plain.with_speed_copies([1.1], own_labels=True).digest()}) == 3


def test_another_label_stays() -> None:
    copies = Utterances.of(TABLE, "speaker").with_speed_copies([0.9], own_labels=False)
    assert copies.label_names == ["a", "b"]
    assert copies.label.tolist() == [0, 1, 0, 1]


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
    table = read_table(make_corpus(speakers=3, utterances=2), None)
    utterances = Utterances.of(table, "speaker").with_speed_copies([0.9, 1.1], own_labels=True)
    reading = Reading(16_000, False, False)
    crops = Crops(utterances, reading, 0.5, "pad", 0, one_copy=False, augmentation=None)
    batch = crops.__getitems__([(0, item, 0) for item in range(len(utterances))])
    assert batch.lengths.unique().tolist() == [8000]
    assert batch.bad == []
    # Longer than the file played faster: what there is, at its new length.
    longer = Crops(utterances, reading, 5.0, "pad", 0, one_copy=False, augmentation=None)
    lengths = longer.__getitems__([(0, item, 0) for item in range(len(utterances))]).lengths
    np.testing.assert_allclose(lengths, utterances.duration * 16_000, atol=1)
