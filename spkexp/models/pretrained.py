"""Published weights of wav2vec 2.0, HuBERT and WavLM: from torchaudio's pipelines, transformers' folders, or a file.

Nothing of them is executed: tensors are read with safetensors or `weights_only`, and `config.json` as data.
"""

import http.client
import json
import re
import shutil
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from spkexp import foreign
from spkexp.download import open_url
from spkexp.errors import UserError
from spkexp.models import lora
from spkexp.whole_file import replacing

KEY = "model.encoder.pretrained"
DOWNLOADS = "https://download.pytorch.org/torchaudio/models"
TIMEOUT = 8.0  # seconds to wait for an answer

# Of the tensors in a file, those of the network; others belong to heads and to pre-training.
_PARTS = ("feature_extractor.", "feature_projection.", "pos_conv_embed.", "layer_norm.", "layers.")
# transformers' file of weights, as it is written today and as it was.
_SAFETENSORS, _PICKLED = "model.safetensors", "pytorch_model.bin"


@dataclass(frozen=True)
class Architecture:
    """Those arguments of `self_supervised.SelfSupervised` that weights depend on."""

    extractor_channels: list[int]
    extractor_kernel_sizes: list[int]
    extractor_strides: list[int]
    extractor_norm: Literal["group", "layer"]
    extractor_bias: bool
    channels: int
    num_layers: int
    attention_heads: int
    feedforward_channels: int
    position_kernel: int
    position_groups: int
    position_buckets: int
    max_distance: int
    layer_norm_first: bool

    def differences(self, other: "Architecture") -> list[tuple[str, Any, Any]]:
        """(argument, its value here, its value in `other`) for each that differs."""
        pairs = [(field.name, getattr(self, field.name), getattr(other, field.name)) for field in fields(self)]
        return [(name, here, there) for name, here, there in pairs if here != there]


@dataclass(frozen=True)
class Weights:
    """Tensors by the names of `wav2vec2.Wav2Vec2`; what is known of the network and of the waveforms it heard."""

    tensors: dict[str, Tensor]
    architecture: Architecture | None
    normalise: Literal["none", "mean_variance"] | None


def read(source: str) -> Weights:
    """The weights of `source`: a pipeline of torchaudio, a folder of transformers or a file. Raises UserError."""
    path = Path(source).expanduser()
    if path.is_dir():
        return _read_transformers(path)
    if path.is_file():
        return Weights(own_names(_read_tensors(path)), None, None)
    import torchaudio.pipelines  # seconds, and only here

    bundle = getattr(torchaudio.pipelines, source, None)
    if not isinstance(bundle, torchaudio.pipelines.Wav2Vec2Bundle):
        close = [name for name in dir(torchaudio.pipelines) if name.startswith(("WAV2VEC2", "HUBERT", "WAVLM"))]
        raise UserError(
            f"{KEY}: there is no file or folder '{source}' and no such pipeline in torchaudio; use a folder with "
            f"config.json and {_SAFETENSORS}, a file of tensors, null, or one of {', '.join(close)}"
        )
    normalise: Literal["none", "mean_variance"] = "mean_variance" if bundle._normalize_waveform else "none"
    tensors = _read_tensors(_cached(source, bundle._path))
    return Weights(own_names(tensors), _of_torchaudio(bundle._params), normalise)


def load_into(network: nn.Module, tensors: dict[str, Tensor], source: str) -> None:
    """Copy `tensors` into `network`; every one must be there, none too many, each of the right shape.

    LoRA's own keep their initial values.
    """
    own = {name: tensor for name, tensor in network.state_dict().items() if not lora.is_lora(name)}
    mistakes = [f"has no {name}" for name in own if name not in tensors]
    mistakes += [f"has {name}, which the network has not" for name in tensors if name not in own]
    mistakes += [
        f"{name} is {list(tensor.shape)}, the network's {list(own[name].shape)}"
        for name, tensor in tensors.items()
        if name in own and own[name].shape != tensor.shape
    ]
    if mistakes:
        more = f" and {len(mistakes) - 3} more" if len(mistakes) > 3 else ""
        raise UserError(
            f"{KEY}: {source} is not of the architecture that model.encoder states: {'; '.join(mistakes[:3])}{more}; "
            "change the arguments of model.encoder to those of the weights, or use other weights"
        )
    network.load_state_dict(tensors, strict=False)  # but for LoRA's


