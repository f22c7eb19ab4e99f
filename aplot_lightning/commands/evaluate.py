"""`evaluate`: a reward model on a public benchmark, scored by the benchmark's own rule.

Heavy imports wait until the suite is read and every mistake in it is found.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aplot_lightning.data.suites import SUITES, Suite
from aplot_lightning.errors import UserError
from aplot_lightning.inference.output import check_output, replacing
from aplot_lightning.inference.progress import progress, warn
from aplot_lightning.inference.scorer import load_model
from aplot_lightning.model.locate import locate_model

if TYPE_CHECKING:
    from aplot_lightning.evaluation.suites import Figures

SHOWN = 3  # rows without a reward that are named
WIDEST = 12  # columns of figures in the leaderboard's table; a file of pairs may name any number of subsets


def main(
    model: str,
    suite: str,
    data: str,
    output: str | None = None,
    dtype: str = "float32",
    max_length: int | None = None,
    batch_size: int = 16,
    overwrite: bool = False,
) -> None:
    """Scores a model on a public benchmark and prints the table of the benchmark's own leaderboard.

    A malformed row, or another suite's file, is a mistake; parts that are not there are a warning and null. With
    --output results.json the figures go there, the rewards into predictions.parquet beside it and the table's row into
    row.json; with another name, such as hhh.json, into hhh.predictions.parquet and hhh.row.json.

    A conversation that is too long is cut by itself, as in score. A run cuts the prompt of a pair once for both sides,
    so its own figures on the same rows differ where texts are longer than max_length; and it refuses rows that
    contradict or repeat others, which count here as on the leaderboards.

    Args:
        model: A run directory (its best checkpoint), a checkpoint file, an exported folder or a hub name.
        suite: rewardbench, rewardbench2, rm_bench, judgebench, hhh, mt_bench, llmbar, or pairs: any file of pairs.
        data: The suite's public files as they are (a file, a folder, or a hub data set's name), or its pairs in our
            own layout with a subset column.
        output: Where to write the figures, a .json file.
        dtype: Precision of the backbone: float32, bfloat16 or float16.
        max_length: Tokens of a prompt with one response; the run's own if not given.
        batch_size: Responses in one forward.
        overwrite: Replace outputs that exist.
    """
    if suite not in SUITES:
        raise UserError(f"--suite: there is no {suite!r}: the suites are {', '.join(SUITES)}")
    for name, value in {"max_length": max_length, "batch_size": batch_size}.items():
        if value is not None and value < 1:
            raise UserError(f"--{name} is {value}: it must be at least 1")
    files = _outputs(output, overwrite, data)
    locate_model(model, "--model")

    from aplot_lightning.evaluation.suites import BY_PROMPT, RULES
    from aplot_lightning.inference.benchmarks import pair_table, prompt_table, read_rows, scored

    try:
        rows = read_rows(Suite(suite, data))
    except UserError as error:
        raise UserError(f"--data: {error}") from error
    for kind, count in rows.left_out.items():
        warn(f"{count} rows are left out: {kind}")
    loaded = load_model(model, "--model", dtype, max_length)
    with progress(lambda: len(rows.comparisons)) as advance:
        results = list(scored(loaded, rows.comparisons, batch_size, advance))
    kept = [(comparison, rewards) for comparison, rewards in results if not isinstance(rewards, str)]
    _tell_unscored([(each.where, problem) for each, problem in results if isinstance(problem, str)], len(results))
    table = prompt_table(kept) if suite in BY_PROMPT else pair_table(kept, by_question=suite == "mt_bench")
    figures = RULES[suite](table)
    for note in figures.notes:
        warn(f"{suite}: {note}")
    print(_text(model, figures, len(table["id"])))
    if files:
        _write(files, model, suite, figures, table)
        print(f"results: {', '.join(map(str, files))}")


def _outputs(output: str | None, overwrite: bool, data: str) -> list[Path]:
    """The files of results, predictions and the row; none without an output."""
    if output is None:
        return []
    path = check_output(output, overwrite, {"--data": data})
    if path.suffix != ".json":
        raise UserError(f"--output: {output} is no .json file: name one, such as results.json")
    before = "" if path.stem == "results" else f"{path.stem}."
    files = [path, path.with_name(f"{before}predictions.parquet"), path.with_name(f"{before}row.json")]
    there = next((file for file in files if file.exists()), None)
    if there is not None and not overwrite:
        raise UserError(f"--output: {there} exists already: name another file or add --overwrite true")
    return files


def _tell_unscored(problems: Sequence[tuple[str, str]], total: int) -> None:
    """Raises UserError where no row has a reward; tells of the first that have none."""
    if len(problems) == total:
        raise UserError(f"--data: no row can be scored: {problems[0][0]}: {problems[0][1]}")
    for where, problem in problems[:SHOWN]:
        warn(f"{where}: {problem}; the row is left out")
    if problems:
        warn(f"{len(problems)} of {total} rows are left out")


def _text(model: str, figures: Figures, rows: int) -> str:
    """The leaderboard's table in per cent, and below it each part with its interval.

    Where the table would be too wide, it leaves out what the parts below say again.
    """
    from aplot_lightning.evaluation.report.tables import interval_text, number, text_table

    parts = figures.results.get("subsets")
    columns = figures.columns
    if len(columns) > WIDEST:
        columns = {name: value for name, value in columns.items() if name not in (parts or {})}
    tables = [text_table(["model", *columns], [[model, *map(_per_cent, columns.values())]])]
    if parts is None:
        tables.append(_levels(figures))
    else:
        whole = {"all": {**{name: figures.results[name] for name in ("accuracy", "ci95")}, "pairs": rows}}
        lines = []
        for name, part in (whole | parts).items():
            known = part or {"accuracy": None, "ci95": None}
            count = next((str(known[unit]) for unit in ("pairs", "prompts") if unit in known), "-")
            lines.append([name, count, number(known["accuracy"]), interval_text(known["ci95"])])
        tables.append(text_table(["part", "rows", "accuracy", "95 % interval"], lines))
    return "\n\n".join(tables)


def _levels(figures: Figures) -> str:
    """Easy, normal and hard over all prompts and of each domain, and the mean of domains with its interval."""
    from aplot_lightning.evaluation.report.tables import interval_text, number, text_table

    levels = ("easy", "normal", "hard")
    parts = {"all prompts": figures.results, **figures.results["domains"]}
    lines = [[name, *(number(part[level] if part else None) for level in levels)] for name, part in parts.items()]
    interval = figures.score.entry()["ci95"] if figures.score else None
    mean = f"mean of domains: {number(figures.results['mean'])} {interval_text(interval)}"
    return f"{text_table(['part', *levels], lines)}\n{mean}"


def _per_cent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f}"


def _write(files: Sequence[Path], model: str, suite: str, figures: Figures, table: Mapping[str, Any]) -> None:
    """Writes the three files, each whole or not at all. Raises UserError where one cannot be written."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    results, predictions, row = files
    part = predictions.with_name(f".{predictions.name}.{os.getpid()}.part")
    try:
        pq.write_table(pa.table(dict(table)), part)
        part.replace(predictions)
    except OSError as error:
        raise UserError(f"--output: {predictions} could not be written: {error.strerror or error}") from error
    finally:
        part.unlink(missing_ok=True)
    score = figures.score.entry() if figures.score else {"accuracy": None, "ci95": None}
    line = {"model": model, "suite": suite, "accuracy": score["accuracy"], "ci95": score["ci95"], **figures.columns}
    for path, content in ((row, line), (results, figures.results)):
        with replacing(path) as file:
            file.write(json.dumps(content, indent=2, ensure_ascii=False) + "\n")
