"""`fit` compared with TRL's RewardTrainer: speed and peak memory on the same pairs, model and optimizer batch.

    python benchmarks/throughput.py --data pairs.jsonl.gz --tokenizer path/to/smollm2 [--model small] [--rounds 3]
    python benchmarks/throughput.py --data pairs.jsonl.gz --tokenizer path/to/smollm2 --model pretrained --pairs 32

Needs TRL (`pip install -e ".[benchmarks]"`). Every side is a separate process that trains one epoch on the
same pairs (none longer than `--max_length`, which TRL would drop): Bradley-Terry, 16 pairs per optimizer batch, AdamW,
norm clipping, no gradient checkpointing, float32 on a CPU and bf16 on a GPU. The clock runs from the start of training
(or the end of the `--warmup` steps, for a GPU's compilers) to the end of the last step, with data loading and the
framework, without start-up and tokenization. Sides alternate within a round. The table gives medians over rounds, and
medians of the ratios within a round, since machines drift.

- trl: RewardTrainer's own layout, both sides of `--trl_batch` pairs padded to the longest of them
- trl grouped: the same with its length grouping (`train_sampling_strategy: group_by_length`)
- fit padded: ours with `data.layout padded`, micro-batches sorted by length
- fit: ours with its defaults, packed rows with shared prefixes
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import statistics
import subprocess
import sys
import tempfile
import time
from datetime import date
from pathlib import Path
from typing import Any

from lightning.pytorch.callbacks import Callback

SIDES = ("trl", "trl grouped", "fit padded", "fit")
OPTIMIZER_BATCH, MICRO_BATCH_TOKENS = 16, 4096
PREFIX = "measured: "


class LoopTimer(Callback):
    """Prints the seconds from the end of `warmup` steps to the end of the last step, and the pairs in them."""

    def __init__(self, warmup: int = 0) -> None:
        self.warmup = warmup

    def on_train_start(self, trainer: Any, module: Any) -> None:
        self.start, self.pairs = time.perf_counter(), 0

    def on_train_batch_end(self, trainer: Any, module: Any, *arguments: Any) -> None:
        self.seconds = now() - self.start
        self.pairs += len(module.last_step.pairs)
        if trainer.global_step == self.warmup:
            self.on_train_start(trainer, module)

    def on_train_end(self, trainer: Any, module: Any) -> None:
        report(self.seconds, self.pairs)


def now() -> float:
    """The clock after the device has finished its queued work."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def report(seconds: float, pairs: int) -> None:
    import torch

    gpu = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else None
    print(PREFIX + json.dumps({"seconds": seconds, "pairs": pairs, "gpu_bytes": gpu}), flush=True)


def train_ours(options: argparse.Namespace, layout: str) -> None:
    import torch

    from aplot_lightning.cli import main

    with tempfile.TemporaryDirectory() as run_dir:
        code = main(
            [
                *("fit", "--config", "conf/hh_rlhf.yaml", "--config", "conf/objective/bt.yaml", "--run_dir", run_dir),
                *("--overwrite", "true", "--trainer.callbacks+=throughput.LoopTimer"),
                *("--trainer.callbacks.warmup", str(options.warmup)),
                *("--trainer.limit_val_batches", "0", "--trainer.val_check_interval", "1.0"),
                *("--trainer.precision", "bf16-true" if torch.cuda.is_available() else "32-true"),
                *("--model.backbone", options.folder, "--data.train", options.sample, "--data.layout", layout),
                *("--data.validation_share", "0", "--data.id_share", "0"),
                *("--data.batch_size", str(OPTIMIZER_BATCH), "--data.micro_batch_size", str(OPTIMIZER_BATCH)),
                *("--data.micro_batch_tokens", str(options.micro_batch_tokens)),
                *("--data.max_length", str(options.max_length)),
            ]
        )
    sys.exit(code)


