"""Bad records: masked, counted, told, and fatal in numbers."""

from __future__ import annotations

import lightning.pytorch as pl
import pytest
import torch

from tests.support import tiny
from tests.support.made_sources import Damaged
from tests.support.optimizer_config import OPTIM
from visllama.data.samples import masked_sample
from visllama.data.scenes.source import ScenesSource
from visllama.errors import BadRecord, ConfigError
from visllama.training.callbacks.bad_records import BadRecords
from visllama.training.module import VisLlamaModule


def fit(model, bad, watch, num_steps=5, **more):
    data = tiny.data_of(model, {"mine": Damaged(bad)}, ScenesSource("val", 4, 1), 8, num_steps, **more)
    module = VisLlamaModule(model, OPTIM | {"lr": 4e-3}, num_steps)
    trainer = pl.Trainer(
        accelerator="cpu", max_epochs=1, max_steps=num_steps, logger=False, enable_checkpointing=False, callbacks=[watch],
        enable_progress_bar=False, enable_model_summary=False, log_every_n_steps=1, limit_val_batches=0, precision="64-true",
    )  # fmt: skip
    trainer.fit(module, data)
    return trainer


def test_counted_by_source_and_reason(make_model, caplog):
    """20 records in five steps of 8: two passes, each bad record comes twice."""
    watch = BadRecords(0.01, 100)
    trainer = fit(make_model(), {2: "image", 7: "cut", 9: "cut"}, watch)
    assert watch.train.counts == {"mine/image": 2, "mine/cut": 4} and watch.train.num_samples == 40
    assert trainer.callback_metrics["data/bad/mine/cut"] == 4.0
    assert caplog.text.count("the record mine/9 is masked: cut: record 9") == 2
    again = BadRecords(0.01, 100)
    again.load_state_dict(watch.state_dict())
    assert again.train.counts == watch.train.counts and again.train.num_samples == 40


def test_masked_records_change_nothing_for_the_others(make_model, records):
    """Loss and gradients of a step with masked samples are those of the step without them."""
    model = make_model()
    samples = [tiny.maker_of(model)(record, 0) for record in records]
    bad = masked_sample("x", "mine", BadRecord("image", "x"))
    found = []
    for chosen in (samples, [bad, *samples[:2], bad, *samples[2:], bad]):
        step = tiny.collator_of(model, 4).step(chosen)
        loss = sum(model(**batch).loss_sum for batch in step["micro_batches"]) / step["num_targets"]
        found.append((loss, torch.autograd.grad(loss, model.markers)[0]))
    (loss, gradient), (with_bad, gradient_with_bad) = found
    # Other micro-batches add up in another order: fp64 rounding.
    assert abs(loss - with_bad) / loss < 1e-12 and (gradient - gradient_with_bad).norm() / gradient.norm() < 1e-12


def test_a_step_of_nothing_else_is_survived(make_model):
    model = make_model()
    fit(model, dict.fromkeys(range(20), "image"), BadRecords(1.0, 1000), num_steps=2)
    assert all(torch.isfinite(p).all() for p in model.parameters())


def test_too_many_stop_the_run(make_model):
    bad = dict.fromkeys(range(0, 20, 2), "header")
    with pytest.raises(
        ConfigError,
        match=r"data\.max_bad_fraction=0\.0005: step \d, 6 of \d+ samples .*mine/header 6.*the last: mine/3: record 3",
    ):
        watch = BadRecords(0.0005, 100)
        watch.train.counts.update({"mine/header": 5})
        fit(make_model(), {3: "header"}, watch)
    with pytest.raises(ConfigError, match=r"data\.max_consecutive_bad=3: step \d, \d records one after the other"):
        fit(make_model(), bad | dict.fromkeys(range(1, 20, 4), "cut"), BadRecords(1.0, 3))


def validate(model, bad, watch, count=20):
    """Validate twice on records of which some cannot be read."""
    data = tiny.data_of(model, {"mine": ScenesSource("train", 8, 1)}, Damaged(bad, count), 8, 2)
    trainer = pl.Trainer(
        accelerator="cpu", max_epochs=1, max_steps=2, logger=False, enable_checkpointing=False, callbacks=[watch], num_sanity_val_steps=0,
        enable_progress_bar=False, enable_model_summary=False, val_check_interval=1, precision="64-true",
    )  # fmt: skip
    trainer.fit(VisLlamaModule(model, OPTIM | {"lr": 0.0}, 2), data)
    return trainer


def test_those_of_a_validation_are_counted_by_themselves(make_model, caplog):
    """Each validation sees the same records again: a count over all of them would grow by itself."""
    watch = BadRecords(0.01, 100)
    trainer = validate(make_model(), {2: "image", 7: "cut"}, watch)
    assert watch.val.counts == {"mine/image": 1, "mine/cut": 1} and watch.val.num_samples == 20
    assert not watch.train.counts and watch.train.num_samples == 16
    assert trainer.callback_metrics["val/bad/mine/cut"] == 1.0
    assert "validation at step 2: the record mine/7 is masked: cut: record 7" in caplog.text
    again = BadRecords(0.01, 100)
    again.load_state_dict(watch.state_dict())
    assert again.val.counts == watch.val.counts


def test_masked_records_change_no_validation_loss(make_model):
    bad = dict.fromkeys((0, 5, 19), "pixels")
    model = make_model()
    data = tiny.data_of(model, {"mine": ScenesSource("train", 8, 1)}, Damaged({}), 8, 2)
    good = [data.val[i] for i in range(20) if i not in bad]
    with torch.no_grad():
        total = sum(model(**data.collator.training_batch([sample])).loss_sum for sample in good)
    found = validate(model, bad, BadRecords(0.2, 100)).callback_metrics["val/loss"]
    expected = total / sum(sample.num_targets for sample in good)
    assert abs(found - expected) < 1e-6  # Lightning logs in fp32


def test_too_many_in_a_validation_stop_the_run(make_model):
    with pytest.raises(
        ConfigError, match=r"data\.max_bad_fraction=0\.0005: validation at step 1, 8 of 8 samples cannot be read"
    ):
        validate(make_model(), dict.fromkeys(range(12), "cut"), BadRecords(0.0005, 100))
    with pytest.raises(ConfigError, match=r"data\.max_consecutive_bad=3: validation at step 1, 8 records one after"):
        validate(make_model(), dict.fromkeys(range(12), "cut"), BadRecords(1.0, 3))


def test_of_a_validation_the_share_counts_however_few_its_records_are(make_model):
    """In training so few say little yet; a validation is seen whole."""
    with pytest.raises(
        ConfigError, match=r"data\.max_bad_fraction=0\.01: validation at step 1, 3 of 20 samples cannot be read"
    ):
        validate(make_model(), dict.fromkeys(range(3), "cut"), BadRecords(0.01, 100))
    validate(make_model(), dict.fromkeys(range(2), "cut"), BadRecords(0.01, 100))


def test_a_validation_of_nothing_else_is_an_error(make_model):
    with pytest.raises(ConfigError, match="val/loss: none of the 5 validation records has a supervised token"):
        validate(make_model(), dict.fromkeys(range(5), "cut"), BadRecords(1.0, 1000), count=5)
