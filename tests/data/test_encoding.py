from __future__ import annotations

import pickle
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

import aplot_lightning.model as model_room
from aplot_lightning.data.comparisons import Comparison
from aplot_lightning.data.encoded import TOKEN_COLUMNS, common_prefix
from aplot_lightning.data.encoding import ConversationEncoder
from aplot_lightning.data.ledger import SourceLedger
from aplot_lightning.errors import UserError

WORLD = f"{model_room.__path__[0]}/assets/world-decoder"


@pytest.fixture(scope="module")
def chat() -> PreTrainedTokenizerFast:
    return AutoTokenizer.from_pretrained(WORLD)


@pytest.fixture(scope="module")
def plain() -> PreTrainedTokenizerFast:
    """No chat template, no special tokens added by itself: a GPT-2-like tokenizer over bytes."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={token: i for i, token in enumerate([*alphabet, "<eos>"])}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>", pad_token="<eos>")


def comparison(prompt: str | tuple, *responses: str, **fields: object) -> Comparison:
    values = {
        "prompt": ({"role": "user", "content": prompt},) if isinstance(prompt, str) else prompt,
        "responses": tuple(({"role": "assistant", "content": text},) for text in responses),
        "pairs": ((0, 1),),
        "margin": None,
        "target": None,
        "scores": None,
        "source": "s",
        "subset": "",
        "id": "1",
        "where": "f:1",
    }
    return Comparison(**{**values, **fields})


def test_rows_are_what_the_template_and_tokenizer_write(chat: PreTrainedTokenizerFast) -> None:
    encoded = ConversationEncoder(chat).encode([comparison("What is 2 + 3 ?", "it is 5 .", "no idea")])
    expected = [
        chat.apply_chat_template(
            [{"role": "user", "content": "What is 2 + 3 ?"}, {"role": "assistant", "content": text}],
            tokenize=True,
            return_dict=False,
        )
        for text in ("it is 5 .", "no idea")
    ]
    assert [row.tolist() for row in encoded.rows(0)] == expected
    assert encoded.lengths.tolist() == [max(map(len, expected))]


def test_without_a_template_the_end_of_text_token_is_scored(plain: PreTrainedTokenizerFast) -> None:
    row = ConversationEncoder(plain).encode([comparison("hi", "yes", "no")]).rows(0)[0]
    assert plain.decode(row) == "Human: hi\n\nAssistant: yes<eos>"


words = st.text(st.characters(codec="utf-8", exclude_categories=["Cs", "Cc"]), min_size=1, max_size=30).filter(
    str.strip
)
conversations = st.lists(words, min_size=1, max_size=6)


@settings(max_examples=60, deadline=None)
@given(turns=conversations, chosen=words, rejected=words, limit=st.integers(24, 80))
@pytest.mark.parametrize("name", ["chat", "plain"])
def test_truncation_keeps_the_answer_and_the_template_tail(
    name: str, turns: list[str], chosen: str, rejected: str, limit: int, request: pytest.FixtureRequest
) -> None:
    """The kept tokens are a conversation that the template would write; they end as the whole one ends."""
    tokenizer = request.getfixturevalue(name)
    prompt = tuple({"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(turns))
    assume(chosen.split() != rejected.split())
    whole = ConversationEncoder(tokenizer).encode([comparison(prompt, chosen, rejected)])
    encoded = ConversationEncoder(tokenizer, limit).encode([comparison(prompt, chosen, rejected)])
    answers = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in (chosen, rejected)]
    room = 16 if name == "chat" else 25  # what the template needs around an empty prompt and an answer
    for place, row in enumerate(encoded.rows(0) if len(encoded) else []):
        assert len(row) <= limit
        full = whole.rows(0)[place]
        if len(full) <= limit and len(whole.rows(0)[1 - place]) <= limit:
            assert row.tolist() == full.tolist()
        assert row[-1] == full[-1]
        if len(answers[place]) + room <= limit:
            kept = len(answers[place]) + 1
            assert row[-kept:].tolist() == full[-kept:].tolist()


@settings(max_examples=60, deadline=None)
@given(prompt=words, chosen=words, rejected=words)
def test_segments_rebuild_the_rows_and_a_swap_mirrors_them(
    chat: PreTrainedTokenizerFast, prompt: str, chosen: str, rejected: str
) -> None:
    encoder = ConversationEncoder(chat, 64)
    encoded = encoder.encode([comparison(prompt, chosen, rejected)])
    mirrored = encoder.encode([comparison(prompt, rejected, chosen)])
    assert len(encoded) == len(mirrored)
    if len(encoded):
        assert [row.tolist() for row in encoded.rows(0)] == [row.tolist() for row in mirrored.rows(0)][::-1]
        assert all(len(segment) for segment in encoded.segments_of(0)[1:])


def test_common_prefix_leaves_a_token_to_every_row() -> None:
    assert common_prefix([np.array([1, 2, 3]), np.array([1, 2, 4, 5])]) == 2
    assert common_prefix([np.array([1, 2]), np.array([1, 2, 3])]) == 1
    assert common_prefix([np.array([4]), np.array([1, 2])]) == 0


def test_what_cannot_be_used_is_counted(chat: PreTrainedTokenizerFast) -> None:
    ledger = SourceLedger("s")
    long = "a " * 200
    rows = [comparison("q", long + "x", long + "y", where="f:1"), comparison("q", "yes", "no", where="f:2")]
    encoded = ConversationEncoder(chat, 40).encode(rows, ledger)
    assert encoded.kept.tolist() == [1]
    assert ledger.refused["identical_after_truncation"] == 1
    assert len(ConversationEncoder(chat, 3).encode(rows, ledger)) == 0
    assert ledger.refused["too_long"] == 2


def test_a_template_that_refuses_says_where(chat: PreTrainedTokenizerFast) -> None:
    strict = AutoTokenizer.from_pretrained(WORLD)
    strict.chat_template = "{{ raise_exception('only user and assistant') }}"
    with pytest.raises(UserError, match=r"f:1: the chat template refuses .* user, assistant: only user and assistant"):
        ConversationEncoder(strict).encode([comparison("q", "yes", "no")])


def test_a_role_that_the_template_refuses_is_said_with_its_row(chat: PreTrainedTokenizerFast) -> None:
    strict = AutoTokenizer.from_pretrained(WORLD)
    strict.chat_template = (
        "{% for m in messages %}{% if m.role == 'tool' %}{{ raise_exception('no tools') }}{% endif %}{% endfor %}"
        + chat.chat_template
    )
    turns = ({"role": "user", "content": "q"}, {"role": "tool", "content": "5"})
    rows = [comparison("q", "yes", "no", where="f:1"), comparison(turns, "yes", "no", where="f:2")]
    with pytest.raises(UserError, match=r"^f:2: the chat template refuses .* user, tool, assistant: no tools$"):
        ConversationEncoder(strict).encode_chunk(rows)


def test_the_encoder_travels_to_other_processes(chat: PreTrainedTokenizerFast) -> None:
    encoder = ConversationEncoder(chat, 40, "right")
    copy = pickle.loads(pickle.dumps(encoder))
    assert copy.fingerprint() == encoder.fingerprint()
    rows = [encoder.encode_chunk([comparison("q", "a " * 60, "no")])[0].rows for encoder in (encoder, copy)]
    assert [row.tolist() for row in rows[0]] == [row.tolist() for row in rows[1]]


def test_fingerprint_is_the_same_in_another_process(chat: PreTrainedTokenizerFast) -> None:
    program = (
        "from transformers import AutoTokenizer; from aplot_lightning.data.encoding import ConversationEncoder\n"
        f"print(ConversationEncoder(AutoTokenizer.from_pretrained({WORLD!r}), 64).fingerprint())"
    )
    other = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert other.stdout.strip() == ConversationEncoder(chat, 64).fingerprint()


def test_fingerprint_tells_what_decides_tokens_and_nothing_else(chat: PreTrainedTokenizerFast) -> None:
    def fresh() -> PreTrainedTokenizerFast:
        return AutoTokenizer.from_pretrained(WORLD)

    print_of = ConversationEncoder(chat, 64).fingerprint()
    used = fresh()
    used(["a", "b c d"], padding=True, truncation=True, max_length=2)  # leaves both settings in the tokenizer behind it
    assert ConversationEncoder(used, 64).fingerprint() == print_of
    template, added, ending = fresh(), fresh(), fresh()
    template.chat_template += " "
    added.add_tokens(["zzz"])
    ending.eos_token = "<|pad|>"
    others = [ConversationEncoder(each, 64).fingerprint() for each in (template, added, ending)]
    others += [ConversationEncoder(chat, 65).fingerprint(), ConversationEncoder(chat, 64, "right").fingerprint()]
    assert len({print_of, *others}) == 6


def test_limits_that_a_tokenizer_carries_do_not_cut(chat: PreTrainedTokenizerFast) -> None:
    carrying = AutoTokenizer.from_pretrained(WORLD)
    expected = ConversationEncoder(chat).encode_chunk([comparison("q", "a b c d e", "no")])[0].rows
    carrying.backend_tokenizer.enable_truncation(4)
    carrying.backend_tokenizer.enable_padding(length=50)
    rows = ConversationEncoder(carrying).encode_chunk([comparison("q", "a b c d e", "no")])[0].rows
    assert [row.tolist() for row in rows] == [row.tolist() for row in expected]


def test_an_unknown_policy_is_refused(chat: PreTrainedTokenizerFast) -> None:
    with pytest.raises(UserError, match="truncation: 'middle' is none of left, right, drop"):
        ConversationEncoder(chat, 64, "middle")


def test_columns_hold_what_the_data_says(chat: PreTrainedTokenizerFast) -> None:
    encoded = ConversationEncoder(chat).encode(
        [
            comparison("q", "yes", "no", margin=0.5, scores=(3.0, 1.0)),
            comparison("q", "a", "b", "c", pairs=((0, 1), (0, 2), (1, 2)), scores=(3.0, 2.0, 1.0), target=0.8),
        ]
    )
    np.testing.assert_allclose(encoded.columns["weight"], [1, 1 / 3, 1 / 3, 1 / 3])
    np.testing.assert_allclose(encoded.columns["margin"], [0.5, np.nan, np.nan, np.nan])
    np.testing.assert_allclose(encoded.columns["target"], [1, 0.8, 0.8, 0.8])
    np.testing.assert_allclose(encoded.columns["chosen_score"], [3, 3, 3, 2])
    np.testing.assert_allclose(encoded.columns["rejected_score"], [1, 2, 1, 1])
    plain = ConversationEncoder(chat).encode([comparison("q", "yes", "no")])
    assert set(plain.columns) == {"weight", "source", *TOKEN_COLUMNS}


def test_lengths_count_the_response_and_what_differs(chat: PreTrainedTokenizerFast) -> None:
    """The response begins after the prompt as the template writes it; its tail counts."""
    encoded = ConversationEncoder(chat).encode(
        [
            comparison("What is 2 + 3 ?", "it is 5 .", "it is 5 . thanks"),
            comparison("hi", "yes", "no", source="other"),
        ]
    )
    tail = len(chat(chat.eos_token, add_special_tokens=False)["input_ids"])
    tokens = [
        len(chat(text, add_special_tokens=False)["input_ids"]) + tail for text in ("it is 5 .", "it is 5 . thanks")
    ]
    assert [encoded.columns["chosen_length"][0], encoded.columns["rejected_length"][0]] == tokens
    assert encoded.columns["chosen_suffix"][0] == tail
    assert encoded.columns["rejected_suffix"][0] == tail + tokens[1] - tokens[0]
    for row, start in zip(encoded.rows(0), encoded.response_starts(0), strict=True):
        assert chat.decode(row[start:]).startswith("it is 5")
    assert encoded.columns["source"].tolist() == [0, 1]
    assert encoded.sources == ["s", "other"]


def test_sides_with_their_own_prompts_are_cut_each_for_itself(chat: PreTrainedTokenizerFast) -> None:
    sides = tuple(
        ({"role": "user", "content": f"{word} " * 60}, {"role": "assistant", "content": "it is 5 ."}) for word in "ab"
    )
    encoded = ConversationEncoder(chat, 40).encode([comparison((), "", "", responses=sides)])
    assert encoded.lengths.tolist() == [40]
    for row, start in zip(encoded.rows(0), encoded.response_starts(0), strict=True):
        assert "it is 5 ." in chat.decode(row[start:])
