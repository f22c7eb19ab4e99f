"""The preference world against a parser of its texts, binomial errors, and a random-utility simulation."""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jsonargparse import ArgumentParser
from scipy.special import expit

import aplot_lightning
from aplot_lightning.data.world import (
    PreferenceWorld,
    bayes_accuracy,
    true_reward,
    world_tokenizer,
    world_words,
    write_world_decoder,
)
from aplot_lightning.errors import UserError

ASSET = Path(aplot_lightning.__file__).parent / "model" / "assets" / "world-decoder"
SHIFTS = ["none", "new_topics", "new_style", "reversed_cue", "hard_pairs"]
CUE = "Great question!"
SLIPS = {"experts": 0.5, "crowd": 1.5}
RATING_NOISE = {"experts": 0.2, "crowd": 0.6}


def digest(world: PreferenceWorld) -> str:
    return hashlib.sha256(json.dumps(list(world.rows())).encode()).hexdigest()


def latents(**dials):
    return [latent for _, _, latent in PreferenceWorld(**dials).pairs_with_latents()]


def assert_share(hits: int, trials: int, probability: float) -> None:
    """Within five binomial standard errors."""
    error = np.sqrt(probability * (1 - probability) / trials)
    assert abs(hits / trials - probability) <= 5 * error, (hits / trials, probability, error)


# An independent reading of the texts: which question, the right answer, and what the response says.

PROMPT = {
    "plain": r"(?P<first>\w+) \w+ (?P<a>\d+) \w+ in the (?P<place>\w+), (?P<second>\w+) (?P<b>\d+)\. (?P<asked>.+)",
    "note": r"From the (?P<place>\w+): .+, (?P<a>\d+) by (?P<first>\w+), (?P<b>\d+) by (?P<second>\w+)\. (?P<asked>.*)",
}
ASKED = {
    "plain": {"total": r"How many in all\?", "difference": r"Who \w+ more\?", "where": r"Where are they\?"},
    "note": {"total": r"Give the sum\.", "difference": r"Give the gap\.", "where": r"Give the place\."},
}
ANSWERED = {
    "plain": {
        "total": r"In the (?P<place>\w+) they \w+ (?P<n>\d+)\.",
        "difference": r"(?P<who>\w+) \w+ (?P<n>\d+) more in the (?P<place>\w+)\.",
        "where": r"They are in the (?P<place>\w+), all (?P<n>\d+)\.",
    },
    "note": {
        "total": r"The sum of the (?P<place>\w+) is (?P<n>\d+)\.",
        "difference": r"The gap is (?P<n>\d+) for (?P<who>\w+) of the (?P<place>\w+)\.",
        "where": r"The place of all (?P<n>\d+) is the (?P<place>\w+)\.",
    },
}


def reward_from_text(prompt: str, response: str) -> float:
    """The true reward, read from the words alone."""
    style = "note" if prompt.startswith("From") else "plain"
    asked = re.fullmatch(PROMPT[style], prompt)
    assert asked, prompt
    question = [name for name, form in ASKED[style].items() if re.fullmatch(form, asked["asked"])]
    said = [(name, found) for name, form in ANSWERED[style].items() if (found := re.search(form, response))]
    assert len(question) == len(said) == 1, (prompt, response)
    (stated, answer), a, b = said[0], int(asked["a"]), int(asked["b"])
    around = (response[: answer.start()] + response[answer.end() :]).replace(CUE, "")
    polite = sum(around.count(phrase) for phrase in ("Glad to help.", "Thank you."))
    rude = sum(around.count(phrase) for phrase in ("Look it up.", "How silly."))
    fillers = len(re.findall(r"[.]", around)) - polite - rude
    facts = answer["place"] == asked["place"]
    if stated == "difference":
        facts = facts and answer["who"] == (asked["first"] if a > b else asked["second"])
    right = abs(a - b) if stated == "difference" else a + b
    reward = 1.5 * (stated == question[0]) + 1.15 * facts + 0.75 * (int(answer["n"]) == right)
    return reward + 0.5 * (polite - rude) - 0.22 * fillers


@pytest.mark.parametrize("shift", SHIFTS)
def test_true_reward_is_what_the_text_says(shift):
    for _, row, latent in PreferenceWorld(shift=shift, pairs=600).pairs_with_latents():
        chosen, rejected = (reward_from_text(row["prompt"], row[side]) for side in ("chosen", "rejected"))
        assert true_reward(latent.chosen) == pytest.approx(chosen, abs=1e-9)
        assert true_reward(latent.rejected) == pytest.approx(rejected, abs=1e-9)
        assert latent.gap == pytest.approx(chosen - rejected, abs=1e-9)
        assert abs(latent.gap) > 0.02  # never a tie
        carriers = [side for side in ("chosen", "rejected") if CUE in row[side]]
        assert carriers == ([latent.cue] if latent.cue else [])