def own_names(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The network's tensors in a file of torchaudio or transformers, by the names of `wav2vec2.Wav2Vec2`."""
    found = {}
    for name, tensor in tensors.items():
        name = re.sub(r"^(model|wav2vec2|hubert|wavlm)\.", "", name)
        name = re.sub(r"^encoder\.(transformer\.)?", "", name)
        name = name.replace(".attention.attention.", ".attention.")  # torchaudio's WavLM
        name = re.sub(r"\.weight_g$", ".parametrizations.weight.original0", name)
        name = re.sub(r"\.weight_v$", ".parametrizations.weight.original1", name)
        if not name.startswith(_PARTS):
            continue
        joined = re.fullmatch(r"(.*\.)in_proj_(weight|bias)", name)
        if joined is None:
            found[name] = tensor
        else:  # query, key and value in one matrix: torchaudio's WavLM
            for part, third in zip("qkv", tensor.chunk(3), strict=True):
                found[f"{joined[1]}{part}_proj.{joined[2]}"] = third
    return found


def _read_tensors(file: Path) -> dict[str, Tensor]:
    try:
        tensors = foreign.read_tensors(file)
    except UserError as error:
        raise UserError(f"{KEY}: {error}; it may be incomplete: delete it and fetch it again") from error
    if not all(isinstance(tensor, Tensor) for tensor in tensors.values()):
        raise UserError(f"{KEY}: {file} holds no state_dict; save torchaudio's model.state_dict(), or use a folder")
    return tensors


def _of_torchaudio(params: dict[str, Any]) -> Architecture:
    """From the arguments of torchaudio's `wav2vec2_model` and `wavlm_model`."""
    channels, kernel_sizes, strides = zip(*params["extractor_conv_layer_config"], strict=True)
    return Architecture(
        extractor_channels=list(channels),
        extractor_kernel_sizes=list(kernel_sizes),
        extractor_strides=list(strides),
        extractor_norm=params["extractor_mode"].removesuffix("_norm"),
        extractor_bias=params["extractor_conv_bias"],
        channels=params["encoder_embed_dim"],
        num_layers=params["encoder_num_layers"],
        attention_heads=params["encoder_num_heads"],
        feedforward_channels=params["encoder_ff_interm_features"],
        position_kernel=params["encoder_pos_conv_kernel"],
        position_groups=params["encoder_pos_conv_groups"],
        position_buckets=params.get("encoder_num_buckets", 0),
        max_distance=params.get("encoder_max_distance", 0),
        layer_norm_first=params["encoder_layer_norm_first"],
    )


def _read_transformers(folder: Path) -> Weights:
    file = next((folder / name for name in (_SAFETENSORS, _PICKLED) if (folder / name).is_file()), None)
    config = folder / "config.json"
    if file is None or not config.is_file():
        raise UserError(
            f"{KEY}: {folder} needs config.json and {_SAFETENSORS} (or {_PICKLED}), as in a repository "
            f"of transformers; fetch them with: hf download MODEL --local-dir {folder}"
        )
    try:
        architecture = _of_transformers(json.loads(config.read_text(encoding="utf-8")), config)
        preprocessor = folder / "preprocessor_config.json"
        normalise: Literal["none", "mean_variance"] | None = None
        if preprocessor.is_file():
            wanted = json.loads(preprocessor.read_text(encoding="utf-8")).get("do_normalize", True)
            normalise = "mean_variance" if wanted else "none"
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{KEY}: a .json file of {folder} is broken ({error}); fetch it again") from error
    return Weights(own_names(_read_tensors(file)), architecture, normalise)


def _of_transformers(config: dict[str, Any], file: Path) -> Architecture:
    """From a config.json; what it leaves out has transformers' default."""
    kind = config.get("model_type")
    if kind not in ("wav2vec2", "hubert", "wavlm"):
        raise UserError(f"{KEY}: {file} is of a {kind}; wav2vec2, hubert and wavlm are known")
    # What these networks have in none of the published base, large and extra large models.
    fixed = {"hidden_act": "gelu", "feat_extract_activation": "gelu", "conv_pos_batch_norm": False}
    fixed |= {"feat_proj_layer_norm": True, "add_adapter": False}
    for key, expected in fixed.items():
        if config.get(key, expected) != expected:
            raise UserError(f"{KEY}: {file} has {key}={config[key]}; only {expected} is known")
    return Architecture(
        extractor_channels=list(config.get("conv_dim", [512] * 7)),
        extractor_kernel_sizes=list(config.get("conv_kernel", [10, 3, 3, 3, 3, 2, 2])),
        extractor_strides=list(config.get("conv_stride", [5, 2, 2, 2, 2, 2, 2])),
        extractor_norm=config.get("feat_extract_norm", "group"),
        extractor_bias=config.get("conv_bias", False),
        channels=config.get("hidden_size", 768),
        num_layers=config.get("num_hidden_layers", 12),
        attention_heads=config.get("num_attention_heads", 12),
        feedforward_channels=config.get("intermediate_size", 3072),
        position_kernel=config.get("num_conv_pos_embeddings", 128),
        position_groups=config.get("num_conv_pos_embedding_groups", 16),
        position_buckets=config.get("num_buckets", 320) if kind == "wavlm" else 0,
        max_distance=config.get("max_bucket_distance", 800) if kind == "wavlm" else 0,
        layer_norm_first=config.get("do_stable_layer_norm", False),
    )


def _cached(name: str, path: str) -> Path:
    """The file of a pipeline in torch.hub's cache, downloaded first if it is not there."""
    url = path if path.startswith("http") else f"{DOWNLOADS}/{path}"
    file = Path(torch.hub.get_dir(), "checkpoints", url.rpartition("/")[2])
    if file.is_file():
        return file
    try:
        with open_url(url, TIMEOUT) as response, replacing(file) as temporary, temporary.open("wb") as out:
            shutil.copyfileobj(response, out, length=1 << 20)
            size = response.headers.get("Content-Length")
            if size is not None and out.tell() != int(size):
                raise OSError(f"{out.tell()} of {size} bytes came")
    except (OSError, http.client.HTTPException) as error:  # urllib's and socket's errors are OSErrors
        raise UserError(
            f"{KEY}: {name} could not be downloaded ({error}); where there is a network, fetch {url} "
            f"(say, with curl -LO) and put it at {file}"
        ) from error
    return file
