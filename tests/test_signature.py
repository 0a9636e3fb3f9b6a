"""Signatures are read from source, and agree with what importing the class would say."""

import inspect
import subprocess
import sys

import pytest

from spkexp.signature import TargetError, read_signature


@pytest.mark.parametrize(
    "target",
    ["spkexp.models.ecapa.ECAPA", "spkexp.losses.margin.AAMSoftmax", "spkexp.schedule.Cosine", "torch.optim.AdamW"],
)
def test_agrees_with_inspect(target: str) -> None:
    module, _, name = target.rpartition(".")
    found = inspect.signature(getattr(__import__(module, fromlist=[name]), name)).parameters
    signature = read_signature(target)
    assert set(signature.types) == set(found)
    assert signature.required == {p.name for p in found.values() if p.default is p.empty}


def test_reads_torch_without_importing_it() -> None:
    code = (
        "import sys; from spkexp.signature import read_signature; "
        "print('lr' in read_signature('torch.optim.AdamW').types, 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["True", "False"]


@pytest.mark.parametrize("target", ["nowhere.at.All", "spkexp.models.ecapa.Nothing", "spkexp.models.ecapa", "ECAPA"])
def test_unknown_target(target: str) -> None:
    with pytest.raises(TargetError):
        read_signature(target)


def test_inherited_constructor_and_ranges() -> None:
    # Cosine defines no __init__ of its own; the one of its private base is read, with its ranges.
    assert {"final", "warmup_epochs"} <= read_signature("spkexp.schedule.Cosine").required
