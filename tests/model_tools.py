"""Models as conf/model describes them, and what their tests measure."""

from functools import cache
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig
from torch import Tensor, nn

from spkexp import build
from spkexp.compose import compose_config
from spkexp.models.speaker import SpeakerModel

NAMES = sorted(path.stem for path in Path(__file__).parents[1].glob("conf/model/*.yaml"))


@cache
def model_config(name: str) -> DictConfig:
    return compose_config([f"model={name}"]).model


def speaker_model(name: str, **encoder: Any) -> SpeakerModel:
    """conf/model/NAME.yaml with fresh weights; `encoder` overrides arguments of the encoder."""
    torch.manual_seed(0)
    cfg = model_config(name).copy()
    for key, value in encoder.items():
        assert key in cfg.encoder
        cfg.encoder[key] = value
    return build.model(cfg)


def randomise_norms(model: nn.Module) -> None:
    """Batch-normalisation statistics that are not those of a fresh layer."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d) and module.running_mean is not None:
            nn.init.normal_(module.running_mean, 0.3, 0.2)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
            if module.bias is not None:
                nn.init.normal_(module.bias, 0.5, 0.2)


def count(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def relative_error(actual: Tensor, expected: Tensor) -> float:
    return float((actual - expected).detach().abs().max() / expected.detach().abs().max())
