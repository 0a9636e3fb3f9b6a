"""Reverberation against convolution in float64: the samples, the alignment, the energy, simulated rooms."""

from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from spkexp.augment.augmentation import Signal
from spkexp.augment.chain import prepared
from spkexp.augment.reverb import Reverberation, aligned, direct_sound
from spkexp.augment.rooms import SimulatedRooms, reverberation
from spkexp.counter import Keys, item_keys
from spkexp.data.audio import read
from spkexp.data.recordings import ImpulseResponses
from tests.test_noise import augmented, batch

RATE = 16_000


class Fixed:
    """The same rooms, one after another."""

    def __init__(self, *responses: np.ndarray) -> None:
        self._responses = [response.astype(np.float32) for response in responses]

    def responses(self, key: Keys, seconds: float, bad: list[tuple[str, str]]) -> list[np.ndarray]:
        return [self._responses[row % len(self._responses)] for row in range(len(key))]


def room(delay: int, taps: int, seed: int) -> np.ndarray:
    """`delay` samples of nothing, the direct sound, and a decay."""
    tail = 0.3 * np.random.default_rng(seed).standard_normal(taps) * np.exp(-np.arange(taps) / (taps / 5))
    tail[0] = 1.0
    return np.concatenate([np.zeros(delay), tail])


def reference(wave: np.ndarray, response: np.ndarray, delay: int) -> np.ndarray:
    """Convolved, in time with `wave`, and of its power, in float64."""
    heard = np.convolve(wave, response)[delay : delay + len(wave)]
    return heard * np.sqrt(np.sum(wave**2) / np.sum(heard**2))


def test_convolution_alignment_and_energy() -> None:
    rooms = [(0, 4_000), (37, 700), (2_500, 6_000), (5, 1), (300, 8_000)]
    responses = [room(delay, taps, seed) for seed, (delay, taps) in enumerate(rooms)]
    before = batch([20_000, 20_000, 13_000, 20_000, 5_000], 20_000)
    after = augmented(prepared(Reverberation(1.0, Fixed(*responses), 0.5, RATE)), before)
    for row, length in enumerate(before.lengths):
        wave = before.waveform[row, :length].double().numpy()
        expected = reference(wave, responses[row].astype(np.float32).astype(np.float64), rooms[row][0])
        error = after.waveform[row, :length].double().numpy() - expected
        assert np.abs(error).max() < 1e-5 * np.abs(expected).max()
        assert not after.waveform[row, length:].any()
    assert torch.equal(after.lengths, before.lengths)


def test_what_comes_later_than_max_seconds_is_left_out() -> None:
    response = room(10, 4_000, 1)
    before = batch([8_000], 8_000)
    after = augmented(prepared(Reverberation(1.0, Fixed(response), 0.1, RATE)), before)
    expected = reference(before.waveform[0].double().numpy(), response[: 10 + 1_600], 10)
    assert after.waveform[0].double().numpy() == pytest.approx(expected, abs=1e-5 * np.abs(expected).max())


def test_a_response_longer_than_the_row() -> None:
    response = room(3, 9_000, 2)
    before = batch([500], 500)
    after = augmented(prepared(Reverberation(1.0, Fixed(response), 1.0, RATE)), before)
    expected = reference(before.waveform[0].double().numpy(), response, 3)
    assert after.waveform[0].double().numpy() == pytest.approx(expected, abs=1e-5 * np.abs(expected).max())


def test_direct_sound_is_the_first_strong_peak() -> None:
    response = np.zeros(400, dtype=np.float32)
    response[20] = 0.1  # noise of the recording
    response[98:103] = [0.2, 0.5, -0.8, -0.4, 0.1]  # the direct sound, whose peak is negative
    response[250] = 1.0  # a reflection that is louder
    assert direct_sound(response) == 100
    response[98:103] = 0
    assert direct_sound(response) == 250
    rising = np.linspace(0, 1, 50, dtype=np.float32)  # cut off at its peak
    assert direct_sound(rising) == 49


def test_aligned_keeps_what_belongs_to_the_direct_pulse() -> None:
    response = np.zeros(300, dtype=np.float32)
    response[[50, 99, 100, 101, 180]] = [0.3, 0.4, 1.0, 0.4, 0.2]
    expected = np.zeros(32 + 100)
    expected[[31, 32, 33, 112]] = [0.4, 1.0, 0.4, 0.2]
    assert aligned(response, 32, 100) == pytest.approx(expected / np.linalg.norm(expected), abs=1e-6)
    assert aligned(response[99:], 32, 20)[:35] == pytest.approx(expected[:35] / np.sqrt(1.32), abs=1e-6)


def test_silent_rows_and_rows_not_chosen() -> None:
    before = batch([1_000] * 300, 1_000)
    before.waveform[::5] = 0
    after = augmented(prepared(Reverberation(0.4, Fixed(room(9, 300, 0)), 0.2, RATE)), before)
    same = (after.waveform == before.waveform).all(dim=1)
    assert same[::5].all()
    assert after.waveform.isfinite().all()
    assert (~same).sum().item() / 240 == pytest.approx(0.4, abs=0.11)


