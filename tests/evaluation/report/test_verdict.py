"""The two sentences of a study's report, on numbers made by hand."""

from __future__ import annotations

import pytest

from aplot_lightning.evaluation.report.estimates import Difference
from aplot_lightning.evaluation.report.verdict import Level, gain_sentence, selection_sentence, verdict


def difference(value: float, interval: tuple[float, float] | None, p_holm: float | None) -> Difference:
    return Difference(value, interval, 100, 3, p_holm, p_holm, p_holm)


REAL = difference(0.012, (0.003, 0.021), 0.004)
UNSHOWN = difference(0.001, (-0.004, 0.006), 0.71)
LOSS = difference(-0.02, (-0.03, -0.01), 0.0001)


def test_a_gain_that_is_real_on_one_set_and_not_shown_on_another() -> None:
    assert gain_sentence("bt", 5, {"OOD mean": REAL, "id": UNSHOWN}) == (
        "With 5 fresh seeds, the gain over bt is real on OOD mean (+0.012 [+0.003, +0.021], p = 0.004) and not shown "
        "on id (+0.001 [-0.004, +0.006], p = 0.710)."
    )


def test_a_loss_is_said_to_be_one() -> None:
    said = gain_sentence("bt", 3, {"id": LOSS})
    assert "negative, a loss on id (-0.020 [-0.030, -0.010], p < 0.001)" in said


@pytest.mark.parametrize(
    "doubtful",
    [
        difference(0.012, (0.003, 0.021), 0.06),  # the corrected test does not see it
        difference(0.012, (-0.001, 0.021), 0.04),  # the interval does not
        difference(0.012, None, 0.001),
        difference(0.012, (0.003, 0.021), None),
    ],
)
def test_a_gain_is_real_only_where_interval_and_test_agree(doubtful: Difference) -> None:
    assert verdict(doubtful) == "not shown"


def test_one_seed_says_nothing_of_others() -> None:
    said = gain_sentence("bt", 1, {"id": REAL})
    assert said.startswith("With 1 fresh seed, where the intervals do not include the spread between seeds, ")


def test_without_a_test_set_nothing_is_claimed() -> None:
    assert gain_sentence("bt", 5, {}) == ("Nothing says whether the gain over bt is real: no test set was evaluated.")


def test_how_much_of_the_gain_was_selection() -> None:
    chosen, baseline = Level(0.834, 0.826, 0.821), Level(0.814, 0.816, 0.816)
    # of 0.834 - 0.814 = 0.020, 0.826 - 0.816 = 0.010 is left: half
    assert selection_sentence("validation/accuracy", 40, chosen, "bt", baseline) == (
        "The best of 40 trials had a validation/accuracy of 0.834 and reaches 0.826 with fresh seeds (id accuracy "
        "0.821), while bt went from 0.814 to 0.816 (id accuracy 0.816): of the trial's gain of +0.020 over bt, +0.010 "
        "is left with fresh seeds and +0.005 on id; 50 % of it was selection."
    )


def test_a_baseline_that_was_no_trial_is_compared_by_its_fresh_seeds() -> None:
    said = selection_sentence("validation/accuracy", 9, Level(0.83, 0.81, 0.8), "bt", Level(None, 0.8, 0.8))
    assert "while bt (no trial of the study) reaches 0.800" in said
    assert said.endswith(
        "of the trial's gain of +0.030 over bt, +0.010 is left with fresh seeds and +0.000 on id; "
        "67 % of it was selection."
    )


@pytest.mark.parametrize(("fresh", "share"), [(0.79, "all"), (0.8, "all"), (0.83, "nothing"), (0.84, "nothing")])
def test_a_share_is_between_nothing_and_all(fresh: float, share: str) -> None:
    said = selection_sentence("validation/accuracy", 9, Level(0.83, fresh, 0.8), "bt", Level(0.8, 0.8, 0.8))
    assert said.endswith(f"{share} of it was selection.")


def test_where_lower_is_better_a_gain_is_a_lower_value() -> None:
    chosen, baseline = Level(0.40, 0.44, 0.8), Level(0.50, 0.50, 0.8)
    said = selection_sentence("validation/log_loss", 9, chosen, "bt", baseline, lower_is_better=True)
    assert said.endswith("gain of +0.100 over bt, +0.060 is left with fresh seeds; 40 % of it was selection.")


def test_no_gain_leaves_nothing_to_ask() -> None:
    said = selection_sentence("validation/accuracy", 9, Level(0.79, 0.78, None), "bt", Level(0.8, 0.8, None))
    assert said.endswith("(id was not evaluated): no trial was better than bt, so there is no gain to test.")
