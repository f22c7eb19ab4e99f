"""Every layout in the form in which it is published, every fault of a single row, and the helpers on comparisons."""

from __future__ import annotations

import math
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aplot_lightning.data.comparisons import (
    KINDS,
    RowError,
    conversation_of,
    first_user_turn,
    normalised_text,
    parse_comparison,
    prompt_key,
    response_text,
)


def user(text):
    return {"role": "user", "content": text}


def assistant(text):
    return {"role": "assistant", "content": text}


def parse(row):
    return parse_comparison(row, "pairs.jsonl:3", "pairs.jsonl")


SKY = ((user("What color is the sky?"),), ((assistant("It is blue."),), (assistant("It is green."),)))
HH = (
    "\n\nHuman: What color is the sky?\n\nAssistant: It is blue.",
    "\n\nHuman: What color is the sky?\n\nAssistant: It is green.",
)
LAYOUTS = {
    "TRL standard, explicit prompt": (
        {"prompt": "What color is the sky?", "chosen": "It is blue.", "rejected": "It is green."},
        *SKY,
    ),
    "TRL standard, implicit prompt": (
        {"chosen": "The sky is blue.", "rejected": "The sky is green."},
        (),
        ((assistant("The sky is blue."),), (assistant("The sky is green."),)),
    ),
    "TRL conversational, explicit prompt": (
        {
            "prompt": [user("What color is the sky?")],
            "chosen": [assistant("It is blue.")],
            "rejected": [assistant("It is green.")],
        },
        *SKY,
    ),
    "TRL conversational, implicit prompt": (
        {
            "chosen": [user("What color is the sky?"), assistant("It is blue.")],
            "rejected": [user("What color is the sky?"), assistant("It is green.")],
        },
        *SKY,
    ),
    "HH-RLHF transcript": ({"chosen": HH[0], "rejected": HH[1]}, *SKY),
    "HH-RLHF transcript with its prompt cut off": (
        {
            "prompt": "\n\nHuman: What color is the sky?\n\nAssistant:",
            "chosen": " It is blue.",
            "rejected": " It is green.",
        },
        *SKY,
    ),
    "transcripts that repeat the prompt": (
        {"prompt": "\n\nHuman: What color is the sky?\n\nAssistant:", "chosen": HH[0], "rejected": HH[1]},
        *SKY,
    ),
    "UltraFeedback binarized": (
        {
            "prompt": "What color is the sky?",
            "prompt_id": "5f1c",
            "chosen": [user("What color is the sky?"), assistant("It is blue.")],
            "rejected": [user("What color is the sky?"), assistant("It is green.")],
            "messages": [user("What color is the sky?"), assistant("It is blue.")],
            "score_chosen": 8.5,
            "score_rejected": 6,
        },
        *SKY,
    ),
    "messages with a system turn before the prompt": (
        {
            "prompt": "Hi",
            "chosen": [{"role": "system", "content": "Be kind."}, user("Hi"), assistant("Hello!")],
            "rejected": [{"role": "system", "content": "Be kind."}, user("Hi"), assistant("What?")],
        },
        ({"role": "system", "content": "Be kind."}, user("Hi")),
        ((assistant("Hello!"),), (assistant("What?"),)),
    ),
    "sides with different prompts": (
        {"chosen": [user("2 + 2?"), assistant("4")], "rejected": [user("2 + 3?"), assistant("6")]},
        (),
        ((user("2 + 2?"), assistant("4")), (user("2 + 3?"), assistant("6"))),
    ),
    "many responses": (
        {"prompt": "Hi", "responses": ["Hello!", "What?"], "scores": [1.5, -0.5]},
        (user("Hi"),),
        ((assistant("Hello!"),), (assistant("What?"),)),
    ),
    "empty prompt": (
        {"prompt": "", "chosen": "Once upon a time", "rejected": "asdf"},
        (user(""),),
        ((assistant("Once upon a time"),), (assistant("asdf"),)),
    ),
    "null fields, as Parquet has them": (
        {"prompt": None, "chosen": HH[0], "rejected": HH[1], "margin": None, "responses": None, "id": None},
        *SKY,
    ),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layout(layout):
    row, prompt, responses = LAYOUTS[layout]
    comparison = parse(row)
    assert comparison.prompt == prompt
    assert comparison.responses == responses
    assert comparison.pairs == ((0, 1),)
    assert comparison.where == comparison.id == "pairs.jsonl:3"


def test_transcripts_that_part_early_are_whole_conversations_after_their_common_turns():
    comparison = parse(
        {
            "chosen": "\n\nHuman: a\n\nAssistant: b\n\nHuman: c\n\nAssistant: d",
            "rejected": "\n\nHuman: a\n\nAssistant: x\n\nHuman: y\n\nAssistant: Line one.\n\nLine two.\n",
        }
    )
    assert comparison.prompt == (user("a"),)
    assert comparison.responses == (
        (assistant("b"), user("c"), assistant("d")),
        (assistant("x"), user("y"), assistant("Line one.\n\nLine two.")),
    )
    assert response_text(comparison, 0) == "b\n\nc\n\nd"


def test_a_conversation_that_goes_on_keeps_the_other_ones_last_answer():
    comparison = parse({"chosen": [user("a"), assistant("b")], "rejected": [user("a"), assistant("b"), user("c")]})
    assert comparison.prompt == (user("a"),)
    assert comparison.responses == ((assistant("b"),), (assistant("b"), user("c")))


def test_an_answer_that_is_a_dialogue_stays_one_answer():
    dialogue = "Human: Hello\n\nAssistant: Hi\n\nHuman: Bye"
    comparison = parse({"prompt": "Write a dialogue.", "chosen": dialogue, "rejected": "No."})
    assert comparison.responses[0] == (assistant(dialogue),)


def test_a_conversation_as_prompt_is_not_doubled():
    talk = [user("a"), assistant("b"), user("c")]
    comparison = parse({"prompt": talk, "chosen": [*talk, assistant("d")], "rejected": [*talk, assistant("e")]})
    assert comparison.prompt == tuple(talk)
    last = parse({"prompt": "c", "chosen": [*talk, assistant("d")], "rejected": [*talk, assistant("e")]})
    assert (last.prompt, last.responses) == (comparison.prompt, comparison.responses)


def test_answers_of_several_turns_follow_the_prompt_that_they_come_back_to():
    answer = [assistant("What?"), user("q")]
    comparison = parse({"prompt": "q", "chosen": [*answer, assistant("a")], "rejected": [*answer, assistant("b")]})
    assert comparison.prompt == (user("q"),)
    assert comparison.responses == ((*answer, assistant("a")), (*answer, assistant("b")))


@pytest.mark.parametrize(
    ("orders", "pairs"),
    [
        ({"scores": [1, 3.5, 2]}, {(1, 0), (1, 2), (2, 0)}),
        ({"scores": [1, 3, 1]}, {(1, 0), (1, 2)}),
        ({"ranks": [1, 2, 2]}, {(0, 1), (0, 2)}),
        ({"ranks": [3, 1, 2]}, {(1, 0), (1, 2), (2, 0)}),
    ],
)
def test_every_strict_order_is_a_pair(orders, pairs):
    comparison = parse({"prompt": "q", "responses": ["a", "b", [assistant("c")]], **orders})
    assert set(comparison.pairs) == pairs
    assert len(comparison.pairs) == len(pairs)
    assert comparison.scores == (tuple(orders["scores"]) if "scores" in orders else None)


def test_columns():
    row = {"prompt": "q", "chosen": "a", "rejected": "b", "margin": 2, "target": 0.5}
    row |= {"chosen_score": 4, "rejected_score": 5.5, "id": 17, "source": "people", "subset": "easy"}
    comparison = parse(row)
    assert (comparison.margin, comparison.target, comparison.scores) == (2.0, 0.5, (4.0, 5.5))
    assert (comparison.id, comparison.source, comparison.subset) == ("17", "people", "easy")
    plain = parse({"prompt": "q", "chosen": "a", "rejected": "b"})
    assert (plain.margin, plain.target, plain.scores) == (None, None, None)
    assert (plain.source, plain.subset) == ("pairs.jsonl", "")


PAIR = {"prompt": "q", "chosen": "a", "rejected": "b"}
FAULTS = [
    ("not_json", ["a list"], "list"),
    ("missing_field", {}, "chosen"),
    ("missing_field", {"prompt": "q", "chosen": "a"}, "rejected"),
    ("missing_field", {"question": "q", "chosen": "a"}, "'question'"),
    ("missing_field", PAIR | {"prompt": 3}, "prompt"),
    ("missing_field", PAIR | {"chosen": 3}, "chosen"),
    ("missing_field", PAIR | {"rejected": [{"role": "assistant"}]}, "rejected[0]"),
    ("missing_field", PAIR | {"rejected": [{"role": "assistant", "content": 3}]}, "rejected[0].content"),
    ("missing_field", PAIR | {"rejected": ["text"]}, "rejected[0]"),
    ("missing_field", PAIR | {"chosen": "half a pair \ud800"}, "surrogate"),
    ("missing_field", PAIR | {"margin": math.nan}, "margin"),
    ("missing_field", PAIR | {"margin": 10**400}, "margin"),
    ("missing_field", PAIR | {"margin": -1e31}, "beyond 1e+30"),
    ("missing_field", PAIR | {"margin": "2"}, "margin"),
    ("missing_field", PAIR | {"margin": True}, "margin"),
    ("missing_field", PAIR | {"target": 1.5}, "target"),
    ("missing_field", PAIR | {"target": math.inf}, "target"),
    ("missing_field", PAIR | {"chosen_score": 1}, "rejected_score"),
    ("missing_field", PAIR | {"id": ["x"]}, "id"),
    ("missing_field", {"prompt": "q", "responses": "a", "scores": [1]}, "responses"),
    ("missing_field", {"prompt": "q", "responses": ["a"], "scores": [1]}, "responses"),
    ("missing_field", {"prompt": "q", "responses": ["a", "b"]}, "ranks"),
    ("missing_field", {"prompt": "q", "responses": ["a", "b"], "scores": [1]}, "scores"),
    ("missing_field", {"prompt": "q", "responses": ["a", "b"], "scores": [1, math.nan]}, "scores[1]"),
    ("empty_response", PAIR | {"chosen": " \n\t"}, "chosen"),
    ("empty_response", PAIR | {"rejected": []}, "rejected"),
    ("empty_response", PAIR | {"chosen": "", "rejected": ""}, "chosen"),
    ("empty_response", {"chosen": [user("q")], "rejected": [user("q"), assistant("a")]}, "chosen"),
    ("empty_response", {"chosen": HH[0], "rejected": "\n\nHuman: What color is the sky?\n\nAssistant:"}, "rejected"),
    ("empty_response", {"prompt": "q", "responses": ["a", " ", "b"], "ranks": [1, 2, 3]}, "responses[1]"),
    ("identical_responses", PAIR | {"rejected": "a"}, "chosen and rejected"),
    ("identical_responses", {"chosen": HH[0], "rejected": HH[0]}, "chosen and rejected"),
    ("identical_responses", {"prompt": "q", "responses": ["a", "b", "a"], "scores": [1, 2, 3]}, "responses[0]"),
    ("identical_responses", {"prompt": "q", "responses": ["a", "a"], "scores": [1, 1]}, "responses[1]"),
    ("tie", PAIR | {"chosen_score": 2, "rejected_score": 2.0}, "chosen"),
    ("tie", {"prompt": "q", "responses": ["a", "b", "c", "d"], "ranks": [1, 1, 1, 1]}, "responses[0]"),
]


@pytest.mark.parametrize(("kind", "row", "named"), FAULTS)
def test_fault(kind, row, named):
    with pytest.raises(RowError) as caught:
        parse(row)
    assert caught.value.kind == kind
    assert kind in KINDS
    assert named in str(caught.value)
    assert "\n" not in str(caught.value)


def test_of_several_faults_the_first_kind_counts():
    empty_tied = {"prompt": "q", "responses": [" ", " "], "scores": [1, 1]}
    for row, kind in [
        (PAIR | {"chosen": " ", "margin": math.nan}, "missing_field"),
        (empty_tied, "empty_response"),
        (PAIR | {"rejected": "a", "chosen_score": 1, "rejected_score": 1}, "identical_responses"),
    ]:
        with pytest.raises(RowError) as caught:
            parse(row)
        assert caught.value.kind == kind


def test_prompt_key_and_first_user_turn():
    one = parse(PAIR | {"prompt": "Straße  \n A"})
    same = parse({"prompt": [user(" STRASSE Ａ")], "chosen": "x", "rejected": "y"})
    assert prompt_key(one) == prompt_key(same)
    assert len(prompt_key(one)) == 16
    talk = [user("Straße"), assistant("A"), user("c")]
    assert prompt_key(parse(PAIR | {"prompt": talk})) != prompt_key(one)
    assert first_user_turn(parse(PAIR | {"prompt": [{"role": "system", "content": "s"}, *talk]})) == "Straße"
    assert first_user_turn(parse(LAYOUTS["sides with different prompts"][0])) == "2 + 2?"
    assert first_user_turn(parse(LAYOUTS["TRL standard, implicit prompt"][0])) == "The sky is blue."


def test_rows_without_a_common_prompt_have_keys_of_their_own():
    sides = LAYOUTS["sides with different prompts"][0]
    answers = {"chosen": [sides["chosen"][0], assistant("four")], "rejected": [sides["rejected"][0], assistant("six")]}
    assert prompt_key(parse(sides)) == prompt_key(parse(answers))
    assert prompt_key(parse({"chosen": "a", "rejected": "b"})) != prompt_key(parse({"chosen": "a", "rejected": "c"}))


def test_conversation_of():
    assert conversation_of("q", "a") == (user("q"), assistant("a"))
    assert conversation_of([user("q")], [assistant("a")]) == (user("q"), assistant("a"))
    assert conversation_of([user("q")], [user("q"), assistant("a")]) == (user("q"), assistant("a"))
    assert conversation_of("\n\nHuman: q\n\nAssistant: b\n\nHuman: c\n\nAssistant:", " a") == (
        *(user("q"), assistant("b")),
        *(user("c"), assistant("a")),
    )
    assert conversation_of(None, HH[0]) == (SKY[0][0], assistant("It is blue."))
    for bad, kind in [(" ", "empty_response"), (3, "missing_field")]:
        with pytest.raises(RowError) as caught:
            conversation_of("q", bad)
        assert caught.value.kind == kind


@given(st.text())
def test_normalised_text_is_the_definition(text):
    expected = unicodedata.normalize("NFKC", text).casefold()
    assert normalised_text(text) == " ".join(expected.split())


words = st.text(st.characters(codec="utf-8"), min_size=1).filter(lambda text: text.strip())


@given(st.lists(words, min_size=1, max_size=5), words, words)
def test_layouts_of_the_same_pair_agree(turns, chosen, rejected):
    """Explicit, implicit, repeated-prompt and n-ary layouts of any pair give the same comparison, or refuse alike."""
    roles = (user, assistant)
    prompt = [roles[place % 2](text) for place, text in enumerate(turns)]
    rows = [
        {"prompt": prompt, "chosen": chosen, "rejected": rejected},
        {"prompt": prompt, "chosen": [assistant(chosen)], "rejected": [assistant(rejected)]},
        {"prompt": prompt, "chosen": [*prompt, assistant(chosen)], "rejected": [*prompt, assistant(rejected)]},
        {"chosen": [*prompt, assistant(chosen)], "rejected": [*prompt, assistant(rejected)]},
        {"prompt": prompt, "responses": [chosen, rejected], "ranks": [1, 2]},
    ]
    if chosen == rejected:
        for row in rows:
            with pytest.raises(RowError):
                parse(row)
    else:
        parsed = [parse(row) for row in rows]
        assert all(comparison == parsed[0] for comparison in parsed)
        assert parsed[0].prompt == tuple(prompt)
        assert parsed[0].responses == ((assistant(chosen),), (assistant(rejected),))
