"""In the place of `fit` where only its life and death matter: a value from the trial's config, after a moment.

What it does is in the config's `tiny`: x (the value is 1 - (x - 0.3)^2), the seconds that it sleeps, `prune`, and the x
from which on it fails.
"""

import json
import sys
import time
from pathlib import Path


def read(text: str) -> dict[str, str]:
    """The two levels of YAML that a trial's config has here; there is no time for more."""
    pairs = [line.strip().partition(":") for line in text.splitlines()]
    return {name: value.strip() for name, _, value in pairs if value.strip()}


def main(words: list[str]) -> int:
    run_dir = Path(words[words.index("--run_dir") + 1])
    options = read((run_dir / "trial.yaml").read_text())
    if "sleep" in options:
        time.sleep(float(options["sleep"]))
    if options.get("fail", "0") != "0" and float(options["x"]) >= float(options["fail"]):
        sys.stderr.write("Traceback (most recent call last):\n  a line\naplot: x is too large\n")
        return 1
    value = 1 - (float(options["x"]) - 0.3) ** 2 + int(options["seed_everything"])
    (run_dir / "value.json").write_text(json.dumps({"value": value, "pruned": "prune" in options}))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
