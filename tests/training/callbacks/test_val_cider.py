"""CIDEr at validations: what it is of, beside which controls, and what is refused."""

import lightning.pytorch as pl
import pytest
import torch

from tests.support import tiny
from tests.support.optimizer_config import OPTIM
from visllama.data.datamodule import ValidationSamples
from visllama.data.scenes.source import ScenesSource
from visllama.errors import ConfigError
from visllama.evaluation.captioner import Captioner
from visllama.evaluation.captions import score_captions
from visllama.training.callbacks.curves import Curves
from visllama.training.callbacks.keep_best import KeepBest
from visllama.training.callbacks.val_cider import ValCIDEr
from visllama.training.module import VisLlamaModule

CONFIG = OPTIM | {"lr": 0.02, "schedule": "constant", "warmup_fraction": 0}
DECODING = {"num_beams": 1, "max_new_tokens": 12}
NUM_STEPS = 4


def fit(model, *callbacks, val=None, train=None, **more) -> pl.Trainer:
    trainer = pl.Trainer(
        accelerator="cpu", max_epochs=1, max_steps=NUM_STEPS, val_check_interval=2, num_sanity_val_steps=0, logger=False,
        enable_checkpointing=False, enable_model_summary=False, enable_progress_bar=False, callbacks=list(callbacks), **more,
    )  # fmt: skip
    train = train or {"scenes": ScenesSource("train", 40, 1)}
    data = tiny.data_of(model, train, val or ScenesSource("val", 6, 1), 12, NUM_STEPS, 64)
    trainer.fit(VisLlamaModule(model, CONFIG, NUM_STEPS), data)
    return trainer


def test_it_is_the_cider_of_the_captions_of_the_first_pictures(make_model, capsys, tmp_path):
    model = make_model(dtype=torch.float32)
    curves = Curves(tmp_path / "curves.png")
    trainer = fit(model, ValCIDEr(4, ["shuffled_images", "blank_images"], DECODING, 3), curves)
    figures = {name: float(value) for name, value in trainer.callback_metrics.items() if "CIDEr" in name}
    assert set(figures) == {"val/CIDEr", "val/CIDEr/shuffled_images", "val/CIDEr/blank_images"}

    source = ScenesSource("val", 4, 1)
    records = [source.read(number) for number in range(4)]
    written = Captioner(tiny.maker_of(model), DECODING, 4)(model.eval(), records)
    references = {record["key"]: record["captions"] for record in records}
    expected = score_captions(dict(zip(references, written, strict=True)), references, ("CIDEr",)).values["CIDEr"]
    assert figures["val/CIDEr"] == pytest.approx(expected, rel=1e-6)

    said = capsys.readouterr().out
    assert f"step 4 of 4: CIDEr of 4 validation pictures {100 * expected:.1f} (shuffled images " in said
    assert [step for step, _ in curves.points["val/CIDEr"]] == [2, 4]


def test_the_weights_of_its_best_validation_can_be_kept(make_model):
    keep = KeepBest("val/CIDEr", "max")
    trainer = fit(make_model(dtype=torch.float32), ValCIDEr(6, [], DECODING, 32), keep)
    assert keep.best >= float(trainer.callback_metrics["val/CIDEr"]) and keep.step in (2, 4)


class Questions(ScenesSource):
    """Scenes of which nothing is to be captioned."""

    def read(self, index):
        record = super().read(index)
        record["questions"] = [{"question": "what is it?", "answers": record.pop("captions")}]
        return record


def test_a_source_that_is_known_to_hold_no_captions_is_not_read(make_model, monkeypatch):
    """A look for captions would decode its every picture, at each validation."""
    model = make_model(dtype=torch.float32)
    questions = Questions("val", 6, 1)
    questions.kinds = {"questions": 6}
    val = {"scenes": ScenesSource("val", 6, 1), "questions": questions}
    train = {name: ScenesSource("train", 40, 1) for name in val}
    searched = []
    readable = ValidationSamples.readable
    monkeypatch.setattr(ValidationSamples, "readable", lambda self, name: searched.append(name) or readable(self, name))

    trainer = fit(model, ValCIDEr(4, [], DECODING, 3), val=val, train=train)
    assert "val/CIDEr" in trainer.callback_metrics
    assert searched == ["scenes", "scenes"], "once a validation"


def test_what_cannot_be_measured_is_refused(make_model):
    with pytest.raises(ConfigError, match=r"callbacks\.val_cider\.controls=blank: .*blank_images"):
        ValCIDEr(4, ["blank"], DECODING, 3)
    with pytest.raises(ConfigError, match=r"val_cider: trainer\.val_check_interval=null validates nothing"):
        fit(make_model(), ValCIDEr(4, [], DECODING, 3), limit_val_batches=0)
    with pytest.raises(ConfigError, match="no record that is validated has captions"):
        fit(make_model(dtype=torch.float32), ValCIDEr(4, [], DECODING, 3), val=Questions("val", 6, 1))
