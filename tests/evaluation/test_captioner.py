import json
import shutil
from pathlib import Path

import pytest
import torch

from tests.support.tiny import maker_of, tiny_parts
from visllama.errors import ConfigError
from visllama.evaluation.captioner import Captioner
from visllama.model.locate import locate
from visllama.model.weights import build_model


def test_batch_size_changes_no_caption(make_model, records):
    model = make_model(dtype=torch.float32).eval()
    captions = [Captioner(maker_of(model), {"max_new_tokens": 8}, size)(model, records) for size in (1, 4, 6)]
    assert captions[0] == captions[1] == captions[2]
    assert len(captions[0]) == len(records) and all("\n" not in text and "</s>" not in text for text in captions[0])


def test_batches_come_one_by_one(make_model, records):
    model = make_model(dtype=torch.float32).eval()
    sizes = [len(batch) for batch in Captioner(maker_of(model), {"max_new_tokens": 2}, 4).batches(model, records)]
    assert sizes == [4, 2]


def test_decoding_is_passed_on(make_model, records):
    model = make_model(dtype=torch.float32).eval()
    long, short = (Captioner(maker_of(model), {"max_new_tokens": n}, 6)(model, records) for n in (12, 2))
    assert all(a.startswith(b) for a, b in zip(long, short, strict=True)) and sum(map(len, long)) > sum(map(len, short))


def test_a_prompt_to_be_answered_is_never_cut(make_model, records):
    """At 8 text tokens training cuts; what is judged is read to its last word."""
    model = make_model(dtype=torch.float32).eval()
    prompt = "USER: what is there to be seen in this picture? ASSISTANT:"
    long, short = (maker_of(model, prompt, most)(records[0], answered=False) for most in (256, 8))
    assert short.input_ids == long.input_ids
    assert model.tokenizer.decode(short.input_ids[13:]).endswith("ASSISTANT:")


def test_what_does_not_fit_the_positions_is_refused_by_name(make_model, records):
    """512 positions, and an image takes 12: 43 of them and BOS are 517."""
    model = make_model(dtype=torch.float32).eval()
    question = {"question": "which?", "answers": ["a"]}
    record = {"key": "many", "images": [records[0]["image"]] * 43, "questions": [question]}
    captioner = Captioner(maker_of(model), {"max_new_tokens": 8}, 2)
    captioner.check_room(model, records)
    with pytest.raises(
        ConfigError, match=r"record many: max_new_tokens=8 behind 5\d\d tokens: the language model has 512 positions"
    ):
        captioner.check_room(model, [*records, record])
    assert not captioner.has_room(model, record)


def loud_base(folder: Path, **settings) -> str:
    """Copy the tiny language model, with settings of its own in generation_config.json."""
    shutil.copytree(locate("visllama:llama"), folder)
    file = folder / "generation_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | settings))
    return str(folder)


def test_the_base_models_generation_config_alters_no_caption(records, tmp_path):
    captions = []
    for name, settings in (("plain", {}), ("loud", {"repetition_penalty": 1.5, "num_beams": 3, "min_new_tokens": 9})):
        parts = tiny_parts() | {
            "language_model": {
                "kind": "PretrainedLanguageModel",
                "arguments": {"path": loud_base(tmp_path / name, **settings)},
            }
        }
        torch.manual_seed(0)
        model = build_model(parts, ("connector", "markers")).load_base_weights(torch.float32).eval()
        captions.append(Captioner(maker_of(model), {"max_new_tokens": 24}, 6)(model, records))
    assert captions[0] == captions[1]


def test_the_whole_decoding_is_known(make_model):
    model = make_model(dtype=torch.float32)
    decoding = Captioner(maker_of(model), {"max_new_tokens": 8, "num_beams": 5, "top_k": None}, 1).decoding
    assert decoding == {
        "do_sample": False, "num_beams": 5, "length_penalty": 1.0, "early_stopping": False, "repetition_penalty": 1.0,
        "no_repeat_ngram_size": 0, "eos_token_id": [3], "pad_token_id": 0, "max_new_tokens": 8,
    }  # fmt: skip
    assert Captioner(maker_of(model), {"do_sample": True, "top_k": 5}, 1).decoding["top_k"] == 5


def test_reading_a_prompt_makes_logits_of_its_last_position_alone(make_model, records):
    model = make_model(dtype=torch.float32).eval()
    made = []
    model.language_model.get_output_embeddings().register_forward_hook(lambda *call: made.append(call[-1].shape[1]))
    Captioner(maker_of(model), {"max_new_tokens": 3}, 6)(model, records)
    assert set(made) == {1}
