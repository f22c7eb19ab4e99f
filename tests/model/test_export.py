"""Exported folders read by Transformers alone, in padded batches, against this package's own scores."""

from __future__ import annotations

import json
import math
import os
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedTokenizerFast,
    pipeline,
)

from aplot_lightning.data.comparisons import conversation_of
from aplot_lightning.data.encoding import ConversationEncoder
from aplot_lightning.errors import UserError
from aplot_lightning.model.configuration import config_to_dict
from aplot_lightning.model.export import export_model
from aplot_lightning.model.export.files import old_keys
from aplot_lightning.model.export.padding import choose_pad_token
from aplot_lightning.model.heads import (
    MLP,
    Bottleneck,
    Ensemble,
    Linear,
    QualityAndLength,
    WithConfidence,
    WithVariance,
)
from aplot_lightning.model.reward_model import RewardModel

FAMILIES = ["bert", "deberta-v2", "distilbert", "gpt2", "llama", "qwen2", "roberta"]
PIECES = [
    "the",
    "cat",
    "dog",
    "sat",
    "on",
    "who",
    "what",
    "is",
    "yes",
    "no",
    ".",
    "?",
    "Ünïcode",
    "two\nlines",
    "😀",
    "42",
]
SIZES = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}


def conversations(count: int = 200, longest: int = 20, seed: int = 3) -> list[tuple[dict[str, str], ...]]:
    """Of two to four messages of very different lengths, with odd characters and spaces at the ends."""
    generator = random.Random(seed)

    def text() -> str:
        words = " ".join(generator.choices(PIECES, k=generator.randint(1, longest)))
        return words + generator.choice(["", "", ".", "\n", " "])

    made = []
    for _ in range(count):
        prompt = [{"role": "system", "content": text()}] if generator.random() < 0.2 else []
        prompt += [{"role": "user", "content": text()}]
        made.append((*prompt, {"role": "assistant", "content": text()}))
    return made


def own_scores(model: RewardModel, texts) -> np.ndarray:
    return np.array(model.score_rows(ConversationEncoder(model.tokenizer).encode_conversations(texts)))


@torch.inference_mode()
def plain_scores(folder: Path, texts, batch_size: int = 16, tokenizer=None, **options) -> np.ndarray:
    """What a user of Transformers writes."""
    tokenizer = tokenizer or AutoTokenizer.from_pretrained(folder)
    model = AutoModelForSequenceClassification.from_pretrained(folder, **options).eval()
    rendered = [tokenizer.apply_chat_template(list(each), tokenize=False) for each in texts]
    rewards = []
    for start in range(0, len(rendered), batch_size):
        batch = tokenizer(rendered[start : start + batch_size], padding=True, return_tensors="pt")
        rewards += model(**batch).logits[:, 0].tolist()
    return np.array(rewards)


def export(model: RewardModel, folder: Path):
    folder.mkdir()
    return export_model(model, folder)


def read(folder: Path, file: str):
    return json.loads((folder / file).read_text())


def trained(name: str, **options) -> RewardModel:
    """A model with weights that no fresh start has, its biases among them."""
    model = RewardModel.from_backbone(name, **options).eval()
    generator = torch.Generator().manual_seed(9)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    return model


# Tokenizers of several kinds, without a chat template as base models have them


def byte_level(tokens: list[str]) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=320, special_tokens=tokens, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator([" ".join(PIECES)] * 3, trainer)
    return tokenizer


def metaspace(tokens: list[str], scheme: str) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE(unk_token=tokens[0]))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme)
    tokenizer.decoder = decoders.Metaspace(prepend_scheme=scheme)
    trainer = trainers.BpeTrainer(vocab_size=200, special_tokens=tokens, show_progress=False)
    tokenizer.train_from_iterator([" ".join(PIECES) + " Human: Assistant: System:"] * 3, trainer)
    return tokenizer


