from types import SimpleNamespace

import torch

from tests.support.scenes_data import data_of
from tests.support.tiny import maker_of
from visllama.evaluation.captioner import Captioner
from visllama.training.callbacks.sample_texts import SampleTexts


def test_sample_captions_are_shown(make_model, capsys, monkeypatch):
    logged = []
    monkeypatch.setattr("visllama.training.callbacks.sample_texts.log", logged.append)
    model = make_model(dtype=torch.float32).eval()
    trainer = SimpleNamespace(datamodule=data_of(model), is_global_zero=True, global_step=7, max_steps=9, loggers=[])
    trainer.callback_metrics = {"val/loss": 1.25}
    SampleTexts({"scenes": Captioner(maker_of(model), {"max_new_tokens": 5}, 2)}, 2).on_validation_end(
        trainer, SimpleNamespace(model=model)
    )
    said = capsys.readouterr().out
    assert (
        "step 7 of 9, after" in said
        and "validation loss 1.250" in said
        and "val-000000:" in said
        and "val-000001:" not in said
    )
    assert "val-000001:" in logged[-1]
