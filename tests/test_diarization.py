"""Who speaks when: speech by its level, votes of windows, clusters, and the error of it all on mixed conversations."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import soundfile
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from spkexp.counter import generator
from spkexp.data import audio, rttm
from spkexp.data.rttm import Segment
from spkexp.diarization import clustering, spectral, speech
from spkexp.diarization.pipeline import diarize, diarize_files
from spkexp.diarization.settings import Settings
from spkexp.diarization.turns import turns
from spkexp.errors import AudioError, UserError
from spkexp.features import LogMel
from spkexp.models.pooling import MeanPooling
from spkexp.models.speaker import SpeakerModel
from tests.conftest import SHARED, Run, voice
from tests.conversations import RATE, Conversation, mixed, real, synthetic

VOICES = 6  # that the model here knows
EITHER = pytest.mark.parametrize("method", ["agglomerative", "spectral"])


class Error(NamedTuple):
    """Parts of the time that the reference says somebody speaks."""

    missed: float
    false_alarm: float
    confused: float

    @property
    def total(self) -> float:
        return sum(self)


def diarization_error(conversation: Conversation, found: Sequence[Segment], collar: float = 0.0) -> Error:
    """As pyannote.metrics has it: the best mapping of the speakers, overlaps (there are none) scored.

    collar: s on either side of every edge of the reference that is not scored, which pyannote.metrics counts double.
    """
    from pyannote.core import Annotation, Timeline
    from pyannote.core import Segment as Stretch
    from pyannote.metrics.diarization import DiarizationErrorRate

    def annotation(segments: Sequence[Segment]) -> Annotation:
        made = Annotation()
        for number, segment in enumerate(segments):
            made[Stretch(segment.start, segment.end), number] = segment.speaker
        return made

    metric = DiarizationErrorRate(collar=2 * collar, skip_overlap=False)
    whole = Timeline([Stretch(0, len(conversation.wave) / RATE)])
    parts = metric.compute_components(annotation(conversation.turns), annotation(found), uem=whole)
    return Error(*(parts[name] / parts["total"] for name in ("missed detection", "false alarm", "confusion")))


def as_one_speaker(found: Sequence[Segment]) -> list[Segment]:
    """What whoever hears no difference between voices would say."""
    return [segment._replace(speaker="all") for segment in found]


class Unchanged(nn.Module):
    """An encoder that leaves the features as they are."""

    def forward(self, features: Tensor, lengths: Tensor | None) -> tuple[Tensor, Tensor | None]:
        return features, lengths


def mean_spectrum(high_hz: float, embedding_size: int) -> SpeakerModel:
    """A speaker model whose embedding is a linear map, still to be set, of the mean log-mel spectrum."""
    features = LogMel(RATE, 40, 25.0, 10.0, 20.0, high_hz, "povey", 0.97, 1.0, "none")
    encoder, pooling = Unchanged(), MeanPooling(40)
    encoder.out_channels = 40  # type: ignore[assignment]
    return SpeakerModel(features, encoder, pooling, embedding_size, pooling_norm=False, embedding_norm=False).eval()


def spectrum_of(model: SpeakerModel, wave: NDArray[np.float32]) -> Tensor:
    """(40,) float64"""
    waveform = torch.from_numpy(wave)[None]
    return model.extract_features(waveform, torch.tensor([len(wave)]))[0][0].mean(dim=1).double()


@pytest.fixture(scope="module")
def spectra() -> SpeakerModel:
    """A speaker model without training: a linear map, by least squares, of the mean log-mel spectrum to which of the
    voices of tests.conftest it is. Below 4 kHz, so that a recording at 8 kHz is heard as well."""
    model = mean_spectrum(3700.0, VOICES)
    speakers = torch.arange(VOICES).repeat(10)
    with torch.no_grad():
        spectrum = torch.stack(
            [spectrum_of(model, voice(speaker, 100 + number, 1.0)) for number, speaker in enumerate(speakers.tolist())]
        )
        known = torch.cat([spectrum, torch.ones(len(speakers), 1)], dim=1)
        ridge = 0.1 * torch.eye(41, dtype=torch.float64)
        target = torch.nn.functional.one_hot(speakers).double()
        solution = torch.linalg.solve(known.T @ known + ridge, known.T @ target)
        model.embedding.weight.copy_(solution[:-1].T)
        model.embedding.bias.copy_(solution[-1])
    return model


@pytest.fixture(scope="module")
def real_spectra() -> SpeakerModel:
    """The mean spectrum of real speech, whitened on other speakers: it tells voices as recorded by each of them."""
    model = mean_spectrum(0.0, 12)
    files = sorted((SHARED / "LibriSpeech" / "train-clean-100").rglob("*.flac"))[::6]
    if not files:
        pytest.skip(f"no real speech at {SHARED}")
    with torch.no_grad():
        spectrum = torch.stack([spectrum_of(model, audio.read(file)) for file in files])
        mean = spectrum.mean(dim=0)
        _, deviation, axes = torch.linalg.svd(spectrum - mean, full_matrices=False)
        white = axes[:12] / deviation[:12, None]
        model.embedding.weight.copy_(white)
        model.embedding.bias.copy_(-white @ mean)
    return model


def chat(speakers: int, turns: int = 16, seed: int = 0) -> Conversation:
    """A conversation of the voices of tests.conftest, of turns of 1.5 to 3.5 s."""
    length = 1.5 + 2 * generator(seed, 9).random(turns)
    return mixed(
        [str(number) for number in range(speakers)],
        lambda name, number: voice(int(name), number, float(length[number])),
        turns,
        seed,
    )


def agglomerative(**given: Any) -> Settings:
    return Settings(clustering="agglomerative", **given)


# Speech by its level.


def level_of(wave: NDArray[np.float64], rate: int = RATE) -> NDArray[np.float64]:
    samples = wave.astype(np.float32)
    return speech.levels(lambda first, last: samples[first:last], len(samples), rate)


def test_the_level_of_a_sine(monkeypatch: pytest.MonkeyPatch) -> None:
    """0.1 sin has the power 0.005, -23.01 dB; a constant beside it has none; pieces do not show."""
    sine = 0.1 * np.sin(2 * np.pi * 400 * np.arange(RATE) / RATE)
    np.testing.assert_allclose(level_of(sine + 0.3), 10 * np.log10(0.005), atol=1e-3)
    noise = generator(1).standard_normal(RATE + 77) * np.repeat([0.001, 0.1], [5000, 11077])
    whole = level_of(noise)
    assert len(whole) == 100
    monkeypatch.setattr(speech, "PIECE_SECONDS", 0.13)
    np.testing.assert_array_equal(level_of(noise), whole)
    np.testing.assert_allclose(level_of(np.zeros(RATE)), speech.FLOOR_DB)
    assert len(level_of(sine[:7])) == 1


def test_the_threshold_by_hand() -> None:
    """60 frames at -20 dB and 40 at -50: the quiet are 30 dB below, and a quarter of the way up is -42.5 dB."""
    assert speech.threshold(np.repeat([-20.0, -50.0], [60, 40])) == pytest.approx(-42.5)
    # However deep the silence, it counts as 45 dB below: -65 + 45 / 4.
    assert speech.threshold(np.repeat([-20.0, -96.3], [60, 40])) == pytest.approx(-53.75)
    # Digital silence beside the quiet of a room, which is what must be told from speech: (-60 - 65) / 2 is the mean.
    assert speech.threshold(np.repeat([-20.0, -60.0, -96.3], [40, 30, 30])) == pytest.approx(-62.5 + 42.5 / 4)
    # Of one level only, whether speech without a pause or noise: all is speech. And nothing is where all is silent.
    assert speech.threshold(np.full(50, -30.0)) < -40
    assert speech.threshold(np.full(50, -61.0)) == np.inf


@pytest.mark.parametrize(
    ("runs", "expected"),  # s of speech and silence in turn, and the stretches with PAD_SECONDS on either side
    [
        ([1.0, 1.0, 1.0], [(0.0, 1.05), (1.95, 3.0)]),
        ([1.0, 0.29, 1.0], [(0.0, 2.29)]),  # too short a pause
        ([1.0, 0.5, 0.19, 0.5, 1.0], [(0.0, 1.05), (2.14, 3.19)]),  # too short a sound
        ([0.0, 2.0, 0.15, 0.2, 0.15, 2.0], [(1.95, 2.55)]),  # the pause is filled before the sounds are measured
        ([2.0], [(0.0, 2.0)]),
        ([0.0, 2.0], []),
        ([0.0, 1.0, 0.1], []),
    ],
)
def test_stretches_of_speech(runs: list[float], expected: list[tuple[float, float]]) -> None:
    level = np.repeat(
        [-20.0 if number % 2 == 0 else -70.0 for number in range(len(runs))], np.rint(np.array(runs) * 100).astype(int)
    )
    assert speech.stretches(level, 0.2, 0.3) == [pytest.approx(pair) for pair in expected]


def test_stretches_that_touch_are_one() -> None:
    assert speech.merged([(3, 4), (0, 1), (0.5, 2), (2, 2.5), (3.2, 3.5)]) == [(0, 2.5), (3, 4)]


# Turns.


@pytest.mark.parametrize(
    ("windows", "min_turn", "expected"),  # (start, end, label) over speech from 10 s to 13 s
    [
        ([(10, 13, 7)], 0.3, [(10, 13, 7)]),
        # Half way between the middles of both.
        ([(10, 12, 0), (11, 13, 1)], 0.3, [(10, 11.5, 0), (11.5, 13, 1)]),
        # Two against one: at the middle of the one, where it has its whole vote, the two have a half each, and a bit.
        ([(10, 12, 0), (10.5, 12.5, 1), (11, 13, 0)], 0.3, [(10, 13, 0)]),
        ([(10, 12, 0), (10.7, 12.7, 1), (11, 13, 2)], 0.3, [(10, 11.35, 0), (11.35, 11.85, 1), (11.85, 13, 2)]),
        # 0.5 s are too short a turn, and what comes before is longer than what comes after.
        ([(10, 12, 0), (10.7, 12.7, 1), (11, 13, 2)], 0.6, [(10, 11.85, 0), (11.85, 13, 2)]),
        # And where both are of one speaker, all three become one turn.
        ([(10, 11.4, 0), (11.4, 11.6, 1), (11.6, 13, 0)], 0.3, [(10, 13, 0)]),
    ],
)
def test_windows_vote(
    windows: list[tuple[float, float, int]], min_turn: float, expected: list[tuple[float, float, int]]
) -> None:
    start, end, label = (np.array(column) for column in zip(*windows, strict=True))
    np.testing.assert_allclose(turns((10, 13), start, end, label, min_turn), expected, atol=0.011)


# Clusters.


def blobs(sizes: Sequence[int], spread: float, seed: int = 0) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Points (N, 32) around a direction each, in a random order, and the number of the direction of each."""
    rng = generator(seed, 1)
    label = rng.permutation(np.repeat(np.arange(len(sizes)), sizes))
    centres = np.linalg.qr(rng.standard_normal((32, len(sizes))))[0].T
    points = centres[label] + spread * rng.standard_normal((len(label), 32))
    return (points / np.linalg.norm(points, axis=1, keepdims=True)).astype(np.float32), label


