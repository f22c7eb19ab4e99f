"""The files of an exported folder, written by Transformers 5 and made readable for Transformers 4 and others."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

# of a tokenizer_config.json: where it came from, whose code it wants, and what would put the tokens back that are not
# trained with (the chat template writes them all)
DROPPED = ("auto_map", "backend", "is_local", "local_files_only", "name_or_path", "add_bos_token", "add_eos_token")
LIMITS = ("max_length", "stride", "truncation_strategy", "pad_to_multiple_of")  # what tokenizer.json said of them
NESTED_ROPE = {  # the keys by which Transformers 4 knew the two rope bases of some architectures
    "gemma3_text": ("rope_theta", "rope_local_base_freq"),
    "modernbert": ("global_rope_theta", "local_rope_theta"),
    "modernbert-decoder": ("global_rope_theta", "local_rope_theta"),
}


def write_tokenizer(tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Writes tokenizer.json and tokenizer_config.json such that a rendered conversation gives the trained tokens.

    What a tokenizer adds by itself (its post-processor) is taken out: the template has written it already, and programs
    differ in whether they ask for it. The class is one that Transformers 4 knows too, and input names are those that
    every sequence-classification model takes.
    """
    tokenizer.save_pretrained(folder, save_jinja_files=False, legacy_format=False)
    path = folder / "tokenizer.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(_json({**content, "post_processor": None, "truncation": None, "padding": None}), encoding="utf-8")
    path = folder / "tokenizer_config.json"
    settings = json.loads(path.read_text(encoding="utf-8"))
    extra = settings.pop("extra_special_tokens", None)  # Transformers 4 wants names for them
    if isinstance(extra, list):
        settings["additional_special_tokens"] = extra
    settings |= {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_input_names": ["input_ids", "attention_mask"],
        "clean_up_tokenization_spaces": False,
        "chat_template": tokenizer.chat_template,
        "model_max_length": tokenizer.model_max_length,
        "padding_side": tokenizer.padding_side,
        "truncation_side": tokenizer.truncation_side,
    }
    path.write_text(
        _json({name: settings[name] for name in settings if name not in DROPPED + LIMITS}), encoding="utf-8"
    )


def write_model(model: PreTrainedModel, folder: Path) -> None:
    """Writes the weights as safetensors, in several files where they are large, and config.json for both versions."""
    model.save_pretrained(folder)
    path = folder / "config.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    content = {name: value for name, value in content.items() if not name.endswith("name_or_path")}
    path.write_text(_json({**content, **old_keys(content)}), encoding="utf-8")


def old_keys(config: dict[str, Any]) -> dict[str, Any]:
    """The keys by which Transformers 4 reads what version 5 writes: dtype and rotary positions.

    Without them version 4 would take its defaults, another base of the rotary positions among them, in silence.
    """
    keys: dict[str, Any] = {}
    if "dtype" in config:
        keys["torch_dtype"] = config["dtype"]
    rope = config.get("rope_parameters")
    if not rope:
        return keys
    if "full_attention" in rope and config.get("model_type") in NESTED_ROPE:
        full, sliding = NESTED_ROPE[config["model_type"]]
        keys |= {full: rope["full_attention"]["rope_theta"], sliding: rope["sliding_attention"]["rope_theta"]}
        rope = rope["full_attention"]
    elif "rope_theta" in rope:
        keys["rope_theta"] = rope["rope_theta"]
        if "partial_rotary_factor" in rope:
            keys["partial_rotary_factor"] = rope["partial_rotary_factor"]
        if config.get("model_type", "").startswith("gpt_neox"):
            keys |= {"rotary_emb_base": rope["rope_theta"], "rotary_pct": rope.get("partial_rotary_factor", 1.0)}
    if rope.get("rope_type", "default") != "default":
        keys["rope_scaling"] = {
            name: value for name, value in rope.items() if name not in ("rope_theta", "partial_rotary_factor")
        }
    return keys


def open_to_readers(folder: Path) -> None:
    """Gives the files the permissions of any new file; safetensors makes its own for their owner alone."""
    mask = os.umask(0)
    os.umask(mask)
    for path in folder.iterdir():
        path.chmod(0o666 & ~mask)


def _json(content: dict[str, Any]) -> str:
    return json.dumps(content, indent=2, ensure_ascii=False) + "\n"
