"""What vLLM is sent: the bodies in its documented form, and vectors that are those of `embed`."""

from __future__ import annotations

import base64
import io
import json

import pytest
import torch

import visllama
from tests.support.tiny import tiny_parts
from visllama.errors import ConfigError
from visllama.inference.vllm import chat_body, completion_body
from visllama.model.weights import save_weights
from visllama.text.settings import TextSettings
from visllama.text.templates import TEMPLATES


@pytest.fixture
def load(make_model, tmp_path):
    def make(template: str):
        text = TextSettings(prompt="", max_text_tokens=256, template=TEMPLATES[template])
        save_weights(make_model(dtype=torch.float32), tiny_parts(), text, tmp_path / template)
        return visllama.load(tmp_path / template, accelerator="cpu")

    return make


def vectors(encoded: str) -> torch.Tensor:
    return torch.load(io.BytesIO(base64.b64decode(encoded)), weights_only=True)


def test_a_completion_is_the_whole_prompt(load, records):
    pipeline, image = load("vicuna"), records[0]["image"]
    body = json.loads(json.dumps(completion_body(pipeline, "DIR", image, "What?", seed=3)))
    assert set(body) == {
        "model", "prompt", "prompt_embeds", "max_tokens", "stop_token_ids", "temperature", "seed",
    }  # fmt: skip
    assert (
        body["prompt"] == "" and body["model"] == "DIR" and body["stop_token_ids"] == [3] and body["temperature"] == 0
    )
    assert torch.equal(vectors(body["prompt_embeds"]), pipeline.embed(image, "What?")[0][0])
    assert torch.equal(vectors(completion_body(pipeline, "DIR", image)["prompt_embeds"]), pipeline.embed(image)[0][0])
    two = completion_body(pipeline, "DIR", [image, records[1]["image"]], "What?")
    assert torch.equal(vectors(two["prompt_embeds"]), pipeline.embed([[image, records[1]["image"]]], ["What?"])[0][0])


@pytest.mark.parametrize("template", ["vicuna", "plain", "alpaca"])
def test_a_chat_has_its_image_as_vectors_where_the_template_has_it(load, records, template):
    pipeline, image = load(template), records[0]["image"]
    body = json.loads(json.dumps(chat_body(pipeline, "DIR", image, "What?", max_tokens=7, temperature=0.5)))
    (message,) = body["messages"]
    part, question = message["content"]
    assert message["role"] == "user" and set(part) == {"type", "data"} and part["type"] == "prompt_embeds"
    assert question == {"type": "text", "text": "What?"} and (body["max_tokens"], body["temperature"]) == (7, 0.5)
    whole, span = pipeline.embed(image, "What?")[0][0], vectors(part["data"])
    windows = whole.unfold(0, len(span), 1).transpose(1, 2)
    assert any(torch.equal(window, span) for window in windows), "the same vectors stand in the whole prompt"


def test_a_template_with_words_behind_the_image_is_refused(load, records):
    with pytest.raises(ConfigError, match="send completion_body"):
        chat_body(load("original"), "DIR", records[0]["image"], "What?")
