"""From the sources of a config to disjoint, complete, accounted sets, under the command line and in a notebook."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from hashlib import sha256
from math import sqrt
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from transformers import AutoConfig

from aplot_lightning import PreferenceDataModule, RewardModelingModule
from aplot_lightning.data.comparisons import KINDS
from aplot_lightning.data.encoded import EncodedComparisons
from aplot_lightning.data.encoding import ConversationEncoder
from aplot_lightning.data.evaluation_set import EvaluationSet
from aplot_lightning.data.world import PreferenceWorld
from aplot_lightning.errors import UserError
from aplot_lightning.model.locate import ASSETS
from aplot_lightning.model.tokenizer import load_tokenizer

WORLD = str(ASSETS / "world-decoder")
TOKENIZER = load_tokenizer(WORLD, "model", "world-decoder")
ACCOUNT = {"read", "used", "pairs", "refused", "near_leak", "cut", "longer_wins", "tokens"}


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def pair(number: int, prompt: str = "question {} ?") -> dict[str, Any]:
    return {"prompt": prompt.format(number), "chosen": f"yes {number}", "rejected": "no"}


def write(path: Path, rows: Iterable[Any]) -> str:
    path.write_text("".join(f"{row if isinstance(row, str) else json.dumps(row)}\n" for row in rows))
    return str(path)


def read(train: Any, **options: Any) -> PreferenceDataModule:
    """A data module after setup, as it is used without a module."""
    data = PreferenceDataModule(train, **options)
    data.tokenizer = TOKENIZER
    data.setup()
    return data


def numbers(encoded: EncodedComparisons) -> list[int]:
    """The numbers that stand in the prompts of encoded pairs, read back from their tokens."""
    texts = [TOKENIZER.decode(encoded.rows(place)[0]) for place in range(len(encoded))]
    return [int(re.search(r"question\s*([\d ]+?)\s*\?", text.lower())[1].replace(" ", "")) for text in texts]  # type: ignore[index]


def parts(data: PreferenceDataModule) -> dict[str, list[int]]:
    assert data.training_pairs is not None
    sets = {name: numbers(held_out.encoded) for name, held_out in data.evaluation_sets.items()}
    return {"train": numbers(data.training_pairs), **sets}


# The split


def test_held_out_parts_are_disjoint_and_complete_and_as_large_as_asked(tmp_path: Path) -> None:
    count = 3000
    source = write(tmp_path / "x.jsonl", map(pair, range(count)))
    data = read(source, validation_share=0.1, id_share=0.04)
    split = parts(data)
    assert sorted(number for part in split.values() for number in part) == list(range(count))
    for name, share in {"validation": 0.1, "id": 0.04, "train": 0.86}.items():
        assert abs(len(split[name]) - share * count) < 4 * sqrt(count * share * (1 - share))
    account = data.report.as_dict()["train"]["total"]
    assert account["read"] == account["used"] == account["pairs"] == count


def test_no_seed_and_no_batch_size_changes_the_split(tmp_path: Path) -> None:
    source = write(tmp_path / "x.jsonl", map(pair, range(300)))
    turned = write(tmp_path / "y.jsonl", map(pair, reversed(range(300))))
    one = parts(read(source, seed=0))
    for other in (read(source, seed=9, batch_size=4, on_bad_row="error"), read(turned)):
        assert {name: sorted(part) for name, part in parts(other).items()} == one
    # a larger share takes what a smaller one has, so that ID pairs never move into training
    assert set(one["validation"]) < set(parts(read(source, validation_share=0.2))["validation"])


def test_the_hash_is_a_fixed_one(tmp_path: Path) -> None:
    """SHA-256, written down here: another split would mix what earlier runs trained on into what later ones test on."""
    split = parts(read(write(tmp_path / "x.jsonl", map(pair, range(99))), validation_share=0.2, id_share=0.1))
    for number in range(99):
        place = int(sha256(f"question {number} ?".encode()).hexdigest()[:14], 16) / 16**14
        assert number in split["validation" if place < 0.2 else "id" if place < 0.2 + 0.1 else "train"]


def test_dialogues_with_the_same_first_user_turn_stay_together(tmp_path: Path) -> None:
    rows = []
    for number in range(120):
        for turn, spelling in enumerate(["question {} ?", "Question  {} ?", "QUESTION {} ? "]):
            first = {"role": "user", "content": spelling.format(number)}
            system = [{"role": "system", "content": f"be kind {turn}"}] * (turn == 2)
            more = [{"role": "assistant", "content": f"hm {turn}"}, {"role": "user", "content": "and ?"}] * turn
            rows.append({"prompt": [*system, first, *more], "chosen": "yes", "rejected": "no"})
    data = read(write(tmp_path / "x.jsonl", rows), validation_share=0.3, id_share=0.3)
    wheres = {name: held.comparisons for name, held in data.evaluation_sets.items()}
    assert {"validation", "id"} == set(wheres)
    for comparisons in wheres.values():
        lines = [int(comparison.where.partition(":")[2]) - 1 for comparison in comparisons]
        assert len(lines) > 30
        assert all(3 * (line // 3) + turn in lines for line in lines for turn in range(3))


def test_an_id_source_takes_the_place_of_the_id_share(tmp_path: Path) -> None:
    source = write(tmp_path / "x.jsonl", map(pair, range(400)))
    given = write(tmp_path / "id.jsonl", map(pair, range(1000, 1010)))
    data, without = read(source, id=given, id_share=0.3), read(source, id_share=0.3)
    split = parts(data)
    assert split["id"] == list(range(1000, 1010))
    assert split["validation"] == parts(without)["validation"]
    assert sorted(split["train"] + split["validation"]) == list(range(400))
    assert data.report.as_dict()["id"]["read"] == 10


def test_prompts_of_test_sets_are_refused_in_training_and_in_what_is_held_out(tmp_path: Path) -> None:
    source = write(tmp_path / "x.jsonl", map(pair, range(400)))
    before = parts(read(source, validation_share=0.2, id_share=0.2))
    leaking = {name: part[:3] for name, part in before.items()}  # some of each part
    assert set(leaking) == {"train", "validation", "id"}
    tests = {
        name: write(tmp_path / f"{name}.jsonl", [pair(n, "QUESTION  {} ?") for n in [*leaked, 1000 + place]])
        for place, (name, leaked) in enumerate(leaking.items())
    }
    held_out = {"ood": {"one": tests["train"]}, "ood_validation": {"two": tests["validation"]}}
    data = read(source, validation_share=0.2, id_share=0.2, **held_out)
    known = set(leaking["train"]) | set(leaking["validation"])
    after = parts(data)
    for name, part in before.items():
        assert after[name] == [number for number in part if number not in known]
    report = data.report.as_dict()
    account = report["train"]["total"]
    assert account["refused"] == dict.fromkeys(KINDS, 0) | {"leak": 6}
    assert (account["read"], account["used"]) == (400, 394)
    assert report["locations"]["train"]["leak"][0]["where"].startswith("x.jsonl:")
    assert len(after["ood/one"]) == report["ood"]["one"]["used"] == 4
    # prompts of a given ID set are refused too
    assert read(source, id=tests["id"]).report.as_dict()["train"]["total"]["refused"]["leak"] == 3


def test_the_report_accounts_for_every_row_in_the_published_form(tmp_path: Path) -> None:
    many = {"prompt": "question 900 ?", "responses": ["a", "b", "c"], "scores": [3, 2, 1]}
    bad = ["not json", {"prompt": "x"}, {**pair(1), "chosen": ""}, {**pair(2), "rejected": "yes 2"}, pair(3)]
    data = read(
        write(tmp_path / "x.jsonl", [*map(pair, range(3, 203)), many, *bad]),
        ood={"far": write(tmp_path / "far.jsonl", map(pair, range(500, 510)))},
        ood_validation={"near": write(tmp_path / "near.jsonl", map(pair, range(600, 605)))},
    )
    report = json.loads(json.dumps(data.report.as_dict(), allow_nan=False))
    assert set(report) == {"train", "validation", "id", "ood", "ood_validation", "locations", "previews"}
    assert set(report["train"]) == {"total", "sources"}
    assert report["train"]["sources"] == {"x.jsonl": report["train"]["total"]}
    assert (set(report["ood"]), set(report["ood_validation"])) == ({"far"}, {"near"})
    total = report["train"]["total"]
    refused = {kind: count for kind, count in total["refused"].items() if count}
    kinds = ["not_json", "missing_field", "empty_response", "identical_responses", "duplicate"]
    assert refused == dict.fromkeys(kinds, 1)
    assert (total["read"], total["used"], total["pairs"]) == (206, 201, 203)
    for account in (total, report["validation"], report["id"], report["ood"]["far"], report["ood_validation"]["near"]):
        assert set(account) == ACCOUNT
        assert set(account["tokens"]) == {"p50", "p95", "max"}
        assert account["read"] == account["used"] + sum(account["refused"].values())
    assert data.training_pairs is not None
    held_out = report["validation"]["pairs"] + report["id"]["pairs"]
    assert data.training_pairs.pairs + held_out == total["pairs"]
    for name in ("validation", "id"):
        assert data.evaluation_sets[name].encoded.pairs == report[name]["pairs"] > 0
    assert data.fingerprints["data.train"]["source"] == "x.jsonl"
    assert len({entry["sha256"] for entry in data.fingerprints.values()}) == 3


def test_columns_tell_how_many_training_pairs_lack_a_value(tmp_path: Path) -> None:
    rows = [{**pair(n), **({"margin": 1.0} if n % 2 else {})} for n in range(100)]
    data = read(write(tmp_path / "x.jsonl", rows), validation_share=0, id_share=0)
    assert data.columns["margin"] == 50
    assert data.columns["weight"] == 0
    assert "target" not in data.columns


# Mistakes


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"validation_share": -0.1}, r"data\.validation_share is -0\.1: give a share"),
        ({"id_share": 1.0}, r"data\.id_share is 1\.0: give a share"),
        ({"validation_share": 0.5, "id_share": 0.5}, r"data\.validation_share and data\.id_share leave nothing"),
        ({"ood": {"a": "x"}, "ood_validation": {"a": "y"}}, r"'a' is in data\.ood and in data\.ood_validation"),
        ({"ood": {"validation": "x"}}, r"data\.ood: 'validation' cannot name a set"),
        ({"ood": {"id": "x"}}, r"data\.ood: 'id' cannot name a set"),
        ({"ood_validation": {"a/b": "x"}}, r"data\.ood_validation: 'a/b' cannot name a set"),
        ({"ood": {"": "x"}}, r"data\.ood: '' cannot name a set"),
    ],
)
def test_mistaken_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        PreferenceDataModule("x.jsonl", **options)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("key", ["train", "id", "ood.far", "ood_validation.near"])
def test_a_missing_file_is_said_by_its_key_before_anything_is_read(tmp_path: Path, key: str) -> None:
    kind, _, name = key.partition(".")
    missing = str(tmp_path / "missing.jsonl")

    class Untouched(PreferenceWorld):
        def rows(self) -> Any:
            raise AssertionError("read before all paths were looked at")

    options: dict[str, Any] = {"train": Untouched(pairs=5)}
    options[kind] = {name: missing} if name else missing
    with pytest.raises(UserError, match=rf"^data\.{key}: no such file: '{re.escape(missing)}'"):
        read(**options)


def test_nothing_left_to_train_on(tmp_path: Path) -> None:
    source = write(tmp_path / "x.jsonl", map(pair, range(3)))
    with pytest.raises(UserError, match=r"data\.train: no pair of x\.jsonl is left .*3 leak; first: x\.jsonl:1"):
        read(source, ood={"same": write(tmp_path / "y.jsonl", map(pair, range(3)))})


def test_a_missing_tokenizer_is_said() -> None:
    with pytest.raises(UserError, match=r"no tokenizer: call connect\(\) or set `tokenizer`"):
        PreferenceDataModule(PreferenceWorld(pairs=5)).setup()


# In a notebook


def plain_trainer(folder: Path, **options: Any) -> L.Trainer:
    return L.Trainer(
        accelerator="cpu",
        default_root_dir=folder,
        enable_progress_bar=False,
        enable_model_summary=False,
        **options,
    )


def quiet(test: Any) -> Any:
    """Without Lightning's remarks on its own deprecations and on what a data loader might have."""
    for message in (
        ".*LeafSpec.*",
        ".*does not have many workers",
        ".*smaller than the logging interval",
        ".*litlogger",
    ):
        test = pytest.mark.filterwarnings(f"ignore:{message}")(test)
    return test