def train_trl(options: argparse.Namespace, grouped: bool) -> None:
    import torch
    from datasets import Dataset
    from transformers import AutoModelForSequenceClassification, AutoTokenizer, TrainerCallback
    from trl import RewardConfig, RewardTrainer

    gpu = torch.cuda.is_available()
    tokenizer = AutoTokenizer.from_pretrained(options.folder)
    model = AutoModelForSequenceClassification.from_pretrained(
        options.folder, num_labels=1, dtype=torch.bfloat16 if gpu else torch.float32
    )
    rows = [json.loads(line) for line in Path(options.sample).read_text(encoding="utf-8").splitlines()]
    columns = {side: [row["prompt"] + row[side] for row in rows] for side in ("chosen", "rejected")}

    class Timer(TrainerCallback):
        def on_train_begin(self, *arguments: Any, **state: Any) -> None:
            self.start = time.perf_counter()

        def on_step_end(self, arguments: Any, progress: Any, *others: Any, **state: Any) -> None:
            self.seconds = now() - self.start
            if progress.global_step == options.warmup:
                self.start = time.perf_counter()

    timer = Timer()
    with tempfile.TemporaryDirectory() as folder:
        config = RewardConfig(
            output_dir=folder,
            per_device_train_batch_size=options.trl_batch,
            gradient_accumulation_steps=OPTIMIZER_BATCH // options.trl_batch,
            num_train_epochs=1,
            max_length=options.max_length,
            learning_rate=2e-5,
            gradient_checkpointing=False,
            bf16=gpu,
            use_cpu=not gpu,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            train_sampling_strategy="group_by_length" if grouped else "random",
            length_column_name="size",
            remove_unused_columns=False,  # without it the grouping does not find the lengths
        )
        dataset = Dataset.from_dict({**columns, "size": [row["size"] for row in rows]})
        trainer = RewardTrainer(
            model=model, args=config, train_dataset=dataset, processing_class=tokenizer, callbacks=[timer]
        )
        if len(trainer.train_dataset) != len(rows):
            sys.exit(f"TRL dropped {len(rows) - len(trainer.train_dataset)} pairs as too long")
        trainer.train()
    report(timer.seconds, len(rows) - OPTIMIZER_BATCH * options.warmup)


def draw_pairs(options: argparse.Namespace, path: Path) -> None:
    """Pairs drawn at random from those that fit, as messages, which TRL needs."""
    from transformers import AutoTokenizer

    from aplot_lightning.data.comparisons import RowError, parse_comparison
    from aplot_lightning.data.sources import open_source

    tokenizer = AutoTokenizer.from_pretrained(options.tokenizer)
    found = list(open_source(options.data, "--data").rows())
    random.Random(options.seed).shuffle(found)
    kept: list[str] = []
    for where, row in found:
        try:
            comparison = parse_comparison(row, where, "data")
        except RowError:
            continue
        chosen, rejected = (list(comparison.responses[index]) for index in comparison.pairs[0])
        prompt = list(comparison.prompt)
        lengths = [len(tokenizer.apply_chat_template(prompt + side)["input_ids"]) for side in (chosen, rejected)]
        if max(lengths) <= options.max_length:
            row = {"prompt": prompt, "chosen": chosen, "rejected": rejected, "size": max(lengths)}
            kept.append(json.dumps(row))
        if len(kept) == options.pairs:
            break
    path.write_text("\n".join(kept) + "\n", encoding="utf-8")


def make_folder(options: argparse.Namespace, path: Path) -> str:
    """The model that all sides start from: the pretrained one, or 4 layers of width 384 with its tokenizer."""
    if options.model == "pretrained":
        return str(options.tokenizer)
    import torch
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    tokenizer = AutoTokenizer.from_pretrained(options.tokenizer)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=384,
        intermediate_size=1024,
        num_hidden_layers=4,
        num_attention_heads=6,
        num_key_value_heads=2,
        max_position_embeddings=2048,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    LlamaForCausalLM(config).save_pretrained(path)
    tokenizer.save_pretrained(path)
    return str(path)


