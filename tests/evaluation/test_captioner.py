import json
import shutil
from pathlib import Path

import pytest
import torch

from tests.support.tiny import maker_of, tiny_parts
from visllama.errors import ConfigError
from visllama.evaluation.captioner import Captioner
from visllama.evaluation.prompts import Prompts, prompts_of_records
from visllama.model.locate import locate
from visllama.model.weights import build_model


def test_batch_size_changes_no_caption(make_model, records):
    model = make_model(dtype=torch.float32).eval()
    captions = [Captioner(maker_of(model), {"max_new_tokens": 8}, size)(model, records) for size in (1, 4, 6)]
    assert captions[0] == captions[1] == captions[2]
    assert len(captions[0]) == len(records) and all("\n" not in text and "</s>" not in text for text in captions[0])


def test_batches_come_one_by_one(make_model, records):
    model = make_model(dtype=torch.float32).eval()
    captioner = Captioner(maker_of(model), {"max_new_tokens": 2}, 4)
    sizes = [len(batch) for batch in captioner.batches(model, prompts_of_records(records))]
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


def asked(images: list, num_questions: int) -> list[dict]:
    """Return so many questions on each picture, as records of one question."""
    return [
        {"key": f"{n}", "image": image, "questions": [{"question": f"what is at {place}?", "answers": ["a"]}]}
        for n, image in enumerate(images)
        for place in ("left", "right", "top", "bottom", "front")[:num_questions]
    ]


class Counted:
    """Prompts of which several show one picture; counts how often a picture is read."""

    def __init__(self, records: list[dict]) -> None:
        numbers = {id(record["image"]): number for number, record in reversed(list(enumerate(records)))}
        of_records = prompts_of_records(records)
        shared = [prompt._replace(shown=numbers[id(r["image"])]) for prompt, r in zip(of_records, records, strict=True)]
        self.num_read = 0

        def read(number: int) -> list:
            self.num_read += 1
            return [records[number]["image"]]

        self.prompts = Prompts(shared, read)


@pytest.mark.parametrize("decoding", [{"max_new_tokens": 5}, {"max_new_tokens": 5, "num_beams": 3}])
def test_a_picture_is_decoded_and_encoded_once_for_all_its_questions(make_model, records, decoding, monkeypatch):
    model = make_model(dtype=torch.float32).eval()
    questions = asked([record["image"] for record in records[:4]], 3)
    captioner = Captioner(maker_of(model), decoding, 7)
    one_by_one = captioner(model, questions)

    encoded = []
    encode = model.encode_images
    monkeypatch.setattr(model, "encode_images", lambda pixels: encoded.append(len(pixels)) or encode(pixels))
    counted = Counted(questions)
    texts = [written.text for batch in captioner.batches(model, counted.prompts) for written in batch]
    assert texts == one_by_one
    assert (sum(encoded), counted.num_read) == (4, 4) and encoded == [2, 2]


def test_what_max_new_tokens_cuts_off_is_told(make_model, records):
    """One that may not write its end token is cut off; one that has to write it at last has ended."""
    model = make_model(dtype=torch.float32).eval()
    captioner = Captioner(maker_of(model), {"max_new_tokens": 2, "suppress_tokens": [3]}, 6)
    written = [each for batch in captioner.batches(model, prompts_of_records(records)) for each in batch]
    assert all(each.is_cut_off and each.num_tokens == 2 for each in written)

    ends = Captioner(maker_of(model), {"max_new_tokens": 2, "forced_eos_token_id": 3}, 6)
    written = [each for batch in ends.batches(model, prompts_of_records(records)) for each in batch]
    assert all(not each.is_cut_off and each.num_tokens <= 1 for each in written)


def test_a_stop_string_ends_a_text_and_is_no_part_of_it(make_model, records):
    model = make_model(dtype=torch.float32).eval()
    whole = Captioner(maker_of(model), {"max_new_tokens": 8}, 1)(model, records[:1])[0]
    stop = whole.split()[2]
    captioner = Captioner(maker_of(model), {"max_new_tokens": 8, "stop_strings": [stop]}, 1)
    (written,) = next(captioner.batches(model, prompts_of_records(records[:1])))
    assert written.text == whole.partition(stop)[0].strip() and not written.is_cut_off


def test_sampling_depends_on_the_seed_and_the_batch_alone(make_model, records):
    model = make_model(dtype=torch.float32).eval()
    sampled = {"max_new_tokens": 8, "do_sample": True, "top_k": 0}
    torch.manual_seed(7)
    first = Captioner(maker_of(model), sampled, 2, seed=1)(model, records)
    torch.manual_seed(8)
    captioner = Captioner(maker_of(model), sampled, 2, seed=1)
    again = captioner(model, records)
    assert again == first and Captioner(maker_of(model), sampled, 2, seed=2)(model, records) != first
    later = [each.text for batch in captioner.batches(model, prompts_of_records(records), 2) for each in batch]
    assert later == first[2:]
