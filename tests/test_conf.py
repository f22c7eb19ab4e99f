"""Every file of conf/: it opens with its command, composes, and trains on a cut-down copy of its data."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from itertools import takewhile
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
import yaml
from torch import Tensor
from transformers import AutoConfig, AutoModelForSequenceClassification

from aplot_lightning.cli import main
from aplot_lightning.model.locate import ASSETS
from aplot_lightning.model.tokenizer import load_tokenizer

ROOT = Path(__file__).parents[1]
CONF = ROOT / "conf"
QUICKSTART = CONF / "quickstart.yaml"
FILES = sorted(path.relative_to(CONF).as_posix() for path in CONF.rglob("*.yaml"))
EXPERIMENTS = [name for name in FILES if "/" not in name]
TRAINERS = sorted(path.stem for path in (CONF / "trainer").glob("*.yaml"))
OBJECTIVES = sorted(path.stem for path in (CONF / "objective").glob("*.yaml"))
SHORT = [
    "--report",
    "false",
    "--trainer.max_steps",
    "2",
    "--trainer.accelerator",
    "cpu",
    "--trainer.log_every_n_steps",
    "1",
]

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # Lightning's own, hidden from users


@pytest.fixture(scope="module", autouse=True)
def _alone() -> Any:
    """The command's marks on this process are taken away again."""
    with pytest.MonkeyPatch.context() as patch:
        for variable in ("APLOT_RUN_DIR", "PL_GLOBAL_SEED", "PL_SEED_WORKERS"):
            patch.setenv(variable, "")
        torch.set_num_threads(1)
        yield


def aplot(*words: str) -> int:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["aplot", *words])
        return main(list(words))


def composed(name: str) -> list[str]:
    """The --config words that a file is used with: alone where it is an experiment, else after the quickstart."""
    files = [CONF / name] if name in EXPERIMENTS else [QUICKSTART, CONF / name]
    return [word for file in files for word in ("--config", str(file))]


def weights(run_dir: Path) -> dict[str, Tensor]:
    state = torch.load(run_dir / "checkpoints" / "last.ckpt", weights_only=True)
    assert state["global_step"] == 2
    return state["state_dict"]


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_the_folders_hold_what_is_promised() -> None:
    assert {"quickstart.yaml", "hh_rlhf.yaml"} <= set(EXPERIMENTS)
    assert {"bt", "aplot", "aplot_instance", "margin", "label_smoothing"} <= set(OBJECTIVES)
    assert {"model/lora.yaml", "model/qlora.yaml"} <= set(FILES)
    assert set(TRAINERS) == {"cpu", "gpu", "ddp", "fsdp", "slurm"}


@pytest.mark.parametrize("name", FILES)
def test_a_file_opens_with_a_command_that_uses_it(name: str) -> None:
    lines = (CONF / name).read_text(encoding="utf-8").splitlines()
    header = list(takewhile(lambda line: line.startswith("#"), lines))
    assert header
    assert re.search(r"\w", header[0])
    commands = [line.partition("-m aplot_lightning ")[2] for line in header]
    commands = [command for command in commands if command]
    assert commands
    for command in commands:
        named = re.findall(r"--config (\S+)", command)
        assert f"conf/{name}" in named
        assert all((ROOT / config).is_file() for config in named)


