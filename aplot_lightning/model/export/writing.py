"""Exporting a reward model: its parts made plain, written, and read again to see that they say the same."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from aplot_lightning.data.encoding import ConversationEncoder
from aplot_lightning.errors import UserError
from aplot_lightning.model.configuration import quiet_transformers
from aplot_lightning.model.export.classifier import embedding_rows, give_row, plain_model
from aplot_lightning.model.export.facts import Exported
from aplot_lightning.model.export.files import open_to_readers, write_model, write_tokenizer
from aplot_lightning.model.export.linear import linear_reward
from aplot_lightning.model.export.padding import PadToken, choose_pad_token
from aplot_lightning.model.export.template import plain_template
from aplot_lightning.model.tokenizer import load_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

    from aplot_lightning.data.comparisons import Conversation
    from aplot_lightning.model.reward_model import RewardModel

TURNS = (  # conversations that are scored before and after; of several lengths and kinds of ends
    ("Hi", "Hello."),
    ("What is two and two?", "4"),
    ("Name a colour.", "Blue, for one\n"),
    ("Why is the sky blue?", "Air scatters short waves more than long ones, so blue light comes from everywhere (!)"),
    ("Wie geht es dir?", "Gut – und dir? 😀"),
    ("Can you help me?", "Of course", "With what", "The cat does not eat. What is wrong with it?", "See a vet"),
)
# largest difference of a reward, for rewards up to 1 in size: the plain head is as narrow as the backbone
TOLERANCES = {torch.float64: 1e-4, torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 5e-2}


def export_model(model: RewardModel, folder: Path, key: str = "--model") -> Exported:
    """Writes `model` into an existing empty folder, for AutoModelForSequenceClassification and AutoTokenizer.

    Args:
        model: in the dtype that is to be written; it is taken apart and not to be used afterwards.
        folder: where config.json, safetensors, tokenizer.json and tokenizer_config.json are written.
        key: what the user set, for messages.

    Raises:
        UserError: the model has no plain form (an MLP head, mean pooling, an architecture without sequence
            classification), or the plain form does not give its rewards.
        OSError, SafetensorError: the files could not be written.
    """
    reward = linear_reward(model.head, key)
    conversations = _conversations(model)
    rows = ConversationEncoder(model.tokenizer).encode_conversations(conversations)
    expected = np.array(model.score_rows(rows, batch_size=len(rows)))
    name, max_length, decoder = model.name, model.max_length, model.pooling == "last"

    tokenizer = copy.deepcopy(model.tokenizer)
    written = tokenizer.chat_template is None
    if written:
        tokenizer.chat_template = plain_template(tokenizer, conversations)
        if tokenizer.chat_template is None:
            raise UserError(
                f"{key}: the tokenizer of {name!r} has no chat template, and none can be written that gives the tokens "
                "it was trained with; give the backbone's tokenizer a chat_template and train again"
            )
    plain, dropped = plain_model(model.backbone, reward, key)
    scored = {int(row[-1]) for row in rows}
    pad = _set_padding(plain, tokenizer, scored if decoder else None)
    tokenizer.padding_side, tokenizer.truncation_side = "right", "left" if decoder else "right"
    if max_length is not None:
        tokenizer.model_max_length = max_length
    with quiet_transformers():
        write_tokenizer(tokenizer, folder)
        write_model(plain, folder)
    open_to_readers(folder)

    difference = _difference(
        plain, load_tokenizer(str(folder), key, name), conversations, rows, expected - dropped, key
    )
    return Exported(
        architecture=type(plain).__name__,
        parameters=sum(parameter.numel() for parameter in plain.parameters()),
        dtype=str(plain.dtype).removeprefix("torch."),
        max_length=max_length,
        scored=str(tokenizer.decode(sorted(scored))) if decoder and len(scored) == 1 else None,
        pad=pad,
        template_written=written,
        dropped_constant=dropped,
        difference=difference,
    )


def _conversations(model: RewardModel) -> list[Conversation]:
    """Those of TURNS that the template takes and for which there are positions."""
    roles = ("user", "assistant")
    made = [
        tuple({"role": roles[place % 2], "content": text} for place, text in enumerate(turns[: len(turns) // 2 * 2]))
        for turns in TURNS
    ]
    rows = ConversationEncoder(model.tokenizer).encode_conversations(made)
    limit = model.backbone.position_limit
    return [turns for turns, row in zip(made, rows, strict=True) if limit is None or len(row) <= limit]


def _set_padding(
    plain: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, scored: set[int] | None
) -> PadToken | None:
    """Gives model and tokenizer one pad token, in place.

    An encoder (`scored` None) reads its first token or a mean over the mask, so its config's pad token stays: the
    positions of RoBERTa and its kin are counted from it.
    """
    config = plain.config
    if scored is None:
        own = config.pad_token_id
        token = None if own is None else tokenizer.convert_ids_to_tokens(own)
        if token is not None:
            tokenizer.pad_token = token
        elif own is None:
            config.pad_token_id = tokenizer.pad_token_id
        return None
    pad = choose_pad_token(tokenizer, scored, embedding_rows(plain))
    if pad.origin != "own":
        tokenizer.add_special_tokens({"pad_token": pad.token})
        assert tokenizer.pad_token_id == pad.id
        give_row(plain, pad.id)
    for part in (config, config.get_text_config()):
        part.pad_token_id = pad.id
    return pad


@torch.inference_mode()
def _difference(
    plain: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    conversations: list[Conversation],
    rows: list[np.ndarray],
    expected: np.ndarray,
    key: str,
) -> float:
    """How far the plain model's rewards are from `expected`, read as another program would: one padded batch of texts.

    Raises UserError where the tokens are others or the rewards are far away.
    """
    texts = [tokenizer.apply_chat_template(list(conversation), tokenize=False) for conversation in conversations]
    batch = tokenizer(texts, padding=True, return_tensors="pt", verbose=False)
    tokens = [ids[mask.bool()].tolist() for ids, mask in zip(batch["input_ids"], batch["attention_mask"], strict=True)]
    if tokens != [row.tolist() for row in rows]:
        raise UserError(f"{key}: the tokenizer gives other tokens once it is saved: it cannot be exported")
    with quiet_transformers():
        found = plain(**batch).logits[:, 0].double().numpy()
    difference = float(np.abs(found - expected).max())
    largest = max(1.0, float(np.abs(expected).max()))
    if not difference <= TOLERANCES[plain.dtype] * largest:  # NaN too
        narrow = "; use --dtype bfloat16 or float32" if plain.dtype == torch.float16 else ""
        raise UserError(
            f"{key}: as a plain {type(plain).__name__} in {str(plain.dtype).removeprefix('torch.')} it gives other "
            f"rewards, by up to {difference:.2g}: it cannot be exported{narrow}"
        )
    return difference
