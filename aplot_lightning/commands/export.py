"""`export`: a model as a plain Transformers folder with a model card, and on the hub if asked for.

Heavy imports wait until the cheap mistakes (a missing model, an output in the way, no login) are found.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from aplot_lightning.errors import RunError, UserError
from aplot_lightning.inference.job import first_rows, measure
from aplot_lightning.inference.normalisation import card_section, with_normalisation
from aplot_lightning.model.locate import HUB_NAME, ModelPlace, locate_model

DTYPES = ("float32", "bfloat16", "float16")
PACKAGES = ("aplot-lightning", "transformers", "tokenizers", "torch")


def main(
    model: str,
    output: str,
    dtype: str = "float32",
    max_length: int | None = None,
    overwrite: bool = False,
    push_to_hub: str | None = None,
    private: bool = False,
    normalise: str | None = None,
) -> None:
    """Writes a model as a plain Transformers folder for sequence classification, with tokenizer and model card.

    Transformers, TRL, vLLM and others load it without this package and without code of its own. What was written is
    read and compared with the model's own rewards before the folder appears.

    Args:
        model: A run directory (its best checkpoint), a checkpoint file, a Hugging Face folder or a hub name.
        output: The folder to make; it appears when it is whole.
        dtype: Precision of the weights: float32, bfloat16 or float16. In half precision the head is narrowed too.
        max_length: Tokens of a prompt with one response; the run's own if not given.
        overwrite: Replace an exported folder that exists.
        push_to_hub: A hub name (OWNER/NAME or NAME) to upload the folder to; it is kept here too.
        private: Make the repository on the hub a private one.
        normalise: A file of rows as `score` reads them; the mean and scale of their rewards go into config.json and the
            model card, for `score --normalise true`.
    """
    target = Path(output)
    place = _check(model, target, dtype, max_length, overwrite)
    if push_to_hub is not None:
        _check_hub(push_to_hub)
    elif private:
        raise UserError("--private true needs a repository: name one by --push_to_hub")

    if normalise is not None:
        first_rows(normalise, "--normalise")  # a file that cannot be read is found before torch is loaded
    from aplot_lightning.model.export import export_model

    with _appearing(target) as part:
        loaded = _load(model, dtype, max_length)
        measured = None if normalise is None else measure(loaded, normalise)
        facts = export_model(loaded, part)
        config = part / "config.json"
        config.write_text(with_normalisation(config.read_text(encoding="utf-8"), measured), encoding="utf-8")
        card = _card(push_to_hub or target.name, facts, _run_of(place), model)
        card += "" if measured is None else card_section(measured)
        (part / "README.md").write_text(card, encoding="utf-8")
    for note in facts.notes:
        print(f"warning: {note}", file=sys.stderr)
    print(f"exported {facts.architecture} in {facts.dtype}, rewards differ by up to {facts.difference:.1g}: {output}")
    if push_to_hub is not None:
        print(f"pushed: {_push(push_to_hub, target, private)}")


def _check(model: str, target: Path, dtype: str, max_length: int | None, overwrite: bool) -> ModelPlace:
    """Where the model is; the mistakes that can be told before anything heavy is imported."""
    if dtype not in DTYPES:
        raise UserError(f"--dtype {dtype!r} is unknown: choose one of {', '.join(DTYPES)}")
    if max_length is not None and max_length < 1:
        raise UserError(f"--max_length is {max_length}: it must be at least 1")
    place = locate_model(model, "--model")
    if place.kind == "architecture":
        raise UserError(f"--model: {model!r} holds no weights, so there is nothing to export; name a trained model")
    if target.is_symlink() or (target.exists() and not target.is_dir()):
        raise UserError(f"--output: {target} is a file or a link: name a folder")
    own = [] if place.kind == "hub" else [Path(model).resolve(), *Path(place.source).resolve().parents]
    if not target.name or target.resolve() in own:
        raise UserError(f"--output: {str(target)!r} is where the model itself lies, or no name: name another folder")
    if target.is_dir() and (inside := list(target.iterdir())):
        if not overwrite:
            raise UserError(f"--output: {target} exists already: name another folder or add --overwrite true")
        if not _is_exported(target) or any(path.is_dir() for path in inside):
            raise UserError(f"--output: {target} holds other things than an exported model: name another folder")
    return place


def _is_exported(folder: Path) -> bool:
    """Whether an export wrote the folder, as its label says; another one is not to be deleted."""
    try:
        return json.loads((folder / "config.json").read_text(encoding="utf-8"))["id2label"] == {"0": "REWARD"}
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _check_hub(name: str) -> None:
    """Raises UserError where the folder could not be uploaded in the end: no such name, no network, no login."""
    if not HUB_NAME.fullmatch(name):
        raise UserError(
            f"--push_to_hub: {name!r} is no hub name: give OWNER/NAME, of letters, digits, '-', '_' and '.'"
        )
    from huggingface_hub import HfApi, constants, errors

    if constants.HF_HUB_OFFLINE:
        raise UserError("--push_to_hub: HF_HUB_OFFLINE is set: unset it, or leave --push_to_hub away")
    mend = "log in by `hf auth login` or set HF_TOKEN to a token that may write"
    try:
        token = HfApi().whoami().get("auth", {}).get("accessToken", {})
    except errors.LocalTokenNotFoundError as error:
        raise UserError(f"--push_to_hub: there is no login to the hub: {mend}") from error
    except errors.HfHubHTTPError as error:
        raise UserError(f"--push_to_hub: the hub refuses the login ({_one_line(error)}): {mend}") from error
    except Exception as error:  # no network, a proxy, a time-out: of the client in use
        raise UserError(f"--push_to_hub: the hub cannot be reached ({_one_line(error)}); try without it") from error
    if token.get("role") == "read":
        raise UserError(f"--push_to_hub: the login may only read: {mend}")


def _push(name: str, folder: Path, private: bool) -> str:
    from huggingface_hub import HfApi

    try:
        api = HfApi()
        url = api.create_repo(name, private=private or None, exist_ok=True)
        api.upload_folder(repo_id=url.repo_id, folder_path=folder, commit_message="Export by aplot_lightning")
    except Exception as error:  # of the client in use: refused, cut off, timed out
        raise RunError(
            f"--push_to_hub: {name} was not uploaded ({_one_line(error)}), the folder is kept; again: "
            f"hf upload {name} {folder}"
        ) from error
    return str(url)


@contextmanager
def _appearing(target: Path) -> Iterator[Path]:
    """An empty folder beside `target` that takes its place when all went well and vanishes when not."""
    part = target.with_name(f".{target.name}.{os.getpid()}.part")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        part.mkdir()
        yield part
        _replace(part, target)
    except Exception as error:
        if not _is_about_writing(error):
            raise
        reason = getattr(error, "strerror", None) or _one_line(error)
        raise UserError(f"--output: {target} could not be written: {reason}") from error
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _replace(part: Path, target: Path) -> None:
    """Moves `part` to `target`; what was there is deleted only when that is done."""
    old = part.with_suffix(".old")
    if target.exists():
        target.rename(old)
    try:
        part.rename(target)
    except BaseException:
        if old.exists():
            old.rename(target)
        raise
    shutil.rmtree(old, ignore_errors=True)


def _is_about_writing(error: Exception) -> bool:
    return isinstance(error, OSError) or type(error).__name__ == "SafetensorError"  # not imported for its name alone


def _load(model: str, dtype: str, max_length: int | None) -> Any:
    """The RewardModel; one with a fresh head is a mistake here."""
    from aplot_lightning.model.reward_model import RewardModel

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        try:
            loaded = RewardModel.from_pretrained(model, dtype=dtype, max_length=max_length, key="--model")
        except OSError as error:
            raise UserError(f"--model: {model!r} could not be read: {_one_line(error)}") from error
    for warning in caught:
        if "has no reward head" in str(warning.message):
            raise UserError(
                f"--model: {model!r} has no reward head, so there is nothing to export; name a reward model"
            )
        print(f"warning: {warning.message}", file=sys.stderr)
    return loaded


def _run_of(place: ModelPlace) -> Any:
    """The finished Run whose best checkpoint the model is, since its figures are of no other; else None."""
    path = Path(place.source)
    if place.kind != "checkpoint" or path.name != "best.ckpt":
        return None
    from aplot_lightning.evaluation.report.runs import read_run

    try:
        return read_run(path.resolve().parent.parent)
    except UserError as error:
        print(f"warning: the model card has no figures: {error}", file=sys.stderr)
        return None


def _card(name: str, facts: Any, run: Any, model: str) -> str:
    from importlib.metadata import version

    from aplot_lightning.evaluation.report.card import Folder, model_card

    folder = Folder(
        name=name,
        architecture=facts.architecture,
        parameters=facts.parameters,
        dtype=facts.dtype,
        max_length=facts.max_length,
        reading=facts.reading,
        notes=facts.notes,
        versions={package: version(package) for package in PACKAGES},
    )
    return model_card(folder, run, model)


def _one_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[0] if lines else type(error).__name__)[:120]
