"""SpeechBrain's side of benchmarks/peer.py: its Brain, data pipeline and modules, as in its VoxCeleb recipe.

What differs from the recipe: nothing is augmented; crops and batches are those of spkexp in place of random ones, so
that both hear the same; the loader has no worker processes; the learning rate changes after a step, as in its other
recipes, not before it; and validation is the EER of unseen voices, where the recipe classifies those of training.
"""

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import speechbrain as sb
import torch
import torch.nn.functional as F
from omegaconf import DictConfig
from speechbrain.dataio.dataio import read_audio
from speechbrain.dataio.dataset import DynamicItemDataset
from speechbrain.dataio.encoder import CategoricalEncoder
from speechbrain.lobes.features import Fbank
from speechbrain.lobes.models.ECAPA_TDNN import ECAPA_TDNN, Classifier
from speechbrain.nnet.losses import AdditiveAngularMargin, LogSoftmaxWrapper
from speechbrain.nnet.schedulers import CyclicLRScheduler
from speechbrain.processing.features import InputNormalization
from speechbrain.utils.checkpoints import Checkpointer
from speechbrain.utils.epoch_loop import EpochCounter

from spkexp import corpus
from spkexp.compose import compose_config
from spkexp.counter import item_keys, uniform
from spkexp.data.dataset import CROP
from spkexp.data.sampler import RandomSampler
from spkexp.data.utterances import Utterances
from spkexp.scoring.metrics import eer, error_rates

RATE = 16_000  # Hz


class Clock:
    """Seconds of training: on the wall, and of this process on the processor; `begin` is when it began."""

    def __init__(self) -> None:
        self.begin: float | None = None
        self.wall = self.cpu = 0.0

    def start(self) -> None:
        self._since = time.monotonic(), time.process_time()
        self.begin = self.begin or self._since[0]

    def stop(self) -> None:
        """Add what has passed since the last `start` or `stop`."""
        now = time.monotonic(), time.process_time()
        self.wall, self.cpu = self.wall + now[0] - self._since[0], self.cpu + now[1] - self._since[1]
        self._since = now

    def write(self, folder: Path) -> None:
        (folder / "clock.json").write_text(json.dumps({"begin": self.begin, "wall": self.wall, "cpu": self.cpu}))


class Batches:
    """The batches of an epoch, and where in its file each utterance's crop begins, as spkexp has them."""

    def __init__(self, train: Utterances, cfg: DictConfig) -> None:
        self.sampler, self.seed = RandomSampler(len(train), cfg.trainer.batch_size), cfg.seed
        self.crop = round(cfg.data.crop_seconds * RATE)
        segments = np.array([train.segment(item, RATE) for item in range(len(train))])
        self.first, self.places = segments[:, 0], segments[:, 1] - segments[:, 0] - self.crop + 1
        if self.places.min() < 1:
            raise SystemExit("an utterance is shorter than data.crop_seconds")

    def begin(self, epoch: int) -> None:
        """epoch: 0, 1, …"""
        position = uniform(item_keys(self.seed, epoch, np.arange(len(self.first))), CROP)
        self.epoch, self.start = epoch, (self.first + (position * self.places).astype(np.int64)).tolist()

    def __iter__(self) -> Iterator[list[int]]:
        return (items.tolist() for items in self.sampler.epoch(self.seed, self.epoch))

    def __len__(self) -> int:
        return self.sampler.steps_per_epoch


class SpeakerBrain(sb.Brain):
    """`clock`, `batches` and `log` are set before `fit`."""

    def compute_forward(self, batch: Any, stage: Any) -> Any:
        batch = batch.to(self.device)
        wavs, lens = batch.sig
        feats = self.modules.mean_var_norm(self.modules.compute_features(wavs), lens)
        embeddings = self.modules.embedding_model(feats)
        return self.modules.classifier(embeddings) if stage == sb.Stage.TRAIN else embeddings

    def compute_objectives(self, predictions: Any, batch: Any, stage: Any) -> Any:
        if stage == sb.Stage.TRAIN:
            return self.hparams.compute_cost(predictions, batch.spk_id_encoded.data)
        self.embedded += zip(batch.spk_id, F.normalize(predictions.squeeze(1)), strict=True)
        return torch.zeros(())  # voices of validation are no classes

    def on_fit_batch_end(self, batch: Any, outputs: Any, loss: Any, should_step: bool) -> None:
        self.hparams.lr_annealing.on_batch_end(self.optimizer)
        self.losses.append(loss.detach())

    def on_stage_start(self, stage: Any, epoch: int | None = None) -> None:
        self.losses, self.embedded = [], []
        if stage == sb.Stage.TRAIN:
            self.batches.begin(epoch - 1)
            self.clock.start()

    def on_stage_end(self, stage: Any, stage_loss: Any, epoch: int | None = None) -> None:
        steps = len(self.batches)
        if stage == sb.Stage.TRAIN:
            self.clock.stop()
            for place, loss in enumerate(self.losses, start=1):
                self.log((epoch - 1) * steps + place, {"train": {"loss": loss.item()}})
            return
        names, embeddings = zip(*self.embedded, strict=True)
        first, second = np.triu_indices(len(names), k=1)
        scores = (torch.stack(embeddings) @ torch.stack(embeddings).T).numpy()[first, second]
        rate = eer(error_rates(scores, np.array(names)[first] == np.array(names)[second]))
        self.log(epoch * steps, {"seconds": round(self.clock.wall, 3), "val": {"eer": rate}})
        self.checkpointer.save_and_keep_only(meta={"EER": rate}, min_keys=["EER"])


