"""GPU measurements in one command and a few short tables: exactness, speed, memory, FSDP2, and TRL.

    python benchmarks/gpu.py --model path/to/smollm2 --data pairs.jsonl.gz [--parts exact throughput memory resume trl]
    python benchmarks/gpu.py --quick        # on a CPU: a tiny model and the embedded world, to check that it runs

`--model` may lack weights: random ones are created from seed 0. gpu.md in this folder says how to run the script on a
borrowed machine. Every part prints its table when it is done; a part that fails prints its error and does not stop the
others. Parts:

- exact: rewards and gradients of padded and packed rows against padded rows in float64, for each attention path
- throughput: `fit` on the given pairs, and on pairs joined to between half a length and the full length
- memory: the largest data.micro_batch_tokens that fits, doubled until the out-of-memory message appears
- resume: FSDP2 on one GPU: stopped, killed and resumed, compared with an uninterrupted run; its checkpoint exported
- trl: benchmarks/throughput.py, if TRL is installed. TRL 1.16's RewardConfig has no padding-free layout, no packing
  and no attention option of its own (its models take Transformers' sdpa), so only its two samplings can be compared.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import gc
import importlib.util
import io
import json
import math
import os
import platform
import random
import resource
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch._dynamo
from lightning.pytorch.callbacks import Callback

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
PARTS = ("exact", "throughput", "memory", "resume", "trl")
PREFIX = "measured: "
# dense bfloat16 operations per second from the data sheets, for names that are missing in Lightning's table
PEAKS = {"H200": 989.4e12, "H100": 989.4e12, "A100": 312e12}
CUDA = torch.cuda.is_available()


# A worker process for one job after another


class Worker:
    """Calls functions of this file in one child process, which starts once; a failure starts a new one."""

    def __init__(self, folder: Path, limit: float) -> None:
        self.log, self.limit = folder / "worker.log", limit
        self.process: subprocess.Popen[str] | None = None

    def __call__(self, job: str, **arguments: Any) -> dict[str, Any]:
        """The function's result, or {"error": one line}."""
        if self.process is None:
            command = [sys.executable, "-c", "import gpu; gpu.serve()"]
            log = self.log.open("a")
            self.process = subprocess.Popen(
                command, cwd=ROOT, env=environment(), stdin=-1, stdout=-1, stderr=log, text=True
            )
            log.close()
        process = self.process
        timer = threading.Timer(self.limit, process.kill)
        timer.start()
        start = time.perf_counter()
        result = {"error": "no answer"}
        with contextlib.suppress(OSError):
            process.stdin.write(json.dumps({"job": job, **arguments}) + "\n")  # type: ignore[union-attr]
            process.stdin.flush()  # type: ignore[union-attr]
            for line in process.stdout:  # type: ignore[union-attr]
                if line.startswith(PREFIX):
                    result = json.loads(line.removeprefix(PREFIX))
                    break
            else:
                result = {"error": f"the process ended: {last_line(self.log)}"}
        if time.perf_counter() - start >= self.limit:
            result = {"error": f"longer than {self.limit:.0f} s"}
        timer.cancel()
        if "error" in result:
            self.end()
        return result

    def end(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.communicate()
        self.process = None


def serve() -> None:
    """The worker's side: one line per job, one line per answer."""
    for line in sys.stdin:
        arguments = json.loads(line)
        try:
            result = globals()[arguments.pop("job")](**arguments)
        except Exception as error:
            print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
            result = {"error": " ".join(f"{type(error).__name__}: {error}".split())[:300]}
        print(PREFIX + json.dumps(result), flush=True)


def environment() -> dict[str, str]:
    paths = [str(HERE), str(ROOT), os.environ.get("PYTHONPATH", "")]
    fixed = {"PYTHONPATH": os.pathsep.join(filter(None, paths)), "PYTHONWARNINGS": "ignore", "HF_HUB_OFFLINE": "1"}
    return {**os.environ, **fixed, "TOKENIZERS_PARALLELISM": "false"}


def last_line(path: Path) -> str:
    lines = [line for line in path.read_text(errors="replace").splitlines() if line.strip()]
    return lines[-1][:300] if lines else "no output"


def free() -> None:
    gc.collect()
    torch._dynamo.reset()  # code specialized by other models would use up the compiler's cache limit
    torch._dynamo.utils.counters.clear()
    if CUDA:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def peak_memory() -> float:
    """Peak memory in GiB: of the GPU since `free`, otherwise of the process."""
    return (
        torch.cuda.max_memory_allocated() if CUDA else 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    ) / (2**30)


# Models and pairs


def model_folder(options: argparse.Namespace) -> Path:
    """The folder of `--model`, with random weights if it has none; with `--quick` a tiny decoder."""
    from transformers import AutoConfig, AutoModelForCausalLM
    from transformers.utils import logging

    from aplot_lightning.data.world import write_world_decoder

    given = Path(options.model) if options.model else None
    if given is not None and any(given.glob("*.safetensors")):
        return given.resolve()
    folder = options.work / "model"
    if given is None:
        write_world_decoder(folder)
    else:
        folder.mkdir()
        for file in given.iterdir():
            if file.is_file():
                (folder / file.name).write_bytes(file.read_bytes())
    torch.manual_seed(0)
    logging.disable_progress_bar()
    config = AutoConfig.from_pretrained(folder)
    AutoModelForCausalLM.from_config(config, dtype=torch.float32).save_pretrained(folder)
    return folder


def draw(options: argparse.Namespace, length: int, joined: bool) -> tuple[str, float]:
    """A file of pairs whose longer side has at most `length` tokens, and their mean length.

    Joined pairs are preceded by other conversations, as one dialogue, until the next would not fit.
    """
    from transformers import AutoTokenizer

    from aplot_lightning.data.comparisons import parse_comparison
    from aplot_lightning.data.sources import open_source
    from aplot_lightning.data.world import PreferenceWorld

    source = open_source(options.data, "--data") if options.data else PreferenceWorld(pairs=2 * options.pairs, seed=1)
    tokenizer = AutoTokenizer.from_pretrained(options.folder)
    found = [parse_comparison(row, where, "data") for where, row in source.rows() if isinstance(row, dict)]
    generator = random.Random(0)
    sizes: dict[int, int] = {}

    def sides(at: int) -> tuple[list[Any], ...]:
        comparison = found[at]
        return list(comparison.prompt), *(list(comparison.responses[index]) for index in comparison.pairs[0])

    def size(at: int) -> int:
        if at not in sizes:
            prompt, *answers = sides(at)
            sizes[at] = max(len(tokenizer.apply_chat_template(prompt + side)["input_ids"]) for side in answers)
        return sizes[at]

    path = options.work / f"{'joined' if joined else 'drawn'}-{length}.jsonl"
    lengths: list[int] = []
    with path.open("w", encoding="utf-8") as file:
        while len(lengths) < options.pairs:
            prompt, chosen, rejected = sides(at := generator.randrange(len(found)))
            total = size(at)
            while joined and total + size(other := generator.randrange(len(found))) <= length:
                before, answer, _ = sides(other)
                prompt, total = before + answer + prompt, total + size(other)
            if total <= length and (not joined or total > length / 2) and prompt:
                file.write(json.dumps({"prompt": prompt, "chosen": chosen, "rejected": rejected}) + "\n")
                lengths.append(total)
    return str(path), float(np.mean(lengths))


# Exactness


WAYS = ("padded", "packed", "comparisons", "flex", "packed, compiled", "packed, checkpointing")


def exact(folder: str, seed: int, tokens: int, paths: list[str]) -> dict[str, Any]:
    """Errors of every path and precision on some random trees, against padded rows in float64."""
    from aplot_lightning import RewardModel

    free()
    torch.backends.cuda.matmul.allow_tf32 = False
    device = torch.device("cuda" if CUDA else "cpu")

    def build() -> Any:
        torch.manual_seed(seed)
        model = RewardModel.from_backbone(folder)
        with torch.no_grad():
            model.head.weight.normal_(0, model.head.weight.shape[1] ** -0.5)
        return model.to(device)

    trees = random_trees(seed, tokens, build().backbone.model.get_input_embeddings().num_embeddings)
    reference = [gradients_of(build().double(), padded, "32-true") for _, padded in trees]
    rows = []
    for precision in ("32-true", "bf16-mixed", "bf16-true"):
        for path in paths:
            model = build()
            if precision == "bf16-true":
                model.backbone.to(torch.bfloat16)
            prepare_path(model, path)
            with counted(path) as counts:
                backward = CUDA or path != "flex"  # FlexAttention supports this on GPUs only
                found = [gradients_of(model, pair[path == "padded"], precision, backward) for pair in trees]
            errors = [error_of(*each) for each in zip(found, reference, strict=True)]
            rows.append([precision, path, dict(counts), *(max(column) for column in zip(*errors, strict=True))])
            del model
    return {"rows": rows}


def random_trees(seed: int, tokens: int, vocabulary: int) -> list[tuple[Any, Any]]:
    """Packed and padded batches of the same conversations: pairs, a shared beginning, many responses."""
    from aplot_lightning.data.batching import pack_row, pad_rows
    from aplot_lightning.types import Batch, Pairs

    generator = np.random.default_rng(seed)
    nothing = Pairs(torch.zeros(0, dtype=torch.int64), torch.zeros(0, dtype=torch.int64))
    made = []
    for root, responses in ((0, 2), (tokens // 8, 2), (0, 5)):
        shared, segments, spent = generator.integers(5, vocabulary, root), [], 0
        while spent < tokens:
            prefix = np.concatenate([shared, generator.integers(5, vocabulary, generator.integers(0, tokens // 6))])
            suffixes = [
                generator.integers(5, vocabulary, generator.integers(1, tokens // 12)) for _ in range(responses)
            ]
            segments.append([prefix, *suffixes])
            spent += len(prefix) - root + sum(map(len, suffixes))
        rows = [np.concatenate([prefix, suffix]) for prefix, *suffixes in segments for suffix in suffixes]
        made.append((pack_row(segments, nothing), Batch(*pad_rows(rows, 0), nothing)))
    return made


def gradients_of(model: Any, batch: Any, precision: str, backward: bool = True) -> tuple[Any, dict[str, torch.Tensor]]:
    """Rewards (R,) and the gradient of a weighted sum of them, float64; no gradient without `backward`."""
    model.train()
    model.zero_grad(set_to_none=True)
    autocast = torch.autocast(model.device.type, torch.bfloat16, enabled=precision == "bf16-mixed")
    with autocast, torch.set_grad_enabled(backward):
        rewards = model(batch.to(model.device)).rewards
    if not backward:
        return rewards.double(), {}
    (rewards * torch.linspace(-1, 1.5, len(rewards), device=rewards.device)).sum().backward()
    gradients = {name: p.grad.double() for name, p in model.named_parameters() if p.grad is not None}
    return rewards.detach().double(), gradients


def error_of(found: Any, reference: Any) -> tuple[float, float]:
    """Largest difference of rewards (their spread is about 1), and the gradient's difference as a share of its norm."""
    rewards = (found[0] - reference[0]).abs().max().item()
    if not found[1]:
        return rewards, 0.0
    square = sum((found[1][name] - gradient).square().sum().item() for name, gradient in reference[1].items())
    size = sum(gradient.square().sum().item() for gradient in reference[1].values())
    return rewards, (square / size) ** 0.5


def prepare_path(model: Any, path: str) -> None:
    from aplot_lightning.training.distributed import checkpoint_activations, compile_blocks

    assert model.packing_refusal is None, model.packing_refusal
    if path.endswith("compiled"):
        torch._dynamo.reset()
        compile_blocks(model)
    if path.endswith("checkpointing"):
        checkpoint_activations(model)


@contextlib.contextmanager
def counted(path: str) -> Iterator[dict[str, int]]:
    """Counts calls of the two paths of packed attention; forces `flex` or `comparisons`, otherwise the code chooses."""
    from aplot_lightning.model.tree import attention

    ways = {"flex": attention.flex_attention_of, "comparisons": attention.by_comparison}
    attend, counts = attention.PackedRow.attend, dict.fromkeys(ways, 0)

    def counting(name: str) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            counts[name] += 1
            return ways[name](*arguments)

        return call

    def forced(self: Any, module: Any, *tensors: Any, window: int | None, options: Any) -> Any:
        places = (self.position_ids, self.masks) if path == "flex" else (self.masks,)
        return getattr(attention, ways[path].__name__)(self.tree, *places, *tensors, window, options)

    try:
        for name, function in ways.items():
            setattr(attention, function.__name__, counting(name))
        if path in ways:
            attention.PackedRow.attend = forced  # type: ignore[method-assign]
        yield counts
    finally:
        attention.PackedRow.attend = attend  # type: ignore[method-assign]
        for function in ways.values():
            setattr(attention, function.__name__, function)


def part_exact(options: argparse.Namespace, worker: Worker) -> None:
    """float32 must reach 1e-5 and 1e-4; half precision must be about as close to float64 as padded rows are."""
    print("| model | precision | path | attention calls (flex / by comparison) | rewards | gradient | exact |")
    print("|---|---|---|--:|--:|--:|---|")
    for name, folder in {options.name: options.folder, **small_models(options)}.items():
        paths = WAYS if name == options.name else WAYS[:3]
        result = worker("exact", folder=str(folder), seed=0, tokens=options.tree_tokens, paths=paths)
        padded: dict[str, list[float]] = {}
        for precision, path, counts, *errors in result.get("rows", []):
            padded.setdefault(precision, errors)
            limits = (1e-5, 1e-4) if precision == "32-true" else [1.5 * error + 1e-3 for error in padded[precision]]
            verdict = "yes" if all(error <= limit for error, limit in zip(errors, limits, strict=True)) else "NO"
            calls = f"{counts['flex']} / {counts['comparisons']}"
            print(f"| {name} | {precision} | {path} | {calls} | {errors[0]:.1e} | {errors[1]:.1e} | {verdict} |")
        if "error" in result:
            print(f"| {name} | failed: {result['error']} | | | | | NO |")


def small_models(options: argparse.Namespace) -> dict[str, Path]:
    """Folders of other architectures with random weights: grouped queries with norms, windows shorter than the rows."""
    from transformers import AutoConfig, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(options.folder)
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 64}
    sizes = {"hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 4, **heads}
    window = {"sliding_window": 64, "layer_types": ["sliding_attention", "full_attention"] * 2}
    found = {}
    for family, extra in {"qwen3": {}, "gemma3_text": window}.items():
        ids = {"pad_token_id": tokenizer.pad_token_id, "eos_token_id": tokenizer.eos_token_id}
        config = AutoConfig.for_model(family, vocab_size=len(tokenizer), **sizes, **extra, **ids)
        found[family] = options.work / family
        config.save_pretrained(found[family])
        tokenizer.save_pretrained(found[family])
    return found


# Speed and memory of `fit`


class Measured(Exception):
    """Ends a run after the measured steps, before it saves anything."""


class Meter(Callback):
    """Time, pairs, tokens, operations and memory of the steps after the first `warm` ones."""

    result: dict[str, Any] | None = None

    def __init__(self, warm: int) -> None:
        self.warm = warm
        self.sums = {"pairs": 0, "tokens": 0, "computed": 0, "flops": 0.0, "steps": 0}

    def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, batch_index: int) -> None:
        from aplot_lightning.training.flops import peak_flops, training_flops

        if trainer.global_step > self.warm:
            self.sums["steps"] += 1
            self.sums["pairs"] += len(module.last_step.pairs)
            self.sums["tokens"] += sum(sum(part.lengths) for part in batch)
            self.sums["computed"] += sum(part.computed_tokens for part in batch)
            self.sums["flops"] += training_flops(module.reward_model.backbone, batch)
        if trainer.global_step not in (self.warm, trainer.max_steps):
            return
        if CUDA:
            torch.cuda.synchronize()
        if trainer.global_step == self.warm:
            self.start = time.perf_counter()
            return
        seconds = time.perf_counter() - self.start
        peak = next((value for name, value in PEAKS.items() if CUDA and name in torch.cuda.get_device_name()), None)
        if CUDA and "bf16" not in str(trainer.precision) + str(trainer.precision_plugin.precision):
            peak = None
        peak = peak or peak_flops(trainer, module)
        Meter.result = {
            **{f"{name}_per_second": self.sums[name] / seconds for name in ("pairs", "tokens", "computed", "flops")},
            "mfu": self.sums["flops"] / seconds / peak if peak else None,
            "memory": peak_memory(),
            "micro_batches": len(batch),
            "graphs": torch._dynamo.utils.counters["stats"]["unique_graphs"],
        }
        raise Measured


def fit(arguments: list[str], warm: int) -> dict[str, Any]:
    """`fit` until its last step, in this process."""
    from aplot_lightning.cli import main

    free()
    Meter.result = None
    output = io.StringIO()
    code: int | None = None
    with contextlib.suppress(Measured), contextlib.redirect_stderr(output):
        code = main([*arguments, "--trainer.callbacks+=gpu.Meter", f"--trainer.callbacks.warm={warm}"])
    if Meter.result is not None:
        return Meter.result
    lines = [line for line in output.getvalue().splitlines() if line.startswith("aplot: ")]
    return {"error": f"exit code {code}: {lines[-1] if lines else output.getvalue()[-300:]}"}


def fit_arguments(options: argparse.Namespace, run: str, sample: str, length: int, **given: Any) -> list[str]:
    """Arguments of `fit`; `given` has keys with __ in place of dots."""
    defaults = {
        "trainer__accelerator": "gpu" if CUDA else "cpu",
        "trainer__precision": "bf16-mixed",
        "trainer__max_epochs": 100,
        "trainer__limit_val_batches": 0,
        "trainer__val_check_interval": 1.0,
        "trainer__log_every_n_steps": 10,
        "model__backbone": options.folder,
        "data__train": sample,
        "data__validation_share": 0,
        "data__id_share": 0,
        "data__batch_size": options.batch_size,
        "data__micro_batch_tokens": options.micro_batch_tokens,
        "data__max_length": length,
    }
    arguments = ["fit", "--config", str(ROOT / "conf/hh_rlhf.yaml")]
    arguments += ["--config", str(ROOT / f"conf/objective/{options.objective}.yaml")]
    arguments += ["--run_dir", str(options.work / "runs" / run)]
    for name, value in {**defaults, **given}.items():
        arguments += [f"--{name.replace('__', '.')}", str(value).lower() if isinstance(value, bool) else str(value)]
    return arguments


def part_throughput(options: argparse.Namespace, worker: Worker) -> None:
    print(
        "| pairs | tokens | layout | precision | compiled | pairs/s | tokens/s | computed/s | MFU | memory | graphs |"
    )
    print("|---|--:|---|---|---|--:|--:|--:|--:|--:|--:|")
    samples = [("as they come", options.lengths[-1], False), *(("joined", length, True) for length in options.lengths)]
    for kind, length, joined in samples:
        sample, mean = draw(options, length, joined)
        for layout, precision, compiled in options.settings:
            given = {"data__layout": layout, "trainer__precision": precision, "model__compile": compiled}
            arguments = fit_arguments(
                options,
                "speed",
                sample,
                length,
                overwrite=True,
                trainer__max_steps=options.warm + options.steps,
                **given,
            )
            found = worker("fit", arguments=arguments, warm=options.warm)
            cells = (
                f"| {kind}, {length} at most | {mean:.0f} | {layout} | {precision} | {'yes' if compiled else 'no'} |"
            )
            if "error" in found:
                print(f"{cells} {found['error']} | | | | | |", flush=True)
                continue
            rates = " | ".join(f"{found[f'{name}_per_second']:,.0f}" for name in ("pairs", "tokens", "computed"))
            mfu = f"{found['mfu']:.1%}" if found["mfu"] else ""
            print(f"{cells} {rates} | {mfu} | {found['memory']:.1f} GiB | {found['graphs']} |", flush=True)


def part_memory(options: argparse.Namespace, worker: Worker) -> None:
    print("| layout | precision | checkpointing | largest micro_batch_tokens that fits | memory | the next one |")
    print("|---|---|---|--:|--:|---|")
    length = options.lengths[-1]
    sample, mean = draw(options, length, joined=True)
    settings = [("packed", "bf16-mixed"), ("packed", "bf16-true"), ("padded", "bf16-mixed")]
    for layout, precision in settings:
        for again in (False, True):
            tokens, best, end = options.least_tokens, None, "not tried"
            given = {"data__layout": layout, "trainer__precision": precision, "model__gradient_checkpointing": again}
            while True:
                pairs = min(options.pairs, max(8, math.ceil(1.5 * tokens / mean)))  # enough to fill a micro-batch
                arguments = fit_arguments(
                    options, "memory", sample, length, overwrite=True, trainer__max_steps=2, **given,
                    data__batch_size=pairs, data__micro_batch_tokens=tokens,
                )  # fmt: skip
                found = worker("fit", arguments=arguments, warm=1)
                if "error" in found:
                    end = found["error"]
                    break
                best = tokens, found["memory"]
                if found["micro_batches"] == 1 or tokens >= options.most_tokens:
                    end += ": all pairs are one micro-batch" if found["micro_batches"] == 1 else ""
                    break
                tokens *= 2
            told = " | ".join((f"{best[0]:,}", f"{best[1]:.1f} GiB")) if best else "none | "
            print(f"| {layout} | {precision} | {'yes' if again else 'no'} | {told} | {end} |", flush=True)


# FSDP2


class Stop(Callback):
    """Sends this process a signal at the start of the step after `step`."""

    def __init__(self, step: int, how: str) -> None:
        self.step, self.how = step, how

    def on_train_batch_start(self, trainer: Any, *arguments: Any) -> None:
        if trainer.global_step == self.step:
            self.step = -1
            os.kill(os.getpid(), getattr(signal, self.how))


def command(*arguments: str, limit: float = 300) -> tuple[int, float, str]:
    """Runs one of our commands: exit code, seconds, and the last line of its output."""
    start = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-m", "aplot_lightning", *arguments],
        cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=limit,
    )  # fmt: skip
    lines = [line for line in (done.stdout + done.stderr).splitlines() if line.strip()]
    return done.returncode, time.perf_counter() - start, next(reversed(lines), "")


def part_resume(options: argparse.Namespace, worker: Worker) -> None:
    """Two uninterrupted runs show how far two runs differ anyway (some GPU sums have no fixed order)."""
    length = options.lengths[0]
    sample, _ = draw(options, length, joined=False)

    def run(name: str, *more: str) -> tuple[int, float, str]:
        arguments = fit_arguments(
            options, name, sample, length, trainer__devices=1, trainer__max_steps=8, checkpoint_every_n_steps=2,
            data__batch_size=options.resume_batch,
        )  # fmt: skip
        return command(*arguments[:5], "--config", str(ROOT / "conf/trainer/fsdp.yaml"), *arguments[5:], *more)

    print("| FSDP2 on one device | exit codes | seconds | largest difference of a weight from the first run |")
    print("|---|---|--:|--:|")
    for name, how in {"undisturbed": None, "again": None, "stopped": "SIGTERM", "killed": "SIGKILL"}.items():
        stop = [] if how is None else ["--trainer.callbacks+=gpu.Stop", "--trainer.callbacks.step=5"]
        stop += [] if how is None else [f"--trainer.callbacks.how={how}"]
        done = [run(name, *stop)]
        if how is not None:
            done.append(run(name, "--ckpt_path", "last"))
        codes = ", ".join(str(code) for code, *_ in done)
        told = f"{weight_difference(options, name):.1e}" if done[-1][0] == 0 else done[-1][2][:300]
        print(f"| {name} | {codes} | {sum(seconds for _, seconds, _ in done):.0f} | {told} |", flush=True)
    exported = options.work / "exported"
    code, _, line = command("export", "--model", str(options.work / "runs/undisturbed"), "--output", str(exported))
    if code:
        print(f"\nexport: exit code {code}: {line}")
        return
    found = worker("compare_exported", run=str(options.work / "runs/undisturbed"), folder=str(exported), sample=sample)
    if "error" in found:
        print(f"\nexport: {found['error']}")
        return
    print(
        f"\nThe FSDP2 run exported: Transformers alone in padded batches gives the rewards of `score` to "
        f"{found['difference']:.1e} ({found['responses']} responses, rewards over {found['spread']:.2f})"
    )


def weight_difference(options: argparse.Namespace, name: str) -> float:
    files = [options.work / "runs" / run / "checkpoints" / "last.ckpt" for run in ("undisturbed", name)]
    one, other = (torch.load(file, map_location="cpu", weights_only=True, mmap=True) for file in files)
    assert one["global_step"] == other["global_step"]
    states = one["state_dict"], other["state_dict"]
    return max(float((states[0][key].double() - states[1][key].double()).abs().max()) for key in states[0])


def compare_exported(run: str, folder: str, sample: str) -> dict[str, Any]:
    """Rewards of 200 responses by `score`'s own code and by Transformers alone, on the device, float32."""
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    from aplot_lightning import RewardModel

    free()
    rows = [json.loads(line) for line in Path(sample).read_text(encoding="utf-8").splitlines()[:100]]
    chats = [row["prompt"] + row[side] for row in rows for side in ("chosen", "rejected")]
    device = "cuda" if CUDA else "cpu"
    items = [{"prompt": row["prompt"], "response": row[side]} for row in rows for side in ("chosen", "rejected")]
    expected = RewardModel.from_pretrained(run).to(device).score(items)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForSequenceClassification.from_pretrained(folder).to(device).eval()
    found: list[float] = []
    for start in range(0, len(chats), 8):
        inputs: Any = tokenizer.apply_chat_template(
            chats[start : start + 8], padding=True, return_dict=True, return_tensors="pt"
        )
        with torch.no_grad():
            found += model(**inputs.to(device)).logits[:, 0].tolist()
    difference = max(abs(one - other) for one, other in zip(expected, found, strict=True))
    return {"responses": len(found), "difference": difference, "spread": max(found) - min(found)}


# TRL


def part_trl(options: argparse.Namespace, worker: Worker) -> None:
    if importlib.util.find_spec("trl") is None:
        print("TRL is not installed here")
        return
    worker.end()  # it occupies memory of the device
    for joined in (False, True):
        sample, _ = draw(options, options.trl_length, joined)
        arguments = ["--data", sample, "--tokenizer", str(options.folder), "--model", "pretrained"]
        arguments += ["--pairs", str(options.trl_pairs), "--max_length", str(options.trl_length), "--warmup", "2"]
        arguments += ["--micro_batch_tokens", str(options.micro_batch_tokens), "--rounds", str(options.trl_rounds)]
        script = [sys.executable, str(HERE / "throughput.py"), *arguments]
        done = subprocess.run(script, cwd=ROOT, env=environment(), capture_output=True, text=True)
        print(done.stdout if done.returncode == 0 else f"failed: {done.stderr[-1500:]}", flush=True)


def describe_machine() -> str:
    import transformers

    description = [
        str(date.today()),
        platform.machine(),
        f"Python {platform.python_version()}",
        f"torch {torch.__version__}",
    ]
    description.append(f"transformers {transformers.__version__}")
    if CUDA:
        asked = ["nvidia-smi", "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader"]
        with contextlib.suppress(OSError):
            description.append(subprocess.run(asked, capture_output=True, text=True).stdout.strip())
    else:
        description.append("no GPU")
    return ", ".join(description)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="a decoder's folder, with or without its weights")
    parser.add_argument("--data", help="preference pairs with prompts; without them the embedded world")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--quick", action="store_true", help="tiny sizes, a tiny model if none is named")
    parser.add_argument("--lengths", type=int, nargs="+", default=[512, 1024, 2048])
    parser.add_argument("--precisions", nargs="+", default=["bf16-mixed", "bf16-true"])
    parser.add_argument("--layouts", nargs="+", default=["packed", "padded"])
    parser.add_argument("--compiled", nargs="+", choices=["no", "yes"], default=["no", "yes"])
    parser.add_argument("--objective", default="bt", help="a file of conf/objective")
    parser.add_argument("--pairs", type=int, default=512, help="drawn for each length")
    parser.add_argument("--batch_size", type=int, default=64)
    parser.add_argument("--micro_batch_tokens", type=int, default=16384)
    parser.add_argument("--warm", type=int, default=4, help="steps that are not measured")
    parser.add_argument("--steps", type=int, default=12, help="steps that are measured")
    parser.add_argument("--least_tokens", type=int, default=16384, help="where the search of memory starts")
    parser.add_argument("--most_tokens", type=int, default=1 << 20)
    parser.add_argument("--tree_tokens", type=int, default=2048, help="of each row of the exactness part")
    parser.add_argument("--resume_batch", type=int, default=32)
    parser.add_argument("--trl_length", type=int, default=1024)
    parser.add_argument("--trl_pairs", type=int, default=256)
    parser.add_argument("--trl_rounds", type=int, default=2)
    parser.add_argument("--limit", type=float, default=240, help="seconds that one measurement may take")
    options = parser.parse_args()
    if options.quick:
        small = {"lengths": [64, 128], "pairs": 48, "batch_size": 16, "micro_batch_tokens": 512, "warm": 1, "steps": 2}
        small |= {"least_tokens": 1024, "most_tokens": 2048, "tree_tokens": 96, "resume_batch": 8}
        small |= {"trl_length": 128, "trl_pairs": 48, "trl_rounds": 1, "compiled": ["no"]}
        vars(options).update(
            {name: value for name, value in small.items() if getattr(options, name) == parser.get_default(name)}
        )
    options.settings = [
        (layout, precision, compiled == "yes")
        for precision in options.precisions
        for compiled in options.compiled
        for layout in options.layouts
    ]
    return options


def main() -> None:
    options = parse()
    if not options.quick and (options.model is None or options.data is None):
        sys.exit("gpu.py: name --model and --data, or give --quick")
    parts = {"exact": part_exact, "throughput": part_throughput, "memory": part_memory}
    parts |= {"resume": part_resume, "trl": part_trl}
    print(f"{describe_machine()}\n", flush=True)
    with tempfile.TemporaryDirectory() as work:
        options.work = Path(work)
        os.environ.setdefault("APLOT_CACHE", str(options.work / "cache"))
        options.folder = model_folder(options)
        options.name = Path(options.model).resolve().name if options.model else "tiny"
        worker = Worker(options.work, options.limit)
        for name in options.parts:
            start = time.perf_counter()
            print(f"## {name}\n", flush=True)
            try:
                parts[name](copy.copy(options), worker)
            except Exception as error:  # the other parts still run
                print(f"\n{name} failed: {type(error).__name__}: {error}")
            print(f"\n({time.perf_counter() - start:.0f} s)\n", flush=True)
        worker.end()


if __name__ == "__main__":
    sys.path[:0] = [str(ROOT)]
    main()
