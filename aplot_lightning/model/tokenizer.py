"""The tokenizer of a model: read from a folder or the hub, or carried inside a checkpoint as files."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from aplot_lightning.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedTokenizerFast

UNLIMITED = 1_000_000  # tokenizers that know no limit say 1e30


def load_tokenizer(source: str, key: str, name: str) -> PreTrainedTokenizerFast:
    """A fast tokenizer with a padding token (the end-of-text token where it has none of its own).

    Args:
        source: a folder or hub name.
        key: what the user set, for messages.
        name: the model's name as the user gave it, for messages.

    Raises:
        UserError: there is no tokenizer, it is not a fast one, or it has no token to pad with.
    """
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    try:
        tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=False)
    except Exception as error:  # Transformers raises OSError, ValueError, KeyError, ImportError ... for a bad tokenizer
        raise UserError(f"{key}: no tokenizer could be read from {name!r}: {one_line(error)}") from error
    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        raise UserError(f"{key}: the tokenizer of {name!r} is not a fast one: save it with a tokenizer.json")
    ensure_pad_token(tokenizer, key, name)
    return tokenizer


def ensure_pad_token(tokenizer: PreTrainedTokenizerFast, key: str, name: str) -> None:
    """Sets the padding token where there is none. Its id never matters: rows are read by mask and index only."""
    if tokenizer.pad_token is None:
        stand_in = tokenizer.eos_token or tokenizer.unk_token
        if stand_in is None:
            raise UserError(f"{key}: the tokenizer of {name!r} has no pad, eos or unk token: give it a pad_token")
        tokenizer.pad_token = stand_in


def check_vocabulary(tokenizer: PreTrainedTokenizerFast, config: PreTrainedConfig, name: str) -> None:
    """Raises UserError where the tokenizer has ids that the backbone does not embed."""
    size, largest = config.get_text_config().vocab_size, max(tokenizer.get_vocab().values())
    if largest >= size:
        raise UserError(
            f"model.backbone: the tokenizer of {name!r} has ids up to {largest}, but the backbone embeds {size}: "
            "give it its own tokenizer"
        )


def natural_length(
    tokenizer: PreTrainedTokenizerFast, config: PreTrainedConfig, position_limit: int | None
) -> int | None:
    """The most tokens that tokenizer and backbone are made for; None where neither says."""
    declared = getattr(config.get_text_config(), "max_position_embeddings", None)
    limits = [position_limit, tokenizer.model_max_length, declared]
    return min((limit for limit in limits if limit is not None and 0 < limit < UNLIMITED), default=None)


def pack_tokenizer(tokenizer: PreTrainedTokenizerFast) -> dict[str, str | bytes]:
    """The files of a tokenizer by name; text where they are UTF-8."""
    with TemporaryDirectory() as folder:
        tokenizer.save_pretrained(folder)
        return {file.name: _content(file) for file in sorted(Path(folder).iterdir()) if file.is_file()}


def unpack_tokenizer(files: dict[str, str | bytes], config: dict[str, Any], name: str) -> PreTrainedTokenizerFast:
    """The tokenizer that `pack_tokenizer` packed; raises UserError where a file name would leave its folder."""
    import json

    with TemporaryDirectory() as folder:
        # config.json tells Transformers the family when the tokenizer's own files leave it open
        for file, content in {**files, "config.json": json.dumps({"model_type": config.get("model_type")})}.items():
            if Path(file).name != file:
                raise UserError(f"{name}: damaged checkpoint, a tokenizer file is named {file!r}")
            (Path(folder) / file).write_bytes(content if isinstance(content, bytes) else content.encode())
        tokenizer = load_tokenizer(folder, "model", name)
    tokenizer.name_or_path = name
    return tokenizer


def one_line(error: BaseException, limit: int = 200) -> str:
    """The first line that says something in an error's message, shortened."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = lines[0] if lines else type(error).__name__
    return text if len(text) <= limit else text[: limit - 3] + "..."


def _content(file: Path) -> str | bytes:
    content = file.read_bytes()
    try:
        return content.decode()
    except UnicodeDecodeError:
        return content
