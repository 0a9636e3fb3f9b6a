"""wav2vec 2.0, HuBERT and WavLM of transformers: a folder it saved gives its hidden states.

transformers is no dependency; `uv pip install --target FOLDER transformers` and PYTHONPATH=FOLDER will do.
"""

from pathlib import Path
from typing import Any

import pytest
import torch

from spkexp.features import Waveform
from spkexp.models.self_supervised import SelfSupervised
from tests.model_tools import relative_error

transformers = pytest.importorskip(
    "transformers", reason="uv pip install --target FOLDER transformers; PYTHONPATH=FOLDER"
)

CLASSES = {"wav2vec2": "Wav2Vec2", "hubert": "Hubert", "wavlm": "WavLM"}


@pytest.mark.parametrize("large", [False, True])
@pytest.mark.parametrize("kind", CLASSES)
def test_hidden_states(kind: str, large: bool, tmp_path: Path) -> None:
    torch.manual_seed(0)
    settings: dict[str, Any] = {
        "conv_dim": (16, 24, 24),
        "conv_kernel": (10, 3, 2),
        "conv_stride": (5, 2, 2),
        "feat_extract_norm": "layer" if large else "group",
        "conv_bias": large,
        "hidden_size": 32,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "intermediate_size": 48,
        "num_conv_pos_embeddings": 8,
        "num_conv_pos_embedding_groups": 4,
        "do_stable_layer_norm": large,
        "mask_time_prob": 0.0,
    }
    buckets = {"num_buckets": 32, "max_bucket_distance": 20} if kind == "wavlm" else {}
    config = getattr(transformers, f"{CLASSES[kind]}Config")(**settings, **buckets)
    theirs = getattr(transformers, f"{CLASSES[kind]}Model")(config).eval()
    for parameter in theirs.parameters():
        parameter.data.add_(torch.randn_like(parameter) * 0.1)
    theirs.save_pretrained(tmp_path)
    ours = SelfSupervised(
        in_channels=1,
        extractor_channels=[16, 24, 24],
        extractor_kernel_sizes=[10, 3, 2],
        extractor_strides=[5, 2, 2],
        extractor_norm="layer" if large else "group",
        extractor_bias=large,
        channels=32,
        num_layers=3,
        attention_heads=4,
        feedforward_channels=48,
        position_kernel=8,
        position_groups=4,
        position_buckets=buckets.get("num_buckets", 0),
        max_distance=buckets.get("max_bucket_distance", 0),
        layer_norm_first=large,
        dropout=0.1,
        normalise_layers=False,
        trainable="none",
        pretrained=str(tmp_path),
    ).eval()
    ours.load_pretrained(Waveform(16000, "none"))
    for samples in (1500, 401):
        waveform = torch.randn(2, samples)
        with torch.no_grad():
            output = theirs(waveform, output_hidden_states=True)
            # From version 5 on their last hidden state is that before the large models' last normalisation.
            expected = [*output.hidden_states[:-1], output.last_hidden_state]
            actual, _ = ours.network(waveform.unsqueeze(1), None)
        errors = [relative_error(a, b) for a, b in zip(actual, expected, strict=True)]
        print(kind, large, samples, f"{max(errors):.1e}")
        assert max(errors) < 1e-5