def word_piece() -> Tokenizer:
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    tokenizer.train_from_iterator(
        [" ".join(PIECES)] * 3, trainers.WordPieceTrainer(vocab_size=200, special_tokens=special, show_progress=False)
    )
    return tokenizer


def around(tokenizer: Tokenizer, before: str, after: str) -> Tokenizer:
    ends = [(token, tokenizer.token_to_id(token)) for token in (before, after) if token]
    template = " ".join(part for part in (before, "$A", after) if part)
    tokenizer.post_processor = processors.TemplateProcessing(single=template, special_tokens=ends)
    return tokenizer


def base_model(folder: Path, kind: str, spare: int = 0) -> str:
    """A base model of this kind with `spare` rows of its embedding table that have no token."""
    if kind == "bert":
        backend = around(word_piece(), "[CLS]", "[SEP]")
        names = {"pad_token": "[PAD]", "cls_token": "[CLS]", "sep_token": "[SEP]", "unk_token": "[UNK]"}
    elif kind == "roberta":
        backend = around(byte_level(["<s>", "<pad>", "</s>", "<unk>"]), "<s>", "</s>")
        names = {"pad_token": "<pad>", "cls_token": "<s>", "sep_token": "</s>", "bos_token": "<s>", "eos_token": "</s>"}
    elif kind == "reserved":  # as Llama 3
        backend = around(byte_level(["<|end|>", "<|begin|>", "<|other|>", "<|reserved_7|>"]), "<|begin|>", "")
        names = {"bos_token": "<|begin|>", "eos_token": "<|end|>"}
    elif kind in ("first", "always"):  # as SentencePiece
        backend = around(metaspace(["<unk>", "<s>", "</s>"], kind), "<s>", "")
        names = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    else:  # as GPT-2
        backend, names = byte_level(["<|endoftext|>"]), {"eos_token": "<|endoftext|>", "bos_token": "<|endoftext|>"}
    PreTrainedTokenizerFast(tokenizer_object=backend, **names).save_pretrained(folder)
    family = kind if kind in ("bert", "roberta") else "llama"
    extra = {"pad_token_id": 1} if family == "roberta" else {}
    sizes = {**SIZES, "vocab_size": backend.get_vocab_size() + spare, "max_position_embeddings": 512}
    config = AutoConfig.for_model(family, num_labels=1, initializer_range=0.2, **sizes, **extra)
    torch.manual_seed(7)
    AutoModelForSequenceClassification.from_config(config).save_pretrained(folder)
    return str(folder)


# Round trips


@pytest.mark.parametrize("family", FAMILIES)
def test_transformers_alone_gives_the_same_rewards(saved, family, tmp_path):
    texts = conversations(longest=10)
    model = RewardModel.from_pretrained(str(saved(family)))
    expected = own_scores(model, texts)
    assert np.std(expected) > 0.01
    facts = export(model, tmp_path / "out")
    assert facts.difference < 1e-4
    for size in (1, 7, 16):
        np.testing.assert_allclose(
            plain_scores(tmp_path / "out", texts[: 25 * size], size), expected[: 25 * size], atol=1e-5
        )
    again = RewardModel.from_pretrained(str(tmp_path / "out"))
    np.testing.assert_allclose(own_scores(again, texts), expected, atol=1e-6)
    assert again.max_length == facts.max_length == {"roberta": 129}.get(family, 128)
    assert isinstance(again.head, Linear)


