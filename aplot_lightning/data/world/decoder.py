"""The world's tokenizer and the decoder that reads it: a folder without weights, so a model trained from scratch.

The folder in the repository, aplot_lightning/model/assets/world-decoder, is written by

    python -c "from aplot_lightning.data.world import write_world_decoder; write_world_decoder('FOLDER')"
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from aplot_lightning.data.world.language import ANSWERS, ASKED, COURTESIES, CUE, FILLERS, NAMES, PROMPTS, TOPICS

if TYPE_CHECKING:
    from tokenizers import Tokenizer

PAD, BEGIN, END = "<|pad|>", "<|begin|>", "<|end|>"
ROLES = {role: f"<|{role}|>" for role in ("system", "user", "assistant")}
LARGEST_NUMBER = 99  # numbers up to here are one token
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{{ '<|' + message['role'] + '|>' + message['content'] + eos_token }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)


def world_words() -> list[str]:
    """Every word, number and mark of the world's language, sorted."""
    templates = [*PROMPTS.values(), CUE, *FILLERS]
    templates += [text for style in (*ASKED.values(), *ANSWERS.values()) for text in style.values()]
    templates += [text for phrases in COURTESIES.values() for text in phrases]
    words = {word for text in templates for word in re.findall(r"[A-Za-z]+|[^\w\s]", re.sub(r"\{\w+\}s?", " ", text))}
    for topic in TOPICS.values():
        words |= {topic.verb, f"{topic.verb}s", *topic.things, *topic.places}
    return sorted(words | set(NAMES) | {str(number) for number in range(LARGEST_NUMBER + 1)})


def world_tokenizer() -> Tokenizer:
    """One token for each of the world's words (bare and after a space), 256 bytes for all other text.

    A byte-level BPE without merges: a piece of text (a word with the space before it, a run of digits or of marks) is
    looked up whole, and spelled in bytes if it is not there. Any text decodes to itself.
    """
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    special = [PAD, BEGIN, END, *ROLES.values()]
    pieces = [*special, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    space = "Ġ"  # how the byte-level alphabet writes a space
    known = set(pieces)
    pieces += [piece for piece in _both_forms(world_words(), space) if piece not in known]
    vocabulary = {piece: index for index, piece in enumerate(pieces)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[], ignore_merges=True))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    return tokenizer


def _both_forms(words: list[str], space: str) -> Iterator[str]:
    for word in words:
        yield word
        yield space + word


def write_world_decoder(folder: str | Path) -> None:
    """Write config.json (a Llama of 2 layers and width 128), tokenizer.json and tokenizer_config.json into `folder`."""
    tokenizer = world_tokenizer()
    identity = {
        "pad_token_id": tokenizer.token_to_id(PAD),
        "bos_token_id": tokenizer.token_to_id(BEGIN),
        "eos_token_id": tokenizer.token_to_id(END),
    }
    config = {
        "architectures": ["LlamaModel"],
        "model_type": "llama",
        "vocab_size": tokenizer.get_vocab_size(),
        "hidden_size": 128,
        "intermediate_size": 256,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "max_position_embeddings": 2048,
        "attention_dropout": 0.0,
        "initializer_range": 0.05,
        "tie_word_embeddings": False,
        "dtype": "float32",
        **identity,
    }
    tokenizer_config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "pad_token": PAD,
        "bos_token": BEGIN,
        "eos_token": END,
        "model_max_length": 2048,
        "clean_up_tokenization_spaces": False,
        "chat_template": CHAT_TEMPLATE,
    }
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tokenizer.json").write_text(tokenizer.to_str(pretty=True) + "\n", encoding="utf-8")
    for name, content in (("config.json", config), ("tokenizer_config.json", tokenizer_config)):
        (folder / name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
