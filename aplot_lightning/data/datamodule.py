"""PreferenceDataModule: from the sources of a config to optimizer batches and evaluation sets."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import lightning as L
import numpy as np
from jsonargparse.typing import NonNegativeInt, PositiveInt
from lightning.pytorch.utilities.rank_zero import rank_zero_info, rank_zero_warn
from torch.utils.data import DataLoader

from aplot_lightning.data.batching import Layout
from aplot_lightning.data.encoded import Embeddings, EncodedComparisons
from aplot_lightning.data.encoding import ConversationEncoder
from aplot_lightning.data.evaluation_set import EvaluationSet
from aplot_lightning.data.held_out import OF_TRAINING, HeldOut, check_names, evaluation_set
from aplot_lightning.data.ledger import SourceLedger
from aplot_lightning.data.loaders import EvaluationBatches, OptimizerBatches, OwnBatches, StepSampler, loader
from aplot_lightning.data.plan import BatchPlan
from aplot_lightning.data.preparation import Cache, Corpus
from aplot_lightning.data.preview import previews
from aplot_lightning.data.report import DataReport
from aplot_lightning.data.robustness import Robustness, part_of_embeddings, swapped
from aplot_lightning.data.sources import Source, open_source, open_sources
from aplot_lightning.data.streaming import TrainingStream, take_stream
from aplot_lightning.errors import UserError

EMBEDDED_PAIRS = 1024  # in a batch of an evaluation set whose embeddings are known
Embed = Callable[[EncodedComparisons, Layout], Embeddings]


@dataclass(frozen=True)
class DataRequirements:
    """What the data module needs to know of a model.

    Attributes:
        tokenizer: of the backbone.
        position_limit: the most tokens that the backbone has positions for, or None.
        packing_refusal: returns why the model takes no packed batches, or None if it does. It may run the model.
        embed: makes the function that embeds comparisons when loaders are made, for a frozen backbone whose embeddings
            are cached.
    """

    tokenizer: Any
    position_limit: int | None = None
    packing_refusal: Callable[[], str | None] = lambda: "this module does not say that its model takes them"
    embed: Callable[[Cache], Embed] | None = None


class PreferenceDataModule(L.LightningDataModule):
    """Preference pairs for training and evaluation.

    `connect` tells it what the model needs. A trainer's module is connected in `setup` if it has `data_requirements`.

    Args:
        train: preference pairs to train on: a JSONL (also .gz), Parquet or Arrow file, a folder of them, a hub name, a
            dict of options (path or name, split, config, columns, weight, source, streaming), a source class, or a list
            of these.
        id: in-distribution pairs that are only reported; without it a share of the training prompts is held out.
        ood: out-of-distribution test sets by name; they are watched and reported and never select anything.
        ood_validation: out-of-distribution sets by name that may select checkpoints and configs.
        batch_size: pairs in one optimizer batch, over all ranks and accumulation steps.
        micro_batch_size: pairs in one forward on one rank; by default the whole batch at once. Gradients, and the
            transport plan of APLOT, are those of the whole optimizer batch in any case.
        micro_batch_tokens: tokens in one forward on one rank, padding among them; beside micro_batch_size, or alone. A
            comparison that is larger stands alone.
        layout: packed puts a micro-batch into one row without padding, in which responses share their prompt; auto
            does so where the model takes it, and else pads rows of about the same length.
        max_length: tokens of a prompt with one response.
        truncation: what becomes of longer ones: the prompt loses its beginning (left) or its end (right), and the
            answer its end only where it alone is too long; or the row is refused (drop).
        validation_share: share of the training prompts held out to select checkpoints and configs.
        id_share: share of the training prompts held out for reporting, where `id` is not given.
        label_noise: share of the training pairs whose sides are swapped, for studies; the evaluation sets stay clean.
        train_fraction: share of the training comparisons that are trained on, after the held-out ones are taken out; a
            smaller part lies within a larger one. Which they are, and which are swapped, follows from `seed`.
        on_bad_row: skip and count rows that cannot be used, or stop at the first (error).
        sources_in_every_batch: draw every optimizer batch from all sources (the rows' `source`), in about their
            proportions, as objectives that weigh sources against each other need it.
        watch_test_sets: evaluate `id` and `ood` at every validation, not only at the end of the run.
        seed: the order of the training pairs; the command line takes it from seed_everything.
        num_workers: processes that prepare batches.
        cache_dir: where texts and tokens are kept, so that the next run with these data starts at once; by default
            $APLOT_CACHE, else ~/.cache/aplot_lightning. It may be removed while no run uses it.
        preparation_workers: processes that read and tokenise; by default as many as there are cores.
    """

    def __init__(
        self,
        train: str | Source | dict[str, Any] | list[str | Source | dict[str, Any]],
        id: str | Source | dict[str, Any] | None = None,
        ood: dict[str, str | Source | dict[str, Any]] | None = None,
        ood_validation: dict[str, str | Source | dict[str, Any]] | None = None,
        batch_size: PositiveInt = 32,
        micro_batch_size: PositiveInt | None = None,
        micro_batch_tokens: PositiveInt | None = None,
        layout: Literal["auto", "packed", "padded"] = "auto",
        max_length: PositiveInt = 1024,
        truncation: Literal["left", "right", "drop"] = "left",
        validation_share: float = 0.05,
        id_share: float = 0.05,
        label_noise: float = 0.0,
        train_fraction: float = 1.0,
        on_bad_row: Literal["skip", "error"] = "skip",
        sources_in_every_batch: bool = False,
        watch_test_sets: bool = True,
        seed: NonNegativeInt = 0,
        num_workers: NonNegativeInt = 0,
        cache_dir: str | Path | None = None,
        preparation_workers: PositiveInt | None = None,
    ) -> None:
        super().__init__()
        self.train = train
        self.id = id
        self.ood = ood or {}
        self.ood_validation = ood_validation or {}
        self.batch_size = int(batch_size)
        self.micro_batch_size = int(micro_batch_size or batch_size)
        self.micro_batch_tokens = None if micro_batch_tokens is None else int(micro_batch_tokens)
        self.layout = layout
        self.max_length = int(max_length)
        self.truncation = truncation
        check_names({"data.ood": self.ood, "data.ood_validation": self.ood_validation})
        self.held_out = HeldOut(validation_share, id_share)
        if id is not None:
            self.held_out = replace(self.held_out, id=0.0)
        self.on_bad_row = on_bad_row
        self.sources_in_every_batch = sources_in_every_batch
        self.watch_test_sets = watch_test_sets
        self.seed = int(seed)
        self.robustness = Robustness(float(label_noise), float(train_fraction), self.seed)
        self.num_workers = int(num_workers)
        self.cache_dir = cache_dir
        self.preparation_workers = None if preparation_workers is None else int(preparation_workers)
        self.tokenizer: Any = None
        self.packed = False
        self.embed: Embed | None = None
        self.report = DataReport()
        self.fingerprints: dict[str, dict[str, str]] = {}
        self.evaluation_sets: dict[str, EvaluationSet] = {}
        self.training_pairs: EncodedComparisons | None = None
        self._whole: EncodedComparisons | None = None  # of which the training pairs are a part
        self.stream: TrainingStream | None = None  # read while it is trained on; training_pairs are then its first ones

    # Reading, once for all stages

    def setup(self, stage: str | None = None) -> None:
        """Reads, encodes and splits everything, or finds it in the cache.

        Raises:
            UserError: a source cannot be used, or a row where that is asked for.
        """
        module: Any = self.trainer.lightning_module if self.trainer is not None else None
        if hasattr(module, "data_requirements"):
            self.connect(module.data_requirements())
        if self.training_pairs is not None:
            return
        if self.tokenizer is None:
            raise UserError("PreferenceDataModule has no tokenizer: call connect() or set `tokenizer` before setup()")
        encoder = ConversationEncoder(self.tokenizer, self.max_length, self.truncation)
        opened, cache = self._open(), Cache(self.cache_dir)
        streamed = take_stream(opened)
        ledgers = {key: [self.report.ledger(_place(key), source.name) for source in opened[key]] for key in opened}
        corpora = {  # the largest comes last, so that mistakes in the others are said soon
            key: Corpus.prepared(key, opened[key], encoder, cache, self.preparation_workers)
            for key in sorted(opened, key="data.train".__eq__)
        }
        self.fingerprints = {key: {"source": corpora[key].name, "sha256": corpora[key].digest} for key in opened}
        *tested, train = corpora.values()
        train.refuse_leaks(tested)
        for key, corpus in corpora.items():
            corpus.account(ledgers[key], self.on_bad_row)
            corpus.use(corpus.usable(), ledgers[key])
        parts = self.held_out.parts(train)
        train.count_near_leaks(parts["train"], tested, ledgers["data.train"])
        self.training_pairs = train.encoded(parts["train"])
        for name in OF_TRAINING:
            self._add_set(name, train, parts[name])
            self._account_for(name, train, parts[name])
        for key, corpus in corpora.items():
            if key != "data.train":
                self._add_set("/".join(_place(key)), corpus, corpus.usable())
        if not len(self.training_pairs):
            reasons = SourceLedger.total(ledgers["data.train"]).reasons()
            raise UserError(f"data.train: no pair of {train.name} is left to train on: {reasons}")
        if streamed is None:
            self._weaken(train, parts["train"])
            self.plan = self._plan(self.training_pairs, train)
        else:
            self.stream = self._stream(streamed, encoder, tested)
        self.report.previews = previews(self.tokenizer, self.training_pairs)

    def _weaken(self, train: Corpus, places: np.ndarray) -> None:
        """Trains on a part of the comparisons at `places`, or with labels swapped, where that is asked for."""
        if not self.robustness:
            return
        assert self.training_pairs is not None
        keys = train.digests(places)
        kept = self.robustness.kept(keys)
        part = train.encoded(places[kept])
        swaps = self.robustness.swaps(part, keys[kept])
        self.report.robustness = self.robustness.account(self.training_pairs, part, swaps)
        self._whole, self.training_pairs = self.training_pairs, swapped(part, swaps)

    def _stream(self, source: Source, encoder: ConversationEncoder, tested: Sequence[Corpus]) -> TrainingStream:
        if self.sources_in_every_batch:
            raise UserError(
                "data.sources_in_every_batch: the sources of a stream are not known beforehand; leave it false, or set "
                "streaming to false"
            )
        if self.robustness:
            raise UserError(
                "data.label_noise and data.train_fraction take no stream: leave them out, or set streaming to false"
            )
        self.report.stream = SourceLedger(source.name)
        return TrainingStream(
            source=source,
            encoder=encoder,
            ledger=self.report.stream,
            batch_size=self.batch_size,
            seed=self.seed,
            held_out=self.held_out.holds,
            leaks=frozenset().union(*(corpus.prompt_keys() for corpus in tested)),
            on_bad_row=self.on_bad_row,
        )

    def _plan(self, training_pairs: EncodedComparisons, train: Corpus) -> BatchPlan:
        groups = None
        if self.sources_in_every_batch:
            groups = training_pairs.columns["source"][training_pairs.first_pair[:-1]]
        weights = np.asarray([part.source.weight for part in train.parts])[training_pairs.origins]
        try:
            return BatchPlan(np.diff(training_pairs.first_pair), self.batch_size, self.seed, groups, weights)
        except ValueError as error:
            names = ", ".join(training_pairs.sources[:5])
            raise UserError(
                f"data.sources_in_every_batch: {error}; the groups are the sources {names}, counted from 0: raise "
                "data.batch_size or leave the small one out"
            ) from error

    @property
    def columns(self) -> dict[str, int]:
        """Training pairs without a value, for each column that the training data has."""
        assert self.training_pairs is not None
        return {name: int(np.isnan(values).sum()) for name, values in self.training_pairs.columns.items()}

    def connect(self, model: DataRequirements) -> None:
        """Takes the tokenizer, the length, the layout and the embeddings that suit a model.

        Raises:
            UserError: data.layout is packed, and the model does not take it.
        """
        if self.training_pairs is None:
            self.tokenizer = self.tokenizer or model.tokenizer
            if model.position_limit is not None and self.max_length > model.position_limit:
                rank_zero_warn(
                    f"data.max_length is {self.max_length}, but the backbone has {model.position_limit} positions: "
                    f"{model.position_limit} is used"
                )
                self.max_length = model.position_limit
            self._choose_layout(model)
        self.embed = model.embed(Cache(self.cache_dir)) if model.embed is not None and self.stream is None else None

    def _choose_layout(self, model: DataRequirements) -> None:
        if self.layout == "padded":
            return
        refusal = model.packing_refusal()
        if refusal is not None and self.layout == "packed":
            raise UserError(f"data.layout: packed is not possible: {refusal}; set it to auto or padded")
        self.packed = refusal is None
        if refusal is not None:
            rank_zero_info(f"data.layout: rows are padded: {refusal}")

    def _open(self) -> dict[str, list[Source]]:
        """The sources of every config key, opened so that a wrong path is said before anything is read."""
        named = {"data.id": self.id}
        named |= {f"data.ood_validation.{name}": source for name, source in self.ood_validation.items()}
        named |= {f"data.ood.{name}": source for name, source in self.ood.items()}
        opened = {"data.train": open_sources(self.train, "data.train")}
        return opened | {key: [open_source(source, key)] for key, source in named.items() if source is not None}

    def _add_set(self, name: str, corpus: Corpus, places: np.ndarray) -> None:
        if len(places):
            self.evaluation_sets[name] = evaluation_set(name, corpus, places)

    def _account_for(self, name: str, train: Corpus, places: np.ndarray) -> None:
        """An account of a held-out set by itself; its rows are in the account of the training source too."""
        if len(places):
            ledger = self.report.ledger((name,), train.name)
            ledger.read = len(places)
            train.use(places, [ledger] * len(train.parts))

    # Loaders

    def train_dataloader(self) -> DataLoader:
        assert self.training_pairs is not None
        assert self.trainer is not None
        trainer = self.trainer
        if self.stream is not None:
            return self.stream.loader(self._layout(), trainer)
        # a head alone is cheap: the whole optimizer batch is one micro-batch
        layout = self._embedded(self.training_pairs if self._whole is None else self._whole, None)
        if self._whole is not None and self._whole.embeddings is not None:
            self.training_pairs.embeddings = part_of_embeddings(self._whole, self.training_pairs)
        dataset = OptimizerBatches(self.training_pairs, self.plan, layout, trainer.global_rank, trainer.world_size)
        return loader(dataset, StepSampler(dataset, trainer), self.num_workers, self.seed)

    def state_dict(self) -> dict[str, Any]:
        """The place in a stream, for checkpoints; without one there is nothing to save (see `BatchPlan`)."""
        return {} if self.stream is None else self.stream.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        if self.stream is not None:
            self.stream.load_state_dict(state_dict)

    def val_dataloader(self) -> list[DataLoader]:
        selecting = ("validation", "ood_validation/")
        names = [name for name in self.evaluation_sets if self.watch_test_sets or name.startswith(selecting)]
        return self._evaluation_loaders(names)

    def test_dataloader(self) -> list[DataLoader]:
        return self._evaluation_loaders(list(self.evaluation_sets))

    def predict_dataloader(self) -> list[DataLoader]:
        return self.test_dataloader()

    def _evaluation_loaders(self, names: Sequence[str]) -> list[DataLoader]:
        assert self.trainer is not None
        rank, world = self.trainer.global_rank, self.trainer.world_size
        loaders = []
        for name in names:
            layout = self._embedded(self.evaluation_sets[name].encoded, EMBEDDED_PAIRS)
            dataset = EvaluationBatches(self.evaluation_sets[name], layout, rank, world)
            sampler = OwnBatches(dataset, num_replicas=world, rank=rank, shuffle=False)
            loaders.append(loader(dataset, sampler, self.num_workers, self.seed))
        return loaders

    def _embedded(self, encoded: EncodedComparisons, size: int | None) -> Layout:
        """Adds the embeddings where a frozen backbone's are kept; the layout of the batches that come of it."""
        encoded.embeddings = None
        if self.embed is None:
            return self._layout()
        encoded.embeddings = self.embed(encoded, self._layout())
        return Layout(self.tokenizer.pad_token_id, size=size)

    def _layout(self) -> Layout:
        return Layout(self.tokenizer.pad_token_id, self.packed, self.micro_batch_size, self.micro_batch_tokens)


def _place(key: str) -> tuple[str, ...]:
    """Where a source stands in the data report, and its set in metrics: data.ood.llmbar -> (ood, llmbar)."""
    return tuple(key.split(".", 2)[1:])