@pytest.mark.parametrize(
    ("kind", "spare", "origin"),
    [
        ("bert", 0, None),
        ("roberta", 0, None),
        ("end", 0, "grown"),
        ("end", 3, "row"),
        ("reserved", 0, "reserved"),
        ("first", 0, "grown"),
        ("always", 2, "row"),
    ],
)
def test_a_base_model_without_template_gets_one_that_says_every_token(kind, spare, origin, tmp_path):
    folder = base_model(tmp_path / "base", kind, spare)
    texts = conversations()
    model = RewardModel.from_pretrained(folder)
    rows = [row.tolist() for row in ConversationEncoder(model.tokenizer).encode_conversations(texts)]
    expected, rewarded = own_scores(model, texts), model.backbone.config.vocab_size
    facts = export(model, tmp_path / "out")
    assert facts.template_written
    assert (facts.pad and facts.pad.origin) == origin
    assert read(tmp_path / "out", "config.json")["vocab_size"] == rewarded + (origin == "grown")

    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    rendered = [tokenizer.apply_chat_template(list(each), tokenize=False) for each in texts]
    assert all("Human: " in text and "\n\nAssistant: " in text for text in rendered)
    # however a program asks for them
    assert tokenizer(rendered)["input_ids"] == rows
    assert tokenizer(rendered, add_special_tokens=False)["input_ids"] == rows
    assert tokenizer.apply_chat_template([list(each) for each in texts], return_dict=True)["input_ids"] == rows
    np.testing.assert_allclose(plain_scores(tmp_path / "out", texts), expected, atol=1e-4)
    again = RewardModel.from_pretrained(str(tmp_path / "out"))
    np.testing.assert_allclose(own_scores(again, texts), expected, atol=1e-5)
    asked = tokenizer.apply_chat_template(list(texts[0][:-1]), tokenize=False, add_generation_prompt=True)
    assert rendered[0].startswith(asked)


def test_the_scored_token_is_read_where_pad_equals_end(saved, items, tmp_path):
    """The folder before the export scores one token early; after it, it does not."""
    model = RewardModel.from_pretrained(str(saved("gpt2")))
    texts = [conversation_of(item["prompt"], item["response"]) for item in items]
    assert model.tokenizer.pad_token_id == model.tokenizer.eos_token_id == 1
    before = saved("gpt2")
    config = AutoConfig.from_pretrained(before, pad_token_id=1)
    wrong = plain_scores(
        before, texts, config=config, tokenizer=AutoTokenizer.from_pretrained(before, pad_token="<eos>")
    )
    expected = own_scores(model, texts)
    assert np.abs(wrong - expected).max() > 1e-3
    facts = export(model, tmp_path / "out")
    assert (facts.pad.token, facts.pad.origin, facts.scored) == ("<|pad|>", "row", "<eos>")
    plain = texts[:1] + texts[2:]  # the second spells <eos> in its text, which only this package reads as text
    np.testing.assert_allclose(plain_scores(tmp_path / "out", plain), np.delete(expected, 1), atol=1e-5)


def test_left_padding_gives_a_decoder_the_same_rewards(saved, tmp_path):
    model = RewardModel.from_pretrained(str(saved("llama")))
    texts = conversations(20, 10)
    expected = own_scores(model, texts)
    export(model, tmp_path / "out")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out", padding_side="left")
    plain = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out").eval()
    batch = tokenizer(
        [tokenizer.apply_chat_template(list(each), tokenize=False) for each in texts], padding=True, return_tensors="pt"
    )
    assert batch["attention_mask"][:, 0].min() == 0
    with torch.no_grad():
        np.testing.assert_allclose(plain(**batch).logits[:, 0], expected, atol=1e-4)


@pytest.mark.parametrize("family", ["llama", "bert"])
def test_the_pipeline_gives_rewards_as_they_are(saved, family, tmp_path):
    model = RewardModel.from_pretrained(str(saved(family)))
    texts = conversations(20, 10)
    expected = own_scores(model, texts)
    export(model, tmp_path / "out")
    classify = pipeline("text-classification", model=str(tmp_path / "out"), device="cpu")
    rendered = [classify.tokenizer.apply_chat_template(list(each), tokenize=False) for each in texts]
    for options in ({}, {"function_to_apply": "none"}):  # a regression's default is none
        found = classify(rendered, batch_size=8, **options)
        assert {each["label"] for each in found} == {"REWARD"}
        np.testing.assert_allclose([each["score"] for each in found], expected, atol=1e-5)


# Heads

