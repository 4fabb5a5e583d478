"""Three kinds of encoders with four kinds of language models: trained by the real program, saved, loaded, generated from."""

from __future__ import annotations

import json

import pytest

from tests.support.families import ENCODERS, LANGUAGE_MODELS, save_encoder, save_language_model
from tests.support.tiny import collator_of, maker_of
from tests.support.verbs import train
from visllama.data.scenes.source import ScenesSource
from visllama.model.weights import frozen_hashes, load_weights


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    for family in ENCODERS:
        save_encoder(family, root / family)
    for family in LANGUAGE_MODELS:
        save_language_model(family, root / family)
    return root


@pytest.mark.parametrize("language_model", LANGUAGE_MODELS)
@pytest.mark.parametrize("encoder", ENCODERS)
def test_train_save_load_generate(compose_config, folders, tmp_path, encoder, language_model):
    connector = {"clip": "mlp", "siglip": "resampler", "dinov2": "patch_mlp"}[encoder]
    cfg = compose_config(
        "train", f"paths.models={folders}", f"model/connector={connector}", f"model.vision_encoder.path={encoder}",
        f"model.vision_encoder._target_=visllama.model.vision_encoder.{ENCODERS[encoder]}", f"model.language_model.path={language_model}",
        "trainer=cpu", "trainer.max_steps=3", "stage.global_batch_size=6", "data.num_val_records=4", "judge=false", "optim.weight_decay=0.2",
    )  # fmt: skip
    facts = train(cfg)["train"]
    assert facts["steps"] == 3

    model, description = load_weights(tmp_path / "weights", models=folders)
    assert frozen_hashes(model) == facts["frozen_sha256"] and set(facts["frozen_sha256"]) == {
        "vision_encoder",
        "language_model",
    }
    assert description["parts"]["vision_encoder"] == {
        "kind": ENCODERS[encoder],
        "arguments": {"path": encoder, "revision": None, "feature_layer": -2},
    }, "weights name a model as the config did, not where it lay on this machine"

    # BOS only where the tokenizer has one; padding is invented.
    source = ScenesSource("val", 5, 1)
    samples = [
        maker_of(model.eval(), prompt=p)(source[i], answered=False)
        for i, p in enumerate(["", "a", "there is a", "the", "a small"])
    ]
    assert (samples[0].input_ids[0] == 1) == (language_model != "qwen2")
    settings = {"max_new_tokens": 8, "do_sample": False, "pad_token_id": model.tokenizer.pad_token_id}
    collator = collator_of(model)
    batched = model.generate(**collator.generation_batch(samples), **settings)
    texts = model.tokenizer.batch_decode(batched, skip_special_tokens=True)
    singles = [model.generate(**collator.generation_batch([sample]), **settings) for sample in samples]
    assert texts == [model.tokenizer.batch_decode(single, skip_special_tokens=True)[0] for single in singles]
    assert len(set(texts)) > 1, "all the same text would prove little"
    assert json.loads((tmp_path / "metrics.json").read_text())["provenance"]["model"] == description["parts"]
