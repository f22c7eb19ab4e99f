"""A process that helps to prepare data: python -m aplot_lightning.data.preparation.helper, started by chunks.py."""

from __future__ import annotations

import json
import os
import pickle
import sys
import traceback
from pathlib import Path
from typing import Any

from aplot_lightning.data.preparation.arrays import ArrayWriter
from aplot_lightning.errors import UserError


def main() -> None:
    """Reads a task, then ranges of record batches until its input ends, and answers each with a line of JSON."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print must not stand among the answers
    size = int.from_bytes(sys.stdin.buffer.read(8), "big")
    task = pickle.loads(sys.stdin.buffer.read(size))
    print(json.dumps({"ready": True}), file=answers, flush=True)
    for line in sys.stdin.buffer:
        start, stop, folder = json.loads(line)
        print(json.dumps(_do(task, start, stop, Path(folder))), file=answers, flush=True)


def _do(task: Any, start: int, stop: int, folder: Path) -> dict[str, Any]:
    try:
        with ArrayWriter(folder) as writer:
            for arrays in task(start, stop):
                writer.append(arrays)
    except UserError as error:
        return {"user_error": str(error)}
    except OSError as error:
        return {"errno": error.errno, "message": str(error)}
    except Exception:
        return {"error": traceback.format_exc()}
    return {}


if __name__ == "__main__":
    main()
