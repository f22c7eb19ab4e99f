"""Reading a reward model out of a Lightning checkpoint, without ever running what is in it.

A checkpoint carries its whole reward model: under ``reward_model`` a description (config, tokenizer files, pooling,
head) and in ``state_dict`` the weights, their keys beginning with ``reward_model.``. No folder or hub is needed.
"""

from __future__ import annotations

import pickle
import re
from typing import Any

import torch
from torch import Tensor

from aplot_lightning.errors import UserError

FORMAT = 1  # of the description; a reader refuses a newer one
PREFIX = "reward_model."
LEFT_OUT = "backbone_left_out"  # marks a checkpoint without its frozen backbone


def read_checkpoint(path: str, key: str, *, whole: bool = True) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The description and the weights of the reward model in a checkpoint file.

    The file is mapped, so optimizer states are not read into memory.

    Args:
        path: the file.
        key: what the user set, for messages.
        whole: False takes a checkpoint without its frozen backbone too.

    Raises:
        UserError: the file is damaged, is no checkpoint of ours, holds objects that could run code, is of a newer
            format, or lacks its backbone.
    """
    content = _load(path, key)
    description = content.get("reward_model") if isinstance(content, dict) else None
    state = content.get("state_dict") if isinstance(content, dict) else None
    if not isinstance(description, dict) or not isinstance(state, dict):
        raise UserError(f"{key}: {path} holds no reward model: it was not written by a fit of aplot_lightning")
    if description.get("format") != FORMAT:
        raise UserError(
            f"{key}: {path} is of format {description.get('format')!r}, this version reads {FORMAT}: "
            "use the version of aplot_lightning that wrote it"
        )
    if whole and LEFT_OUT in content:
        raise UserError(
            f"{key}: {path} was written without its frozen backbone (checkpoint_backbone: false) and is no model "
            "alone: repeat the run with --checkpoint_backbone true"
        )
    return description, {name.removeprefix(PREFIX): value for name, value in state.items() if name.startswith(PREFIX)}


def _load(path: str, key: str) -> Any:
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except pickle.UnpicklingError as error:
        unsupported = re.search(r"GLOBAL:? ([\w.]+)", str(error))  # torch names what it refused to import
        if unsupported:
            raise UserError(
                f"{key}: {path} holds an object other than tensors and plain values ({unsupported.group(1)}); it is "
                "not read, because that could run code: use a checkpoint written by fit"
            ) from error
        raise _damaged(path, key) from error
    except PermissionError as error:
        raise UserError(f"{key}: {path} may not be read: {error.strerror}") from error
    except Exception as error:  # a cut or overwritten archive fails in many ways inside torch
        raise _damaged(path, key) from error


def _damaged(path: str, key: str) -> UserError:
    return UserError(
        f"{key}: {path} is not a whole checkpoint (damaged, cut short, or another kind of file); "
        "use another checkpoint of the run"
    )
