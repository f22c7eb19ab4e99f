"""All sources of one config key together: which of their comparisons can be used, and an account of the others."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal

import numpy as np

from aplot_lightning.data.comparisons import KINDS
from aplot_lightning.data.contamination import near_matches
from aplot_lightning.data.encoded import EncodedComparisons, bounds, stretches
from aplot_lightning.data.encoding import ConversationEncoder
from aplot_lightning.data.ledger import LOCATIONS, SourceLedger
from aplot_lightning.data.preparation.cache import Cache
from aplot_lightning.data.preparation.conflicts import among, contradicted, repeated
from aplot_lightning.data.preparation.facts import held_out_columns
from aplot_lightning.data.preparation.prepare import PreparedSource, prepare
from aplot_lightning.data.preparation.texts import Selection
from aplot_lightning.data.preparation.tokens import REFUSALS
from aplot_lightning.data.sources import Source
from aplot_lightning.data.sources.source import GIVE_A_FILE, fingerprint_of
from aplot_lightning.errors import UserError

CHUNK = 1 << 17  # signatures read at once
USABLE = -1


class Corpus:
    """The comparisons of one config key, numbered through all its sources.

    Args:
        key: the config key for messages.
        parts: its prepared sources, in their order; where rows of several conflict, the earlier source's are the first.

    Attributes:
        name: the sources' names.
        digest: hex digest of what was read of them, before anything was refused.
        kinds: (C,) int8, why each comparison is refused (its place in `KINDS`), or `USABLE`.
    """

    def __init__(self, key: str, parts: Sequence[PreparedSource]) -> None:
        self.key = key
        self.parts = parts
        self.name = ", ".join(part.source.name for part in parts)
        self.digest = parts[0].digest if len(parts) == 1 else fingerprint_of(*(part.digest for part in parts))
        self.first = bounds(np.asarray([len(part) for part in parts], dtype=np.int64))
        self.kinds = np.full(len(self), USABLE, dtype=np.int8)
        self._other = np.full(len(self), -1, dtype=np.int32)  # whom a refused comparison contradicts or repeats
        self._refuse_conflicts()
        verdict = self._joined_tokens("verdict")
        for number, kind in enumerate(REFUSALS):
            if kind:
                self._refuse(kind, verdict == number)

    @classmethod
    def prepared(
        cls,
        key: str,
        sources: Sequence[Source],
        encoder: ConversationEncoder,
        cache: Cache,
        workers: int | None = None,
    ) -> Corpus:
        """The corpus of these sources, read and encoded as `prepare` does. Raises UserError with the key before it."""
        try:
            return cls(key, [prepare(source, encoder, cache, workers) for source in sources])
        except UserError as error:
            named = str(error).startswith("data.")  # after an option that it is about
            raise UserError(str(error) if named else f"{key}: {error}") from error

    def __len__(self) -> int:
        return int(self.first[-1])

    def _joined(self, name: str) -> np.ndarray:
        return np.concatenate([part.facts[name] for part in self.parts])

    def _joined_tokens(self, name: str) -> np.ndarray:
        return np.concatenate([part.tokens[name] for part in self.parts])

    # Faults, in the order of KINDS

    def _refuse(self, kind: str, which: np.ndarray) -> None:
        self.kinds[which & (self.kinds == USABLE)] = KINDS.index(kind)

    def _refuse_conflicts(self) -> None:
        against = contradicted(self._joined("order_counts"), self._joined("preferred"), self._joined("opposite"))
        self._refuse("contradiction", against >= 0)
        again = repeated(self._joined("listed"), against < 0)
        self._refuse("duplicate", again >= 0)
        self._other[:] = np.maximum(against, again)

    def refuse_leaks(self, tested: Sequence[Corpus]) -> None:
        """Refuses comparisons whose prompt is also one of the tested corpora's."""
        prompts = np.concatenate([corpus._comparable_prompts() for corpus in tested] or [np.zeros((0, 2), np.uint64)])
        if len(prompts):
            self._refuse("leak", self._joined("has_prompt") & among(self._joined("prompt"), prompts))

    def prompt_keys(self) -> set[bytes]:
        """The keys (`prompt_key`) of the prompts that no other corpus may share."""
        return set(map(bytes, self._comparable_prompts().astype(">u8").view("V16").ravel()))

    def _comparable_prompts(self) -> np.ndarray:
        return self._joined("prompt")[self._comparable()]

    def _comparable(self) -> np.ndarray:
        """Comparisons that are no conflicts and have a prompt of their own: (C,) bool."""
        conflicts = (KINDS.index("contradiction"), KINDS.index("duplicate"))
        return self._joined("has_prompt") & ~np.isin(self.kinds, conflicts)

    def _near_leaks(self, tested: Sequence[Corpus]) -> np.ndarray:
        """Which comparisons have a prompt that is nearly one of the tested ones: (C,) bool."""
        found = np.zeros(len(self), dtype=bool)
        known = [corpus._comparable_signatures() for corpus in tested]
        if sum(map(len, known)):
            signatures = np.concatenate(known)
            for part, start in zip(self.parts, self.first.tolist(), strict=False):
                for begin in range(0, len(part), CHUNK):
                    matches = near_matches(part.facts.part("signature", begin, begin + CHUNK), signatures)
                    found[start + begin : start + begin + len(matches)] = matches
        return found

    def _comparable_signatures(self) -> np.ndarray:
        signatures = [
            part.facts["signature"][own]
            for part, own in zip(self.parts, self._by_part(np.flatnonzero(self._comparable())), strict=True)
        ]
        return np.concatenate(signatures)

    # Accounts

    def account(self, ledgers: Sequence[SourceLedger], on_bad_row: Literal["skip", "error"]) -> None:
        """Counts what was read and what is refused, in a ledger for each source; what is used is counted by `use`.

        Raises:
            UserError: a source has no row, or none that is not refused before encoding; with ``error`` any bad row, and
                then the first of its source.
        """
        for number, (part, ledger) in enumerate(zip(self.parts, ledgers, strict=True)):
            if not part.read:
                raise UserError(f"{self.key}: {str(part.source)!r} has no rows: {GIVE_A_FILE} with at least one")
            if on_bad_row == "error":
                self._stop_at_first(number)
            ledger.read = part.read
            for kind in KINDS:
                for _, where, message in part.first.get(kind, []):
                    ledger.refuse(kind, where, message)
                ledger.refused[kind] = part.refused.get(kind, 0)
            self._count_refused(number, ledger)

    def _count_refused(self, number: int, ledger: SourceLedger) -> None:
        start, stop = self.first[number : number + 2]
        kinds = self.kinds[start:stop]
        for place, kind in enumerate(KINDS):
            own = np.flatnonzero(kinds == place)
            for comparison in own[:LOCATIONS]:
                ledger.refuse(kind, *self._reason(number, int(comparison)))
            ledger.refused[kind] += max(0, len(own) - LOCATIONS)
            if kind == "duplicate" and ledger.used == 0:
                part = self.parts[number]
                raise UserError(
                    f"{self.key}: none of the {part.read} rows of {str(part.source)!r} can be used ({ledger.reasons()})"
                )

    def use(self, places: np.ndarray, ledgers: Sequence[SourceLedger]) -> None:
        """Counts the comparisons at `places` (ascending) as used, in the ledger of each one's source."""
        for part, own, ledger in zip(self.parts, self._by_part(places), ledgers, strict=True):
            pairs = stretches(bounds(part.facts["pair_counts"]), own)
            longer = part.facts["chosen_characters"][pairs] > part.facts["rejected_characters"][pairs]
            ledger.use(len(pairs), int(longer.sum()), part.tokens["lengths"][own])
            ledger.cut_prompts += int(part.tokens["cut_prompt"][own].sum())
            ledger.cut_chosen += int(part.tokens["cut_chosen"][pairs].sum())
            ledger.cut_rejected += int(part.tokens["cut_rejected"][pairs].sum())

    def count_near_leaks(self, places: np.ndarray, tested: Sequence[Corpus], ledgers: Sequence[SourceLedger]) -> None:
        """Counts the comparisons among `places` (ascending) whose prompt is nearly one of the tested corpora's."""
        near = places[self._near_leaks(tested)[places]]
        for own, ledger in zip(self._by_part(near), ledgers, strict=True):
            ledger.near_leak += len(own)

    def _stop_at_first(self, number: int) -> None:
        """Raises UserError where a row of this source is refused, for the first such row."""
        part, start, stop = self.parts[number], *self.first[number : number + 2]
        faults = [(row, kind, where, message) for kind, found in part.first.items() for row, where, message in found]
        refused = np.flatnonzero(self.kinds[start:stop] != USABLE)
        if len(refused):
            comparison = int(refused[0])
            kind = KINDS[self.kinds[start + comparison]]
            faults.append((int(part.facts["row"][comparison]), kind, *self._reason(number, comparison)))
        if faults:
            _, kind, where, message = min(faults)
            raise UserError(
                f"{self.key}: {where}: {message} ({kind}): mend or remove this row of {part.source}, "
                "or set data.on_bad_row to skip"
            )

    def _reason(self, number: int, comparison: int) -> tuple[str, str]:
        """Where a refused comparison of a source is, and why it is refused."""
        kind = KINDS[self.kinds[self.first[number] + comparison]]
        where = self.parts[number].comparisons[comparison].where
        if kind == "leak":
            return where, "its prompt is also in an evaluation set"
        if kind in REFUSALS:
            tokens = self.parts[number].tokens
            begin, end = bounds(tokens["message_lengths"])[comparison : comparison + 2]
            return where, tokens.part("messages", begin, end).tobytes().decode()
        other = self._where(int(self._other[self.first[number] + comparison]))
        return where, f"prefers the opposite of {other}" if kind == "contradiction" else f"the same as {other}"

    def _where(self, place: int) -> str:
        number = int(np.searchsorted(self.first, place, side="right")) - 1
        return self.parts[number].comparisons[place - int(self.first[number])].where

    # Views

    def usable(self) -> np.ndarray:
        """The places of the comparisons that are not refused, int64."""
        return np.flatnonzero(self.kinds == USABLE)

    def shares(self) -> np.ndarray:
        """(C,) float64, the place of each first user turn in [0, 1)."""
        return self._joined("place")

    def digests(self, places: np.ndarray) -> np.ndarray:
        """(c,) uint64, a digest of all that the comparisons at `places` say."""
        return self._joined("listed")[places, 0]

    def _by_part(self, places: np.ndarray) -> Iterator[np.ndarray]:
        """Ascending places, as the places within each source."""
        for own, start in zip(np.split(places, np.searchsorted(places, self.first[1:-1])), self.first, strict=False):
            yield own - start

    def encoded(self, places: np.ndarray) -> EncodedComparisons:
        """The comparisons at `places` (ascending) as tokens; `kept` counts through this corpus."""
        return EncodedComparisons.of([part.part() for part in self.parts], list(self._by_part(places)))

    def comparisons(self, places: np.ndarray) -> Selection:
        """The comparisons at `places` (ascending) as they were read."""
        own = list(self._by_part(places))
        origins = np.repeat(np.arange(len(own), dtype=np.int32), list(map(len, own)))
        return Selection([part.comparisons for part in self.parts], origins, np.concatenate(own))

    def held_out_columns(self, places: np.ndarray) -> dict[str, np.ndarray]:
        """What an evaluation set knows of each pair of the comparisons at `places` (ascending); see `EvaluationSet`."""
        found = [held_out_columns(part.facts, own) for part, own in zip(self.parts, self._by_part(places), strict=True)]
        return {name: np.concatenate([each[name] for each in found]) for name in found[0]}
