from __future__ import annotations

import json
import runpy
from math import inf
from pathlib import Path

import pytest
import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

from aplot_lightning.data.world import write_world_decoder
from aplot_lightning.errors import UserError
from aplot_lightning.inference.generation import Generator, ends_step
from aplot_lightning.inference.steering import Steered, best_of_n, speculative_decode
from aplot_lightning.model.reward_model import RewardModel

SIZES = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 2}
WORDS = [*(f"Ġ{word}" for word in ("one", "two", "three", "so", "then", "adds", "up")), ".", "ĊĊ"]
PROMPT = " one adds two . then"


def tokenizer_of(words: list[str]) -> PreTrainedTokenizerFast:
    """One token a word (Ġ a space, ĊĊ a blank line), so that a random model often says a blank line."""
    vocabulary = {piece: place for place, piece in enumerate(["<eos>", "<unk>", *words])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[], ignore_merges=True, unk_token="<unk>"))
    words_and_marks = pre_tokenizers.Split(Regex(r"\n\n| ?[a-z]+|\."), "isolated")  # any text has one reading
    bytewise = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([words_and_marks, bytewise])
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>", unk_token="<unk>")


def generator(seed: int, words: list[str] = WORDS) -> Generator:
    """A random Llama whose next word depends much on what came before."""
    torch.manual_seed(seed)
    config = AutoConfig.for_model("llama", vocab_size=len(words) + 2, eos_token_id=0, bos_token_id=None, **SIZES)
    model = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(8.0)
        model.lm_head.weight[:2] = 0.0  # hardly ever the end
    return Generator(model, tokenizer_of(words))


@pytest.fixture(scope="module")
def reward_model(tmp_path_factory) -> RewardModel:
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("world")
    write_world_decoder(folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **SIZES, "num_key_value_heads": 2}))
    torch.manual_seed(3)
    return RewardModel.from_backbone(str(folder), head_seed=0).eval()


@pytest.fixture(scope="module")
def draft() -> Generator:
    return generator(1)


@pytest.fixture(scope="module")
def target() -> Generator:
    return generator(2)


def plain(one: Generator, limit: int, so_far: str = "", **options) -> list[int]:
    """Transformers' own generation, in one go."""
    ids = torch.tensor([one.tokenizer.encode(PROMPT + so_far)])
    with torch.inference_mode():
        output = one.model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=limit, pad_token_id=0, **options
        )
    return output[0, ids.shape[1] :].tolist()


def replies(one: Generator, temperature: float) -> Generator:
    return Generator(one.model, one.tokenizer, temperature)


@pytest.mark.parametrize("limit", [1, 7, 60])
@pytest.mark.parametrize(("threshold", "by"), [(-inf, "draft"), (inf, "target")])
def test_the_ends_of_the_threshold_are_one_model_alone(draft, target, reward_model, threshold, by, limit):
    steered = speculative_decode(draft, target, reward_model, PROMPT, threshold, max_tokens=limit)
    alone = {"draft": draft, "target": target}[by]
    tokens = plain(alone, limit, do_sample=False)
    assert steered.text == alone.decode(tokens)
    assert {step.by for step in steered.steps} == {by}
    count = steered.kept_draft_tokens if by == "draft" else steered.target_tokens
    assert count == len(tokens)
    assert steered.accepted == (len(steered.steps) if by == "draft" else 0)
    if limit == 60:
        assert len(steered.steps) > 1


def test_a_sampling_draft_alone_draws_the_same_tokens(draft, target, reward_model):
    warm = replies(draft, 1.0)
    steered = speculative_decode(warm, target, reward_model, PROMPT, -inf, max_tokens=60, seed=5)
    torch.manual_seed(5)
    assert steered.text == warm.decode(plain(warm, 60, do_sample=True, temperature=1.0, top_k=0))


def by_hand(steered: Steered, draft, target, threshold, reward_model) -> None:
    """Goes through the steps with each model's plain generation on the text so far, and the reward of that."""
    assert {step.by for step in steered.steps} == {"draft", "target"}
    text = ""
    for step in steered.steps[:-1]:  # the last one may have run out of tokens
        own = {}
        for name, one in (("draft", draft), ("target", target)):
            tokens = plain(one, 200, text, do_sample=False)
            cut = next(n for n in range(1, 201) if "\n\n" in one.decode(tokens[:n]).lstrip("\n"))
            own[name] = (one.decode(tokens[:cut]), cut)
        (reward,) = reward_model.score([{"prompt": PROMPT, "response": text + own["draft"][0]}])
        assert step.reward == pytest.approx(reward, abs=1e-5)
        assert step.by == ("draft" if reward >= threshold else "target")
        assert step.text == own[step.by][0]
        assert step.draft_tokens == own["draft"][1]
        assert step.target_tokens == (0 if step.by == "draft" else own["target"][1])
        text += step.text
    assert steered.text == text + steered.steps[-1].text


