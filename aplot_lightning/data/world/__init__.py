"""A preference world with a known true reward."""

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