def same(first: NDArray[np.int64], second: NDArray[np.int64]) -> bool:
    """Whether both part the points alike, whatever the numbers of the parts."""
    pairs = len(set(zip(first.tolist(), second.tolist(), strict=True)))
    return pairs == len(set(first.tolist())) == len(set(second.tolist()))


@pytest.mark.parametrize("threshold", [0.1, 0.3, 0.5, 0.7])
@pytest.mark.parametrize("spread", [0.1, 0.25])
def test_agglomerative_is_sklearns(threshold: float, spread: float, monkeypatch: pytest.MonkeyPatch) -> None:
    from sklearn.cluster import AgglomerativeClustering

    monkeypatch.setattr(clustering, "FEWEST_SECONDS", 0.0)
    points, _ = blobs([30, 5, 12, 1], spread)
    ours = clustering.agglomerative(points, np.ones(len(points)), Settings(threshold=threshold))
    peer = AgglomerativeClustering(None, metric="cosine", linkage="average", distance_threshold=1 - threshold)
    assert same(ours, peer.fit_predict(points.astype(np.float64)))


def test_what_says_little_is_no_speaker() -> None:
    """Two directions and a point of a third: the tree's first two branches are that point and all others."""
    points, label = blobs([20, 20, 1], 0.02)
    lonely = int(np.flatnonzero(label == 2)[0])
    points[lonely] = points[lonely] + 0.2 * points[label == 1].mean(axis=0)
    weight, others = np.ones(41), label != 2
    for settings in (
        agglomerative(num_speakers=2),
        agglomerative(threshold=0.5),
        agglomerative(threshold=0.5, max_speakers=2),
    ):
        found = clustering.cluster(points, weight, settings)
        assert same(found[others], label[others])
        assert found[lonely] == found[label == 1][0]
    # One that speaks for long enough is a speaker; and max_speakers has the two nearest become one.
    weight[lonely] = 6.0
    assert same(clustering.cluster(points, weight, agglomerative(threshold=0.5)), label)
    fewer = clustering.cluster(points, weight, agglomerative(threshold=0.5, max_speakers=2))
    assert len(set(fewer[others].tolist())) == 2 or fewer[lonely] in fewer[others]
    assert set(fewer.tolist()) == {0, 1}
    # Of a few windows none says enough: the number that is given is kept to all the same.
    assert set(clustering.cluster(points[:3], np.full(3, 0.5), agglomerative(num_speakers=3)).tolist()) == {0, 1, 2}