HEADS = [WithVariance(), WithConfidence(), QualityAndLength(), Ensemble(3), Bottleneck(8)]


@pytest.mark.parametrize("head", HEADS, ids=lambda head: head.kind)
@pytest.mark.parametrize("family", ["bert", "llama", "roberta"])
def test_heads_whose_reward_is_linear(saved, family, head, tmp_path):
    model = trained(str(saved(family)), head=head)
    texts = conversations(30, 10)
    expected = own_scores(model, texts)
    facts = export(model, tmp_path / "out")
    # a decoder's plain head has no constant, and only a code brings one where no head has a bias
    assert (facts.dropped_constant != 0) == (head.kind == "bottleneck" and family == "llama")
    np.testing.assert_allclose(plain_scores(tmp_path / "out", texts), expected - facts.dropped_constant, atol=2e-5)


def refused(model: RewardModel, message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message) as caught:
        export(model, tmp_path / "out")
    assert "\n" not in str(caught.value)


def test_what_no_plain_model_holds_is_refused(saved, tmp_path):
    refused(trained(str(saved("llama")), head=MLP()), "^--model: the model's mlp head is not linear, and no", tmp_path)


@pytest.mark.parametrize("family", ["llama", "bert"])
def test_other_pooling_is_refused(saved, family, tmp_path):
    own = {"llama": "last", "bert": "classification"}[family]
    model = RewardModel.from_backbone(str(saved(family)), pooling="mean").eval()
    refused(
        model, f"^--model: the model pools by mean, but the sequence classification of {family} .* by {own};", tmp_path
    )


def test_an_architecture_without_sequence_classification_is_refused(tmp_path, saved):
    config = AutoConfig.for_model("cohere", vocab_size=64, tie_word_embeddings=False, **SIZES)
    (tmp_path / "base").mkdir()
    config.save_pretrained(tmp_path / "base")
    AutoTokenizer.from_pretrained(saved("llama")).save_pretrained(tmp_path / "base")
    model = RewardModel.from_backbone(str(tmp_path / "base")).eval()
    refused(model, "^--model: Transformers has no sequence classification for cohere", tmp_path)


@pytest.mark.parametrize(("dtype", "size"), [("bfloat16", 2), ("float16", 2), ("float32", 4)])
def test_precision(saved, dtype, size, tmp_path):
    model = RewardModel.from_pretrained(str(saved("llama")), dtype=dtype)
    expected = own_scores(model, conversations(20, 10))
    facts = export(model, tmp_path / "out")
    assert facts.dtype == dtype
    weights = (tmp_path / "out" / "model.safetensors").stat().st_size
    assert weights == pytest.approx(size * facts.parameters, rel=0.1)
    config = read(tmp_path / "out", "config.json")
    assert config["dtype"] == config["torch_dtype"] == dtype
    found = plain_scores(tmp_path / "out", conversations(20, 10), dtype=dtype)
    np.testing.assert_allclose(found, expected, atol=0.03 * np.abs(expected).max() if size == 2 else 1e-5)


def test_rewards_that_half_precision_cannot_hold_are_refused(saved, tmp_path):
    model = RewardModel.from_pretrained(str(saved("llama")), dtype="float16")
    with torch.no_grad():
        model.head.weight.mul_(1e7)
    refused(model, "in float16 it gives other rewards, by up to .*; use --dtype bfloat16 or float32", tmp_path)


# The files


