"""Tiny random models of several families, saved as plain Transformers folders with a small tokenizer."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoConfig, AutoModelForSequenceClassification, PreTrainedTokenizerFast

WORDS = ["the", "a", "cat", "dog", "sat", "ran", "mat", "log", "on", "by", "what", "who", "is", "was", "yes", "no"]
WORDS += ["please", "thanks", "two", "three", ".", "?"]
TEMPLATE = "{% for m in messages %}<{{ m['role'] }}> {{ m['content'] }} <eos>{% endfor %}"
SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
ENDS = {"bos_token_id": 1, "eos_token_id": 1}
FAMILIES = {
    "llama": {**SMALL, "num_key_value_heads": 2, "max_position_embeddings": 128},
    "qwen2": {**SMALL, "num_key_value_heads": 2, "max_position_embeddings": 128},
    "qwen3": {**SMALL, "num_key_value_heads": 2, "head_dim": 12, "max_position_embeddings": 128},
    "mistral": {**SMALL, "num_key_value_heads": 2, "max_position_embeddings": 128, "sliding_window": 6},
    "phi3": {**SMALL, "num_key_value_heads": 2, "max_position_embeddings": 128, "pad_token_id": 0, **ENDS},
    "smollm3": {**SMALL, "num_hidden_layers": 4, "num_key_value_heads": 2, "pad_token_id": 0, **ENDS},
    "gemma": {**SMALL, "num_key_value_heads": 1, "head_dim": 8, "max_position_embeddings": 128},
    "gemma2": {**SMALL, "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 128},
    "gemma3_text": {
        **SMALL,
        "num_hidden_layers": 3,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "sliding_window": 5,
        "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
        "max_position_embeddings": 128,
    },
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 128, "bos_token_id": 1, "eos_token_id": 1},
    "bert": {**SMALL, "max_position_embeddings": 128},
    "roberta": {**SMALL, "max_position_embeddings": 130, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 1},
    "distilbert": {"dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 48, "max_position_embeddings": 128},
    "deberta-v2": {
        **SMALL,
        "max_position_embeddings": 128,
        "relative_attention": True,
        "position_buckets": 16,
        "pos_att_type": ["p2c", "c2p"],
        "position_biased_input": False,
        "pooler_hidden_size": 32,
    },
}


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


def make_tokenizer(pad: bool) -> PreTrainedTokenizerFast:
    vocabulary = ["<pad>", "<eos>", "<unk>", "<user>", "<assistant>", "<system>", *WORDS]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(vocabulary)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokens = {"eos_token": "<eos>", "unk_token": "<unk>", **({"pad_token": "<pad>"} if pad else {})}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, chat_template=TEMPLATE, **tokens)


def make_folder(folder: Path, family: str, *, labels: int | None = 1, vocabulary: int = 64) -> Path:
    """A saved model with weights far from zero; `labels` None leaves the weights out."""
    torch.manual_seed(len(family))
    config = AutoConfig.for_model(
        family, vocab_size=vocabulary, num_labels=labels or 2, initializer_range=0.2, **FAMILIES[family]
    )
    if labels is None:
        config.save_pretrained(folder)
    else:
        model = AutoModelForSequenceClassification.from_config(config)
        with torch.no_grad():
            for parameter in model.parameters():  # biases too, which start at zero
                parameter.add_(0.05 * torch.randn_like(parameter))
        model.save_pretrained(folder)
    make_tokenizer(pad=family != "gpt2").save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def saved(tmp_path_factory):
    """saved(family, labels=1) -> the folder of a tiny model, made once."""
    made: dict[tuple[str, int | None], Path] = {}

    def get(family: str, labels: int | None = 1) -> Path:
        if (family, labels) not in made:
            with torch.random.fork_rng():
                made[family, labels] = make_folder(tmp_path_factory.mktemp(family), family, labels=labels)
        return made[family, labels]

    return get


@pytest.fixture(scope="session")
def items() -> list[dict]:
    """Questions and answers of very different lengths; the first is the shortest, one ends in the end-of-text word."""
    generator = torch.Generator().manual_seed(5)

    def words(count: int) -> str:
        return " ".join(WORDS[i] for i in torch.randint(len(WORDS), (count,), generator=generator).tolist())

    made = [{"prompt": "who ?", "response": "no"}, {"prompt": "what is the cat ?", "response": "the cat <eos> <eos>"}]
    made += [{"prompt": words(1 + length // 2), "response": words(length)} for length in (1, 2, 3, 7, 12, 20, 33)]
    chat = [
        {"role": "system", "content": "please"},
        {"role": "user", "content": "is the dog by the log ?"},
        {"role": "assistant", "content": "yes ."},
        {"role": "user", "content": "who sat ?"},
    ]
    made.append({"prompt": chat, "response": [{"role": "assistant", "content": "the cat sat ."}]})
    return made
