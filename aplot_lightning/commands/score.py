"""`score`: a reward for every response of a file, row by row and in order, in bounded memory.

Heavy imports wait until the cheap mistakes (a missing input, an existing output) are found.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Literal

from aplot_lightning.errors import UserError
from aplot_lightning.inference.job import Job, finish, first_rows, rewards_of, score_all
from aplot_lightning.inference.rows import Row, read_row, scored

if TYPE_CHECKING:
    from aplot_lightning.inference.calibration import Calibration
    from aplot_lightning.inference.part import Part
    from aplot_lightning.inference.scorer import Scorer

Method = Literal["temperature", "isotonic"]


def main(
    model: str,
    input: str,
    output: str,
    dtype: str = "float32",
    max_length: int | None = None,
    batch_size: int | None = None,
    batch_tokens: int | None = None,
    overwrite: bool = False,
    resume: bool = False,
    ensemble: list[str] | None = None,
    combine: Literal["mean", "minimum", "mean_minus_variance"] = "mean",
    normalise: bool = False,
    calibrate: str | None = None,
    calibration: Method = "temperature",
) -> None:
    """Gives every response of a file its reward.

    The output holds the input rows in their order: pairs with chosen_reward and rejected_reward, rows of responses
    with rewards, rows of one response with reward. A row that cannot be used gets null and a warning with its line.

    Args:
        model: A run directory (its best checkpoint), a checkpoint file, an exported folder or a hub name.
        input: Rows of {"prompt", "chosen", "rejected"}, {"prompt", "responses"} or {"prompt", "response"}; JSONL,
            JSONL.gz or Parquet.
        output: Where to write, JSONL, JSONL.gz or Parquet by its name; the file appears when it is whole.
        dtype: Precision of the backbone: float32, bfloat16 or float16.
        max_length: Tokens of a prompt with one response; the run's own if not given.
        batch_size: Responses in one forward, in place of batch_tokens.
        batch_tokens: Tokens in one forward, padding among them; 2048 on a processor and 32768 on a GPU if not given.
        overwrite: Replace an output that exists, and begin anew.
        resume: Go on where a former run of the same command stopped, if there is one.
        ensemble: Further models, as [RUN_B,RUN_C]; each reads and scores every response, and the rewards are combined.
        combine: What is made of the models' rewards of a response: mean, minimum or mean_minus_variance (over the
            models, divided by their number). Rewards are taken as each model gives them: where models were trained
            apart, their scales and offsets are apart too.
        normalise: Rewards less each model's own mean, divided by its scale, as `export --normalise` wrote them.
        calibrate: A file of pairs that are known, to fit a curve from gaps to probabilities on: each pair row then has
            probability, that of chosen being preferred; the fit is written beside the output.
        calibration: The curve: temperature (one number) or isotonic (any monotone curve, for some thousand pairs).
    """
    more = {"command": "score"}
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
        more=more,
    )
    if not job.check():
        print(f"{output} is whole: nothing is left to do")
        return
    if calibrate is None:
        if calibration != "temperature":
            raise UserError(f"--calibration {calibration} needs pairs to fit it on: name a file by --calibrate")
        source, rows = first_rows(input, "--input")
        scorer = job.load()
        with job.open(scorer) as part:
            score_all(job, source, rows, scorer, part, read_row, scored)
            print(finish(job, part))
        return
    _check_calibration(job, calibrate)
    source, rows = first_rows(input, "--input")
    known, _ = first_rows(calibrate, "--calibrate")
    more |= {"--calibrate": known.fingerprint(), "--calibration": calibration}
    scorer = job.load()
    with job.open(scorer) as part:
        curve = _fitted(part, scorer, calibrate, calibration)
        score_all(job, source, rows, scorer, part, read_row, _with_probability(curve))
        from aplot_lightning.inference.calibration import as_file, calibration_path

        print(finish(job, part, {calibration_path(job.path): as_file(curve)}))


def _check_calibration(job: Job, calibrate: str) -> None:
    """Raises UserError where the fit's file is there and may not be replaced."""
    from aplot_lightning.inference.calibration import calibration_path

    path = calibration_path(job.path)
    if path.exists() and not (job.overwrite or job.resume):
        raise UserError(f"--calibrate: {path} exists already: move it, name another --output, or add --overwrite true")


def _fitted(part: Part, scorer: Scorer, given: str, method: Method) -> Calibration:
    """The curve, of a former run where this one goes on."""
    from aplot_lightning.inference.calibration import Calibration, fit_on_pairs, target_of

    if part.calibration is not None:
        return Calibration(**part.calibration)
    rows = rewards_of(given, "--calibrate", scorer)
    curve = fit_on_pairs([(row.gap, target_of(row.content)) for row in rows if row.gap is not None], method, given)
    part.note(curve.to_json())
    return curve


def _with_probability(curve: Calibration) -> Callable[[Row], Mapping[str, Any]]:
    def write(row: Row) -> Mapping[str, Any]:
        content = scored(row)
        if row.layout == "pair":
            content["probability"] = None if row.gap is None else float(curve(row.gap))
        return content

    return write