def test_the_files(saved, tmp_path):
    model = RewardModel.from_pretrained(str(saved("llama")), max_length=50)
    export(model, tmp_path / "out")
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"}
    modes = {path.stat().st_mode & 0o777 for path in (tmp_path / "out").iterdir()}
    assert modes == {(tmp_path / "out").stat().st_mode & 0o666}
    config = read(tmp_path / "out", "config.json")
    assert config["architectures"] == ["LlamaForSequenceClassification"]
    assert (config["id2label"], config["label2id"]) == ({"0": "REWARD"}, {"REWARD": 0})
    assert (config["problem_type"], config["pad_token_id"]) == ("regression", 0)
    assert AutoConfig.from_pretrained(tmp_path / "out").num_labels == 1
    settings = read(tmp_path / "out", "tokenizer_config.json")
    assert (settings["tokenizer_class"], settings["model_max_length"]) == ("PreTrainedTokenizerFast", 50)
    assert settings["model_input_names"] == ["input_ids", "attention_mask"]
    assert RewardModel.from_pretrained(str(tmp_path / "out")).max_length == 50


@pytest.mark.parametrize(
    ("family", "options", "expected"),
    [
        ("llama", {"rope_parameters": {"rope_type": "default", "rope_theta": 77.0}}, {"rope_theta": 77.0}),
        (
            "llama",
            {"rope_parameters": {"rope_type": "linear", "rope_theta": 77.0, "factor": 2.0}},
            {"rope_theta": 77.0, "rope_scaling": {"rope_type": "linear", "factor": 2.0}},
        ),
        ("stablelm", {"partial_rotary_factor": 0.5}, {"rope_theta": 10000.0, "partial_rotary_factor": 0.5}),
        ("gpt_neox", {"rotary_pct": 0.5, "rotary_emb_base": 55.0}, {"rotary_emb_base": 55.0, "rotary_pct": 0.5}),
        ("modernbert", {"global_rope_theta": 9.0}, {"global_rope_theta": 9.0, "local_rope_theta": 10000.0}),
        ("bert", {}, {}),
    ],
)
def test_both_versions_of_the_keys_say_the_same(family, options, expected, tmp_path):
    """What Transformers 4 is told is what Transformers 5 understands, with its own keys and without them."""
    config = AutoConfig.for_model(family, dtype="float32", **options)
    content = json.loads(config.to_json_string(use_diff=False))
    keys = old_keys(content)
    assert keys["torch_dtype"] == "float32"
    assert expected.items() <= keys.items()
    assert keys.keys() - expected.keys() <= {"torch_dtype", "rope_theta", "partial_rotary_factor"}
    for name, given in (
        ("both", content),
        ("old", {k: v for k, v in content.items() if k not in ("rope_parameters", "dtype")}),
    ):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(json.dumps({**given, **keys}))
        found = config_to_dict(AutoConfig.from_pretrained(tmp_path / name))
        assert {key: found[key] for key in content if key in found} == {k: v for k, v in content.items() if k in found}


# The pad token