def measure(side: str, options: argparse.Namespace) -> dict[str, float]:
    """Runs one side in a separate process: pairs per second and peak memory in MiB."""
    here = Path(__file__).resolve()
    command = [sys.executable, str(here), "--side", side]
    names = (
        "data",
        "tokenizer",
        "model",
        "folder",
        "sample",
        "max_length",
        "micro_batch_tokens",
        "trl_batch",
        "warmup",
    )
    for name in names:
        command += [f"--{name}", str(getattr(options, name))]
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(here.parent), os.environ.get("PYTHONPATH", "")]),
        "OMP_NUM_THREADS": str(options.threads),
        "TOKENIZERS_PARALLELISM": "false",
        "HF_HUB_OFFLINE": "1",
        "PYTHONWARNINGS": "ignore",
    }
    with tempfile.TemporaryFile("w+") as log:
        child = subprocess.Popen(command, cwd=here.parents[1], env=environment, stdout=log, stderr=subprocess.STDOUT)
        _, status, usage = os.wait4(child.pid, 0)
        log.seek(0)
        text = log.read()
    found = [line for line in text.splitlines() if line.startswith(PREFIX)]
    if status or not found:
        sys.exit(f"{side} failed:\n{text[-2000:]}")
    values = json.loads(found[-1].removeprefix(PREFIX))
    memory = values["gpu_bytes"] / 2**20 if values["gpu_bytes"] else usage.ru_maxrss / 1024
    return {"rate": values["pairs"] / values["seconds"], "memory": memory}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="preference pairs with prompts")
    parser.add_argument("--tokenizer", required=True, help="a decoder's folder: its tokenizer, or the whole model")
    parser.add_argument("--model", choices=["small", "pretrained"], default="small")
    parser.add_argument("--pairs", type=int, default=96)
    parser.add_argument("--max_length", type=int, default=1024)
    parser.add_argument("--micro_batch_tokens", type=int, default=MICRO_BATCH_TOKENS)
    parser.add_argument("--trl_batch", type=int, default=16, help="pairs that TRL pads together: 16, 8, 4 ...")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--warmup", type=int, default=0, help="optimizer steps before the clock starts")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--sides", nargs="+", choices=SIDES, default=list(SIDES))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    parser.add_argument("--sample", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.side is not None:
        if options.side.startswith("trl"):
            train_trl(options, grouped=options.side == "trl grouped")
        else:
            train_ours(options, layout="padded" if options.side == "fit padded" else "auto")
        return
    with tempfile.TemporaryDirectory() as folder:
        options.sample = str(Path(folder, "pairs.jsonl"))
        draw_pairs(options, Path(options.sample))
        options.folder = make_folder(options, Path(folder, "model"))
        rounds = []
        for number in range(options.rounds):
            rounds.append({side: measure(side, options) for side in options.sides})
            print(f"round {number + 1}: {rounds[-1]}", file=sys.stderr, flush=True)
    print_table(options, rounds)


def print_table(options: argparse.Namespace, rounds: list[dict[str, dict[str, float]]]) -> None:
    import torch
    import transformers
    import trl

    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"{options.threads} threads"
    print(
        f"{date.today()}, {platform.machine()}, {device}, torch {torch.__version__}, transformers "
        f"{transformers.__version__}, TRL {trl.__version__}; {options.model} model, {options.pairs} pairs of "
        f"{Path(options.data).name}, max_length {options.max_length}, {options.trl_batch} "
        f"pairs a forward in TRL, {options.rounds} rounds\n"
    )
    base = options.sides[0]
    grouped = "trl grouped" if "trl grouped" in options.sides else base
    print(f"| side | pairs/s | against {base} | against {grouped} | peak memory | against {base} |")
    print("|---|--:|--:|--:|--:|--:|")
    for side in options.sides:
        rate = statistics.median(each[side]["rate"] for each in rounds)
        memory = statistics.median(each[side]["memory"] for each in rounds)
        ratios = [
            statistics.median(each[side][what] / each[other][what] for each in rounds)
            for other, what in ((base, "rate"), (grouped, "rate"), (base, "memory"))
        ]
        print(f"| {side} | {rate:.2f} | {ratios[0]:.2f}x | {ratios[1]:.2f}x | {memory:,.0f} MiB | {ratios[2]:.2f}x |")


if __name__ == "__main__":
    main()