def test_a_row_is_the_same_in_any_batch() -> None:
    reverb = prepared(Reverberation(0.7, SimulatedRooms([0.1, 0.6], [0, 10], RATE), 0.3, RATE))
    before = batch([6_000, 3_000, 6_000, 4_000, 6_000], 6_000)
    whole = augmented(reverb, before)
    assert torch.equal(whole.waveform, augmented(reverb, before).waveform)
    for rows in (np.arange(2), np.array([4, 3, 2])):
        part = augmented(reverb, Signal(before.waveform[rows], before.lengths[rows], before.key[rows], rows))
        torch.testing.assert_close(part.waveform, whole.waveform[rows], rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("decay", [0.3, 0.8])
def test_simulated_rooms_decay_as_asked(decay: float) -> None:
    """Schroeder 1965: the energy that is still to come falls by 60 dB in the decay time."""
    responses = SimulatedRooms([decay, decay], [2, 2], RATE).responses(item_keys(0, 0, np.arange(40)), 2.0, [])
    energy = np.mean([response[1:].astype(np.float64) ** 2 for response in responses], axis=0)
    remaining = 10 * np.log10(np.cumsum(energy[::-1])[::-1])
    time = np.arange(len(remaining)) / RATE
    fit = (time > 0.05 * decay) & (time < 0.5 * decay)
    slope = np.polyfit(time[fit], remaining[fit], 1)[0]
    assert -60 / slope == pytest.approx(decay, rel=0.03)
    for response in responses:
        assert response[0] == 1
        assert not response[1:32].any()
        assert 10 * np.log10(1 / np.sum(response[1:].astype(np.float64) ** 2)) == pytest.approx(2, abs=0.01)


def test_simulated_rooms_are_drawn_from_their_ranges() -> None:
    responses = SimulatedRooms([0.1, 0.5], [-3, 9], RATE).responses(item_keys(0, 0, np.arange(300)), 1.0, [])
    seconds = np.array([len(response) / RATE for response in responses])
    assert np.quantile(seconds, [0, 0.5, 1]) == pytest.approx([0.1, 0.3, 0.5], abs=0.04)
    direct = [-10 * np.log10(np.sum(response[1:].astype(np.float64) ** 2)) for response in responses]
    assert np.quantile(direct, [0, 0.5, 1]) == pytest.approx([-3, 3, 9], abs=1.0)
    short = SimulatedRooms([0.5, 0.5], [0, 0], RATE).responses(item_keys(0, 0, np.arange(1)), 0.2, [])
    assert len(short[0]) == 3_200


def test_cut_response_decays_like_the_whole() -> None:
    whole = reverberation(0.4, 0.0, RATE, np.random.default_rng(0))
    cut = reverberation(0.4, 0.0, RATE, np.random.default_rng(0), seconds=0.1)
    assert cut[33:] / cut[33] == pytest.approx(whole[33:1_600] / whole[33])


def test_real_responses_on_real_speech(shared_data: Path) -> None:
    speech = sorted((shared_data / "LibriSpeech" / "test-other").rglob("*.flac"))[:8]
    wave = torch.from_numpy(np.stack([read(path, 0, 32_000) for path in speech]))
    before = Signal(wave, torch.full((8,), 32_000), item_keys(0, 0, np.arange(8)), np.arange(8))
    bank = ImpulseResponses(str(shared_data / "rir"), ["*.flac"], 10, RATE)
    after = augmented(prepared(Reverberation(1.0, bank, 0.5, RATE)), before)
    for clean, heard in zip(wave.double().numpy(), after.waveform.double().numpy(), strict=True):
        assert np.mean(heard**2) == pytest.approx(np.mean(clean**2), rel=1e-4)
        # In time but for reflections within 2 ms; the direct sound of one recording comes 2,187 samples late.
        correlation = np.fft.irfft(np.conj(np.fft.rfft(clean, 65_536)) * np.fft.rfft(heard, 65_536))
        shift = int(np.argmax(np.abs(correlation)))
        assert min(shift, 65_536 - shift) <= 32
        assert np.abs(heard - clean).max() > 0.01 * np.abs(clean).max()


def test_a_broken_response_is_replaced_and_named(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "silent.wav", np.zeros(800), RATE, subtype="PCM_16")
    soundfile.write(tmp_path / "nan.wav", np.full(800, np.nan), RATE, subtype="FLOAT")
    soundfile.write(tmp_path / "good.wav", room(4, 500, 0), RATE, subtype="FLOAT")
    bank = ImpulseResponses(str(tmp_path), ["**"], 0, RATE)
    bad: list[tuple[str, str]] = []
    found = bank.responses(item_keys(0, 0, np.arange(20)), 1.0, bad)
    assert all(np.array_equal(response, room(4, 500, 0).astype(np.float32)) for response in found)
    assert {Path(file).name for file, _ in bad} == {"silent.wav", "nan.wav"}


def test_ranges_the_wrong_way_round_are_refused() -> None:
    with pytest.raises(ValueError, match=r"rt60: .*\[0.8, 0.2\]"):
        SimulatedRooms([0.8, 0.2], [0, 10], RATE)
    with pytest.raises(ValueError, match=r"direct_db: .*\[10, 0\]"):
        SimulatedRooms([0.2, 0.8], [10, 0], RATE)
    with pytest.raises(ValueError, match=r"rt60: must be at least 0.01"):
        SimulatedRooms([0, 0.8], [0, 10], RATE)
