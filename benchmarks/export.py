"""Exported runs: the difference between Transformers alone, in padded batches, and `aplot score`.

    python benchmarks/export.py --data PAIRS.jsonl.gz RUN [RUN ...] [--texts 200] [--python OTHER/bin/python]

Each run is exported by the command; the texts are the two sides of the first pairs that fit without truncation.
`--python` scores in another environment, for example with an older Transformers, which does not need this package.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from score import pairs_that_fit  # the script in this folder

INSIDE = """
import json, sys, torch, transformers
from transformers import AutoModelForSequenceClassification, AutoTokenizer
folder, source = sys.argv[1:]
tokenizer = AutoTokenizer.from_pretrained(folder)
model = AutoModelForSequenceClassification.from_pretrained(folder, torch_dtype=torch.float32).eval()
tokenizer.padding_side = "right"
texts = [tokenizer.apply_chat_template(chat, tokenize=False) for chat in json.load(open(source))]
rewards, padded = [], 0
for start in range(0, len(texts), 16):
    batch = tokenizer(texts[start : start + 16], padding=True, add_special_tokens=False, return_tensors="pt")
    padded += int((batch["attention_mask"] == 0).sum())
    with torch.no_grad():
        rewards += model(**batch).logits[:, 0].tolist()
print(json.dumps({"rewards": rewards, "padded": padded, "version": transformers.__version__,
                  "pad_is_eos": tokenizer.pad_token_id == tokenizer.eos_token_id}))
"""


def compare(run: str, data: str, texts: int, python: str, folder: Path) -> str:
    """One row of the table."""
    from aplot_lightning.data.comparisons import conversation_of

    rows = pairs_that_fit(data, run, texts)
    (folder / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    aplot = [sys.executable, "-m", "aplot_lightning"]
    subprocess.run([*aplot, "export", "--model", run, "--output", str(folder / "model")], check=True, stdout=sys.stderr)
    paths = ["--input", str(folder / "pairs.jsonl"), "--output", str(folder / "scored.jsonl")]
    subprocess.run([*aplot, "score", "--model", run, *paths], check=True, stdout=sys.stderr)
    scored = [json.loads(line) for line in (folder / "scored.jsonl").read_text().splitlines()]
    ours = [row[f"{side}_reward"] for row in scored for side in ("chosen", "rejected")]
    chats = [list(conversation_of(row["prompt"], row[side])) for row in rows for side in ("chosen", "rejected")]
    (folder / "chats.json").write_text(json.dumps(chats))
    command = [python, "-c", INSIDE, str(folder / "model"), str(folder / "chats.json")]
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=environment, cwd=folder)
    theirs = json.loads(done.stdout.splitlines()[-1])
    difference = max(abs(a - b) for a, b in zip(ours, theirs["rewards"], strict=True))
    spread = max(ours) - min(ours)
    pad = "yes" if theirs["pad_is_eos"] else "no"
    cells = [Path(run).name, len(ours), theirs["version"], pad, theirs["padded"], f"{spread:.3f}", f"{difference:.1e}"]
    return f"| {' | '.join(map(str, cells))} |"


def main() -> None:
    parser = argparse.ArgumentParser(description="exported runs scored by Transformers alone")
    parser.add_argument("runs", nargs="+")
    parser.add_argument("--data", required=True)
    parser.add_argument("--texts", type=int, default=200)
    parser.add_argument("--python", default=sys.executable)
    options = parser.parse_args()
    print("| run | texts | transformers | pad is EOS | padding tokens | spread of rewards | largest difference |")
    print("|---|--:|--:|---|--:|--:|--:|", flush=True)
    for run in options.runs:
        with TemporaryDirectory() as folder:
            print(compare(run, options.data, options.texts, options.python, Path(folder)), flush=True)


if __name__ == "__main__":
    main()
