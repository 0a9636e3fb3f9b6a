"""Self-supervised networks as speaker encoders: a learned weighted sum of all hidden states.

Yang et al.: SUPERB, Interspeech 2021, section 3.2; for speaker verification Chen et al.: Large-scale self-supervised
speech representation learning for automatic speaker verification, ICASSP 2022. The network is `wav2vec2.Wav2Vec2`.
"""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from spkexp.errors import UserError
from spkexp.models import pretrained as files
from spkexp.models.layers import Layer
from spkexp.models.wav2vec2 import Wav2Vec2
from spkexp.types import Fraction, NonNegativeInt, Positive, PositiveInt

_SAMPLE_RATE = 16000


class SelfSupervised(nn.Module):
    """wav2vec 2.0, HuBERT or WavLM: waveforms (B, 1, samples) -> (B, channels, T), a frame every 20 ms.

    The arguments up to `layer_norm_first` are the architecture of the weights in `pretrained`; a trained run needs
    only the arguments. Nothing is masked at random, and no layer is dropped.

    Args:
        in_channels: 1, from features=Waveform.
        extractor_channels: of each convolution of the extractor.
        extractor_kernel_sizes: of each, in its input frames.
        extractor_strides: of each; their product is the samples from frame to frame.
        extractor_norm: "group": the first convolution's channels over time (base models); "layer": every frame of every
            convolution (large models).
        extractor_bias: of the convolutions.
        channels: of the Transformer.
        num_layers: of the Transformer.
        attention_heads: must divide `channels`.
        feedforward_channels: width between the two linear layers.
        position_kernel: frames seen by the convolution that gives positions.
        position_groups: of that convolution.
        position_buckets: of WavLM's relative position bias; 0 without (wav2vec 2.0, HuBERT).
        max_distance: frames from which on WavLM's distances share a bucket; 0 without.
        layer_norm_first: a layer begins with its normalisation (large models) instead of ending with it.
        dropout: of whatever part is trained.
        normalise_layers: each hidden state is normalised over its channels before the sum (s3prl's option).
        trainable: what is trained beside the weights of the sum: "none", the topmost so many layers, "transformer"
            (all but the extractor, as usual in fine-tuning) or "all". The rest has no gradient and no dropout.
        pretrained: where a fresh run's weights come from: null (random), a pipeline of torchaudio (WAVLM_BASE_PLUS), a
            folder of transformers (config.json and model.safetensors), or a file of torchaudio's tensors.
        lora_rank: r of LoRA (`lora.LoraLinear`), which learns beside `trainable`, in frozen layers, too; 0 without.
        lora_alpha: what LoRA learns counts α / r times.
        lora_dropout: of the input of its small matrices.
        lora_match: which linear layers have it: a glob on their dotted names in the network, several with `|`.
    """

    def __init__(
        self,
        in_channels: PositiveInt,
        extractor_channels: list[int],
        extractor_kernel_sizes: list[int],
        extractor_strides: list[int],
        extractor_norm: Literal["group", "layer"],
        extractor_bias: bool,
        channels: PositiveInt,
        num_layers: PositiveInt,
        attention_heads: PositiveInt,
        feedforward_channels: PositiveInt,
        position_kernel: PositiveInt,
        position_groups: PositiveInt,
        position_buckets: NonNegativeInt,
        max_distance: NonNegativeInt,
        layer_norm_first: bool,
        dropout: Fraction,
        normalise_layers: bool,
        trainable: Literal["none", "transformer", "all"] | PositiveInt,
        pretrained: str | None,
        lora_rank: NonNegativeInt = 0,  # a model of before LoRA names none
        lora_alpha: Positive = 16.0,
        lora_dropout: Fraction = 0.0,
        lora_match: str = "layers.*.attention.*_proj|layers.*.feed_forward.*",
    ) -> None:
        super().__init__()
        if in_channels != 1:
            raise ValueError(f"SelfSupervised hears waveforms, not {in_channels} features; use features=Waveform")
        if bool(position_buckets) != bool(max_distance):
            raise ValueError("position_buckets and max_distance are both 0 (wav2vec 2.0, HuBERT) or neither (WavLM)")
        if isinstance(trainable, int) and trainable > num_layers:
            raise ValueError(f"trainable={trainable}: there are num_layers={num_layers}; for all use transformer")
        self.out_channels = channels
        self.normalise_layers = normalise_layers
        self.pretrained = pretrained
        self.architecture = files.Architecture(
            extractor_channels=extractor_channels,
            extractor_kernel_sizes=extractor_kernel_sizes,
            extractor_strides=extractor_strides,
            extractor_norm=extractor_norm,
            extractor_bias=extractor_bias,
            channels=channels,
            num_layers=num_layers,
            attention_heads=attention_heads,
            feedforward_channels=feedforward_channels,
            position_kernel=position_kernel,
            position_groups=position_groups,
            position_buckets=position_buckets,
            max_distance=max_distance,
            layer_norm_first=layer_norm_first,
        )
        stages = 2 + num_layers
        named = {"none": 0, "transformer": stages - 1, "all": stages}
        trained = trainable if isinstance(trainable, int) else named[trainable]
        self.network = Wav2Vec2(**vars(self.architecture), dropout=dropout, frozen_stages=stages - trained)
        if lora_rank:
            self.network.add_lora(lora_match, lora_rank, lora_alpha, lora_dropout)
        self.layer_weights = nn.Parameter(torch.zeros(num_layers + 1))  # before a softmax

    @property
    def layers_from_input(self) -> list[Layer]:
        network = self.network
        *layers, last = network.layers
        after = [network.layer_norm] if network.layer_norm_first else []
        return [*((layer,) for layer in layers), (last, *after, self.layer_weights)]

    def forward(self, features: Tensor, lengths: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """features (B, 1, samples) and lengths (B,), in samples (None: all), -> (B, channels, T), lengths in frames."""
        states, lengths = self.network(features, lengths)
        if self.normalise_layers:
            states = [F.layer_norm(state, state.shape[2:]) for state in states]
        weights = torch.softmax(self.layer_weights, dim=0)
        # One after the other: all of them side by side would be a second copy.
        total = states[0] * weights[0]
        for state, weight in zip(states[1:], weights[1:], strict=True):
            total = torch.addcmul(total, state, weight)
        return total.transpose(1, 2), lengths

    def load_pretrained(self, features: nn.Module) -> None:
        """The weights that `pretrained` names, if it does. For a fresh run alone: this may download.

        features: what this encoder hears, whose normalisation must be that of the weights. Raises UserError.
        """
        if self.pretrained is None:
            return
        weights = files.read(self.pretrained)
        if weights.architecture is not None:
            mistakes = self.architecture.differences(weights.architecture)
            if mistakes:
                raise UserError(
                    "\n".join(
                        f"model.encoder.{key}: is {ours}, but {self.pretrained} (model.encoder.pretrained) has {theirs}"
                        f"; give {key} the value of the weights, or use other weights"
                        for key, ours, theirs in mistakes
                    )
                )
        if features.sample_rate != _SAMPLE_RATE:
            raise UserError(
                f"model.features.sample_rate: is {features.sample_rate}, but the weights of model.encoder.pretrained "
                f"are for {_SAMPLE_RATE} Hz"
            )
        # A bias-free extractor with "group" removes offset and scale itself.
        scale_matters = self.architecture.extractor_norm == "layer" or self.architecture.extractor_bias
        if scale_matters and weights.normalise not in (None, features.normalise):
            raise UserError(
                f"model.features.normalise: is {features.normalise}, but {self.pretrained} (model.encoder.pretrained) "
                f"was trained with {weights.normalise}; set it to that"
            )
        files.load_into(self.network, weights.tensors, self.pretrained)
