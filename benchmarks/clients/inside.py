"""The part of run.py that runs in the clients' environments, where this package is not installed."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

STEPS = 3
CONVERSATIONS = 8  # completions in one step of GRPO or RLOO


def score_by_pipeline(folder: str, rows: list[list[dict[str, str]]]) -> list[float]:
    """Rewards of conversations by transformers.pipeline, in padded batches, with its own defaults."""
    from transformers import pipeline

    classify = pipeline("text-classification", model=folder, device="cpu")
    texts = [classify.tokenizer.apply_chat_template(row, tokenize=False) for row in rows]
    return [result["score"] for result in classify(texts, batch_size=8)]


def train_by_trl(name: str, folder: str, policy: str, prompts: list[str]) -> dict[str, Any]:
    """Three steps of GRPO or RLOO with the folder as the reward; returns what was rewarded, and the rewards."""
    import torch
    import trl
    from datasets import Dataset

    said: list[list[dict[str, str]]] = []
    rewards: list[float] = []

    def listen(prompts: list[Any], completions: list[Any], **_: Any) -> list[float]:
        said.extend(prompt + completion for prompt, completion in zip(prompts, completions, strict=True))
        return [0.0] * len(prompts)

    settings = getattr(trl, f"{name}Config")(
        output_dir=str(Path(policy).parent / name),
        max_steps=STEPS,
        per_device_train_batch_size=CONVERSATIONS,
        num_generations=4,
        max_completion_length=24,
        learning_rate=1e-3,
        reward_weights=[1.0, 0.0],
        use_cpu=True,
        bf16=False,  # the default would also round the rewards
        report_to=[],
        save_strategy="no",
        logging_steps=1,
        disable_tqdm=True,
        seed=0,
    )
    data = Dataset.from_list([{"prompt": [{"role": "user", "content": prompt}]} for prompt in prompts])
    trainer = getattr(trl, f"{name}Trainer")(
        model=policy, reward_funcs=[folder, listen], args=settings, train_dataset=data
    )
    trainer.reward_funcs[0].register_forward_hook(lambda _, __, output: rewards.extend(output.logits[:, 0].tolist()))
    before = [parameter.detach().clone() for parameter in trainer.model.parameters()]
    trainer.train()
    moved = any(not torch.equal(old, new) for old, new in zip(before, trainer.model.parameters(), strict=True))
    return {"steps": trainer.state.global_step, "moved": moved, "conversations": said, "rewards": rewards}


def run_rewardbench(words: list[str]) -> None:
    """Rewardbench's own command; it always moves its tokens to "cuda", which is made a no-op without a GPU."""
    import torch
    from transformers import BatchEncoding

    if not torch.cuda.is_available():
        BatchEncoding.to = lambda self, *_, **__: self
    from rewardbench.rewardbench import main as rewardbench

    sys.argv = ["rewardbench", *words]
    rewardbench()


def main() -> None:
    if sys.argv[1] == "rewardbench":
        run_rewardbench(sys.argv[2:])
        return
    parser = argparse.ArgumentParser()
    for name in ("client", "folder", "input", "output"):
        parser.add_argument(name)
    parser.add_argument("--policy")
    given = parser.parse_args()
    rows = json.loads(Path(given.input).read_text(encoding="utf-8"))
    if given.client == "pipeline":
        result: Any = score_by_pipeline(given.folder, rows)
    else:
        result = train_by_trl(given.client, given.folder, given.policy, [row[0]["content"] for row in rows])
    Path(given.output).write_text(json.dumps(result), encoding="utf-8")


if __name__ == "__main__":
    main()
