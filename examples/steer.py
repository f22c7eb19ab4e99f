"""Generation guided by a reward model: best-of-n, and reward-guided speculative decoding with two local models.

    python examples/steer.py --target HuggingFaceTB/SmolLM2-135M-Instruct --draft SMALLER_OR_THE_SAME --reward RUN \\
        --prompt "How do I keep bread fresh?" --n 8 --threshold 0.5

--target and --draft are folders or hub names of causal language models, whose vocabularies may differ; --reward is a
run directory, a checkpoint or an exported folder. A step of the draft is kept if sigmoid((reward - middle) / width) of
the response so far is at least the threshold. Here middle and width are the mean and the standard deviation of the
rewards of the n samples, so that 0.5 is the average quality of the target. With responses known to be right or wrong,
calibrate on them instead. Prints the best of n samples of the target, then the guided response with the author of each
step.
"""

from __future__ import annotations

import argparse
import sys
from math import exp
from statistics import fmean, pstdev

from aplot_lightning.errors import UserError
from aplot_lightning.inference.generation import Generator
from aplot_lightning.inference.steering import best_of_n, speculative_decode
from aplot_lightning.model.reward_model import RewardModel


def main() -> None:
    parser = argparse.ArgumentParser(description="generation steered by a reward model")
    parser.add_argument("--target", required=True)
    parser.add_argument("--draft", required=True)
    parser.add_argument("--reward", required=True)
    parser.add_argument("--prompt", default="How do I keep bread fresh?")
    parser.add_argument("--n", type=int, default=8)
    parser.add_argument("--threshold", type=float, default=0.5)
    parser.add_argument("--max_tokens", type=int, default=128)
    parser.add_argument("--temperature", type=float, default=0.8)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()

    target = Generator.load(options.target, temperature=options.temperature)
    draft = Generator.load(options.draft, temperature=options.temperature)
    reward_model = RewardModel.from_pretrained(options.reward).to(target.model.device)

    limits = {"max_tokens": options.max_tokens, "seed": options.seed}
    sampled = best_of_n(target, reward_model, options.prompt, options.n, **limits)
    rewards = [reward for reward in sampled.rewards if reward > float("-inf")]
    write(f"best of {options.n}: reward {max(rewards):.3f}, mean {fmean(rewards):.3f}\n\n{sampled.response}\n")

    middle, width = fmean(rewards), pstdev(rewards) or 1.0

    def calibrated(reward: float) -> float:
        return 1 / (1 + exp(min(700.0, (middle - reward) / width)))

    steered = speculative_decode(
        draft, target, reward_model, options.prompt, options.threshold, calibration=calibrated, **limits
    )
    write(
        f"speculative: {steered.accepted} of {len(steered.steps)} steps are the draft's; the draft generated "
        f"{steered.draft_tokens} tokens ({steered.kept_draft_tokens} kept), the target {steered.target_tokens}\n"
    )
    for step in steered.steps:
        write(f"[{step.by}, draft's step at {step.reward:.2f}] {step.text.strip()}")


def write(text: str) -> None:
    sys.stdout.write(f"{text}\n")


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        raise SystemExit(f"steer: {error}") from error