def make_tokenizer(tokens, pad=None, eos="<eos>", template="{{ messages[0]['content'] }}<eos>"):
    backend = Tokenizer(models.WordLevel({"<unk>": 0, "word": 1}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    backend.add_special_tokens([AddedToken(token, special=True) for token in ("<eos>", *tokens)])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token=eos, pad_token=pad or eos, unk_token="<unk>", chat_template=template
    )


@pytest.mark.parametrize(
    ("tokens", "options", "scored", "rows", "expected"),
    [
        (["<pad>"], {"pad": "<pad>"}, {2}, 4, ("<pad>", "own")),
        ([], {}, {1}, 3, ("<eos>", "own")),  # the template ends with another token
        ([], {}, {1, 0}, 3, ("<|pad|>", "grown")),  # it ends with what was said, which may be the end token
        ([], {}, {2}, 4, ("<|pad|>", "row")),
        ([], {}, {2}, 3, ("<|pad|>", "grown")),
        (["<a>", "<|reserved_special_token_1|>"], {}, {2}, 5, ("<|reserved_special_token_1|>", "reserved")),
        (["<unused0>", "<|finetune_right_pad_id|>"], {}, {2}, 5, ("<|finetune_right_pad_id|>", "reserved")),
        (["<|pad|>"], {"template": "<|pad|>{{ messages[0]['content'] }}<eos>"}, {2}, 4, ("<|pad|>", "grown")),
        (["<notepad>"], {}, {2}, 4, ("<|pad|>", "grown")),
    ],
)
def test_which_pad_token(tokens, options, scored, rows, expected):
    tokenizer = make_tokenizer(tokens, **options)
    pad = choose_pad_token(tokenizer, scored, rows)
    assert (pad.token, pad.origin) == expected
    assert pad.id not in scored
    assert (pad.id < rows) == (pad.origin != "grown")


# Public reward models, read as they are


@pytest.mark.parametrize("family", ["llama", "bert"])
@pytest.mark.parametrize("pad_id", [None, 0])
def test_a_public_reward_model_is_read_as_it_is(saved, family, pad_id, items, tmp_path):
    """Of one label, with a bias (BERT) or not, with a pad token id in its config or not."""
    model = AutoModelForSequenceClassification.from_pretrained(saved(family)).eval()
    model.config.pad_token_id = pad_id
    model.save_pretrained(tmp_path / "public")
    AutoTokenizer.from_pretrained(saved(family)).save_pretrained(tmp_path / "public")
    reward_model = RewardModel.from_pretrained(str(tmp_path / "public"))
    texts = [conversation_of(item["prompt"], item["response"]) for item in items]
    with torch.no_grad():
        expected = [
            model(input_ids=torch.tensor(reward_model.encode([text])[0][None].astype(np.int64))).logits.item()
            for text in texts
        ]
    np.testing.assert_allclose(reward_model.score(items), expected, atol=1e-5)
    export(reward_model, tmp_path / "out")
    assert read(tmp_path / "out", "config.json")["pad_token_id"] == 0


# Nothing that is read is run


def test_code_that_a_folder_names_is_neither_run_nor_passed_on(saved, tmp_path):
    folder = tmp_path / "foreign"
    model = AutoModelForSequenceClassification.from_pretrained(saved("llama"))
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(saved("llama")).save_pretrained(folder)
    touched = tmp_path / "touched"
    (folder / "evil.py").write_text(f"open({str(touched)!r}, 'w')\nclass Evil: pass\n")
    mapped = {"AutoConfig": "evil.Evil", "AutoModelForSequenceClassification": "evil.Evil"}
    (folder / "config.json").write_text(json.dumps({**read(folder, "config.json"), "auto_map": mapped}))
    settings = {**read(folder, "tokenizer_config.json"), "auto_map": {"AutoTokenizer": ["evil.Evil", "evil.Evil"]}}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    export(RewardModel.from_pretrained(str(folder)), tmp_path / "out")
    for file in ("config.json", "tokenizer_config.json"):
        assert "auto_map" not in (tmp_path / "out" / file).read_text()
        assert "evil" not in (tmp_path / "out" / file).read_text()
    (folder / "config.json").write_text(json.dumps({"model_type": "evil", "auto_map": mapped}))
    with pytest.raises(UserError, match=r"the config.json of .* could not be read"):
        RewardModel.from_pretrained(str(folder))
    assert not touched.exists()


# Real models


@pytest.mark.parametrize("name", ["minilm", "smollm2"])
@pytest.mark.filterwarnings("ignore:.*has no reward head.*:UserWarning")
def test_real_models(name, tmp_path):
    if "APLOT_MODELS" not in os.environ:
        pytest.skip("APLOT_MODELS names no folder with minilm and smollm2")
    folder = Path(os.environ["APLOT_MODELS"]) / name
    texts = conversations(200 if name == "minilm" else 40)
    model = RewardModel.from_pretrained(str(folder))
    rows = [row.tolist() for row in ConversationEncoder(model.tokenizer).encode_conversations(texts)]
    expected = own_scores(model, texts)
    export(model, tmp_path / "out")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert tokenizer([tokenizer.apply_chat_template(list(each), tokenize=False) for each in texts])["input_ids"] == rows
    np.testing.assert_allclose(plain_scores(tmp_path / "out", texts), expected, atol=1e-4)
    assert math.isfinite(expected.sum())
