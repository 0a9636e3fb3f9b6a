"""Every augmentation on a GPU against itself on the CPU, and without waiting for the device."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import pytest
import torch

from spkexp.augment.augmentation import Augmentation, Material, Signal
from spkexp.augment.chain import OneOf, Parallel, Sequence, prepared
from spkexp.augment.codec import CODERS, Codec
from spkexp.augment.dropout import ChunkDrop, FrequencyDrop
from spkexp.augment.level import Clipping, Gain
from spkexp.augment.noise import ColouredNoise, Kind, Noise
from spkexp.augment.pitch import Pitch
from spkexp.augment.reverb import Reverberation
from spkexp.augment.rooms import SimulatedRooms
from spkexp.augment.spectral import SpecAugment
from spkexp.augment.telephone import Telephone
from spkexp.augment.tempo import Tempo
from spkexp.counter import item_keys

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
RATE, ROWS, SAMPLES = 16_000, 24, 16_000


def noise(probability: float = 0.7) -> Noise:
    return Noise(probability, {"pink": Kind(1.0, [0, 15], [1, 3], ColouredNoise([0, 2], RATE))})


def rooms(probability: float = 0.7) -> Reverberation:
    return Reverberation(probability, SimulatedRooms([0.1, 0.6], [-3, 12], RATE), 0.5, RATE)


AUGMENTATIONS: dict[str, Callable[[], Augmentation]] = {
    "noise": noise,
    "reverb": rooms,
    "gain": lambda: Gain(0.7, [-12, 6]),
    "clipping": lambda: Clipping(0.7, [0.2, 0.8]),
    "telephone": lambda: Telephone(0.7, "none", [300, 3400], RATE),
    "mu_law": lambda: Telephone(1.0, "mu_law", [300, 3400], RATE),
    "a_law": lambda: Telephone(1.0, "a_law", [300, 3400], RATE),
    "frequency_drop": lambda: FrequencyDrop(0.7, [1, 3], [0, 8000], 800, RATE),
    "chunk_drop": lambda: ChunkDrop(0.7, [1, 5], [0.0625, 0.125], RATE),
    "tempo": lambda: Tempo(0.7, [0.9, 1.1], RATE),
    "pitch": lambda: Pitch(0.7, [-2, 2], RATE),
    "sequence": lambda: Sequence({"rooms": rooms(), "noise": noise()}),
    "one_of": lambda: OneOf(0.8, {"rooms": rooms(1.0), "noise": noise(1.0), "gain": Gain(1.0, [-6, 6])}, None),
    "parallel": lambda: Parallel(True, {"rooms": rooms(), "noise": noise()}),
}
# Where a rounding decides between neighbours (a quantisation step, the start of a segment) single values differ.
DECIDES = ("mu_law", "a_law", "tempo", "pitch")


@contextmanager
def no_waiting() -> Iterator[None]:
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def batch() -> Signal:
    """Two rows in three are short."""
    waveform = 0.1 * torch.randn(ROWS, SAMPLES, generator=torch.Generator().manual_seed(0))
    lengths = torch.tensor([SAMPLES, SAMPLES // 2, SAMPLES // 5] * (ROWS // 3))
    waveform *= torch.arange(SAMPLES) < lengths[:, None]
    return Signal(waveform, lengths, item_keys(0, 0, np.arange(ROWS)), np.arange(ROWS))


def material(augmentation: Augmentation, signal: Signal) -> Material:
    found = Material()
    augmentation.read(signal.key, SAMPLES, found)
    return found


def assert_same(name: str, found: Signal, expected: Signal) -> None:
    assert found.waveform.is_cuda
    assert torch.equal(found.lengths, expected.lengths)
    assert np.array_equal(found.key, expected.key)
    assert np.array_equal(found.source, expected.source)
    near = (found.waveform.cpu() - expected.waveform).abs() < 1e-4 * expected.waveform.abs().max()
    assert near.float().mean() > (0.9 if name in DECIDES else 0.99999)


@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_as_on_the_cpu(name: str) -> None:
    augmentation, signal = prepared(AUGMENTATIONS[name]()), batch()
    given = material(augmentation, signal).tensors
    expected = augmentation(signal, iter(given))
    assert not torch.equal(expected.waveform[-ROWS:], signal.waveform)
    assert_same(name, augmentation(signal._replace(waveform=signal.waveform.cuda()), iter(given)), expected)


@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_nothing_waits_for_the_device(name: str) -> None:
    augmentation, signal = prepared(AUGMENTATIONS[name]()), batch()
    given = material(augmentation, signal).tensors
    signal = signal._replace(waveform=signal.waveform.cuda())
    augmentation(signal, iter(given))  # plans and caches are made the first time
    with no_waiting():
        augmentation(signal, iter(given))


def test_codec_as_on_the_cpu() -> None:
    """It is made on the CPU, so it is the very same."""
    formats = {name: rates for name, rates in {"gsm": [13.0], "mp3": [32.0]}.items() if not CODERS[name].missing()}
    augmentation, signal = prepared(Codec(0.7, formats, RATE)), batch()  # type: ignore[arg-type]
    found = augmentation(signal._replace(waveform=signal.waveform.cuda()), iter([]))
    assert torch.equal(found.waveform.cpu(), augmentation(signal, iter([])).waveform)


@pytest.mark.parametrize("value", ["zero", "mean"])
def test_spec_augment(value: str) -> None:
    augmentation = prepared(SpecAugment(0.8, 2, 8, 2, 20, 0.5, value))  # type: ignore[arg-type]
    features = torch.randn(ROWS, 40, 100, generator=torch.Generator().manual_seed(0))
    lengths = torch.tensor([100, 50, 20] * (ROWS // 3))
    key = item_keys(0, 0, np.arange(ROWS))
    expected, on_device = augmentation(features, lengths, key), features.cuda()
    augmentation(on_device, lengths, key)
    with no_waiting():
        found = augmentation(on_device, lengths, key)
    assert torch.allclose(found.cpu(), expected, atol=1e-5)
