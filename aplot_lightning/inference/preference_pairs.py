"""Preference pairs out of scored candidates, for DPO: which two responses of a prompt, and in which layout."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike

from aplot_lightning.data.comparisons import RowError
from aplot_lightning.inference.samples import numbers_of, rewards_of

Rule = Literal["max_min", "plus", "times"]
PHI = 50.0  # weight of the reward in CRPO's sum
CELLS_AT_ONCE = 1_000_000  # of the (chosen, rejected) table: 8 MB of float64


@dataclass(frozen=True)
class Candidates:
    """The scored responses of one prompt.

    Attributes:
        prompt: text or messages.
        responses: text or messages each, n of them.
        rewards: n.
        log_probabilities: of each response under the policy that is to be trained, n; None where the row has none.
        row: what else the row says.
    """

    prompt: Any
    responses: list[Any]
    rewards: list[float]
    log_probabilities: list[float] | None
    row: Mapping[str, Any]

    @staticmethod
    def of(row: Any, rule: Rule) -> Candidates:
        """Reads ``{"prompt", "responses", "rewards"[, "log_probabilities"]}``.

        Raises:
            RowError: something of that is missing or of another length or type; `rule` needs log-probabilities.
        """
        if isinstance(row, RowError):
            raise row
        if not isinstance(row, Mapping):
            raise RowError("wrong_type", "not a JSON object")
        prompt, responses = row.get("prompt"), row.get("responses")
        if prompt is None or prompt in ("", []):
            raise RowError("missing_field", 'no "prompt"')
        if not isinstance(responses, Sequence) or isinstance(responses, str) or not responses:
            raise RowError("missing_field", 'no "responses", a list of at least one')
        _check_text(prompt, "prompt")
        for place, response in enumerate(responses):
            _check_text(response, f"responses[{place}]")
        count = len(responses)
        given = row.get("log_probabilities")
        if given is None and rule != "max_min":
            raise RowError("missing_field", f'no "log_probabilities", which the rule {rule} needs')
        logs = None if given is None else numbers_of(given, "log_probabilities", count)
        return Candidates(prompt, list(responses), rewards_of(row, count), logs, row)

    def distinct(self) -> Candidates:
        """Without empty responses, which readers of pairs refuse, and those that repeat an earlier one exactly."""
        first: dict[str, int] = {}
        for place, response in enumerate(self.responses):
            if text_of(response).strip():
                first.setdefault(text_of(response), place)
        kept = list(first.values())
        return Candidates(
            self.prompt,
            [self.responses[place] for place in kept],
            [self.rewards[place] for place in kept],
            None if self.log_probabilities is None else [self.log_probabilities[place] for place in kept],
            self.row,
        )


def _check_text(value: Any, name: str) -> None:
    messages = isinstance(value, Sequence) and not isinstance(value, str) and value
    if not isinstance(value, str) and not (
        messages and all(isinstance(m, Mapping) and isinstance(m.get("content"), str) and "role" in m for m in value)
    ):
        raise RowError("wrong_type", f"{name} is neither text nor messages of role and content")


def text_of(value: Any) -> str:
    """What tells two prompts or responses apart; text and one assistant message of that text are the same."""
    if isinstance(value, str):
        return value
    if len(value) == 1 and value[0]["role"] == "assistant":
        return str(value[0]["content"])
    return repr([(message["role"], message["content"]) for message in value])


def choose_pair(
    rule: Rule,
    rewards: ArrayLike,
    log_probabilities: ArrayLike | None = None,
    *,
    phi: float = PHI,
    least_margin: float = 0.0,
    most_margin: float = float("inf"),
) -> tuple[int, int] | None:
    """The pair of one prompt: (chosen, rejected), places among its n candidates.

    - ``max_min``: the largest and the smallest reward.
    - ``plus`` (CRPO 2501.13927): the largest phi [R(y⁺) - R(y⁻)] + [log π(y⁻) - log π(y⁺)] that is positive.
    - ``times`` (CRPO): the largest [R(y⁺) - R(y⁻)] [log π(y⁻) - log π(y⁺)] that is positive.

    Both of CRPO's look for pairs that the policy has the wrong way round. Under every rule the chosen response has the
    strictly larger reward (the product alone would not tell which of the two it is), by a margin within the thresholds.
    Of equally good pairs the one that comes first is taken.

    Args:
        rule: as above.
        rewards: (n,) R.
        log_probabilities: (n,) log π, summed over the response's tokens; not looked at by ``max_min``.
        phi: weight of the reward under ``plus``.
        least_margin: pairs whose rewards are closer are passed over.
        most_margin: pairs whose rewards are further apart are passed over; under ``max_min`` too, which then takes the
            widest pair within.

    Returns:
        None where no pair qualifies.
    """
    values = np.asarray(rewards, dtype=np.float64)
    logs = np.zeros_like(values) if log_probabilities is None else np.asarray(log_probabilities, dtype=np.float64)
    best, pair = 0.0, None
    rows = max(1, CELLS_AT_ONCE // max(1, len(values)))
    for start in range(0, len(values), rows):
        block = slice(start, start + rows)
        gaps = values[block, None] - values[None, :]
        surprise = logs[None, :] - logs[block, None]
        gains = {"max_min": gaps, "plus": phi * gaps + surprise, "times": gaps * surprise}[rule]
        allowed = (gaps > 0) & (gaps >= least_margin) & (gaps <= most_margin)
        gains = np.where(allowed, gains, 0.0)
        if gains.max() > best:
            best = float(gains.max())
            chosen, rejected = np.unravel_index(int(np.argmax(gains)), gains.shape)
            pair = (start + int(chosen), int(rejected))
    return pair


def preference_row(candidates: Candidates, pair: tuple[int, int]) -> dict[str, Any]:
    """A pair in TRL's explicit-prompt layout, standard or conversational, with the rewards as scores.

    Text stays text. Where prompt or a response is messages, all three are: a text prompt becomes one user message, a
    text response one assistant message. ``id``, ``source`` and ``subset`` of the row are kept.
    """
    chosen, rejected = (candidates.responses[place] for place in pair)
    prompt = candidates.prompt
    if not all(isinstance(value, str) for value in (prompt, chosen, rejected)):
        prompt = _messages(prompt, "user")
        chosen, rejected = _messages(chosen, "assistant"), _messages(rejected, "assistant")
    row = {"prompt": prompt, "chosen": chosen, "rejected": rejected}
    row["chosen_score"], row["rejected_score"] = (candidates.rewards[place] for place in pair)
    return {**row, **{name: candidates.row[name] for name in ("id", "source", "subset") if name in candidates.row}}


def _messages(value: Any, role: str) -> list[dict[str, Any]]:
    return [{"role": role, "content": value}] if isinstance(value, str) else list(value)