@EITHER
def test_more_windows_than_are_compared_at_once(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clustering, "AGGLOMERATIVE_LIMIT", 60)
    monkeypatch.setattr(clustering, "SPECTRAL_LIMIT", 60)
    points, label = blobs([300, 100, 200], 0.1)
    seen: list[int] = []
    compared = clustering._cluster

    def watched(some: NDArray[np.float32], *rest: Any) -> NDArray[np.int64]:
        seen.append(len(some))
        return compared(some, *rest)

    monkeypatch.setattr(clustering, "_cluster", watched)
    settings = Settings(clustering=method, threshold=0.4)  # type: ignore[arg-type]
    assert same(clustering.cluster(3 * points, np.ones(600), settings), label)
    assert seen == [60]


@pytest.mark.parametrize("speakers", [1, 2, 3, 5])
@pytest.mark.parametrize("seed", [0, 1])
def test_spectral_finds_the_number(speakers: int, seed: int) -> None:
    points, label = blobs([40, 25, 60, 30, 35][:speakers], 0.12, seed)
    assert same(spectral.spectral(points, None, None), label)
    assert len(set(spectral.spectral(points, 4, None).tolist())) == 4
    assert len(set(spectral.spectral(points, None, 2).tolist())) == min(2, speakers)


def short_talk(speakers: int, windows: int, seed: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Points (windows, 64) as those of turns of five windows, of which neighbours overlap by half; and the speakers.

    A point is its voice, of length one, and more: 0.5 that its turn has of its own, and 0.8 that changes.
    """
    rng = generator(seed, 2)
    turn = np.arange(windows) // 5
    voices = np.linalg.qr(rng.standard_normal((64, 64)))[0][:speakers]
    manners, halves = rng.standard_normal((windows, 64)) / 8, rng.standard_normal((windows + 1, 64)) / 8
    points = voices[turn % speakers] + 0.5 * manners[turn] + 0.8 * (halves[:-1] + halves[1:]) / 2**0.5
    return (points / np.linalg.norm(points, axis=1, keepdims=True)).astype(np.float32), turn % speakers


@pytest.mark.parametrize(("speakers", "windows"), [(1, 10), (1, 26), (2, 20), (2, 26)])
@pytest.mark.parametrize("seed", range(4))
def test_the_number_of_a_short_recording(speakers: int, windows: int, seed: int) -> None:
    points, label = short_talk(speakers, windows, seed)
    assert same(clustering.cluster(points, np.full(windows, 0.75), Settings()), label)


def test_few_windows_of_a_known_number() -> None:
    points, label = blobs([3, 3], 0.1)
    assert same(clustering.cluster(points, np.full(6, 0.75), Settings(num_speakers=2)), label)


@EITHER
@pytest.mark.parametrize("windows", [5, 10, 16, 27, 53])
def test_four_seconds_a_speaker(method: str, windows: int) -> None:
    """Even where no two windows are alike; nobody but who says so has more speakers."""
    points = np.eye(windows, dtype=np.float32) + 0.1 * generator(windows).standard_normal((windows, windows))
    seconds, settings = np.full(windows, 0.75), Settings(clustering=method, threshold=0.5)  # type: ignore[arg-type]
    found = clustering.cluster(points.astype(np.float32), seconds, settings)
    assert found.max() + 1 <= max(1, 0.75 * windows / 4)
    told = clustering.cluster(points.astype(np.float32), seconds, settings.model_copy(update={"num_speakers": 5}))
    assert told.max() + 1 == 5


def test_the_graph_by_hand() -> None:
    """Three points on a line, two neighbours each, themselves included: 0 and 1 are near, and 2 is nearest to 1."""
    order = np.array([[0, 1, 2], [1, 0, 2], [2, 1, 0]])
    affinity = spectral.binarised(order, 2)
    np.testing.assert_array_equal(affinity, [[1, 1, 0], [1, 1, 0.5], [0, 0.5, 1]])
    np.testing.assert_array_equal(spectral.laplacian_of(affinity), [[1, -1, 0], [-1, 1.5, -0.5], [0, -0.5, 0.5]])


@EITHER
@pytest.mark.parametrize("windows", [1, 2, 3, 4, 7])
def test_few_windows(method: str, windows: int) -> None:
    points, _ = blobs([windows], 0.1)
    for number in (None, 1, 2, 3, 9):
        settings = Settings(clustering=method, threshold=0.3, num_speakers=number)  # type: ignore[arg-type]
        found = clustering.cluster(points, np.full(windows, 0.75), settings)
        assert found[0] == 0
        assert set(found.tolist()) == set(range(found.max() + 1))
        assert number is None or found.max() + 1 == min(number, windows)


def test_speakers_are_numbered_as_they_appear() -> None:
    assert clustering.in_order_of_appearance(np.array([5, 2, 5, 9, 2])).tolist() == [0, 1, 0, 2, 1]


def test_settings_that_contradict_one_another() -> None:
    assert agglomerative().completed(0.4).threshold == 0.4
    assert agglomerative(threshold=0.1).completed(0.4).threshold == 0.1
    assert Settings().completed(0.4).threshold is None
    for settings, message in (
        (agglomerative(), "threshold: the model comes with none"),
        (Settings(step=2.0), "step=2: windows of 1.5 s would leave gaps"),
        (Settings(num_speakers=3, max_speakers=2), "num_speakers=3 is more than max_speakers=2"),
    ):
        with pytest.raises(UserError, match=message):
            settings.completed(None)


# All of it.


@EITHER
@pytest.mark.parametrize("speakers", [3])
@pytest.mark.parametrize("known", [True, False])
def test_the_error_on_voices_that_are_easy_to_tell(
    spectra: SpeakerModel, method: str, speakers: int, known: bool
) -> None:
    conversation = chat(speakers)
    settings = Settings(clustering=method, threshold=0.5, num_speakers=speakers if known else None)  # type: ignore[arg-type]
    found = diarize(spectra, conversation.wave, settings)
    error = diarization_error(conversation, found)
    assert error.missed < 0.02
    assert error.false_alarm < 0.06
    assert error.confused < 0.05
    assert diarization_error(conversation, found, collar=0.25).total < 0.02
    assert diarization_error(conversation, as_one_speaker(found)).total > 0.4
    assert {segment.speaker for segment in found} == {f"speaker{number + 1}" for number in range(speakers)}
    # In order, apart, in the recording, and none too short
    edges = [edge for segment in found for edge in (segment.start, segment.end)]
    assert edges == sorted(edges)
    assert 0 <= edges[0] < edges[-1] <= len(conversation.wave) / RATE
    assert min(segment.end - segment.start for segment in found) >= 0.19


def test_speech_that_is_given(spectra: SpeakerModel) -> None:
    """Where people speak is kept to, to the millisecond: only who it is can be wrong."""
    conversation = chat(3)
    given = [(turn.start, turn.end) for turn in reversed(conversation.turns)]
    found = diarize(spectra, conversation.wave, Settings(threshold=0.5), speech=given, recording="r")
    error = diarization_error(conversation, found)
    assert error[:2] == pytest.approx((0, 0), abs=1e-6)
    assert error.confused < 0.05
    assert {segment.recording for segment in found} == {"r"}
    # However short it is, and where it reaches beyond the end
    seconds = len(conversation.wave) / RATE
    found = diarize(spectra, conversation.wave, Settings(threshold=0.5), speech=[(1.0, 1.002), (2.0, seconds + 9)])
    assert [(segment.start, segment.end) for segment in (found[0], found[-1])] == [
        (1.0, 1.002),
        (found[-1].start, seconds),
    ]
    with pytest.raises(AudioError, match="has no speech from"):
        diarize(spectra, conversation.wave, Settings(threshold=0.5), speech=[(seconds + 1, seconds + 2)])


def test_speech_that_is_too_short_for_an_rttm(
    spectra: SpeakerModel, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """It costs a warning, and not the work on everything else. Of that of 0.6 ms the ends round apart."""
    wave = np.concatenate([voice(1, 0, 3.0), np.zeros(3, dtype=np.float32)])
    files = {name: tmp_path / f"{name}.wav" for name in ("much", "none")}
    for file in files.values():
        soundfile.write(file, wave, RATE)
    tiny = (2.0001, 2.0004)
    said = {"much": [tiny, (0.5, 1.5), (2.5002, 2.5008), (3.0001, 9.0)], "none": [tiny]}
    summary = diarize_files(spectra, files, Settings(), tmp_path / "a.rttm", speech=said)
    found = [(segment.recording, segment.start, segment.end) for segment in rttm.read(tmp_path / "a.rttm")]
    assert found == [("much", 0.5, 1.5), ("much", 2.5, 2.501)]
    assert (summary.segments, summary.silent) == (2, ["none"])
    assert "much: left out 2 of 4 stretches of speech, shorter than the millisecond" in caplog.text
    assert "none: left out 1 of 1 stretches of speech" in caplog.text


def test_files_of_all_kinds(spectra: SpeakerModel, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = tmp_path / "Gespräche, 2 Stück"
    folder.mkdir()
    conversation = chat(2)
    stereo = np.stack([conversation.wave, 0.5 * conversation.wave], axis=1)[::2]  # 8 kHz: what is above 4 kHz is noise
    waves: dict[str, tuple[NDArray[np.float32], int]] = {
        "sprache ü": (stereo, RATE // 2),
        "silent": (np.zeros(RATE * 5, dtype=np.float32), RATE),
        "quiet": ((1e-4 * generator(3).standard_normal(RATE * 5)).astype(np.float32), RATE),
        "short": (voice(0, 0, 0.1), RATE),
        "one": (np.concatenate([voice(1, number, 3.0) for number in range(4)]), RATE),
        "broken": (conversation.wave, RATE),
    }
    files = {name: folder / f"{name}.{'flac' if name == 'broken' else 'wav'}" for name in waves}
    for name, (wave, rate) in waves.items():
        soundfile.write(files[name], wave, rate)
    content = files["broken"].read_bytes()
    files["broken"].write_bytes(content[: len(content) // 2])
    settings, output = Settings(threshold=0.5), tmp_path / "out" / "all.rttm"
    with pytest.raises(AudioError, match=r"broken\.flac"):
        diarize_files(spectra, files, settings, output)
    assert not output.exists()
    with caplog.at_level(logging.WARNING):
        summary = diarize_files(spectra, files, settings, output, on_error="skip")
    found = rttm.by_recording(rttm.read(output))
    assert list(found) == ["sprache ü", "one"]
    assert diarization_error(conversation, found["sprache ü"]).total < 0.1
    assert [(segment.speaker, segment.start, segment.end) for segment in found["one"]] == [("speaker1", 0.0, 12.0)]
    assert (summary.recordings, summary.speakers, summary.silent) == (5, 3, ["silent", "quiet", "short"])
    assert summary.segments == sum(map(len, found.values()))
    assert [bad.id for bad in summary.bad] == ["broken"]
    assert "skipped broken" in caplog.text
    assert "silent.wav: no speech in it" in caplog.text
    # Asked for speech of less than the shortest sound, the short one has some.
    assert len(diarize(spectra, files["short"], Settings(threshold=0.5, min_speech=0.0))) == 1
    with pytest.raises(UserError, match=r"one: nothing says where it has speech \(1 of 1 recordings"):
        diarize_files(spectra, {"one": files["one"]}, settings, output, speech={})


@EITHER
@pytest.mark.parametrize("speakers", [("1688", "367"), ("1688", "2609", "3080")])
def test_the_error_on_real_speech(real_spectra: SpeakerModel, method: str, speakers: tuple[str, ...]) -> None:
    """Speakers of LibriSpeech in turn. Pauses within an utterance count as speech in the reference: most of what is
    missed."""
    conversation = real(SHARED, speakers, 9, seed=0)
    settings = Settings(clustering=method, num_speakers=len(speakers), min_silence=0.5)  # type: ignore[arg-type]
    found = diarize(real_spectra, conversation.wave, settings)
    error = diarization_error(conversation, found)
    assert error.confused < 0.1
    assert error.total < 0.2
    assert diarization_error(conversation, found, collar=0.25).total < error.total
    assert diarization_error(conversation, as_one_speaker(found)).total > 0.4


@pytest.mark.slow
def test_the_error_with_a_trained_model(shared_data: Path, tmp_path: Path, run_command: Run) -> None:
    """`python -m spkexp.embed diarize=true` with the default model, trained on synthetic voices: on others of them, and
    on real speech, which it has never heard. How many speak is not said."""
    run, rows = tmp_path / "run", []
    assert run_command("train", f"run_dir={run}").code == 0
    conversations = {
        "synthetic": [
            synthetic(voices, 24, seed) for seed, voices in enumerate([(1, 2), (3, 4, 5), (6, 7), (8, 9, 10)])
        ],
        "real": [
            real(shared_data, names, 16, 0) for names in (("1688", "367"), ("2033", "3080"), ("1688", "2609", "367"))
        ],
    }
    for kind, some in conversations.items():
        folder = tmp_path / kind
        folder.mkdir()
        for number, conversation in enumerate(some):
            soundfile.write(folder / f"{number}.wav", conversation.wave, RATE)
        for method in ("agglomerative", "spectral"):
            output = tmp_path / f"{kind} {method}.rttm"
            arguments = [f"model={run}", f"input={folder}", f"output={output}", "diarize=true", f"clustering={method}"]
            done = run_command("embed", *arguments)
            assert done.code == 0, done.err
            found = rttm.by_recording(rttm.read(output))
            errors = [diarization_error(c, found[str(number)]) for number, c in enumerate(some)]
            everyone = [diarization_error(c, as_one_speaker(found[str(n)])) for n, c in enumerate(some)]
            rows.append((kind, method, *np.mean(errors, axis=0), np.mean(everyone, axis=0).sum()))
    confused = {(kind, method): row[2] for kind, method, *row in rows}
    assert confused["synthetic", "spectral"] < 0.2, rows
    assert confused["real", "spectral"] < 0.15, rows
    # Its threshold is of the run's own kind of speech: on real speech it may well say that all are one.
    assert confused["synthetic", "agglomerative"] < 0.35, rows
    assert all(sum(row[:3]) < 0.6 * row[3] for _, method, *row in rows if method == "spectral"), rows
