"""The plain Transformers model: the backbone, with a linear head put back where its architecture has one."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

import torch
from torch import nn

from aplot_lightning.errors import UserError
from aplot_lightning.model.backbone import Backbone
from aplot_lightning.model.backbone.splitting import can_classify, classifier_of
from aplot_lightning.model.configuration import quiet_transformers
from aplot_lightning.model.export.linear import LinearReward
from aplot_lightning.model.transformers_internals import set_attention

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

LABEL = "REWARD"
FOREIGN = ("auto_map", "custom_pipelines", "tokenizer_class")  # a config may bring them, and other programs obey them


def plain_model(backbone: Backbone, reward: LinearReward, key: str) -> tuple[PreTrainedModel, float]:
    """A sequence-classification model of one label around the backbone's own weights.

    The backbone is taken apart for it: a reward model that holds it is not to be used afterwards.

    Args:
        backbone: in the dtype that is to be saved.
        reward: the head.
        key: what the user set, for messages.

    Returns:
        The model in evaluation mode, and the constant of the reward that its head has no place for (0.0 if none).

    Raises:
        UserError: the architecture has no sequence classification, or pools otherwise than the model does.
    """
    config = _config(backbone.config)
    shell = _shell(config, key)
    path, empty = classifier_of(shell)
    own = "last" if path == "score" else "classification"
    if backbone.pooling != own:
        raise UserError(
            f"{key}: the model pools by {backbone.pooling}, but the sequence classification of {config.model_type} in "
            f"Transformers by {own}; score with this package, or train with --model.pooling auto"
        )
    if own == "last":
        setattr(shell, shell.base_model_prefix, backbone.model)
        model = shell
    else:
        model = backbone.model
        model.config = config
    head = nn.Linear(empty.in_features, 1, bias=empty.bias is not None, dtype=backbone.model.dtype)
    with torch.no_grad():
        head.weight.copy_(reward.weight)
        if head.bias is not None:
            head.bias.fill_(reward.constant)
    model.set_submodule(path, head)
    return model.eval(), 0.0 if head.bias is not None else reward.constant


def give_row(model: PreTrainedModel, token_id: int) -> None:
    """Makes the embedding table long enough for `token_id`; new rows are zero."""
    rows = embedding_rows(model)
    if token_id < rows:
        return
    with quiet_transformers():
        model.resize_token_embeddings(token_id + 1, mean_resizing=False)
    with torch.no_grad():
        _table(model).weight[rows:] = 0.0


def embedding_rows(model: PreTrainedModel) -> int:
    """How many tokens the model has embeddings for."""
    return _table(model).num_embeddings


def _table(model: PreTrainedModel) -> nn.Embedding:
    table = model.get_input_embeddings()
    assert isinstance(table, nn.Embedding)
    return table


def _config(config: PreTrainedConfig) -> PreTrainedConfig:
    config = copy.deepcopy(config)
    config.id2label, config.label2id = {0: LABEL}, {LABEL: 0}
    config.problem_type = "regression"  # rewards as they are: pipelines would take a sigmoid of one label
    for name in FOREIGN:
        if getattr(config, name, None) is not None:
            delattr(config, name)
    set_attention(config, None)  # each program's default
    return config


def _shell(config: PreTrainedConfig, key: str) -> PreTrainedModel:
    """The architecture's sequence-classification model without memory for its weights."""
    from transformers import AutoModelForSequenceClassification

    if not can_classify(config):
        raise UserError(
            f"{key}: Transformers has no sequence classification for {config.model_type}; score with this package"
        )
    with torch.device("meta"), quiet_transformers():
        return AutoModelForSequenceClassification.from_config(config, trust_remote_code=False)
