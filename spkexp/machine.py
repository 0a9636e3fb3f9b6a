"""What `config.check` cannot know: whether a config fits the processes and the device of this launch."""

import torch
from omegaconf import DictConfig

from spkexp import distributed
from spkexp.errors import ConfigError

BATCH_SIZE = "trainer.batch_size"


def check_machine(cfg: DictConfig, device: torch.device) -> None:
    """Raise ConfigError with what does not fit."""
    mistakes = []
    if cfg.trainer.precision == "fp16" and device.type != "cuda":
        mistakes.append("trainer.precision: fp16 needs a CUDA device; bf16 runs here too")
    multiple = cfg.data.sampler.get("multiple_of")
    if multiple is not None:  # of a sampler of batches of several sizes
        mistakes += _unequal("data.sampler.multiple_of", multiple, cfg.trainer.accumulate)
    elif cfg.trainer.batch_size != "auto":
        mistakes += _unequal(BATCH_SIZE, cfg.trainer.batch_size, cfg.trainer.accumulate)
    if mistakes:
        raise ConfigError(mistakes)


def _unequal(key: str, size: int, accumulate: int) -> list[str]:
    processes = distributed.world_size()
    parts = accumulate * processes
    mistakes = []
    if size % parts:
        mistakes.append(
            f"{key}: {size} utterances cannot be shared equally by {processes} "
            f"processes × trainer.accumulate={accumulate}; choose a multiple of {parts}"
        )
    if size // parts == 1:
        mistakes.append(
            f"{key}: batch normalisation needs two utterances in each of the {parts} parts; choose at least {2 * parts}"
        )
    return mistakes