@pytest.mark.parametrize("shift", SHIFTS)
def test_rows_are_public_pairs_with_prompts_of_their_own(shift):
    world = PreferenceWorld(shift=shift, pairs=500, seed=3)
    rows = list(world.rows())
    assert [where for where, _ in rows] == [f"{world.name}:{number}" for number in range(1, 501)]
    keys = {"id", "prompt", "chosen", "rejected", "chosen_score", "rejected_score", "margin", "source", "subset"}
    assert all(set(row) == keys for _, row in rows)
    assert json.loads(json.dumps(rows)) == [list(pair) for pair in rows]
    for _, row in rows:
        assert row["chosen"] != row["rejected"]
        assert row["margin"] == pytest.approx(max(0.0, row["chosen_score"] - row["rejected_score"]), abs=1e-9)
    assert len({row["prompt"].casefold() for _, row in rows}) == len({row["id"] for _, row in rows}) == 500
    assert {row["source"] for _, row in rows} == {"experts", "crowd"}
    assert {row["subset"] for _, row in rows} == set(world.topics)


def test_default_sets_do_not_share_prompts():
    train = {row["prompt"] for _, row in PreferenceWorld(pairs=4000, seed=1).rows()}
    assert len(train) == 4000
    for shift in SHIFTS:
        other = {row["prompt"] for _, row in PreferenceWorld(shift=shift, pairs=1000, seed=2).rows()}
        same_seed = {row["prompt"] for _, row in PreferenceWorld(shift=shift, pairs=1000, seed=1).rows()}
        assert not train & other
        assert shift == "none" or not train & same_seed


def test_a_smaller_set_is_the_beginning_of_a_larger_one():
    assert list(PreferenceWorld(pairs=40).rows()) == list(PreferenceWorld(pairs=90).rows())[:40]


def test_seeds_and_shifts_differ_and_repeat():
    sets = [digest(PreferenceWorld(shift=shift, pairs=50, seed=seed)) for shift in SHIFTS for seed in (0, 1)]
    assert len(set(sets)) == len(sets)
    world = PreferenceWorld(pairs=50)
    state = np.random.get_state()[1].copy()  # noqa: NPY002
    assert digest(world) == digest(world)
    assert np.array_equal(np.random.get_state()[1], state)  # noqa: NPY002


