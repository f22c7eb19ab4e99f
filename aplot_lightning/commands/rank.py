"""`rank`: best-of-n, the candidates of each prompt with their rewards, best first.

Heavy imports wait until the cheap mistakes (a missing input, an existing output) are found.
"""

from __future__ import annotations

from functools import partial
from typing import Literal

from aplot_lightning.errors import UserError
from aplot_lightning.inference.job import Job, finish, first_rows, score_all
from aplot_lightning.inference.ranking import ranked
from aplot_lightning.inference.rows import read_candidates


def main(
    model: str,
    input: str,
    output: str,
    top: int | None = None,
    dtype: str = "float32",
    max_length: int | None = None,
    batch_size: int | None = None,
    batch_tokens: int | None = None,
    overwrite: bool = False,
    resume: bool = False,
    ensemble: list[str] | None = None,
    combine: Literal["mean", "minimum", "mean_minus_variance"] = "mean",
    normalise: bool = False,
) -> None:
    """Ranks the candidates of each prompt by their rewards.

    The output holds the input rows in their order, with rewards (one a candidate, in the row's order) and order (places
    from 0, best first; of equal rewards the earlier first). A row with equal rewards among its best says so in ties,
    groups of places. A row that cannot be used, as one without responses, gets null and a warning with its line.

    Args:
        model: A run directory (its best checkpoint), a checkpoint file, an exported folder or a hub name.
        input: Rows of {"prompt", "responses"}; JSONL, JSONL.gz or Parquet.
        output: Where to write, JSONL, JSONL.gz or Parquet by its name; the file appears when it is whole.
        top: How many places the order holds; all if not given.
        dtype: Precision of the backbone: float32, bfloat16 or float16.
        max_length: Tokens of a prompt with one response; the run's own if not given.
        batch_size: Responses in one forward, in place of batch_tokens.
        batch_tokens: Tokens in one forward, padding among them; 2048 on a processor and 32768 on a GPU if not given.
        overwrite: Replace an output that exists, and begin anew.
        resume: Go on where a former run of the same command stopped, if there is one.
        ensemble: Further models, as [RUN_B,RUN_C]; their rewards of a response are combined.
        combine: What is made of the models' rewards of a response: mean, minimum or mean_minus_variance.
        normalise: Rewards less each model's own mean, divided by its scale, as `export --normalise` wrote them.
    """
    if top is not None and top < 1:
        raise UserError(f"--top is {top}: it must be at least 1")
    job = Job(
        model=model,
        input=input,
        output=output,
        dtype=dtype,
        max_length=max_length,
        batch_size=batch_size,
        batch_tokens=batch_tokens,
        overwrite=overwrite,
        resume=resume,
        ensemble=ensemble,
        combine=combine,
        normalise=normalise,
        more={"command": "rank", "--top": top},
    )
    if not job.check():
        print(f"{output} is whole: nothing is left to do")
        return
    source, rows = first_rows(input, "--input")
    scorer = job.load()
    with job.open(scorer) as part:
        score_all(job, source, rows, scorer, part, read_candidates, partial(ranked, top=top))
        print(finish(job, part))
