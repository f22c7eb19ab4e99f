"""Pairs per second of `aplot score`, of Transformers' pipeline, and of TRL-style padding, on the same real texts.

    python benchmarks/score.py --data PAIRS.jsonl.gz RUN [--texts 2000] [--max_length 1024] [--rounds 4]

The run is exported by the command; the other programs read the exported folder. The texts are the two sides of the
first pairs that fit without truncation, which each program does differently. The three loops alternate on equal slices
of the texts (`--rounds`), since machines are shared: read the ratios, which are printed after every round. The whole
command runs once, imports included, with its peak memory.

- aplot: tokens and rewards with the loop of the command;
- pipeline: `transformers.pipeline("text-classification", batch_size=16)` on the rendered texts;
- padded: tokens and rewards in batches of 16 in file order, padded on the right to the longest, as TRL does.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

from score_memory import whole_command

BATCH = 16


def pairs_that_fit(path: str, run: str, texts: int, max_length: int | None = None) -> list[dict]:
    """The first rows whose two sides both need no truncation."""
    from aplot_lightning import RewardModel
    from aplot_lightning.data.comparisons import conversation_of
    from aplot_lightning.data.encoding import ConversationEncoder
    from aplot_lightning.data.sources import open_source

    model = RewardModel.from_pretrained(run, max_length=max_length)
    whole = ConversationEncoder(model.tokenizer)
    kept: list[dict] = []
    for _, row in open_source(path, "--data").rows():
        sides = [conversation_of(row["prompt"], row[side]) for side in ("chosen", "rejected")]
        if max(map(len, whole.encode_conversations(sides))) <= (model.max_length or 10**9):
            kept.append({"prompt": row["prompt"], "chosen": row["chosen"], "rejected": row["rejected"]})
        if 2 * len(kept) >= texts:
            break
    return kept


def loops(run: str, folder: str, max_length: int | None) -> dict[str, Callable[[list[dict]], list[float]]]:
    """Name -> a function from pairs to rewards, chosen and rejected alternating; models are loaded and warm."""
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer, pipeline

    from aplot_lightning.data.comparisons import conversation_of
    from aplot_lightning.inference.job import Chunks
    from aplot_lightning.inference.rows import read_row
    from aplot_lightning.inference.scorer import Scorer

    scorer = Scorer.load([(run, "--model")], max_length=max_length)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    classify = pipeline("text-classification", model=model, tokenizer=tokenizer, batch_size=BATCH)

    def texts_of(pairs: list[dict]) -> list[str]:
        chats = [list(conversation_of(row["prompt"], row[side])) for row in pairs for side in ("chosen", "rejected")]
        return [tokenizer.apply_chat_template(chat, tokenize=False) for chat in chats]

    def aplot(pairs: list[dict]) -> list[float]:
        rewards: list[float] = []
        for chunk in Chunks(iter([("", row) for row in pairs]), read_row, scorer):
            scorer.score(chunk.rows, chunk.encoded)
            rewards += [reward for row in chunk.rows for reward in row.rewards]
        return rewards

    def piped(pairs: list[dict]) -> list[float]:
        found = classify(texts_of(pairs), function_to_apply="none", add_special_tokens=False)
        return [result["score"] for result in found]

    def padded(pairs: list[dict]) -> list[float]:
        texts, rewards = texts_of(pairs), []
        for start in range(0, len(texts), BATCH):
            batch = tokenizer(
                texts[start : start + BATCH],
                padding=True,
                padding_side="right",
                add_special_tokens=False,
                return_tensors="pt",
            )
            with torch.inference_mode():
                rewards += model(**batch).logits[:, 0].tolist()
        return rewards

    return {"aplot": aplot, "pipeline": piped, "padded": padded}


def measure(run: str, options: argparse.Namespace, folder: Path) -> None:
    """Prints the table of one run."""
    pairs = pairs_that_fit(options.data, run, options.texts, options.max_length)
    limit = [] if options.max_length is None else ["--max_length", str(options.max_length)]
    aplot = [sys.executable, "-m", "aplot_lightning"]
    exported = str(folder / "model")
    subprocess.run([*aplot, "export", "--model", run, "--output", exported, *limit], check=True, stdout=sys.stderr)
    sides = loops(run, exported, options.max_length)
    for side in sides.values():
        side(pairs[:4])
    wall, processor = dict.fromkeys(sides, 0.0), dict.fromkeys(sides, 0.0)
    rewards: dict[str, list[float]] = {name: [] for name in sides}
    size = -(-len(pairs) // options.rounds)
    for start in range(0, len(pairs), size):
        for name, side in sides.items():
            started, spent = time.perf_counter(), time.process_time()
            rewards[name] += side(pairs[start : start + size])
            wall[name] += time.perf_counter() - started
            processor[name] += time.process_time() - spent
        far = ", ".join(f"{name} {wall[name] / wall['aplot']:.2f}x" for name in sides)
        print(f"{min(start + size, len(pairs))} of {len(pairs)} pairs: {far}", file=sys.stderr, flush=True)
    show(run, len(pairs), wall, processor, rewards)
    source = folder / "pairs.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in pairs))
    whole = whole_command(run, source, limit)
    print(
        f"the whole command: {len(pairs) / whole.seconds:.2f} pairs/s, {len(pairs) / whole.processor_seconds:.2f} a "
        f"processor second, at most {whole.peak_mib:.0f} MiB\n",
        flush=True,
    )


def show(
    run: str, pairs: int, wall: dict[str, float], processor: dict[str, float], rewards: dict[str, list[float]]
) -> None:
    print(f"{Path(run).name}, {2 * pairs} texts, load {os.getloadavg()[0]:.1f}\n")
    print(
        "| program | pairs/s | pairs a processor second | aplot's loop is faster by | in processor time | difference |"
    )
    print("|---|--:|--:|--:|--:|--:|")
    for name in wall:
        far = f"{max(abs(a - b) for a, b in zip(rewards['aplot'], rewards[name], strict=True)):.1e}"
        ratios = f"{wall[name] / wall['aplot']:.2f}x | {processor[name] / processor['aplot']:.2f}x"
        print(f"| {name} | {pairs / wall[name]:.2f} | {pairs / processor[name]:.2f} | {ratios} | {far} |", flush=True)
    print()


def main() -> None:
    parser = argparse.ArgumentParser(description="scoring against Transformers' pipeline and TRL-style padding")
    parser.add_argument("runs", nargs="+")
    parser.add_argument("--data", required=True)
    parser.add_argument("--texts", type=int, default=2000)
    parser.add_argument("--max_length", type=int)
    parser.add_argument("--rounds", type=int, default=4)
    options = parser.parse_args()
    for run in options.runs:
        with TemporaryDirectory() as folder:
            measure(run, options, Path(folder))


if __name__ == "__main__":
    main()
