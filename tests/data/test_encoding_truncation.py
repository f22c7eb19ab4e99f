"""What is kept of conversations: any text, any limit, every policy; special tokens in texts; very long rows."""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from aplot_lightning.data.comparisons import Comparison, Message
from aplot_lightning.data.encoding import POLICIES, ConversationEncoder, Encoding
from aplot_lightning.errors import UserError

CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
ALTERNATING = (
    "{% for m in messages %}{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate') }}{% endif %}{% endfor %}"
)
SPECIAL = ("<|im_start|>", "<|im_end|>", "<|im_start|>assistant\n", "<|endoftext|>")
TEXT = "It is the end of the day, and the dog said: \n\n assistant user what is in the garden? 12 345 é ש 😀 <|im |end"


def byte_level(template: str | None) -> PreTrainedTokenizerFast:
    """A GPT-2-like tokenizer with a few merges: decoding gives back every byte."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([TEXT] * 4, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>" if template else "<|endoftext|>",
        pad_token="<|endoftext|>",
        chat_template=template,
    )


TOKENIZERS = {"chatml": byte_level(CHATML), "plain": byte_level(None), "alternating": byte_level(ALTERNATING + CHATML)}


def message(role: str, content: str) -> Message:
    return {"role": role, "content": content}


def comparison(prompt: Sequence[Message], *responses: str, where: str = "f:1") -> Comparison:
    answers = tuple((message("assistant", text),) for text in responses)
    return Comparison(tuple(prompt), answers, ((0, 1),), None, None, None, "s", "", "1", where)


def encode(name: str, limit: int | None, policy: str, *comparisons: Comparison) -> list[Encoding]:
    return ConversationEncoder(TOKENIZERS[name], limit, policy).encode_chunk(comparisons)


def decoded(name: str, row: Sequence[int]) -> str:
    return TOKENIZERS[name].decode(row, clean_up_tokenization_spaces=False)


def rendered(name: str, conversation: Sequence[Message]) -> str:
    text = ConversationEncoder(TOKENIZERS[name]).render(conversation)
    return text if name != "plain" else f"{text}<|endoftext|>"


def last_text(name: str, row: Sequence[int]) -> str:
    """What a row's last message says, by its tokens: the template's own words around it are known."""
    text = decoded(name, row)
    before, tail = ("\n\nAssistant: ", "<|endoftext|>") if name == "plain" else ("assistant\n", "<|im_end|>\n")
    assert text.endswith(tail)
    return text.removesuffix(tail).rpartition(before)[2]


any_text = st.text(st.characters(codec="utf-8"), max_size=30)
odd_text = st.sampled_from(
    [
        "",
        " ",
        "\n\n",
        "\r\n",
        "\x00\x1b",
        "שלום עולם",
        "مرحبا",
        "👩‍👩‍👧‍👦🏳️‍🌈",
        "e\u0301\u0300",
        "\ue000\ue001",
        "w" * 200,
        *SPECIAL,
    ]
)
texts = st.lists(any_text | odd_text, max_size=3).map("".join)
answers = texts.filter(str.strip)
tame = texts.filter(lambda text: "<|" not in text and "ssistant" not in text)


@st.composite
def prompts(draw: st.DrawFn, text: st.SearchStrategy[str] = texts) -> list[Message]:
    system = draw(st.lists(text, max_size=1))
    turns = draw(st.lists(text, max_size=5).filter(lambda turns: len(turns) % 2 == 1))
    roles = ("user", "assistant")
    return [*(message("system", t) for t in system), *(message(roles[i % 2], t) for i, t in enumerate(turns))]


quick = settings(max_examples=60, deadline=None)


@quick
@given(prompt=prompts(tame) | st.just([]), chosen=tame, rejected=tame)
@pytest.mark.parametrize("name", ["chatml", "plain"])
def test_tokens_are_those_of_the_whole_text(name: str, prompt: list[Message], chosen: str, rejected: str) -> None:
    """Tokenising shared beginnings once changes nothing; the response begins at the token with its first byte."""
    (encoding,) = encode(name, None, "left", comparison(prompt, chosen, rejected))
    tokenizer = TOKENIZERS[name]
    assert (encoding.refusal is not None) == (chosen == rejected)
    for text, row, start in zip((chosen, rejected), encoding.rows, encoding.starts, strict=False):
        whole = rendered(name, [*prompt, message("assistant", text)])
        assert row.tolist() == tokenizer(whole, add_special_tokens=False)["input_ids"]
        assert row.dtype == np.int32
        tail = "<|endoftext|>" if name == "plain" else "<|im_end|>\n"
        before = len(whole.removesuffix(tail).removesuffix(text).encode())
        assert _bytes(tokenizer, row[:start]) <= before < _bytes(tokenizer, row[: start + 1])


def _bytes(tokenizer: PreTrainedTokenizerFast, row: Sequence[int]) -> int:
    """Bytes that byte-level tokens stand for: one for each character of theirs."""
    return sum(map(len, tokenizer.convert_ids_to_tokens(row)))


@quick
@given(prompt=prompts(), chosen=answers, rejected=answers)
@example([message("user", "hi")], "yes<|im_end|>\n<|im_start|>assistant\n", "no")
@example([message("user", "<|im_end|>")], "<|im_start|>", "<|im_<|im_end|>end|>")
@pytest.mark.parametrize("name", ["chatml", "plain"])
def test_special_tokens_in_texts_are_text(name: str, prompt: list[Message], chosen: str, rejected: str) -> None:
    """No text ends its own turn: the special tokens of a row are those that the template writes."""
    (encoding,) = encode(name, None, "left", comparison(prompt, chosen, rejected))
    for text, row in zip((chosen, rejected), encoding.rows, strict=False):
        conversation = [*prompt, message("assistant", text)]
        assert decoded(name, row) == rendered(name, conversation)
        expected = 2 * len(conversation) if name == "chatml" else 1
        ids = TOKENIZERS[name].convert_tokens_to_ids(["<|endoftext|>", "<|im_start|>", "<|im_end|>"])
        assert int(np.isin(row, ids).sum()) == expected


@quick
@given(prompt=prompts(), chosen=answers, rejected=answers, limit=st.integers(1, 90), policy=st.sampled_from(POLICIES))
@pytest.mark.parametrize("name", ["chatml", "plain", "alternating"])
def test_every_comparison_has_one_outcome_and_keeps_its_tail(
    name: str, prompt: list[Message], chosen: str, rejected: str, limit: int, policy: str
) -> None:
    """Rows fit and end as the template ends them; answers stay whole, or begin as they did, as the policy says."""
    if name == "alternating":
        prompt = [each for each in prompt if each["role"] != "system"]
    both, swapped = (comparison(prompt, *sides) for sides in ((chosen, rejected), (rejected, chosen)))
    encoding, mirrored, whole = (
        encode(name, length, policy, each)[0] for length, each in ((limit, both), (limit, swapped), (None, both))
    )
    assert (encoding.refusal is None) == (len(encoding.rows) == len(encoding.starts) == 2)
    assert mirrored.refusal == encoding.refusal
    assert [row.tolist() for row in mirrored.rows[::-1]] == [row.tolist() for row in encoding.rows]
    assert mirrored.starts[::-1] == encoding.starts
    assert {1 - place for place in mirrored.cut_responses} == set(encoding.cut_responses)
    fits = all(len(row) <= limit for row in whole.rows)
    if fits:
        assert [row.tolist() for row in encoding.rows] == [row.tolist() for row in whole.rows]
    assert not fits or not (encoding.cut_prompt or encoding.cut_responses)
    if policy == "drop" and not fits:
        assert encoding.refusal is not None
        assert encoding.refusal[0] == "too_long"
    for place, (text, row, start) in enumerate(zip((chosen, rejected), encoding.rows, encoding.starts, strict=False)):
        assert 0 <= start < len(row) <= limit
        assert row[-1] == whole.rows[place][-1]
        tail = "<|endoftext|>" if name == "plain" else "<|im_end|>\n"
        text_kept = decoded(name, row).removesuffix(tail)
        if place not in encoding.cut_responses:
            assert text_kept.endswith(text)
        if policy == "right" and place not in encoding.cut_responses:
            assert row.tolist() == whole.rows[place].tolist()
        if place in encoding.cut_responses:
            kept = text_kept[len(decoded(name, row[:start])) :].strip()
            assert kept
            assert kept in text
            assert text_kept.endswith(tuple(text[:size] for size in range(1, len(text))))  # a beginning of the answer


@quick
@given(turns=st.lists(tame, min_size=1, max_size=5).filter(lambda t: len(t) % 2 == 1), answer=tame.filter(str.strip))
@pytest.mark.parametrize("name", ["chatml", "plain", "alternating"])
def test_left_keeps_answers_that_fit_beside_an_emptied_prompt(name: str, turns: list[str], answer: str) -> None:
    prompt = [message(("user", "assistant")[i % 2], text) for i, text in enumerate(turns)]
    pair = comparison(prompt, f"{answer}x", f"{answer}y")
    emptied = comparison([message("user", "")], f"{answer}x", f"{answer}y")
    room = max(len(row) for row in encode(name, None, "left", emptied)[0].rows)
    for limit in (room, room + 1, room + 7):
        (encoding,) = encode(name, limit, "left", pair)
        assert encoding.refusal is None
        assert encoding.cut_responses == ()
        assert [last_text(name, row) for row in encoding.rows] == [f"{answer}x", f"{answer}y"]
    (encoding,) = encode(name, room - 1, "left", pair)
    # white space at the last message's end may merge with the template's own, and then takes less room than nothing
    if not turns[-1][-1:].isspace():
        assert encoding.refusal is not None or encoding.cut_responses


def test_left_drops_whole_messages_first_and_as_few_as_help() -> None:
    turns = [message(("user", "assistant")[i % 2], f"turn {i} says it is") for i in range(9)]
    prompt = [message("system", "the rules"), *turns]
    pair = comparison(prompt, "yes", "no")
    sizes = {}
    for lost in range(9):
        kept = comparison([prompt[0], *turns[lost:]], "yes", "no")
        sizes[lost] = max(len(row) for row in encode("chatml", None, "left", kept)[0].rows)
    for lost, size in sizes.items():
        for limit in (size, size + 1):
            (encoding,) = encode("chatml", limit, "left", pair)
            expected = rendered("chatml", [prompt[0], *turns[lost:], message("assistant", "yes")])
            assert decoded("chatml", encoding.rows[0]) == expected
            assert encoding.cut_prompt == (lost > 0)
    (encoding,) = encode("chatml", sizes[8] - 2, "left", pair)
    text = decoded("chatml", encoding.rows[0])
    assert text.startswith("<|im_start|>system\nthe rules<|im_end|>\n<|im_start|>user\n")
    assert text.endswith("says it is<|im_end|>\n<|im_start|>assistant\nyes<|im_end|>\n")
    assert "turn 8" not in text


def test_left_drops_two_messages_where_the_template_wants_roles_to_alternate() -> None:
    turns = [message(("user", "assistant")[i % 2], f"turn {i} says it is") for i in range(7)]
    whole = encode("alternating", None, "left", comparison(turns, "yes", "no"))[0].rows
    (encoding,) = encode("alternating", max(map(len, whole)) - 1, "left", comparison(turns, "yes", "no"))
    assert decoded("alternating", encoding.rows[0]) == rendered(
        "alternating", [*turns[2:], message("assistant", "yes")]
    )


def test_right_cuts_each_answer_for_itself_and_never_the_prompt() -> None:
    prompt = [message("user", "what is in the garden?")]
    pair = comparison(prompt, "the dog " * 40, "nothing")
    (encoding,) = encode("chatml", 40, "right", pair)
    assert encoding.cut_responses == (0,)
    assert not encoding.cut_prompt
    first, second = (decoded("chatml", row) for row in encoding.rows)
    assert first.startswith(rendered("chatml", prompt) + "<|im_start|>assistant\nthe dog the dog")
    assert second == rendered("chatml", [*prompt, message("assistant", "nothing")])
    assert 36 <= len(encoding.rows[0]) <= 40
    (encoding,) = encode("chatml", 40, "right", comparison(prompt * 20, "yes", "no"))
    assert encoding.refusal is not None
    assert encoding.refusal[0] == "too_long"
    (encoding,) = encode("chatml", 40, "right", comparison(prompt, "the dog " * 40, "the dog " * 41))
    assert encoding.refusal is not None
    assert encoding.refusal[0] == "identical_after_truncation"


def test_drop_refuses_what_is_too_long() -> None:
    pairs = [comparison([message("user", "q")], "the dog " * 40, "no"), comparison([message("user", "q")], "yes", "no")]
    long, short = encode("chatml", 40, "drop", *pairs)
    assert long.refusal is not None
    assert long.refusal[0] == "too_long"
    assert long.refusal[1].endswith("tokens, more than max_length 40")
    assert short.refusal is None
    with pytest.raises(UserError, match="tokens, more than max_length 40"):
        ConversationEncoder(TOKENIZERS["chatml"], 40, "drop").encode_conversations(
            [[message("user", "q"), message("assistant", "the dog " * 40)]]
        )


def test_sides_with_prompts_of_their_own_say_whose_was_cut() -> None:
    sides = tuple((message("user", text), message("assistant", "yes")) for text in ("the dog " * 40, "short"))
    own = Comparison((), sides, ((0, 1),), None, None, None, "s", "", "1", "f:1")
    (encoding,) = encode("chatml", 40, "left", own)
    assert encoding.cut_prompt
    assert encoding.cut_responses == ()
    assert decoded("chatml", encoding.rows[1]) == rendered("chatml", sides[1])
    (encoding,) = encode("chatml", 40, "right", own)
    assert encoding.refusal is not None


@pytest.mark.parametrize("policy", ["left", "right"])
@pytest.mark.parametrize("limit", range(1, 11))
def test_limits_without_room_refuse(limit: int, policy: str) -> None:
    """The template around one turn takes more than ten tokens here."""
    pairs = [comparison([message("user", "q")], "yes", "no"), comparison([], "yes and", "no and")]
    for encoding in encode("chatml", limit, policy, *pairs[: 1 if limit > 4 else 2]):
        assert encoding.refusal is not None
        assert encoding.refusal[0] == "too_long"
        assert "\n" not in encoding.refusal[1]


def test_empty_prompts_and_empty_system_messages() -> None:
    for prompt in ([], [message("system", "")], [message("system", ""), message("user", "")]):
        (encoding,) = encode("chatml", 60, "left", comparison(prompt, "yes", "no"))
        for row, start, text in zip(encoding.rows, encoding.starts, ("yes", "no"), strict=True):
            assert decoded("chatml", row[start:]) == f"{text}<|im_end|>\n"
            assert decoded("chatml", row) == rendered("chatml", [*prompt, message("assistant", text)])


MEGABYTE = [
    *(("chatml", "left", kind) for kind in ("prompt", "system", "answers", "turns", "word", "specials")),
    *(("chatml", "right", "answers"), ("plain", "left", "turns"), ("plain", "right", "word")),
]


@pytest.mark.parametrize(("name", "policy", "kind"), MEGABYTE)
def test_rows_of_a_megabyte_are_cut_in_little_time(name: str, policy: str, kind: str) -> None:
    size, user = 1_000_000, message("user", "what is it?")
    long = {"word": "w" * size, "specials": "<|im_end|>" * (size // 10)}.get(kind, "the dog said " * (size // 13))
    prompt, ends = {
        "prompt": ([message("user", long)], ("yes", "no")),
        "system": ([message("system", long), user], ("yes", "no")),
        "answers": ([user], (f"yes {long}", f"no {long}")),
        "turns": ([message(("user", "assistant")[i % 2], "the dog said") for i in range(10_001)], ("yes", "no")),
        "word": ([message("user", long)], (f"y{long}", "no")),
        "specials": ([message("user", long)], ("yes", "no")),
    }[kind]
    began = time.process_time()
    (encoding,) = encode(name, 64, policy, comparison(prompt, *ends))
    assert time.process_time() - began < 15  # about 2 s on one core; a quadratic loop takes minutes
    assert (encoding.refusal is None) == (policy == "left" or kind == "answers")
    assert all(len(row) <= 64 for row in encoding.rows)
