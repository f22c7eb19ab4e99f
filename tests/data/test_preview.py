"""Previews: what is shown is what was kept, the scored token is marked, and no writing system is damaged."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from aplot_lightning.data.preview import harmless, previews, shortened

TEMPLATE = "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}<end>{% endfor %}"
FAMILY = "👩\u200d👩\u200d👧"
THUMB = "👍\U0001f3fd"
HEBREW = "שָׁלוֹם עולם"


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    """A token a byte, as byte-level BPE without merges: every character beyond ASCII lies in several tokens."""
    special = ["<user>", "<assistant>", "<end>"]
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    inner = Tokenizer(models.BPE({token: place for place, token in enumerate(special + letters)}, []))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    inner.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(tokenizer_object=inner, pad_token="<end>", chat_template=TEMPLATE)
    fast.add_special_tokens({"additional_special_tokens": special})
    return fast


class Encoded:
    """What previews read of EncodedComparisons."""

    def __init__(self, tokenizer, pairs, tail="<end>"):
        self.all_rows, self.all_starts = [], []
        for prompt, *responses in pairs:
            before = [tokenizer(f"<user>{prompt}<end><assistant>")["input_ids"] for _ in responses]
            after = [tokenizer(f"{response}{tail}")["input_ids"] for response in responses]
            self.all_rows.append([np.asarray(a + b, dtype=np.int32) for a, b in zip(before, after, strict=True)])
            self.all_starts.append(np.asarray([len(a) for a in before], dtype=np.int32))
        self.lengths = np.asarray([max(map(len, rows)) for rows in self.all_rows], dtype=np.int32)
        self.winners = np.asarray([len(rows) - 1 for rows in self.all_rows], dtype=np.int32)
        self.losers = np.zeros(len(pairs), dtype=np.int32)
        self.first_pair = np.arange(len(pairs) + 1)

    def __len__(self):
        return len(self.lengths)

    def rows(self, comparison):
        return self.all_rows[comparison]

    def response_starts(self, comparison):
        return self.all_starts[comparison]


def test_prompt_response_and_scored_token(tokenizer):
    (preview,) = previews(tokenizer, Encoded(tokenizer, [("who ?", "no", "the cat")]))
    assert preview.chosen.prompt == preview.rejected.prompt == "<user>who ?<end><assistant>"
    assert (preview.chosen.response, preview.rejected.response) == ("the cat⟦<end>⟧", "no⟦<end>⟧")
    assert (preview.chosen.tokens, preview.rejected.tokens) == (8 + 8, 8 + 3)
    assert preview.one_prompt


def test_the_shortest_the_median_and_the_longest(tokenizer):
    pairs = [("q", "a", "b" * length) for length in (5, 1, 9, 3, 7)]
    encoded = Encoded(tokenizer, pairs)
    assert [preview.chosen.response.count("b") for preview in previews(tokenizer, encoded)] == [1, 5, 9]
    assert [preview.chosen.response.count("b") for preview in previews(tokenizer, encoded, most=2)] == [1, 9]
    assert len(previews(tokenizer, encoded, most=1)) == 1
    assert len(previews(tokenizer, Encoded(tokenizer, pairs[:2]))) == 2
    assert previews(tokenizer, Encoded(tokenizer, [])) == []
    assert previews(tokenizer, encoded, most=0) == []


@pytest.mark.parametrize("text", [FAMILY, THUMB, HEBREW, "مرحبا بالعالم", "🇩🇪🇫🇷", "é\u0301 ﷽", "a\r\nb\tc"])
def test_every_writing_survives(tokenizer, text):
    (preview,) = previews(tokenizer, Encoded(tokenizer, [(text, f"{text}!", text)]))
    assert preview.chosen.prompt == f"<user>{text}<end><assistant>"
    assert preview.chosen.response == f"{text}⟦<end>⟧"
    assert harmless(preview.rejected.response.replace("\r", "")) == preview.rejected.response.replace("\r", "")


def test_a_scored_token_that_is_part_of_a_character_shows_the_whole_one(tokenizer):
    (preview,) = previews(tokenizer, Encoded(tokenizer, [("who ?", "no", "fox 🦊")], tail=""))
    assert preview.chosen.response == "fox ⟦🦊⟧"
    assert preview.rejected.response == "n⟦o⟧"


def test_a_scored_line_break_can_be_seen(tokenizer):
    (preview,) = previews(tokenizer, Encoded(tokenizer, [("who ?", "no", "the cat")], tail="<end>\n"))
    assert preview.chosen.response == r"the cat<end>⟦\n⟧"


@given(st.text(), st.integers(2, 40))
def test_shortening_keeps_both_ends_and_counts_the_rest(text, shown):
    short = shortened(text, shown)
    if len(text) <= shown:
        assert short == text
        return
    first, middle, last = short.split(" … ") if short.count(" … ") == 2 else ("", "", "")
    if middle:  # the text itself has no such mark
        left_out = int(middle.removeprefix("[").removesuffix(" characters]").replace(",", ""))
        assert text.startswith(first)
        assert text.endswith(last)
        assert len(first) + left_out + len(last) == len(text)


@pytest.mark.parametrize("one", [FAMILY, THUMB, "e\u0301", "🇩🇪", "❤\ufe0f"])
def test_shortening_cuts_no_character_in_two(one):
    for shown in range(10, 30):
        first, _, last = shortened("x" + one * 40 + "y", shown).split(" … ")
        inside = first.removeprefix("x") + last.removesuffix("y")
        assert inside.replace(one, "") == ""


def test_harmless_text_steers_nothing():
    assert harmless("a\x1b[2Jb\x07\u202ec\x9bd\re\ud800") == r"a\x1b[2Jb\x07\u202ec\x9bd\re\ud800"
    kept = f"{FAMILY} {HEBREW}\n\tx ⟦y⟧"
    assert harmless(kept) == kept
