"""Loading a model runs no code of its folder, and what a constructor refuses is the user's to mend."""

from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf
from safetensors.torch import save_file

from spkexp import build
from spkexp.cli import compose_config
from spkexp.errors import UserError


@pytest.mark.parametrize(
    "target",
    [
        "spkexp.build.torch.hub.load",
        "spkexp.scoring.verification.np.save",
        "spkexp.data.dataset.DataLoader",
        "spkexp.models.speaker.torch.nn.Module",
        "spkexp.tracking.Tracker",
        "os.system",
        "outside.Model",
    ],
)
def test_a_config_from_elsewhere_names_models_only(tmp_path: Path, target: str) -> None:
    (tmp_path / "hubconf.py").write_text(f"open({str(tmp_path / 'pwned')!r}, 'w')\ndef f(): pass\n")
    save_file({"x": torch.zeros(1)}, tmp_path / "model.safetensors")
    cfg = compose_config([])
    cfg.model.encoder = {"_target_": target, "repo_or_dir": str(tmp_path), "model": "f", "source": "local"}
    OmegaConf.save(cfg, tmp_path / "config.yaml")
    with pytest.raises(UserError, match=r"config.yaml: "):
        build.trained_model(tmp_path)
    assert not (tmp_path / "pwned").exists()


def test_what_a_constructor_refuses_is_named() -> None:
    cfg = compose_config(["model.encoder.dilations=[1,2]"])
    with pytest.raises(UserError, match=r"^model.encoder: .*dilations"):
        build.model(cfg.model)


def test_a_trusted_package_is_built(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mypackage.py").write_text(
        "from spkexp.models.xvector import XVector\nclass Mine(XVector):\n    pass\n", encoding="utf-8"
    )
    monkeypatch.syspath_prepend(tmp_path)
    cfg = compose_config(["model=xvector"])
    save_file(
        {name: t.contiguous() for name, t in build.model(cfg.model).state_dict().items()},
        tmp_path / "model.safetensors",
    )
    cfg.model.encoder["_target_"] = "mypackage.Mine"
    OmegaConf.save(cfg, tmp_path / "config.yaml")
    with pytest.raises(UserError, match="pass trust=mypackage"):
        build.trained_model(tmp_path)
    assert type(build.trained_model(tmp_path, ("mypackage",))[0].encoder).__name__ == "Mine"
