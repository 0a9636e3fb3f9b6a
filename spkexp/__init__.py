"""Speaker-recognition experiments from one config, and the use of what was trained: `spkexp.load`."""

from typing import TYPE_CHECKING, Literal

from spkexp.allocator import return_memory_of_tables

if TYPE_CHECKING:
    import os
    from collections.abc import Sequence

    import torch

    from spkexp.inference.trained import TrainedModel

return_memory_of_tables()


def load(
    source: "str | os.PathLike[str]",
    device: "str | torch.device" = "auto",
    precision: Literal["fp32", "bf16"] = "fp32",
    trust: "Sequence[str]" = (),
    revision: str | None = None,
    resample: bool = True,
    mix_channels: bool = True,
) -> "TrainedModel":
    """A trained model, ready for use: model.embed, embed_windows, verify, classify, enroll, identify.

    source: a run folder (its best checkpoint is taken), a checkpoint or another folder with a model, an archive at an
        address `https://…#sha256=HEX`, or `user/name` on the Hugging Face hub.
    device: "auto" (cuda where there is one), "cpu", "cuda" or "cuda:1".
    precision: "bf16" has torch choose what is computed in bfloat16; the features never are.
    trust: packages of yours whose classes the model may name; none but spkexp's are built otherwise.
    revision: a branch, tag or commit on the hub.
    resample, mix_channels: whether files of another sample rate are resampled and channels averaged, or refused.

    Runs no code from the folder. Raises spkexp.errors.UserError, which says what to do.
    """
    from spkexp.inference.loading import load

    return load(source, device, precision, trust, revision, resample, mix_channels)