@quiet
def test_plain_lightning_trains_and_evaluates_with_both_classes(tmp_path: Path) -> None:
    trainer = plain_trainer(tmp_path, max_steps=2)
    module = RewardModelingModule("world-decoder", learning_rate=1e-3)
    before = [parameter.detach().clone() for parameter in module.parameters()]
    data = PreferenceDataModule(
        train=PreferenceWorld(pairs=60), ood={"far": PreferenceWorld("new_topics", pairs=7)}, batch_size=8
    )
    trainer.fit(module, data)
    assert trainer.global_step == 2
    assert any(not torch.equal(old, new) for old, new in zip(before, module.parameters(), strict=True))
    assert data.tokenizer is module.tokenizer
    trainer.test(module, data, verbose=False)
    assert trainer.callback_metrics["ood/far/pairs"] == 7
    assert 0 <= trainer.callback_metrics["validation/accuracy"] <= 1
    predicted = trainer.predict(module, data)
    assert predicted is not None
    assert sorted(i for batch in predicted[-1] for i in batch["index"].tolist()) == list(range(7))  # type: ignore[call-overload]


@quiet
@pytest.mark.parametrize("watched", [True, False])
def test_test_sets_are_watched_only_if_wanted(tmp_path: Path, watched: bool) -> None:
    trainer = plain_trainer(tmp_path, max_steps=1, num_sanity_val_steps=0)
    few = {"far": PreferenceWorld("new_topics", pairs=7)}
    data = PreferenceDataModule(
        PreferenceWorld(pairs=60),
        ood=few,
        ood_validation={"near": PreferenceWorld("new_style", pairs=7)},
        watch_test_sets=watched,
        batch_size=64,
    )
    trainer.fit(RewardModelingModule("world-decoder"), data)
    stems = {name.rpartition("/")[0] for name in trainer.callback_metrics} - {"", "train"}
    selecting = {"validation", "ood_validation/near"}
    assert stems == (selecting | {"id", "ood/far", "ood_mean"} if watched else selecting)


