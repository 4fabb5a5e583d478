"""What `visllama.load(weights)` gives: `.caption`, `.ask`, `.embed`."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from transformers import AutoModelForCausalLM

import visllama
from tests.support.tiny import TEXT, maker_of, tiny_parts
from visllama.errors import ConfigError
from visllama.evaluation.captioner import Captioner
from visllama.model.locate import locate
from visllama.model.weights import build_model, save_weights


@pytest.fixture
def weights(make_model, tmp_path):
    model = make_model(dtype=torch.float32)
    save_weights(model, tiny_parts(), TEXT, tmp_path / "weights")
    return model, tmp_path / "weights"


@pytest.fixture
def pipeline(weights):
    return visllama.load(weights[1], accelerator="cpu")


def test_says_what_the_trained_model_said(weights, records, tmp_path):
    model, folder = weights
    expected = Captioner(maker_of(model), {"max_new_tokens": 40}, 8)(model.eval(), records)
    pipeline = visllama.load(folder, accelerator="cpu")
    images = [record["image"] for record in records]
    assert pipeline.caption(images) == expected and len(set(expected)) > 1
    images[0].save(tmp_path / "a.png")
    assert pipeline.caption(tmp_path / "a.png") == pipeline.caption(str(tmp_path / "a.png")) == expected[0]


def test_decoding_can_be_told(pipeline, records):
    image = records[0]["image"]
    assert len(pipeline.caption(image, max_new_tokens=1).split()) <= 1
    short, long = (pipeline.ask(image, "there", max_new_tokens=n) for n in (2, 8))
    assert long.startswith(short) and len(long) > len(short)


def test_an_answer_is_what_an_evaluation_would_hear(pipeline, weights, records):
    """Through the record, the template and the batch of an evaluation."""
    model, question = weights[0].eval(), "what is in the picture?"
    asked = [record | {"questions": [{"question": question, "answers": ["?"]}]} for record in records]
    for record in asked:
        del record["captions"]
    expected = Captioner(maker_of(model), {"max_new_tokens": 12}, 8)(model, asked)
    answers = pipeline.ask([record["image"] for record in records], question, max_new_tokens=12)
    assert [" ".join(answer.split()) for answer in answers] == expected and len(set(expected)) > 1


def test_lists_of_images_and_questions(pipeline, records):
    """Each question by itself, whatever stands beside it in the batch: one image for all, one question for all, pairs."""
    a, b = (record["image"] for record in records[:2])
    questions = ["there is", "the picture shows a large", "how many rings are there?"]

    def ask(images, questions):
        return pipeline.ask(images, questions, max_new_tokens=6)

    single = {(name, q): ask(image, q) for name, image in (("a", a), ("b", b), ("none", None)) for q in questions}
    assert all(isinstance(answer, str) for answer in single.values()) and len(set(single.values())) > 3
    assert ask(a, questions) == [single["a", q] for q in questions]
    assert ask(None, questions) == [single["none", q] for q in questions]
    assert ask([a, b, None], questions[0]) == [single[name, questions[0]] for name in ("a", "b", "none")]
    assert ask((b, None, a), questions) == [single[n, q] for n, q in zip(("b", "none", "a"), questions, strict=True)]
    pipeline.batch_size = 2
    assert ask(a, questions) == [single["a", q] for q in questions]
    assert ask(a, []) == ask([], "there is") == ask([], []) == []
    assert ask([a], "there is") == [single["a", "there is"]], "a list gives a list"


def test_several_images_in_one_question_are_an_entry(pipeline, records):
    a, b = (record["image"] for record in records[:2])
    two = pipeline.embed([[a, b]], "like?")[0]
    one = pipeline.embed(a, "like?")[0]
    assert two.shape[1] == one.shape[1] + 12 and not torch.equal(two, pipeline.embed([[b, a]], "like?")[0])
    assert pipeline.ask([[a, b]], "like?", max_new_tokens=4) == [pipeline.chat([a, b]).say("like?", max_new_tokens=4)]


@pytest.mark.parametrize(("images", "questions"), [(2, 3), (1, 2), (3, 1), (0, 2)])
def test_lists_of_other_lengths_are_refused_with_both(pipeline, records, images, questions):
    with pytest.raises(ConfigError, match=f"{images} images and {questions} questions"):
        pipeline.ask([record["image"] for record in records[:images]], ["what?"] * questions)


def test_questions_are_asked_whole_or_refused(pipeline, records):
    """Past the 256 text tokens of training a question is still read to its end; past the 512 positions it is refused."""
    image, words = records[0]["image"], "red ring " * 130
    heard = [pipeline.embed(image, words + end)[0][0, -1] for end in ("one", "two")]
    assert 256 < pipeline.embed(image, words)[0].shape[1] < 512 and not torch.equal(*heard)
    assert pipeline.ask(image, words, max_new_tokens=2) is not None
    with pytest.raises(ConfigError, match=r"max_new_tokens=40 behind \d+ tokens: the language model has 512 positions"):
        pipeline.ask(image, words * 2)


def test_embeds_are_what_is_read(pipeline, records):
    """The language model that transformers loads, which has seen none of our code, writes the same after them."""
    images, questions = [record["image"] for record in records[:3]], ["there", "the picture shows a large", "how many?"]
    inputs_embeds, attention_mask = pipeline.embed(images, questions)
    lengths = attention_mask.sum(1).tolist()
    assert inputs_embeds.shape[:2] == attention_mask.shape and len(set(lengths)) == 3
    assert all(mask == sorted(mask) for mask in attention_mask.tolist()), "padded on the left"
    alone = pipeline.embed(images[0], questions[0])[0][0]
    assert torch.allclose(alone, inputs_embeds[0, -len(alone) :], atol=1e-5), "fp32, of values about 1"
    language_model = AutoModelForCausalLM.from_pretrained(locate("visllama:llama"), dtype=torch.float32).eval()
    ids = language_model.generate(
        inputs_embeds=inputs_embeds, attention_mask=attention_mask, eos_token_id=pipeline.end_ids, max_new_tokens=8
    )
    answers = pipeline.ask(images, questions, max_new_tokens=8)
    said = pipeline.model.tokenizer.batch_decode(ids, skip_special_tokens=True)
    assert [text.strip() for text in said] == answers and len(set(answers)) > 1


def test_a_merged_adapter_says_the_same(tmp_path, records):
    """An adapter that says otherwise than none, added to the weights: the same texts in fp32, and nothing of LoRA left."""
    torch.manual_seed(0)
    lora = {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj"]}
    parts = tiny_parts() | {"lora": lora}
    model = build_model(parts, ("connector", "markers", "adapter")).load_base_weights()
    images, question = [record["image"] for record in records], "the picture shows"
    answers = []
    for scale in (0, 0.1):
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter, std=scale)
        save_weights(model, parts, TEXT, tmp_path / "weights")
        for merge in (False, True):
            pipeline = visllama.load(tmp_path / "weights", accelerator="cpu", merge=merge)
            assert any("lora" in name for name, _ in pipeline.model.named_modules()) != merge
            answers.append(pipeline.ask(images, question, max_new_tokens=10))
    assert answers[0] == answers[1] and answers[2] == answers[3] and answers[1] != answers[2]


def test_merging_where_there_is_no_adapter_changes_nothing(weights, pipeline, records):
    merged = visllama.load(weights[1], accelerator="cpu", merge=True)
    assert merged.caption(records[0]["image"]) == pipeline.caption(records[0]["image"])


def test_load_shows_its_true_signature_and_text_and_costs_nothing_before():
    from visllama.inference import pipeline

    assert visllama.load is pipeline.load and "load" in dir(visllama)
    with pytest.raises(AttributeError, match="no attribute 'laod'"):
        visllama.laod  # noqa: B018
    code = "import sys, visllama; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
