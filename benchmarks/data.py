"""Data preparation compared with TRL's: pairs per second, memory, and seconds to the first batch.

    python benchmarks/data.py --data pairs.jsonl.gz --ood test.jsonl.gz --tokenizer path/to/smollm2
    python benchmarks/data.py --data pairs.jsonl.gz --tokenizer path/to/smollm2 --sizes 100000 1000000 --keep /scratch/x

Needs TRL (`pip install -e ".[benchmarks]"`) unless `--sides ours`. Real pairs are repeated, each copy with a
numbered word in its prompt and answers, so that no two are equal. Both sides read the same JSON lines in TRL's
conversational layout. Every measurement is a separate process: cold with an empty cache, then warm with the cache of
the cold process.

- ours: `PreferenceDataModule.setup()`: reading, every check of the data report (conflicts, leaks and near leaks
  against `--ood`), the split by prompt, tokens
- trl: `datasets.load_dataset("json")` and RewardTrainer's constructor with a tiny model: tokens, and a filter by length

The seconds of preparation start after the imports; those to the first batch run from the start of the process to the
first optimizer batch from the loader. Processor seconds include imports and workers and hardly depend on other load.
Memory is the peak of the main process (by `getrusage`, which counts shared library pages in full) and the peak of all
its processes together (the sum of their proportional set sizes, which divides shared pages, sampled twice a second).
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import date
from pathlib import Path
from types import SimpleNamespace
from typing import Any

SIDES = ("ours", "trl")
BATCH = 32
PREFIX = "measured: "
MIB = 1 << 20


# Runs in separate processes


def prepare_ours(options: argparse.Namespace) -> None:
    from transformers import AutoTokenizer

    from aplot_lightning.data.datamodule import DataRequirements, PreferenceDataModule

    with measuring(options) as measured:
        tokenizer = AutoTokenizer.from_pretrained(options.tokenizer)
        start = time.perf_counter()
        data = PreferenceDataModule(
            train=options.file,
            ood={"test": options.ood} if options.ood else None,
            batch_size=BATCH,
            max_length=options.max_length,
            cache_dir=options.cache,
            preparation_workers=options.workers,
        )
        data.connect(DataRequirements(tokenizer, packing_refusal=lambda: None))
        data.setup()
        measured["prepared"] = time.perf_counter() - start
        data.trainer = SimpleNamespace(  # type: ignore[assignment]  # what the loader needs of one
            global_step=0, limit_train_batches=1.0, global_rank=0, world_size=1, lightning_module=None
        )
        batch = next(iter(data.train_dataloader()))
        assert sum(len(part.pairs) for part in batch) == BATCH
        measured["pairs"] = data.report.as_dict()["train"]["total"]["used"]


def prepare_trl(options: argparse.Namespace) -> None:
    from datasets import load_dataset
    from transformers import AutoTokenizer, LlamaConfig, LlamaForSequenceClassification
    from trl import RewardConfig, RewardTrainer

    with measuring(options) as measured:
        tokenizer = AutoTokenizer.from_pretrained(options.tokenizer)
        config = LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=8,
            intermediate_size=8,
            num_hidden_layers=1,
            num_attention_heads=1,
            max_position_embeddings=2 * options.max_length,
            pad_token_id=tokenizer.pad_token_id,
        )
        config.num_labels = 1
        model = LlamaForSequenceClassification(config)
        start = time.perf_counter()
        dataset = load_dataset("json", data_files=options.file, split="train", cache_dir=options.cache)
        arguments = RewardConfig(
            output_dir=options.cache,
            per_device_train_batch_size=BATCH,
            max_length=options.max_length,
            dataset_num_proc=options.workers or cores(),
            use_cpu=True,
            bf16=False,
            report_to="none",
            disable_tqdm=True,
        )
        trainer = RewardTrainer(model=model, args=arguments, train_dataset=dataset, processing_class=tokenizer)
        measured["prepared"] = time.perf_counter() - start
        next(iter(trainer.get_train_dataloader()))
        kept: Any = trainer.train_dataset
        measured["pairs"] = len(kept)


@contextmanager
def measuring(options: argparse.Namespace) -> Iterator[dict[str, float]]:
    """Prints the measurements, with the seconds since the start of the process and its peak memory."""
    measured: dict[str, float] = {}
    yield measured
    measured["first_batch"] = time.time() - options.started
    measured["own_memory"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(PREFIX + json.dumps(measured), flush=True)


def write_pairs(options: argparse.Namespace) -> None:
    """Writes `--pairs` pairs to `--file`: real pairs, and copies of them with a numbered word."""
    from aplot_lightning.data.comparisons import RowError, parse_comparison
    from aplot_lightning.data.sources import open_source

    real = []
    for where, row in open_source(options.data, "--data").rows():
        try:
            comparison = parse_comparison(row, where, "data")
        except RowError:
            continue
        if comparison.prompt:
            winner, loser = comparison.pairs[0]
            real.append((comparison.prompt, comparison.responses[winner], comparison.responses[loser]))
    with Path(options.file).open("w", encoding="utf-8") as file:
        for number in range(options.pairs):
            copy, index = divmod(number, len(real))
            columns = zip(("prompt", "chosen", "rejected"), real[index], strict=True)
            row = {name: with_word(messages, copy) for name, messages in columns}
            file.write(json.dumps(row, ensure_ascii=False) + "\n")


def with_word(messages: tuple[dict[str, str], ...], copy: int) -> list[dict[str, str]]:
    """Messages with a numbered word inserted into the first one; copy 0 is unchanged."""
    if not copy:
        return list(messages)
    text = messages[0]["content"].split(" ")
    text.insert(copy * 7919 % (len(text) + 1), f"word{copy}")
    return [{**messages[0], "content": " ".join(text)}, *messages[1:]]


# Starts and watches these processes


def run(options: argparse.Namespace, **values: Any) -> dict[str, float]:
    """Runs one process of this script: its measurements, with memory and processor seconds of all its processes."""
    values = {**vars(options), **values}
    names = ("side", "data", "ood", "tokenizer", "file", "cache", "pairs", "max_length", "workers")
    command = [sys.executable, str(Path(__file__).resolve()), "--started", repr(time.time())]
    for name in names:
        if values[name] is not None:
            command += [f"--{name}", str(values[name])]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONWARNINGS": "ignore"}
    with tempfile.TemporaryFile("w+") as log:
        child = subprocess.Popen(command, env=environment, stdout=log, stderr=subprocess.STDOUT)
        most = ended = 0
        while not ended:
            most = max(most, proportional_memory(child.pid))
            time.sleep(0.5)
            ended, status, usage = os.wait4(child.pid, os.WNOHANG)
        log.seek(0)
        text = log.read()
    found = [line for line in text.splitlines() if line.startswith(PREFIX)]
    child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode or not (found or values["side"] == "write"):
        sys.exit(f"{values['side']} failed:\n{text[-2000:]}")
    measured = json.loads(found[-1].removeprefix(PREFIX)) if found else {}
    processor = usage.ru_utime + usage.ru_stime  # including the workers that it has waited for
    return {**measured, "all_memory": most or measured.get("own_memory", 0), "processor": processor}


def proportional_memory(root: int) -> int:
    """Memory in bytes of a process and its descendants, shared pages divided; 0 if the system does not report it."""
    parents: dict[int, int] = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            parents[int(folder.name)] = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
        except OSError:  # it has ended
            continue
    family, grew = {root}, True
    while grew:
        more = {child for child, parent in parents.items() if parent in family} - family
        family, grew = family | more, bool(more)
    return sum(map(_held, family))


def _held(process: int) -> int:
    try:
        lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:"))


def measure(side: str, options: argparse.Namespace) -> dict[str, Any]:
    """One side, cold and then warm, with its disk usage."""
    cache = Path(options.folder, f"{side}-{options.pairs}")
    shutil.rmtree(cache, ignore_errors=True)
    cold = run(options, side=side, cache=cache)
    disk = sum(file.stat().st_size for file in cache.rglob("*") if file.is_file())
    warm = run(options, side=side, cache=cache)
    if not options.keep:
        shutil.rmtree(cache)
    return {"side": side, "pairs": options.pairs, "cold": cold, "warm": warm, "disk": disk}


def cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="preference pairs with prompts")
    parser.add_argument("--ood", help="a test set, whose prompts ours looks for among the training pairs")
    parser.add_argument("--tokenizer", required=True, help="a decoder's folder, for its tokenizer")
    parser.add_argument("--sizes", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--max_length", type=int, default=1024)
    parser.add_argument("--workers", type=int, help="processes; by default ours chooses, and TRL has all cores")
    parser.add_argument("--sides", nargs="+", choices=SIDES, default=list(SIDES))
    parser.add_argument("--trl-all", action="store_true", help="TRL with more than 100,000 pairs too")
    parser.add_argument("--keep", help="a folder for files and caches, which stay there")
    parser.add_argument("--side", choices=[*SIDES, "write"], help=argparse.SUPPRESS)
    parser.add_argument("--started", type=float, help=argparse.SUPPRESS)
    parser.add_argument("--file", help=argparse.SUPPRESS)
    parser.add_argument("--cache", help=argparse.SUPPRESS)
    parser.add_argument("--pairs", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.side is not None:
        {"ours": prepare_ours, "trl": prepare_trl, "write": write_pairs}[options.side](options)
        return
    with tempfile.TemporaryDirectory() as folder:
        options.folder = options.keep or folder
        Path(options.folder).mkdir(parents=True, exist_ok=True)
        results = []
        for size in options.sizes:
            options.pairs = size
            options.file = str(Path(options.folder, f"pairs-{options.pairs}.jsonl"))
            run(options, side="write")
            for side in options.sides:
                if side == "ours" or options.pairs <= 100_000 or options.trl_all:
                    results.append(measure(side, options))
                    print(f"load {os.getloadavg()[0]:.1f}: {results[-1]}", file=sys.stderr, flush=True)
            if not options.keep:
                Path(options.file).unlink()
    print_table(options, results)


def print_table(options: argparse.Namespace, results: list[dict[str, Any]]) -> None:
    from importlib.metadata import version

    libraries = ", ".join(f"{name} {version(name)}" for name in ("tokenizers", "transformers", "datasets"))
    libraries += f", TRL {version('trl')}" if "trl" in options.sides else ""
    print(
        f"{date.today()}, {platform.machine()}, {cores()} cores, load {os.getloadavg()[2]:.1f} in the last 15 minutes, "
        f"{libraries}; pairs made from {Path(options.data).name}, max_length {options.max_length}, "
        f"{options.workers or 'default'} workers\n"
    )
    print(
        "| pairs | side | cold | pairs/s | warm | processor, cold | warm | first batch, cold | warm | own peak, cold "
        "| warm | all processes, cold | warm | disk |"
    )
    print("|--:|---|" + "--:|" * 12)
    for result in results:
        both = [result["cold"], result["warm"]]
        cold, warm = (f"{each['prepared']:.1f} s" for each in both)
        processor = " | ".join(f"{each['processor']:.1f} s" for each in both)
        first = " | ".join(f"{each['first_batch']:.1f} s" for each in both)
        own = " | ".join(f"{each['own_memory'] / MIB:,.0f} MiB" for each in both)
        together = " | ".join(f"{each['all_memory'] / MIB:,.0f} MiB" for each in both)
        rate = result["pairs"] / both[0]["prepared"]
        print(
            f"| {result['pairs']:,} | {result['side']} | {cold} | {rate:,.0f} | {warm} | {processor} | {first} "
            f"| {own} | {together} | {result['disk'] / MIB:,.0f} MiB |"
        )


if __name__ == "__main__":
    main()