@pytest.fixture
def short_backbone(tmp_path: Path) -> str:
    """A GPT-2 with 40 learned positions, without weights."""
    folder = tmp_path / "short"
    sizes = {"n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 40, "vocab_size": len(TOKENIZER)}
    AutoConfig.for_model("gpt2", **sizes).save_pretrained(folder)
    TOKENIZER.save_pretrained(folder)
    return str(folder)


def long_rows(path: Path) -> str:
    return write(path, [{**pair(n), "prompt": f"question {n} ? " + "why " * 60} for n in range(60)])


@quiet
def test_too_few_positions_shorten_the_data_in_a_notebook(tmp_path: Path, short_backbone: str) -> None:
    module = RewardModelingModule(short_backbone)
    data = PreferenceDataModule(long_rows(tmp_path / "x.jsonl"), batch_size=16)
    with pytest.warns(UserWarning, match="data.max_length is 1024, but the backbone has 40 positions: 40 is used"):
        plain_trainer(tmp_path, max_steps=1).fit(module, data)
    assert data.training_pairs is not None
    assert data.training_pairs.lengths.max() == data.max_length == module.reward_model.max_length == 40


def test_too_few_positions_shorten_the_data_on_the_command_line(
    laboratory: Any, tmp_path: Path, short_backbone: str
) -> None:
    train = long_rows(tmp_path / "x.jsonl")
    options = {"model.backbone": short_backbone, "data.train": train, "data.max_length": 99, "trainer.max_steps": 1}
    with pytest.warns(UserWarning, match="data.max_length is 99, but the backbone has 40 positions: 40 is used"):
        assert laboratory("fit", tmp_path / "run", options) == 0
    report = json.loads((tmp_path / "run" / "data_report.json").read_text())
    assert report["train"]["total"]["tokens"]["max"] == 40


# Prepared once


class Untouched(ConversationEncoder):
    def encode_chunk(self, comparisons: Any) -> Any:
        raise AssertionError("encoded again")


def test_a_second_start_encodes_nothing_whatever_the_shares(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = write(tmp_path / "x.jsonl", [*map(pair, range(90)), "no", pair(3)])
    options = {"ood": {"far": write(tmp_path / "far.jsonl", map(pair, range(80, 99)))}, "cache_dir": tmp_path / "cache"}
    cold = read(source, **options)
    monkeypatch.setattr("aplot_lightning.data.datamodule.ConversationEncoder", Untouched)
    warm = read(source, **options)
    assert warm.report.as_dict() == cold.report.as_dict()
    assert warm.fingerprints == cold.fingerprints
    assert parts(warm) == parts(cold)
    assert set(warm.evaluation_sets) == set(cold.evaluation_sets)
    for name, held_out in cold.evaluation_sets.items():
        for column, values in held_out.encoded.columns.items():
            assert warm.evaluation_sets[name].encoded.columns[column].tobytes() == values.tobytes()
    other = read(source, validation_share=0.5, id_share=0, batch_size=7, **options)
    assert len(other.evaluation_sets["validation"].encoded) > 30
    with pytest.raises(AssertionError, match="encoded again"):
        read(source, max_length=30, **options)


def test_what_an_evaluation_set_knows_is_what_its_texts_say(tmp_path: Path) -> None:
    many = {"prompt": "rank", "responses": ["good", "so so", "bad"], "scores": [3, 2, 1], "id": "m", "subset": "s"}
    rows = [*(pair(n) for n in range(40)), many, pair(3), {"chosen": "a b", "rejected": "a c"}]
    held_out = read(PreferenceWorld(pairs=9), ood={"x": write(tmp_path / "x.jsonl", rows)}).evaluation_sets["ood/x"]
    assert len(held_out.comparisons) == len(held_out.encoded) == 42
    texts = list(held_out.comparisons)
    again = EvaluationSet("ood/x", texts, ConversationEncoder(TOKENIZER).encode(texts))
    assert set(again.encoded.columns) == set(held_out.encoded.columns)
    for name, values in again.encoded.columns.items():
        assert held_out.encoded.columns[name].dtype == values.dtype
        assert held_out.encoded.columns[name].tobytes() == values.tobytes()
    assert held_out.comparisons[40].id == "m"


def test_several_sources_are_accounted_for_apart_and_split_together(tmp_path: Path) -> None:
    one = write(tmp_path / "one.jsonl", map(pair, range(60)))
    two = write(tmp_path / "two.jsonl", [*map(pair, range(50, 160)), "no"])
    data = read([one, {"path": two, "weight": 2}], validation_share=0.2, id_share=0.1)
    split = parts(data)
    assert sorted(number for part in split.values() for number in part) == list(range(160))
    report = data.report.as_dict()
    assert {name: account["read"] for name, account in report["train"]["sources"].items()} == {
        "one.jsonl": 60,
        "two.jsonl": 111,
    }
    assert report["train"]["sources"]["two.jsonl"]["refused"]["duplicate"] == 10
    assert report["validation"]["read"] == len(split["validation"])
    assert data.training_pairs is not None
    assert data.training_pairs.sources == ["one.jsonl", "two.jsonl"]
    origins = data.training_pairs.origins.tolist()
    assert origins == [int(number >= 60) for number in split["train"]]
    assert data.plan.pairs_per_epoch == sum(1 + origin for origin in origins)
    assert data.fingerprints["data.train"]["source"] == "one.jsonl, two.jsonl"
    both = read([two, one], validation_share=0.2, id_share=0.1)
    assert both.fingerprints["data.train"]["sha256"] != data.fingerprints["data.train"]["sha256"]


def test_near_leaks_are_counted_in_the_training_part_alone(tmp_path: Path) -> None:
    long = "question {} ? Tell me, please, how the old clock in the tower of the town hall was made, and by whom"
    source = write(tmp_path / "x.jsonl", [pair(number, f"{long}!") for number in range(1000, 1060)])
    far = write(tmp_path / "far.jsonl", [pair(number, f"{long}?") for number in range(1000, 1060)])
    data = read(source, ood={"far": far}, validation_share=0.5, id_share=0)
    report = data.report.as_dict()
    assert data.training_pairs is not None
    assert report["train"]["total"]["near_leak"] == len(data.training_pairs) < 45
    assert report["validation"]["near_leak"] == report["ood"]["far"]["near_leak"] == 0
    assert read(source).report.as_dict()["train"]["total"]["near_leak"] == 0


def test_truncation_reaches_the_encoder(tmp_path: Path) -> None:
    source = long_rows(tmp_path / "x.jsonl")
    data = read(source, max_length=40, validation_share=0, id_share=0)
    assert data.report.as_dict()["train"]["total"]["cut"] == {"prompts": 60, "chosen": 0, "rejected": 0}
    with pytest.raises(UserError, match=r"data\.train: no pair of x\.jsonl is left .*60 too_long"):
        read(source, max_length=40, truncation="drop")
