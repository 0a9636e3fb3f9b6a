"""SpeechBrain's ECAPA-TDNN and x-vector with random weights: converted, they give their embeddings of speech."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from tests.conversion_tools import converted, embedded, listed, shapes_of, speech
from tests.model_tools import count, randomise_norms, relative_error

pytest.importorskip("speechbrain", reason="speechbrain is in the test extra")
from speechbrain.lobes.features import Fbank
from speechbrain.lobes.models.ECAPA_TDNN import ECAPA_TDNN
from speechbrain.lobes.models.Xvector import Xvector
from speechbrain.processing.features import InputNormalization

HYPERPARAMS = """
n_mels: {mels}
compute_features: !new:speechbrain.lobes.features.Fbank
    n_mels: !ref <n_mels>
mean_var_norm: !new:speechbrain.processing.features.InputNormalization
    norm_type: sentence
    std_norm: False
embedding_model: !new:speechbrain.lobes.models.{model}
classifier: !apply:os.mkdir [{trap}]
"""


def encode_batch(model: nn.Module, mels: int) -> Callable[[Tensor], Tensor]:
    """EncoderClassifier.encode_batch of the recipes: features, their mean over the sentence, the model."""
    features, norm = Fbank(n_mels=mels), InputNormalization(norm_type="sentence", std_norm=False)

    def encode(waveform: Tensor) -> Tensor:
        lengths = torch.ones(len(waveform))
        with torch.no_grad():
            return model(norm(features(waveform), lengths), lengths).squeeze(1)

    return encode


@pytest.mark.parametrize(
    ("channels", "aggregated"), [(64, 96), pytest.param(1024, 3072, marks=pytest.mark.slow)], ids=str
)
def test_ecapa(channels: int, aggregated: int, tmp_path: Path, shared_data: Path) -> None:
    torch.manual_seed(0)
    theirs = ECAPA_TDNN(80, lin_neurons=192, channels=[channels] * 4 + [aggregated]).eval()
    if channels == 1024:
        assert shapes_of(theirs) == listed("speechbrain_ecapa").shapes
    randomise_norms(theirs)
    text = HYPERPARAMS.format(mels=80, model="ECAPA_TDNN.ECAPA_TDNN", trap=tmp_path / "trap")
    ours = converted(tmp_path, "speechbrain", theirs.state_dict(), {"hyperparams.yaml": text})
    assert not (tmp_path / "trap").exists()
    assert count(ours) == count(theirs)
    encode = encode_batch(theirs, 80)
    for waveform in speech(shared_data):
        assert relative_error(embedded(ours, waveform), encode(waveform)) < 1e-5
    # Quiet speech, whose weak frames top_db raises.
    quiet = 1e-3 * speech(shared_data)[0]
    assert relative_error(embedded(ours, quiet), encode(quiet)) < 1e-5


def test_ecapa_with_other_dilations_and_deviations(tmp_path: Path, shared_data: Path) -> None:
    torch.manual_seed(0)
    theirs = ECAPA_TDNN(40, lin_neurons=32, channels=[32] * 4 + [48], dilations=[1, 1, 2, 5, 1], res2net_scale=4).eval()
    randomise_norms(theirs)
    text = HYPERPARAMS.format(mels=40, model="ECAPA_TDNN.ECAPA_TDNN\n    dilations: [1, 1, 2, 5, 1]", trap="x")
    text = text.replace("std_norm: False", "std_norm: True")
    ours = converted(tmp_path, "speechbrain", theirs.state_dict(), {"hyperparams.yaml": text})
    features, norm = Fbank(n_mels=40), InputNormalization(norm_type="sentence", std_norm=True)
    (waveform,) = speech(shared_data, (2.3,))
    with torch.no_grad():
        expected = theirs(norm(features(waveform), torch.ones(1)), torch.ones(1)).squeeze(1)
    assert relative_error(embedded(ours, waveform), expected) < 1e-5


def test_xvector(tmp_path: Path, shared_data: Path) -> None:
    torch.manual_seed(0)
    theirs = Xvector(in_channels=24).eval()
    assert shapes_of(theirs) == listed("speechbrain_xvector").shapes
    randomise_norms(theirs)
    text = HYPERPARAMS.format(mels=24, model="Xvector.Xvector", trap="x")
    ours = converted(tmp_path, "speechbrain", theirs.state_dict(), {"hyperparams.yaml": text})
    assert count(ours) == count(theirs)
    encode = encode_batch(theirs, 24)
    (waveform,) = speech(shared_data, (2.3,))
    # Theirs adds noise to the mean in evaluation too: two embeddings of the same speech are not the same.
    first, second = encode(waveform), encode(waveform)
    assert relative_error(second, first) > 1e-6
    assert relative_error(embedded(ours, waveform), first) < 1e-4
    mean = torch.stack([encode(waveform) for _ in range(25)]).mean(dim=0)
    assert relative_error(embedded(ours, waveform), mean) < 1.5e-5