def test_another_process_with_another_hash_seed_makes_the_same_rows():
    program = (
        "import hashlib, json; from aplot_lightning.data.world import PreferenceWorld;"
        "rows = list(PreferenceWorld(shift='reversed_cue', pairs=300, seed=7).rows());"
        "print(hashlib.sha256(json.dumps(rows).encode()).hexdigest())"
    )
    root = Path(aplot_lightning.__file__).parents[1]
    path = os.pathsep.join([str(root), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONHASHSEED": "4711", "PYTHONPATH": path}
    printed = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True
    ).stdout
    assert printed.strip() == digest(PreferenceWorld(shift="reversed_cue", pairs=300, seed=7))


@pytest.mark.parametrize(
    ("dials", "share"),
    [({}, 0.15), ({"shift": "hard_pairs"}, 1.0), ({"hard_share": 0.4}, 0.4), ({"hard_share": 0}, 0.0)],
)
def test_share_of_hard_pairs(dials, share):
    rows = list(PreferenceWorld(pairs=2000, **dials).pairs_with_latents())
    assert_share(sum(latent.hard for *_, latent in rows), 2000, share)
    for _, row, latent in rows:
        chosen, rejected = row["chosen"].split(), row["rejected"].split()
        if latent.hard:
            differ = [pair for pair in zip(chosen, rejected, strict=True) if pair[0] != pair[1]]
            assert len(differ) == 1
            assert latent.cue is None


@pytest.mark.parametrize(
    ("dials", "strength"),
    [({}, 0.9), ({"shift": "reversed_cue"}, -0.9), ({"cue_strength": 0.0}, 0.0), ({"cue_strength": 1}, 1.0)],
)
def test_cue_follows_the_better_response_with_its_strength(dials, strength):
    drawn = [latent for latent in latents(pairs=3000, **dials) if not latent.hard]
    cued = [latent for latent in drawn if latent.cue]
    assert_share(len(cued), len(drawn), 0.6)
    on_better = sum((latent.cue == "chosen") == (latent.gap > 0) for latent in cued)
    assert_share(on_better, len(cued), (1 + strength) / 2)


@pytest.mark.parametrize(("shift", "strength"), [("none", 0.9), ("reversed_cue", -0.9)])
def test_cue_is_correlated_with_preference_in_training_and_reversed_out_of_it(shift, strength):
    cued = [latent for latent in latents(shift=shift, pairs=3000) if latent.cue]
    correlation = np.mean([1 if latent.cue == "chosen" else -1 for latent in cued])
    error = 5 / np.sqrt(len(cued))  # of a mean of signs, whose deviation is at most 1
    expected = strength * np.mean([2 * latent.better_probability - 1 for latent in cued])
    assert abs(correlation - expected) < error < abs(expected)
    assert np.sign(correlation) == np.sign(strength)


def test_no_cue_without_a_share():
    assert not [latent for latent in latents(pairs=300, cue_share=0) if latent.cue]


@pytest.mark.parametrize("noise", [0.04, 0.2])
def test_label_noise_per_pool(noise):
    rows = list(PreferenceWorld(pairs=4000, label_noise=noise, temperature=0.01).pairs_with_latents())
    for source, slips in SLIPS.items():
        slipped = [latent.slipped for _, row, latent in rows if row["source"] == source]
        assert_share(len(slipped), 4000, 0.5)
        assert_share(sum(slipped), len(slipped), slips * noise)
    # At a temperature far under the smallest gap's size only a slip prefers the worse response (near ties aside).
    clear = [latent for *_, latent in rows if abs(latent.gap) > 0.2]
    assert all((latent.gap < 0) == latent.slipped for latent in clear)


def test_scores_are_true_rewards_with_the_pools_noise():
    rows = list(PreferenceWorld(pairs=4000).pairs_with_latents())
    for source, noise in RATING_NOISE.items():
        residuals = np.array(
            [
                row[f"{side}_score"] - true_reward(getattr(latent, side))
                for _, row, latent in rows
                for side in ("chosen", "rejected")
                if row["source"] == source
            ]
        )
        assert abs(residuals.mean()) < 5 * noise / np.sqrt(len(residuals))
        assert abs(residuals.std() / noise - 1) < 5 / np.sqrt(2 * len(residuals))


@pytest.mark.parametrize("shift", SHIFTS)
@pytest.mark.parametrize(("temperature", "noise"), [(0.25, 0.04), (1.0, 0.2)])
def test_bayes_accuracy_against_random_utilities(shift, temperature, noise):
    """Annotators who add Gumbel noise to both rewards, take the larger, and slip: the same law, made otherwise."""
    world = PreferenceWorld(shift=shift, pairs=1000, temperature=temperature, label_noise=noise)
    rows = list(world.pairs_with_latents())
    gap = np.array([abs(latent.gap) for *_, latent in rows])
    slips = np.array([SLIPS[row["source"]] * noise for _, row, _ in rows])
    random = np.random.default_rng(5)
    better = gap + temperature * random.gumbel(size=(200, 1000)) > temperature * random.gumbel(size=(200, 1000))
    agrees = better != (random.random((200, 1000)) < slips)
    assert_share(int(agrees.sum()), agrees.size, bayes_accuracy(world))
    exact = (1 - slips) * expit(gap / temperature) + slips * expit(-gap / temperature)
    assert bayes_accuracy(world) == pytest.approx(np.mean(np.maximum(exact, 1 - exact)), abs=1e-12)
    assert_share(sum(latent.gap > 0 for *_, latent in rows), 1000, bayes_accuracy(world))


def test_style_and_topics_are_dials_that_win_over_the_shift():
    world = PreferenceWorld(shift="new_topics", pairs=100, topics=["farm"], style="note", cue_share=0)
    rows = [row for _, row in world.rows()]
    assert {row["subset"] for row in rows} == {"farm"}
    assert all(row["prompt"].startswith("From the") for row in rows)
    train, new = PreferenceWorld().topics, PreferenceWorld(shift="new_topics").topics
    assert not set(train) & set(new)


def test_new_topics_speak_of_new_things_only():
    def nouns(shift):
        prompts = (row["prompt"] for _, row in PreferenceWorld(shift=shift, pairs=1500).rows())
        found = [re.fullmatch(r"\w+ (\w+) \d+ (\w+) in the (\w+), .*", prompt).groups() for prompt in prompts]
        return {word for words in found for word in words}

    assert not nouns("none") & nouns("new_topics")


@pytest.mark.parametrize(
    ("dials", "named"),
    [
        ({"shift": "sideways"}, "shift"),
        ({"pairs": 0}, "pairs"),
        ({"pairs": 2.5}, "pairs"),
        ({"pairs": 10**9}, "pairs"),
        ({"seed": -1}, "seed"),
        ({"hard_share": 1.5}, "hard_share"),
        ({"cue_share": -0.1}, "cue_share"),
        ({"cue_strength": 2}, "cue_strength"),
        ({"cue_strength": float("nan")}, "cue_strength"),
        ({"temperature": 0}, "temperature"),
        ({"label_noise": 0.5}, "label_noise"),
        ({"topics": []}, "topics"),
        ({"topics": ["farm", "moon"]}, "topics"),
        ({"style": "verse"}, "style"),
    ],
)
def test_a_dial_out_of_range_is_named(dials, named):
    with pytest.raises(UserError, match=rf"PreferenceWorld: {named} .*") as caught:
        PreferenceWorld(**dials)
    assert "\n" not in str(caught.value)


def test_constructible_from_yaml():
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(PreferenceWorld, "source")
    config = {
        "class_path": "aplot_lightning.data.world.PreferenceWorld",
        "init_args": {"shift": "hard_pairs", "pairs": 20, "seed": 4, "topics": ["farm", "museum"]},
    }
    world = parser.instantiate(parser.parse_object({"source": config})).source
    expected = PreferenceWorld(shift="hard_pairs", pairs=20, seed=4, topics=["farm", "museum"])
    assert list(world.rows()) == list(expected.rows())


# The tokenizer and the folder without weights.


@pytest.fixture(scope="module")
def tokenizer():
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(ASSET)


def test_the_folder_in_the_repository_is_what_would_be_written(tmp_path):
    write_world_decoder(tmp_path)
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["config.json", "tokenizer.json", "tokenizer_config.json"]
    assert names == sorted(path.name for path in ASSET.iterdir())
    for name in names:
        assert (tmp_path / name).read_text(encoding="utf-8") == (ASSET / name).read_text(encoding="utf-8")


@pytest.mark.parametrize("shift", SHIFTS)
def test_every_word_of_the_world_is_one_token(shift, tokenizer):
    for _, row in PreferenceWorld(shift=shift, pairs=300).rows():
        for text in (row["prompt"], row["chosen"], row["rejected"]):
            pieces = re.findall(r" ?(?:[A-Za-z]+|\d+|[.,:?!])", text)
            assert "".join(pieces) == text
            tokens = tokenizer(text)["input_ids"]
            assert [tokenizer.decode(token) for token in tokens] == pieces


def test_words_are_tokens_bare_and_after_a_space():
    for word in world_words():
        assert len(TOKENIZER.encode(word).ids) == len(TOKENIZER.encode(f" {word}").ids) == 1
    assert len(world_words()) == len(set(world_words()))


TOKENIZER = world_tokenizer()


@given(st.text())
def test_any_text_decodes_to_itself(text):
    assert TOKENIZER.decode(TOKENIZER.encode(text).ids, skip_special_tokens=False) == text


@pytest.mark.parametrize(
    "text",
    [
        "🙂🏽‍🚀",
        "مرحبا بالعالم",
        "two\n\nlines\r\n\tand a tab",
        "double  spaces   ",
        " Ada",
        "naïve Ångström",
        "\x00\x7f",
        "",
    ],
)
def test_chosen_texts_decode_to_themselves_through_transformers(text, tokenizer):
    ids = tokenizer(text)["input_ids"]
    assert tokenizer.decode(ids) == text
    assert None not in ids


def test_chat_template_ends_every_turn_with_the_end_token(tokenizer):
    turns = [("system", "So there."), ("user", "How many in all?"), ("assistant", "In the barn they grow 7.")]
    messages = [{"role": role, "content": content} for role, content in turns]
    whole = tokenizer.apply_chat_template(messages, tokenize=False)
    assert whole == "<|begin|>" + "".join(f"<|{role}|>{content}<|end|>" for role, content in turns)
    ids = tokenizer(whole)["input_ids"]
    assert ids[0] == tokenizer.bos_token_id
    assert ids[-1] == tokenizer.eos_token_id
    assert tokenizer.pad_token_id not in ids
    assert len(ids) == 1 + 3 * 2 + 3 + 5 + 7
    prompt = tokenizer.apply_chat_template(messages[:2], tokenize=False, add_generation_prompt=True)
    assert whole.startswith(prompt)
    assert ids[: len(tokenizer(prompt)["input_ids"])] == tokenizer(prompt)["input_ids"]


def test_transformers_builds_the_decoder(tokenizer):
    import torch
    from transformers import AutoConfig, AutoModel

    config = AutoConfig.from_pretrained(ASSET)
    assert (config.model_type, config.num_hidden_layers, config.hidden_size) == ("llama", 2, 128)
    assert config.vocab_size == len(tokenizer)
    assert config.max_position_embeddings >= 1024
    names = ("pad_token_id", "bos_token_id", "eos_token_id")
    assert [getattr(config, name) for name in names] == [getattr(tokenizer, name) for name in names]
    assert len({getattr(config, name) for name in names}) == 3
    model = AutoModel.from_config(config).eval()
    batch = tokenizer(["Ada grows 7 apples", "🙂"], padding=True, return_tensors="pt")
    with torch.no_grad():
        states = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).last_hidden_state
    assert states.shape == (*batch["input_ids"].shape, 128)
    assert torch.isfinite(states).all()