@pytest.mark.parametrize("name", FILES)
def test_a_file_composes(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    whole = flat(yaml.safe_load(printed_config(composed(name), capsys)))
    for key, value in flat(yaml.safe_load((CONF / name).read_text(encoding="utf-8"))).items():
        assert whole[key] == value


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_a_printed_config_is_a_config(name: str, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    printed = printed_config(composed(name), capsys)
    (tmp_path / "whole.yaml").write_text(printed)
    assert printed_config(["--config", str(tmp_path / "whole.yaml")], capsys) == printed


def printed_config(words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit, match="0"):
        aplot("fit", *words, "--print_config")
    return capsys.readouterr().out


def flat(config: Any, prefix: str = "") -> dict[str, Any]:
    """The leaves of a nested config by their dotted keys."""
    if not isinstance(config, dict) or not config:
        return {prefix: config}
    return {key: leaf for name, part in config.items() for key, leaf in flat(part, f"{prefix}.{name}").items()}


# The quickstart with every objective


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """trained(objective) -> the run directory of two steps on a smaller quickstart, made once a name."""
    folder = tmp_path_factory.mktemp("quickstart")
    data = yaml.safe_load(QUICKSTART.read_text(encoding="utf-8"))["data"]
    for source in [data["train"], data["id"], *data["ood"].values()]:
        source["init_args"]["pairs"] = 80 if source is data["train"] else 12
    data |= {"batch_size": 16, "micro_batch_size": 8, "validation_share": 0.2}
    (folder / "small.yaml").write_text(json.dumps({"data": data}))  # JSON is YAML
    made: dict[str, Path] = {}

    def train(objective: str, name: str, evaluate: bool = False) -> Path:
        if name not in made:
            config = [*composed(f"objective/{objective}.yaml"), "--config", str(folder / "small.yaml")]
            skip = [] if evaluate else ["--trainer.limit_val_batches", "0"]
            assert aplot("fit", *config, "--run_dir", str(folder / name), *SHORT, *skip) == 0
            made[name] = folder / name
        return made[name]

    return train


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_the_quickstart_trains_with_every_objective(objective: str, trained: Any) -> None:
    run_dir = trained(objective, objective)
    pairs = json.loads((run_dir / "metrics.json").read_text())["train"]["pairs"]
    # batches that hold every source are about as large as asked, the others exactly
    assert pairs == pytest.approx(32, abs=8 if objective == "more" else 0)
    assert same(weights(run_dir), weights(trained("bt", "bt"))) == (objective == "bt")


def test_the_quickstart_evaluates_every_set(trained: Any) -> None:
    metrics = json.loads((trained("bt", "evaluated", evaluate=True) / "metrics.json").read_text())
    assert set(metrics["ood"]) == set(yaml.safe_load(QUICKSTART.read_text(encoding="utf-8"))["data"]["ood"])
    assert metrics["id"]["pairs"] == 12


def test_the_same_objective_twice_gives_the_same_weights(trained: Any) -> None:
    """Evaluating does not change it."""
    assert same(weights(trained("bt", "bt")), weights(trained("bt", "evaluated", evaluate=True)))


def test_a_run_writes_predictions_in_the_published_form(trained: Any) -> None:
    schema = pq.read_schema(trained("bt", "evaluated", evaluate=True) / "predictions" / "new_topics.parquet")
    types = {field.name: str(field.type) for field in schema}
    numbers = dict.fromkeys(["chosen_reward", "rejected_reward", "target", "similarity"], "double")
    counts = dict.fromkeys(["prompt", "chosen_characters", "rejected_characters"], "int64")
    assert types == {"id": "string", "subset": "string", **numbers, **counts}


def test_adapters_train_on_an_experiment_and_the_rest_stays(tmp_path: Path) -> None:
    small = [
        "--trainer.limit_val_batches",
        "0",
        "--data.train.init_args.pairs",
        "80",
        "--data.ood",
        "{}",
        "--data.id",
        "null",
    ]
    for name, rate in (("slow", "1e-3"), ("fast", "2e-3")):
        words = [*composed("model/lora.yaml"), *SHORT, *small, "--run_dir", str(tmp_path / name)]
        assert aplot("fit", *words, "--model.learning_rate", rate) == 0
    slow, fast = weights(tmp_path / "slow"), weights(tmp_path / "fast")
    moved = {name for name in slow if not torch.equal(slow[name], fast[name])}
    adapters = {name for name in slow if "lora_" in name}
    assert len(adapters) > 10
    assert moved == adapters | {"reward_model.head.weight"}


# Where runs run


def test_a_run_trains_with_the_trainer_of_the_cpu(tmp_path: Path) -> None:
    words = [*composed("trainer/cpu.yaml"), "--config", str(CONF / "objective" / "bt.yaml"), *SHORT]
    small = ["--data.train.init_args.pairs", "80", "--data.ood", "{}", "--data.id", "null"]
    assert aplot("fit", *words, *small, "--run_dir", str(tmp_path / "run")) == 0
    weights(tmp_path / "run")


@pytest.mark.parametrize("code", [0, 1, 143])
def test_the_slurm_job_goes_on_and_is_queued_again_when_it_was_stopped(code: int, tmp_path: Path) -> None:
    """The job script itself, with commands of SLURM's that write down how they were called."""
    for name, end in {"srun": code, "scontrol": 0}.items():
        stub = tmp_path / name
        stub.write_text(f'#!/bin/bash\necho "$@" >> "{tmp_path}/{name}.txt"\nexit {end}\n')
        stub.chmod(0o755)
    run_dir = tmp_path / "run"
    environment = {"PATH": f"{tmp_path}:/usr/bin:/bin", "SLURM_JOB_ID": "71"}
    job = ["bash", str(CONF / "trainer" / "slurm.sh"), str(run_dir), "--config", "conf/hh_rlhf.yaml"]
    assert subprocess.run(job, env=environment, cwd=ROOT, check=False).returncode == code
    (run_dir / "checkpoints").mkdir(parents=True)
    (run_dir / "checkpoints" / "last.ckpt").touch()
    subprocess.run(job, env=environment, cwd=ROOT, check=False)
    first, second = (tmp_path / "srun.txt").read_text().splitlines()
    assert first.endswith(f"--config conf/hh_rlhf.yaml --config conf/trainer/slurm.yaml --run_dir {run_dir}")
    assert second == f"{first} --ckpt_path last"
    requeued = tmp_path / "scontrol.txt"
    assert (requeued.read_text() == "requeue 71\n" * 2) if code == 143 else not requeued.exists()


# Real layouts and backbones, in small


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A random Llama in a plain Transformers folder, where the hub's model is meant."""
    folder = tmp_path_factory.mktemp("llama")
    tokenizer = load_tokenizer(str(ASSETS / "world-decoder"), "model", "world-decoder")
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = AutoConfig.for_model("llama", vocab_size=len(tokenizer), num_labels=1, **sizes)
    with torch.random.fork_rng():
        AutoModelForSequenceClassification.from_config(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def transcripts(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Pairs in HH-RLHF's own layout: two whole transcripts with a common beginning."""
    path = tmp_path_factory.mktemp("hh") / "hh.jsonl"
    rows = []
    for number in range(200):
        prompt = f"\n\nHuman: What is {number} and {number}?\n\nAssistant: A sum.\n\nHuman: Which?\n\nAssistant:"
        rows.append({"chosen": f"{prompt} It is {2 * number}.", "rejected": f"{prompt} No."})
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.mark.parametrize("objective", ["bt", "aplot"])
def test_hh_rlhf_trains_on_files_and_folders_in_place_of_hub_names(
    objective: str, llama: str, transcripts: str, tmp_path: Path
) -> None:
    far = shutil.copy(transcripts, tmp_path / "far.jsonl")
    rows = [line.replace("What is", "How much are") for line in Path(far).read_text().splitlines()[:9]]
    Path(far).write_text("\n".join(rows) + "\n")
    replaced = {"data.train": transcripts, "data.ood.far": str(far), "model.backbone": llama}
    words = [word for key, value in replaced.items() for word in (f"--{key}", value)]
    configs = ["--config", str(CONF / "hh_rlhf.yaml"), "--config", str(CONF / "objective" / f"{objective}.yaml")]
    run_dir = tmp_path / "run"
    assert aplot("fit", *configs, *words, "--run_dir", str(run_dir), *SHORT) == 0
    account = json.loads((run_dir / "data_report.json").read_text())["train"]["total"]
    assert (account["read"], account["used"]) == (200, 200)
    metrics = json.loads((run_dir / "metrics.json").read_text())
    assert metrics["ood"]["far"]["pairs"] == 9
    assert metrics["id"]["pairs"] > 0
    assert metrics["train"]["pairs"] == 64
    weights(run_dir)
