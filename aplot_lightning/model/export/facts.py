"""What there is to say of an exported folder."""

from __future__ import annotations

from dataclasses import dataclass

from aplot_lightning.model.export.padding import PadToken


@dataclass(frozen=True)
class Exported:
    """What was written.

    Attributes:
        architecture: the class of Transformers.
        parameters: their number.
        dtype: of the weights, as ``float32``.
        max_length: tokens of a prompt with one response; None for no limit.
        scored: the text of the token that every conversation ends with and that is scored; None for an encoder, or
            where conversations end with various tokens.
        pad: the pad token; None for an encoder, which keeps its own.
        template_written: the tokenizer had no chat template and got the one for ``Human: ... Assistant: ...`` turns.
        dropped_constant: what all rewards are lower by, because the plain head has no constant term.
        difference: largest difference between plain and own rewards of a few conversations, in one padded batch.
    """

    architecture: str
    parameters: int
    dtype: str
    max_length: int | None
    scored: str | None
    pad: PadToken | None
    template_written: bool
    dropped_constant: float
    difference: float

    @property
    def reading(self) -> str:
        """One sentence or two on what is scored and how rows are padded."""
        if self.pad is None:
            return "It reads a conversation as its architecture does, from the first token on: pad on the right."
        which = "" if self.scored is None else f", which the chat template writes ({self.scored!r})"
        return (
            f"The reward is read at its last token{which}; the pad token {self.pad.token!r} is never that one. "
            "Pad on the right; the left is as good where positions are relative."
        )

    @property
    def notes(self) -> tuple[str, ...]:
        """In what the plain model is not the model that was exported; nothing where it is."""
        notes = []
        if self.dtype not in ("float32", "float64"):
            notes.append(
                f"The head is in {self.dtype} too, so that rewards are rounded, by up to {self.difference:.1g} in a "
                "few conversations."
            )
        if self.dropped_constant:
            notes.append(
                f"All rewards are lower by {self.dropped_constant:.6g} than the model's own, because the plain head "
                "has no constant term; differences are the same."
            )
        return tuple(notes)
