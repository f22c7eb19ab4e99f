from __future__ import annotations

import pytest
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from aplot_lightning.errors import UserError
from aplot_lightning.model.tokenizer import load_tokenizer, one_line, pack_tokenizer, unpack_tokenizer

TEXTS = ["the cat sat .", "what is <eos> ?", "nobody knows"]


@pytest.mark.parametrize("family", ["llama", "gpt2", "bert"])
def test_packed_and_unpacked_it_is_the_same(saved, family):
    tokenizer = load_tokenizer(str(saved(family)), "model", family)
    files = pack_tokenizer(tokenizer)
    assert all(isinstance(content, str | bytes) for content in files.values())
    again = unpack_tokenizer(files, {"model_type": family}, "checkpoint")
    assert again(TEXTS)["input_ids"] == tokenizer(TEXTS)["input_ids"]
    assert again.chat_template == tokenizer.chat_template
    assert (again.pad_token, again.eos_token) == (tokenizer.pad_token, tokenizer.eos_token)


def test_end_of_text_stands_in_for_a_missing_padding_token(saved):
    assert load_tokenizer(str(saved("gpt2")), "model", "gpt2").pad_token == "<eos>"
    assert load_tokenizer(str(saved("llama")), "model", "llama").pad_token == "<pad>"


def test_nothing_to_pad_with(tmp_path):
    bare = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel({"a": 0}, unk_token="a")))
    bare.save_pretrained(tmp_path)
    with pytest.raises(UserError, match="has no pad, eos or unk token"):
        load_tokenizer(str(tmp_path), "model", "bare")


def test_a_folder_without_tokenizer(tmp_path):
    with pytest.raises(UserError, match=r"model\.backbone: no tokenizer could be read from 'here'") as caught:
        load_tokenizer(str(tmp_path), "model.backbone", "here")
    assert "\n" not in str(caught.value)


def test_file_names_that_leave_the_folder_are_refused(tmp_path):
    outside = tmp_path / "outside.txt"
    for name in (str(outside), "../outside.txt", "a/b"):
        with pytest.raises(UserError, match="damaged checkpoint, a tokenizer file is named"):
            unpack_tokenizer({name: "x"}, {"model_type": "bert"}, "checkpoint")
    assert not outside.exists()


def test_one_line_takes_the_first_that_says_something():
    assert one_line(ValueError("\n\n  first  \nsecond")) == "first"
    assert one_line(ValueError()) == "ValueError"
    assert len(one_line(ValueError("x" * 999))) == 200
