"""PreferenceDataModule: from the sources of a config to optimizer batches and evaluation sets."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence, Set
from typing import Any, Literal

import lightning as L
import numpy as np
from jsonargparse.typing import NonNegativeInt, PositiveInt
from torch.utils.data import DataLoader

from aplot_lightning.data.comparisons import Comparison, first_user_turn, normalised_text, prompt_key
from aplot_lightning.data.encoded import EncodedComparisons
from aplot_lightning.data.encoding import ConversationEncoder
from aplot_lightning.data.evaluation_set import EvaluationSet
from aplot_lightning.data.loaders import EvaluationBatches, OptimizerBatches, OwnBatches, StepSampler, loader
from aplot_lightning.data.plan import BatchPlan
from aplot_lightning.data.report import DataReport, SourceLedger
from aplot_lightning.data.sources import Source, open_source, read_comparisons
from aplot_lightning.errors import UserError


class PreferenceDataModule(L.LightningDataModule):
    """Preference pairs for training and evaluation.

    The tokenizer comes from the module that is trained, or from the attribute `tokenizer` where it is set; a module
    that has fewer positions than `max_length` shortens it.

    Args:
        train: preference pairs to train on: a JSONL (also .gz) or Parquet file, a hub name, or a source class.
        id: in-distribution pairs that are only reported; without it a share of the training prompts is held out.
        ood: out-of-distribution test sets by name; they are watched and reported and never select anything.
        ood_validation: out-of-distribution sets by name that may select checkpoints and configs.
        batch_size: pairs in one optimizer batch, over all ranks and accumulation steps.
        micro_batch_size: pairs in one forward on one rank; by default the whole batch at once. Gradients, and the
            transport plan of APLOT, are those of the whole optimizer batch in any case.
        max_length: tokens of a prompt with one response; longer prompts lose their beginning, answers are kept.
        validation_share: share of the training prompts held out to select checkpoints and configs.
        id_share: share of the training prompts held out for reporting, where `id` is not given.
        on_bad_row: skip and count rows that cannot be used, or stop at the first (error).
        sources_in_every_batch: draw every optimizer batch from all sources (the rows' `source`), in about their
            proportions, as objectives that weigh sources against each other need it.
        watch_test_sets: evaluate `id` and `ood` at every validation, not only at the end of the run.
        seed: the order of the training pairs; the command line takes it from seed_everything.
        num_workers: processes that prepare batches.
    """

    def __init__(
        self,
        train: str | Source,
        id: str | Source | None = None,
        ood: dict[str, str | Source] | None = None,
        ood_validation: dict[str, str | Source] | None = None,
        batch_size: PositiveInt = 32,
        micro_batch_size: PositiveInt | None = None,
        max_length: PositiveInt = 1024,
        validation_share: float = 0.05,
        id_share: float = 0.05,
        on_bad_row: Literal["skip", "error"] = "skip",
        sources_in_every_batch: bool = False,
        watch_test_sets: bool = True,
        seed: NonNegativeInt = 0,
        num_workers: NonNegativeInt = 0,
    ) -> None:
        super().__init__()
        self.train = train
        self.id = id
        self.ood = ood or {}
        self.ood_validation = ood_validation or {}
        self.batch_size = int(batch_size)
        self.micro_batch_size = int(micro_batch_size or batch_size)
        self.max_length = int(max_length)
        self.validation_share = validation_share
        self.id_share = id_share
        self.on_bad_row = on_bad_row
        self.sources_in_every_batch = sources_in_every_batch
        self.watch_test_sets = watch_test_sets
        self.seed = int(seed)
        self.num_workers = int(num_workers)
        self.tokenizer: Any = None
        self.report = DataReport()
        self.fingerprints: dict[str, dict[str, str]] = {}
        self.evaluation_sets: dict[str, EvaluationSet] = {}
        self.training_pairs: EncodedComparisons | None = None
        self._check_options()

    def _check_options(self) -> None:
        shares = {"data.validation_share": self.validation_share, "data.id_share": self.id_share}
        for key, share in shares.items():
            if not 0 <= share < 1:
                raise UserError(f"{key} is {share}: give a share of the training prompts, from 0 to below 1")
        if sum(shares.values()) >= 1:
            raise UserError(
                "data.validation_share and data.id_share leave nothing to train on: they add up to 1 or more"
            )
        both = sorted(set(self.ood) & set(self.ood_validation))
        if both:
            raise UserError(f"{both[0]!r} is in data.ood and in data.ood_validation: a set either tests or selects")
        for key, names in {"data.ood": self.ood, "data.ood_validation": self.ood_validation}.items():
            for name in names:
                if not name or set(name) & set("/\\") or name in {"validation", "id"}:
                    raise UserError(
                        f"{key}: {name!r} cannot name a set; use letters, digits and _ other than validation, id"
                    )

    # Reading, once for all stages

    def setup(self, stage: str | None = None) -> None:
        """Reads, splits and encodes everything. Raises UserError where a source cannot be used."""
        if self.training_pairs is not None:
            return
        self._ask_module()
        encoder = ConversationEncoder(self.tokenizer, self.max_length)
        sources = self._open()
        held_out = {key: self._read(key, source) for key, source in sources.items() if key != "data.train"}
        tested = {prompt_key(c) for comparisons, _ in held_out.values() for c in comparisons if c.prompt}
        training, ledger = self._read("data.train", sources["data.train"])
        parts = self._split(training)
        self.training_pairs = _encode(parts["train"], encoder, ledger, tested)
        for name in ("validation", "id"):
            if parts[name]:
                self._add_set(name, parts[name], encoder, ledger, tested)
                self._account_for(name, ledger.name)
        for key, (comparisons, its_ledger) in held_out.items():
            self._add_set(_stem(key), comparisons, encoder, its_ledger)
        if not len(self.training_pairs):
            raise UserError(f"data.train: no pair of {ledger.name} is left to train on: {ledger.reasons()}")
        self.plan = self._plan(self.training_pairs)

    def _plan(self, training_pairs: EncodedComparisons) -> BatchPlan:
        groups = None
        if self.sources_in_every_batch:
            groups = training_pairs.columns["source"][training_pairs.first_pair[:-1]]
        try:
            return BatchPlan(np.diff(training_pairs.first_pair), self.batch_size, self.seed, groups)
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

    def _ask_module(self) -> None:
        """Takes tokenizer and fitting length from the module that is trained, where there is one."""
        module: Any = self.trainer.lightning_module if self.trainer is not None else None
        if self.tokenizer is None:
            self.tokenizer = getattr(module, "tokenizer", None)
        if hasattr(module, "fitting_length"):
            self.max_length = module.fitting_length(self.max_length)
        if self.tokenizer is None:
            raise UserError("PreferenceDataModule has no tokenizer: set its attribute `tokenizer` before setup()")

    def _open(self) -> dict[str, Source]:
        """Every source by its config key, opened so that a wrong path is said before anything is read."""
        named = {"data.train": self.train, "data.id": self.id}
        named |= {f"data.ood_validation.{name}": source for name, source in self.ood_validation.items()}
        named |= {f"data.ood.{name}": source for name, source in self.ood.items()}
        return {key: open_source(source, key) for key, source in named.items() if source is not None}

    def _read(self, key: str, source: Source) -> tuple[list[Comparison], SourceLedger]:
        ledger = self.report.ledger(_place(key), source.name)
        comparisons = read_comparisons(source, key=key, ledger=ledger, on_bad_row=self.on_bad_row)
        self.fingerprints[key] = {"source": source.name, "sha256": _fingerprint(comparisons)}
        return comparisons, ledger

    def _split(self, comparisons: Sequence[Comparison]) -> dict[str, list[Comparison]]:
        """Training, validation and ID comparisons; dialogues with the same first user turn stay together."""
        id_share = 0.0 if self.id is not None else self.id_share
        parts: dict[str, list[Comparison]] = {"train": [], "validation": [], "id": []}
        for comparison in comparisons:
            place = _hash_share(first_user_turn(comparison))
            if place < self.validation_share:
                parts["validation"].append(comparison)
            elif place < self.validation_share + id_share:
                parts["id"].append(comparison)
            else:
                parts["train"].append(comparison)
        return parts

    def _add_set(
        self,
        name: str,
        comparisons: list[Comparison],
        encoder: ConversationEncoder,
        ledger: SourceLedger,
        leaks: Set[bytes] = frozenset(),
    ) -> None:
        encoded = _encode(comparisons, encoder, ledger, leaks)
        if len(encoded):
            self.evaluation_sets[name] = EvaluationSet(name, comparisons, encoded)

    def _account_for(self, name: str, source_name: str) -> None:
        """An account of a held-out set by itself; its rows are in the account of the training source too."""
        held_out = self.evaluation_sets.get(name)
        if held_out is not None:
            ledger = self.report.ledger((name,), source_name)
            ledger.read = len(held_out.encoded)
            ledger.use([held_out.comparisons[place] for place in held_out.encoded.kept], held_out.encoded.lengths)

    # Loaders

    def train_dataloader(self) -> DataLoader:
        assert self.training_pairs is not None
        assert self.trainer is not None
        trainer = self.trainer
        dataset = OptimizerBatches(
            self.training_pairs,
            self.plan,
            self.micro_batch_size,
            self._pad_id(),
            trainer.global_rank,
            trainer.world_size,
        )
        return loader(dataset, StepSampler(dataset, trainer), self.num_workers, self.seed)

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
            dataset = EvaluationBatches(self.evaluation_sets[name], self.micro_batch_size, self._pad_id(), rank, world)
            sampler = OwnBatches(dataset, num_replicas=world, rank=rank, shuffle=False)
            loaders.append(loader(dataset, sampler, self.num_workers, self.seed))
        return loaders

    def _pad_id(self) -> int:
        return self.tokenizer.pad_token_id


def _encode(
    comparisons: list[Comparison], encoder: ConversationEncoder, ledger: SourceLedger, leaks: Set[bytes]
) -> EncodedComparisons:
    encoded = encoder.encode(comparisons, ledger, leaks)
    ledger.use([comparisons[place] for place in encoded.kept], encoded.lengths)
    return encoded


def _hash_share(text: str) -> float:
    """A fixed place in [0, 1) for a first user turn, the same on every machine and for every seed."""
    digest = hashlib.sha256(normalised_text(text).encode("utf-8", "surrogatepass")).digest()
    return int.from_bytes(digest[:7], "big") / 2**56


def _fingerprint(comparisons: Sequence[Comparison]) -> str:
    digest = hashlib.sha256()
    for comparison in comparisons:
        digest.update(
            repr((comparison.prompt, comparison.responses, comparison.pairs)).encode("utf-8", "surrogatepass")
        )
    return digest.hexdigest()


def _place(key: str) -> tuple[str, ...]:
    """Where a source stands in the data report: data.ood.llmbar -> (ood, llmbar)."""
    return tuple(key.split(".", 2)[1:])


def _stem(key: str) -> str:
    """The stem of a set's metrics: data.ood.llmbar -> ood/llmbar."""
    return "/".join(_place(key))
