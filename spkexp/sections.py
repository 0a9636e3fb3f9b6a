"""The sections of a config that are settings rather than objects: data, trainer, tracking, scoring.

Every key is named here once, with its type and range; conf/*.yaml gives the values and says what they mean.
"""

from typing import Annotated, Any, Literal

from annotated_types import Ge, Gt, Le, Len, Lt
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, model_validator

from spkexp.types import NonNegative, NonNegativeInt, Positive, PositiveInt


def _is_node(value: dict[str, Any]) -> dict[str, Any]:
    if "_target_" not in value:
        raise ValueError("it needs a '_target_' that names a class")
    return value


# A node with a `_target_`; `spkexp.config.check` holds it against the signature it names.
Node = Annotated[dict[str, Any], AfterValidator(_is_node)]
Share = Annotated[float, Ge(0), Le(1)]
Text = Annotated[str, Len(1)]  # `key=` on a command line is the empty text, and no path or name is that


def _is_name(value: str) -> str:
    if value in ("", ".", "..") or not value.isprintable() or "/" in value or "\\" in value:
        raise ValueError(f"{value!r} cannot be part of a folder's name: no /, no \\, nothing unprintable; give another")
    return value


# What stands in the name of a run's folder.
Name = Annotated[str, AfterValidator(_is_name)]


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class Split(Section):
    by: Literal["auto", "column", "speaker", "utterance"]
    fractions: Annotated[list[Share], Len(3, 3)]
    seed: NonNegativeInt


class TrialLists(Section):
    val: Text | None
    test: Text | None
    models: Text | None
    max_pairs: PositiveInt


class Data(Section):
    corpus: Node | None
    manifest: Text | None
    root: Text | None
    filter: Text | None
    label: Text
    split: Split
    trials: TrialLists
    crop_seconds: Annotated[float, Ge(0.1)] | None
    short: Literal["wrap", "pad"]
    resample: bool
    mix_channels: bool
    sampler: Node
    num_workers: NonNegativeInt | None
    cache_dir: Text
    stage_dir: Text | None
    on_error: Literal["raise", "skip"]
    max_bad_fraction: Share


class Augment(Section):
    musan: Text | None
    rirs: Text | None
    speeds: list[Annotated[float, Ge(0.5), Le(2)]]
    speed_label: Literal["own", "same"]
    speed_copies: Literal["all", "one"]
    waveform: Node | None
    features: Node | None


class ParamGroup(Section):
    match: Text
    lr: Positive | None = None
    weight_decay: NonNegative | None = None
    frozen_epochs: NonNegative | Literal["all"] = 0


class Trainer(Section):
    epochs: PositiveInt
    max_steps: PositiveInt | None
    batch_size: PositiveInt | Literal["auto"]
    accumulate: PositiveInt
    precision: Literal["fp32", "bf16", "fp16"]
    tf32: bool
    compile: bool
    deterministic: bool
    clip_norm: Positive | None
    on_nan: Literal["raise", "skip", "rollback"]
    ema: Annotated[float, Gt(0), Lt(1)] | None
    average_last: PositiveInt | None
    early_stop: PositiveInt | None
    param_groups: dict[str, ParamGroup | None] | None
    layer_decay: Annotated[float, Gt(0), Le(1)] | None
    validate_every: PositiveInt
    checkpoint_steps: PositiveInt | None
    checkpoint_minutes: Positive | None
    log_every: PositiveInt
    profile: bool
    device: Literal["auto", "cpu", "cuda"]
    nproc: PositiveInt | None
    max_restarts: NonNegativeInt
    timeout_minutes: Positive
    static_graph: bool
    optimizer: Node
    schedule: Node


# YAML 1.1 reads a bare `off` as false; on the command line it is what people type.
Mode = Annotated[Literal["online", "offline", "off"], BeforeValidator(lambda value: "off" if value is False else value)]


class Tracking(Section):
    wandb: Mode
    project: Text
    entity: Text | None
    group: Text | None
    tags: list[str]


class Plda(Section):
    kind: Literal["two_covariance", "simplified"]
    rank: PositiveInt | None
    lda_size: PositiveInt | None
    whiten: bool
    length_norm: bool
    iterations: PositiveInt


class Cohort(Section):
    manifest: Text | None
    speakers: PositiveInt | None
    utterances_per_speaker: PositiveInt | None
    top_n: PositiveInt


class Scoring(Section):
    p_targets: Annotated[list[Annotated[float, Ge(1e-9), Le(1 - 1e-9)]], Len(1)]
    batch_seconds: Positive
    window: Annotated[float, Ge(0.1)] | None
    window_step: Annotated[float, Ge(0.01)] | None
    precision: Literal["fp32", "bf16"]
    backend: Literal["cosine", "plda"]
    plda: Plda
    enrol: Literal["mean_embedding", "mean_score"]
    subtract_mean: bool
    normalise: Literal["z", "t", "s", "as"] | None
    cohort: Cohort
    calibration: Literal["val"] | None
    quality: list[Literal["duration", "magnitude", "cohort_mean"]]
    conditions: list[Text]
    bootstrap: NonNegativeInt
    save_scores: bool
    save_embeddings: Literal["h5", "npz", "parquet", "ark"] | None
    projection: Literal["pca", "tsne", "umap"] | None
    colour_by: Text
    hardest: NonNegativeInt

    @property
    def needs_background(self) -> bool:
        """Whether scores depend on speakers beside those of the trials: the cohort, and what PLDA is trained on."""
        return self.backend == "plda" or self.normalise is not None or self.subtract_mean

    @model_validator(mode="after")
    def _agrees(self) -> "Scoring":
        if self.window_step is not None and self.window is None:
            raise ValueError("window_step is the step of windows, and there are none; give scoring.window=SECONDS, too")
        if self.window is not None and self.window_step is not None and self.window_step > self.window:
            raise ValueError("window_step must be at most window, or parts of an utterance would not be heard")
        if self.quality and self.calibration is None:
            raise ValueError("quality is what calibration takes in beside the score; give scoring.calibration=val, too")
        if self.normalise == "as" and self.cohort.top_n < 2:
            raise ValueError("cohort.top_n: a deviation needs at least 2 speakers")
        if self.plda.rank is not None and self.plda.kind == "two_covariance":
            raise ValueError("plda.rank: is of the subspace of plda.kind=simplified; two_covariance has none")
        if "cohort_mean" in self.quality and self.normalise is None:
            raise ValueError("quality: cohort_mean needs a cohort; give scoring.normalise=as, too")
        return self


class Distill(Section):
    teacher: Text | None
    target: Literal["embedding", "scores"]
    weight: Positive
    temperature: Positive
    clean: bool


class Search(Section):
    """Which trial of a hyper-parameter search a run is; the sweeper fills it in."""

    storage: Text
    study: Text
    trial: NonNegativeInt


class Names(Section):
    model: Name
    data: Name


class Config(Section):
    model: Node
    data: Data
    augment: Augment
    loss: Node
    distill: Distill
    trainer: Trainer
    tracking: Tracking
    scoring: Scoring
    search: Search | None
    names: Names
    seed: Annotated[int, Ge(0), Lt(2**32)]
    run_dir: Text | None
    resume: Text | None
    init_from: Text | None
    trust: list[Text]