def table(utterances: Utterances, file: Path) -> DynamicItemDataset:
    """`utterances` by way of a file with the columns of the recipe's; an ID is the place among them."""
    rows = []
    for item in range(len(utterances)):
        start, stop = utterances.segment(item, RATE)
        speaker = utterances.label_names[utterances.label[item]]
        rows.append((item, (stop - start) / RATE, utterances.path[item], start, stop, speaker))
    columns = ["ID", "duration", "wav", "start", "stop", "spk_id"]
    pl.DataFrame(rows, schema=columns, orient="row").write_csv(file)
    return DynamicItemDataset.from_csv(file)


def datasets(train: DynamicItemDataset, valid: DynamicItemDataset, batches: Batches) -> CategoricalEncoder:
    """Add their pipelines; returns what numbers the training speakers."""
    encoder = CategoricalEncoder()

    @sb.utils.data_pipeline.takes("id", "wav")
    @sb.utils.data_pipeline.provides("sig")
    def crop(item: str, wav: str) -> Any:
        start = batches.start[int(item)]  # in the recipe, random.randint
        return read_audio({"file": wav, "start": start, "stop": start + batches.crop})

    @sb.utils.data_pipeline.takes("wav", "start", "stop")
    @sb.utils.data_pipeline.provides("sig")
    def whole(wav: str, start: str, stop: str) -> Any:
        return read_audio({"file": wav, "start": int(start), "stop": int(stop)})

    @sb.utils.data_pipeline.takes("spk_id")
    @sb.utils.data_pipeline.provides("spk_id", "spk_id_encoded")
    def label(spk_id: str) -> Iterator[Any]:
        yield spk_id
        yield encoder.encode_sequence_torch([spk_id])

    train.add_dynamic_item(crop)
    train.add_dynamic_item(label)
    valid.add_dynamic_item(whole)
    encoder.update_from_didataset(train, output_key="spk_id")
    encoder.expect_len(len(encoder))
    train.set_output_keys(["id", "sig", "spk_id_encoded"])
    valid.set_output_keys(["id", "sig", "spk_id"])
    return encoder


def modules(cfg: DictConfig, speakers: int) -> dict[str, torch.nn.Module]:
    sizes, mels, embedding_size = cfg.model.encoder, cfg.model.features.num_mels, cfg.model.embedding_size
    torch.manual_seed(cfg.seed)
    encoder = ECAPA_TDNN(
        mels,
        channels=[sizes.channels] * 4 + [sizes.aggregation_channels],
        attention_channels=cfg.model.pooling.attention_channels,
        se_channels=sizes.se_channels,
        lin_neurons=embedding_size,
    )
    return {
        "compute_features": Fbank(n_mels=mels),
        "mean_var_norm": InputNormalization(norm_type="sentence", std_norm=False),
        "embedding_model": encoder,
        "classifier": Classifier(embedding_size, out_neurons=speakers),
    }


def train(folder: Path, overrides: list[str]) -> None:
    """Train by the config of `overrides`.

    Leaves in `folder` initial/ and save/, the weights before and after; metrics.jsonl, clock.json, and best.json: which
    checkpoint is the best on the validation set, and its EER there.
    """
    cfg, clock = compose_config(overrides), Clock()
    data = corpus.data(cfg)
    batches = Batches(data.train, cfg)
    folder.mkdir(parents=True)
    train_data = table(data.train, folder / "train.csv")
    valid_data = table(data.evaluation["val"].utterances, folder / "val.csv")
    encoder = datasets(train_data, valid_data, batches)
    parts = modules(cfg, len(encoder))
    learnt = {name: parts[name] for name in ("embedding_model", "classifier")}
    (folder / "initial").mkdir()
    for name, module in learnt.items():
        torch.save(module.state_dict(), folder / "initial" / f"{name}.ckpt")
    encoder.save(folder / "initial" / "label_encoder.txt")

    optimizer, schedule, counter = cfg.trainer.optimizer, cfg.trainer.schedule, EpochCounter(cfg.trainer.epochs)
    floor = schedule.floor * optimizer.lr
    annealing = CyclicLRScheduler(base_lr=floor, max_lr=optimizer.lr, step_size=schedule.half_cycle_steps)
    saved = {**learnt, "normalizer": parts["mean_var_norm"], "counter": counter, "lr_annealing": annealing}
    cost = LogSoftmaxWrapper(AdditiveAngularMargin(margin=cfg.loss.margin, scale=cfg.loss.scale))
    with (folder / "metrics.jsonl").open("w") as metrics:

        def log(step: int, found: dict[str, Any]) -> None:
            metrics.write(json.dumps({"step": step, "epoch": round(step / len(batches), 3), **found}) + "\n")

        brain = SpeakerBrain(
            modules=parts,
            # The rate of the first step; the schedule acts after each.
            opt_class=lambda weights: torch.optim.Adam(weights, lr=floor, weight_decay=optimizer.weight_decay),
            hparams={"compute_cost": cost, "lr_annealing": annealing},
            run_opts={"noprogressbar": True, "max_grad_norm": cfg.trainer.clip_norm},
            checkpointer=Checkpointer(folder / "save", saved),
        )
        brain.clock, brain.batches, brain.log = clock, batches, log
        loaders = {"train_loader_kwargs": {"batch_sampler": batches}, "valid_loader_kwargs": {"batch_size": 1}}
        brain.fit(counter, train_data, valid_data, **loaders)
    clock.write(folder)
    best = brain.checkpointer.find_checkpoint(min_key="EER")
    (folder / "best.json").write_text(json.dumps({"path": str(best.path), "eer": best.meta["EER"]}))
