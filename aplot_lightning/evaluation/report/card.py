"""The model card of an exported run: what it is, how to load it, what it was trained on and how well it does."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from aplot_lightning.evaluation.report.rendering import markdown_table
from aplot_lightning.evaluation.report.runs import Run
from aplot_lightning.evaluation.report.tables import Table, escape, interval_text, number

HEADER = """---
library_name: transformers
pipeline_tag: text-classification
tags:
- reward-model
- aplot_lightning
# license: to be filled in by the owner; the backbone's and the data's licenses apply
---
"""
METRICS = {  # of metrics.json, and their headings
    "accuracy": "accuracy",
    "ci95": "95 % interval",
    "pairs": "pairs",
    "log_loss": "log loss",
    "ece": "calibration error",
    "hard_accuracy": "hard pairs",
    "length_correlation": "length correlation",
}


@dataclass(frozen=True)
class Folder:
    """Facts of the exported folder itself.

    Attributes:
        name: of the folder, or of the repository on the hub.
        architecture: the class of Transformers.
        parameters: their number.
        dtype: of the weights.
        max_length: tokens of a prompt with one response; None for no limit.
        reading: one sentence on what is scored and how rows are padded.
        notes: further sentences for users.
        versions: of the packages that wrote the folder, by name.
    """

    name: str
    architecture: str
    parameters: int
    dtype: str
    max_length: int | None
    reading: str
    notes: tuple[str, ...]
    versions: Mapping[str, str]


def model_card(folder: Folder, run: Run | None, model: str) -> str:
    """The text of a README.md in Markdown, with the hub's header.

    Args:
        folder: what was exported.
        run: the run whose best checkpoint it is; None if there is none.
        model: what was exported, as the user named it, if there is no run.
    """
    parts = [f"# {escape(folder.name)}", _what(folder), _how_to_load(folder)]
    if run is None:
        parts += [f"## Training\n\nExported from {escape(model)}, without a record of data, command and figures."]
    else:
        parts += [_figures(run), _data(run), _training(run)]
    versions = ", ".join(f"{escape(name)} {escape(version)}" for name, version in folder.versions.items())
    return HEADER + "\n\n".join(["", *parts, f"Exported by aplot_lightning ({versions})."]).lstrip("\n") + "\n"


def _what(folder: Folder) -> str:
    limit = "no limit" if folder.max_length is None else f"at most {folder.max_length} tokens"
    lines = [
        "A reward model: it gives a conversation one number, higher for a better last answer.",
        "Only differences between answers to the same prompt mean something.",
        f"{folder.architecture}, {folder.parameters:,} parameters in {folder.dtype};",
        f"a prompt with its response has {limit}.",
        folder.reading,
    ]
    return "\n\n".join([" ".join(lines), *folder.notes])


def _how_to_load(folder: Folder) -> str:
    name = repr(folder.name)
    return f"""## How to load it

Render conversations by the tokenizer's chat template, which writes every special token. The tokenizer adds none of its
own, so that rendered text gives the same tokens with and without `add_special_tokens`; text that is not rendered gives
other rewards. A client that truncates cuts tokens; shorten the conversation instead, as `aplot score` does. A message
that spells a special token is read with that token, where `aplot score` reads it as text.

```python
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer, pipeline

tokenizer = AutoTokenizer.from_pretrained({name})
model = AutoModelForSequenceClassification.from_pretrained({name}, dtype=torch.{folder.dtype}).eval()
chat = [{{"role": "user", "content": "What is 2 + 2?"}}, {{"role": "assistant", "content": "4"}}]
text = tokenizer.apply_chat_template(chat, tokenize=False)
with torch.no_grad():
    reward = model(**tokenizer([text], padding=True, return_tensors="pt")).logits[0, 0].item()
reward = pipeline("text-classification", model=model, tokenizer=tokenizer)(text)[0]["score"]  # the same
```

TRL, with prompts of messages: `GRPOTrainer(..., reward_funcs={name})` and `RLOOTrainer(..., reward_funcs={name})`.

vLLM: `vllm serve {shlex.quote(folder.name)} --runner pooling`, then `/classify` with rendered text.

This package: `RewardModel.from_pretrained({name}).score([{{"prompt": ..., "response": ...}}])`."""


def _figures(run: Run) -> str:
    sets = {"in distribution": run.metrics.get("id") or {}, **(run.metrics.get("ood") or {})}
    rows = [[name, *(_cell(figures.get(key)) for key in METRICS)] for name, figures in sets.items()]
    mean = (run.metrics.get("ood_mean") or {}).get("accuracy")
    return (
        "## Figures\n\nOn pairs that were neither trained nor selected on; intervals by a bootstrap over prompts. The "
        f"other sets are out of distribution; their mean accuracy is {number(mean)}.\n\n"
        + markdown_table(Table(["set", *METRICS.values()], rows))
    )


def _cell(value: Any) -> str:
    if isinstance(value, list):
        return interval_text(value)
    return str(value) if isinstance(value, int) else number(value)


def _data(run: Run) -> str:
    rows = []
    for key, entry in (run.record.get("data") or {}).items():
        for source in entry if isinstance(entry, list) else [entry]:
            rows += [[key, str(source.get("source")), str(source.get("sha256"))]]
    return "## Data\n\n" + markdown_table(Table(["set", "source", "SHA-256 of its comparisons"], rows, left=3))


def _training(run: Run) -> str:
    record = run.record
    versions = ", ".join(f"{name} {version}" for name, version in (record.get("versions") or {}).items())
    train = run.metrics.get("train") or {}
    facts = {
        "objective": record.get("objective"),
        "backbone": (run.config.get("model") or {}).get("backbone"),
        "steps": train.get("steps"),
        "seed": run.config.get("seed_everything"),
        "commit": record.get("git_commit"),
        "started": record.get("started"),
        "versions": versions,
    }
    lines = [f"- {name}: {escape(str(value))}" for name, value in facts.items() if value not in (None, "")]
    command = record.get("command") or []
    shown = shlex.join(command) if isinstance(command, list) else str(command)
    return "## Training\n\n" + "\n".join(lines) + f"\n\n```sh\n{shown.replace('```', '')}\n```"
