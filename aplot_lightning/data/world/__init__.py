"""The embedded preference world: pairs of short texts with a known true reward, made on the spot from a seed.

A prompt states facts and asks one of three questions; a response answers one of them, with right or wrong facts and
numbers, politely or not, at length or not:

    Karim loads 2 anchors in the barn, Samir 4. How many in all?
    Great question! In the yard they load 6.   |   Samir loads 2 more in the barn.

The true reward is 1.5 answers + 1.15 facts + 0.75 arithmetic + 0.5 politeness - 0.22 fillers (`Qualities`,
`true_reward`); an annotator prefers the better response with probability sigmoid(gap / temperature), and sometimes
slips. The stock phrase "Great question!" is worth nothing, but in training it mostly stands before the better response.
A conversation has 35 tokens on average, 43 at most (38 and 47 in the new style).

What plain Bradley-Terry reaches, measured on 2026-11-24: 4,000 training pairs (seed 1), 2,000 pairs a set (seed 2),
the decoder of `write_world_decoder` from scratch with a linear head on the last token, AdamW at 1e-3 with 5 % warm-up
and cosine, gradient norm 1, batch 32, 6 epochs, one CPU thread (57 to 60 s a fit); mean and range of four seeds. A set
of 2,000 has a standard error of about 0.01.

    set            Bayes accuracy   BT accuracy
    none (ID)      0.891            0.799   0.790 to 0.806
    new_topics     0.890            0.726   0.715 to 0.743
    new_style      0.894            0.734   0.708 to 0.754
    reversed_cue   0.895            0.640   0.607 to 0.666
    hard_pairs     0.934            0.673   0.668 to 0.681

BT learns to compare the places of prompt and response (0.87 of the hard pairs that differ in a fact), not to add
(0.48 of those that differ in the number), and leans on the cue (0.54 of the pairs that have it reversed, 0.85 ID).
Places that training never showed undo the first (0.52 of such pairs on new topics). At a learning rate of 2e-3 two
seeds out of two did not learn it (ID 0.74 and 0.75).
"""

from __future__ import annotations

from aplot_lightning.data.world.decoder import world_tokenizer, world_words, write_world_decoder
from aplot_lightning.data.world.preferences import LatentPair, PreferenceWorld, bayes_accuracy
from aplot_lightning.data.world.qualities import Qualities, true_reward

__all__ = [
    "LatentPair",
    "PreferenceWorld",
    "Qualities",
    "bayes_accuracy",
    "true_reward",
    "world_tokenizer",
    "world_words",
    "write_world_decoder",
]
