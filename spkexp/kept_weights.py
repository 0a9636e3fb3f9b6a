"""The weights of the last validations of a run, of which the mean is taken at its end."""

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor, nn

from spkexp import checkpoint, durable
from spkexp.errors import UserError

_WEIGHTS = "step-*.safetensors"


def save(folder: Path, step: int, model: nn.Module, head: nn.Module, keep: int) -> None:
    """Write `folder`/step-<step>.safetensors for `average`, and remove all but the newest `keep`. Raises UserError."""
    file = folder / f"step-{step:08d}.safetensors"
    tensors = checkpoint.tensors_of(model, head)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        durable.write(file, lambda partial: save_file(tensors, partial))
        durable.prune(folder, _WEIGHTS, _weights(folder)[-keep:])
    except checkpoint.UNWRITTEN as error:
        with suppress(OSError):  # what hindered the writing may hinder this, and the next pruning does it, too
            durable.beside(file, "partial").unlink()
        raise checkpoint.not_saved(file, folder.parent, error) from error


def drop_after(folder: Path, step: int) -> None:
    """Remove what `save` wrote after `step`, for those steps are done again."""
    if folder.is_dir():
        kept = [file for file in _weights(folder) if int(file.stem.removeprefix("step-")) <= step]
        durable.prune(folder, _WEIGHTS, kept)


def _weights(folder: Path) -> list[Path]:
    return sorted(folder.glob(_WEIGHTS))


def average(files: Sequence[Path]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Mean of what `save` wrote, computed in float64: (tensors of the model, tensors of the head).

    Integers, as counts of batches, are those of the last file. Raises UserError, also where a file is damaged.
    """
    if not files:
        raise UserError("no weights were kept that could be averaged; trainer.average_last=null does without")
    sums: dict[str, Tensor] = {}
    for file in files:
        if (wrong := durable.verify_file(file)) is not None:
            raise UserError(f"{file.parent}: {wrong}; delete that file and resume: the others are averaged")
        tensors = checkpoint.read_model(file)
        shapes = {name: tensor.shape for name, tensor in tensors.items()}
        if sums and shapes != {name: tensor.shape for name, tensor in sums.items()}:
            raise UserError(f"{file}: has other tensors than {files[0]}; delete those of another model, then resume")
        sums = {name: sums.get(name, 0) + tensor.double() for name, tensor in tensors.items()}
    return checkpoint.split(
        {name: (sums[name] / len(files)).to(t.dtype) if t.is_floating_point() else t for name, t in tensors.items()}
    )