def test_steps_are_kept_by_their_reward_and_counted(draft, target, reward_model):
    every = speculative_decode(draft, target, reward_model, PROMPT, inf, max_tokens=60)
    threshold = sorted(step.reward for step in every.steps)[len(every.steps) // 2]
    steered = speculative_decode(draft, target, reward_model, PROMPT, threshold, max_tokens=60)
    by_hand(steered, draft, target, threshold, reward_model)
    thrown_away = sum(step.draft_tokens for step in steered.steps if step.by == "target")
    assert steered.draft_tokens - steered.kept_draft_tokens == thrown_away > 0
    assert steered.kept_draft_tokens + steered.target_tokens == 60


def test_no_token_is_computed_twice(draft, target, reward_model):
    computed: dict[str, int] = {"draft": 0, "target": 0}

    def count(name: str):
        def hook(module, args, kwargs) -> None:
            computed[name] += kwargs["input_ids"].shape[1]

        return hook

    hooks = [
        one.model.register_forward_pre_hook(count(name), with_kwargs=True)
        for name, one in (("draft", draft), ("target", target))
    ]
    try:
        steered = speculative_decode(draft, target, reward_model, PROMPT, -inf, max_tokens=60)
        assert len(steered.steps) > 1
        assert computed == {"draft": len(draft.encode_prompt(PROMPT)) + 59, "target": 0}
    finally:
        for hook in hooks:
            hook.remove()


def test_a_calibrated_reward_meets_the_threshold(draft, target, reward_model):
    always = speculative_decode(draft, target, reward_model, PROMPT, 0.7, calibration=lambda r: 0.9, max_tokens=20)
    never = speculative_decode(draft, target, reward_model, PROMPT, 0.7, calibration=lambda r: 0.5, max_tokens=20)
    assert always.accepted == len(always.steps)
    assert never.accepted == 0
    assert {step.reward for step in always.steps} == {0.9}


def test_models_of_two_vocabularies_steer_through_text(draft, reward_model):
    other = generator(4, ["ĊĊ", "Ġfive", *WORDS[:7], "."])
    alone = speculative_decode(draft, other, reward_model, PROMPT, inf, max_tokens=60)
    assert alone.text == other.decode(plain(other, 60, do_sample=False))
    threshold = max(step.reward for step in alone.steps)
    mixed = speculative_decode(draft, other, reward_model, PROMPT, threshold, max_tokens=60)
    by_hand(mixed, draft, other, threshold, reward_model)


def test_best_of_n_is_the_largest_reward_of_n_samples(draft, reward_model):
    warm = replies(draft, 3.0)
    sampled = best_of_n(warm, reward_model, PROMPT, 6, max_tokens=12, batch_size=4, seed=1)
    assert len(sampled.responses) == 6
    assert len(set(sampled.responses)) > 1
    rewards = reward_model.score([{"prompt": PROMPT, "response": text} for text in sampled.responses])
    assert sampled.rewards == pytest.approx(rewards, abs=1e-5)
    assert sampled.response == sampled.responses[rewards.index(max(rewards))]
    assert best_of_n(warm, reward_model, PROMPT, 6, max_tokens=12, batch_size=4, seed=1) == sampled
    assert best_of_n(draft, reward_model, PROMPT, 1, max_tokens=12).response == draft.decode(
        plain(draft, 12, do_sample=False)
    )


def test_a_folder_is_loaded_and_its_chat_template_renders_prompts(draft, tmp_path):
    template = "{% for m in messages %} one {{ m['content'] }}{% endfor %}{% if add_generation_prompt %} up{% endif %}"
    draft.model.save_pretrained(tmp_path)
    draft.tokenizer.save_pretrained(tmp_path)
    loaded = Generator.load(str(tmp_path))
    tokens = loaded.encode_prompt(PROMPT)
    assert tokens == draft.tokenizer.encode(PROMPT)
    assert loaded.continue_tokens(tokens, 9) == draft.continue_tokens(tokens, 9) == [plain(draft, 9, do_sample=False)]
    with pytest.raises(UserError, match="no chat template"):
        loaded.encode_prompt([{"role": "user", "content": "two"}])
    loaded.tokenizer.chat_template = template
    expected = loaded.tokenizer.encode(" one  two up")
    assert loaded.encode_prompt(" two") == loaded.encode_prompt([{"role": "user", "content": " two"}]) == expected


def test_the_example_runs(draft, reward_model, tmp_path, monkeypatch, capsys):
    example = Path(__file__).parents[2] / "examples" / "steer.py"
    if not example.exists():
        pytest.skip("examples/ is not beside the tests")
    draft.model.save_pretrained(tmp_path)
    draft.tokenizer.save_pretrained(tmp_path)
    state = {f"reward_model.{name}": value for name, value in reward_model.state_dict().items()}
    torch.save({"reward_model": reward_model.describe(), "state_dict": state}, tmp_path / "reward.ckpt")
    words = ["--target", str(tmp_path), "--draft", str(tmp_path), "--reward", str(tmp_path / "reward.ckpt")]
    monkeypatch.setattr("sys.argv", ["steer.py", *words, "--prompt", PROMPT, "--n", "3", "--max_tokens", "20"])
    runpy.run_path(str(example), run_name="__main__")
    said = capsys.readouterr().out
    assert "best of 3: reward" in said
    assert "steps are the draft's; the draft generated" in said


def test_torchs_random_state_is_left_alone(draft, reward_model):
    torch.manual_seed(0)
    before = torch.random.get_rng_state()
    best_of_n(replies(draft, 1.0), reward_model, PROMPT, 2, max_tokens=3, seed=9)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_mistakes_are_said(draft, target, reward_model, tmp_path):
    for message, call in {
        "n is 0": lambda: best_of_n(draft, reward_model, PROMPT, 0),
        "temperature 0": lambda: best_of_n(draft, reward_model, PROMPT, 2),
        "max_tokens is 0": lambda: speculative_decode(draft, target, reward_model, PROMPT, 0.0, max_tokens=0),
        "threshold is nan": lambda: speculative_decode(draft, target, reward_model, PROMPT, float("nan")),
        "temperature is -1": lambda: Generator(draft.model, draft.tokenizer, temperature=-1),
        "no causal language model": lambda: Generator.load(str(tmp_path / "nothing")),
    }.items():
        with pytest.raises(UserError, match=message) as caught:
            call()
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "whole"), [("a\n\n", True), ("a\nb\n", False), ("\n\n", False), ("\n\na", False), ("a.\n\nb", True)]
)
def test_a_step_ends_at_a_blank_line(text, whole):
    assert ends_step(text) is whole
