from __future__ import annotations

import logging
import warnings

import pytest

from aplot_lightning.training.log_filters import filter_logs


def test_needless_warnings_stay_out_and_others_come_through() -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        filter_logs()
        for message in ("The 'train_dataloader' does not have many workers", "train_dataloader is empty"):
            warnings.warn(message, stacklevel=1)
    assert [str(warning.message) for warning in caught] == ["train_dataloader is empty"]


def test_advertisement_stays_out_of_the_log(caplog: pytest.LogCaptureFixture) -> None:
    with warnings.catch_warnings():
        filter_logs()
    logger = logging.getLogger("lightning.pytorch.utilities.rank_zero")
    caplog.set_level("INFO", logger.name)
    for message in ("Tip: install `litlogger`", "GPU available: False"):
        logger.info(message)
    assert caplog.messages == ["GPU available: False"]
