"""What is saved, and what is refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.support import tiny
from tests.support.tiny import CONNECTORS, tiny_parts
from visllama.errors import ConfigError
from visllama.model.weights import (
    build_model,
    frozen_hashes,
    hash_tensors,
    load_tensors,
    load_weights,
    read_description,
    save_weights,
    trained_tensors,
)
from visllama.text.tokens import image_span
from visllama.training.buffers import copy_buffers

TEXT = replace(tiny.TEXT, prompt="a picture of", max_text_tokens=64)


@pytest.fixture(params=CONNECTORS)
def saved(request, make_model, tmp_path):
    model = make_model(request.param, dtype=torch.float32)
    save_weights(model, tiny_parts(request.param), TEXT, tmp_path / "weights")
    return model, tmp_path / "weights"


def test_trained_tensors_only(saved):
    model, folder = saved
    names = set(load_file(folder / "visllama.safetensors"))
    assert names == {name for name, p in model.named_parameters() if p.requires_grad}
    assert all(name == "markers" or name.startswith("connector.") for name in names)
    assert sorted(path.name for path in folder.iterdir()) == ["visllama.json", "visllama.safetensors"]


def test_loads_to_the_same_model(saved):
    model, folder = saved
    loaded, description = load_weights(folder)
    assert description["text"] == TEXT.to_dict()
    for name, tensor in trained_tensors(model).items():
        assert torch.equal(tensor, trained_tensors(loaded)[name]), name
    assert frozen_hashes(loaded) == frozen_hashes(model)
    assert loaded.trainable == ("connector", "markers")


def test_description_names_no_code(saved):
    _, folder = saved
    text = (folder / "visllama.json").read_text()
    assert "_target_" not in text and "visllama.model" not in text


def change(folder, edit):
    description = json.loads((folder / "visllama.json").read_text())
    edit(description)
    (folder / "visllama.json").write_text(json.dumps(description))


def test_another_base_model_is_refused(saved):
    _, folder = saved
    change(folder, lambda d: d["base_sha256"].update(language_model="0" * 64))
    with pytest.raises(ConfigError, match="trained with another language_model: its sha256 starts 000000000000"):
        load_weights(folder)


def test_missing_unknown_and_misshapen_tensors_are_refused(saved):
    _, folder = saved
    tensors = load_file(folder / "visllama.safetensors")
    markers = tensors.pop("markers")
    for broken, says in (
        (tensors, "missing markers"),
        (tensors | {"markers": markers, "connector.more": markers.clone()}, "unknown connector.more"),
        (tensors | {"markers": markers[:, :-1].contiguous()}, r"markers has shape \(2, 127\), the model \(2, 128\)"),
    ):
        save_file(broken, folder / "visllama.safetensors")
        with pytest.raises(ConfigError, match=says):
            load_weights(folder)


@pytest.mark.parametrize(
    ("edit", "says"),
    [
        (lambda d: d.update(format_version=99), "format_version=99"),
        (lambda d: d.update(format_version=1), "format_version=1, this visllama reads 3"),
        (lambda d: d.pop("text"), "has no text"),
        (lambda d: d.pop("base_sha256"), "has no base_sha256"),
        (lambda d: d["text"].update(max_text_tokens="64"), "must be prompt, max_text_tokens, template"),
        (lambda d: d["image_transform"].update(size_px=999), "trained on images made by"),
        (lambda d: d["base_sha256"].clear(), "trained with another"),
        (lambda d: d["parts"].pop("connector"), "does not describe the connector"),
        (
            lambda d: d["parts"]["connector"].update(kind="os.system"),
            "unknown connector 'os.system': there are MLPConnector",
        ),
        (lambda d: d["parts"]["connector"].update(kind="../MLPConnector"), "unknown connector"),
        (lambda d: d["parts"]["connector"]["arguments"].update(x={"_target_": "os.system"}), "_target_ inside weights"),
        (lambda d: d["parts"]["vision_encoder"]["arguments"].update(path="${oc.env:HOME}"), r"a \$\{ inside weights"),
        (lambda d: d["parts"].update(lora={"target_modules": "([a-z]+)+!"}), "names of layers and no patterns"),
        (lambda d: d["parts"].update(lora={"target_modules": ["q"], "rank_pattern": {"(a+)+": 2}}), "no patterns"),
        (lambda d: d["text"].update(template={"human": "hi"}), r"text\.template\.human='hi': has no"),
    ],
)
def test_a_description_that_is_not_ours_is_refused(saved, edit, says):
    _, folder = saved
    change(folder, edit)
    with pytest.raises(ConfigError, match=says):
        load_weights(folder)


def test_a_folder_without_weights_is_named(tmp_path):
    with pytest.raises(ConfigError, match="give the weights/ folder that a run wrote"):
        load_weights(tmp_path)


def test_hash_sees_a_single_bit_and_a_name(make_model):
    model = make_model(dtype=torch.float32)
    named = list(model.language_model.named_parameters())
    before = hash_tensors(named)
    assert before == hash_tensors(reversed(named))
    with torch.no_grad():
        named[3][1].view(torch.int32).flatten()[7] ^= 1
    assert hash_tensors(named) != before
    assert (
        hash_tensors([("a", torch.zeros(2))])
        != hash_tensors([("b", torch.zeros(2))])
        != hash_tensors([("b", torch.zeros(2, 1))])
    )


def test_base_hash_is_the_same_in_every_dtype(make_model):
    one, two = (make_model(dtype=dtype) for dtype in (torch.float32, torch.bfloat16))
    of = [hash_tensors(model.language_model.named_parameters(), torch.bfloat16) for model in (one, two)]
    assert of[0] == of[1]


def test_build_needs_no_weights():
    """Encoder and language model are shapes on the meta device until their weights are asked for."""
    model = build_model(tiny_parts(), ("connector", "markers"))
    assert next(model.language_model.parameters()).is_meta and next(model.vision_encoder.parameters()).is_meta
    assert not next(model.connector.parameters()).is_meta


def test_weights_of_before_there_were_templates_are_read(make_model, tmp_path):
    save_weights(make_model(dtype=torch.float32), tiny_parts(), TEXT, tmp_path)
    change(tmp_path, lambda d: (d.update(format_version=2), d["text"].pop("template")))
    assert load_weights(tmp_path)[1]["text"] == TEXT.to_dict()


PLUGINS = ["tests.support.stateful_parts"]


def stateful_parts(connector: str = "Normed") -> dict:
    return tiny_parts() | {"connector": {"kind": connector, "arguments": {"num_image_tokens": 4}}}


@pytest.mark.parametrize(
    ("connector", "buffers"),
    [("Normed", {"norm.running_mean", "norm.running_var", "norm.num_batches_tracked"}), ("Counting", {"num_trained"})],
)
def test_persistent_buffers_of_trained_parts_are_saved(tmp_path, connector, buffers):
    parts = stateful_parts(connector)
    model = build_model(parts, ("connector", "markers"), plugins=PLUGINS).load_base_weights()
    for _ in range(3):
        model.connector(torch.randn(4, model.vision_encoder.pooled_dim))
    save_weights(model, parts, TEXT, tmp_path)
    stored = load_file(tmp_path / "visllama.safetensors")
    named = {f"connector.{name}" for name in buffers}
    assert set(stored) == named | {"markers", "connector.output.weight", "connector.output.bias"} | {
        name for name in stored if name.startswith("connector.norm.")
    }, "what is not persistent is not there"
    loaded, _ = load_weights(tmp_path, plugins=PLUGINS)
    assert set(copy_buffers(loaded)) == named
    for name, buffer in copy_buffers(model).items():
        assert torch.equal(copy_buffers(loaded)[name], buffer) and buffer.dtype == stored[name].dtype, name

    (missed,) = [name for name in named if name.endswith(("tracked", "trained"))]
    save_file({name: tensor for name, tensor in stored.items() if name != missed}, tmp_path / "visllama.safetensors")
    with pytest.raises(ConfigError, match=f"missing {missed}"):
        load_weights(tmp_path, plugins=PLUGINS)
    save_file(stored | {f"{missed}_2": stored[missed].clone()}, tmp_path / "visllama.safetensors")
    with pytest.raises(ConfigError, match=f"unknown {missed}_2"):
        load_weights(tmp_path, plugins=PLUGINS)


def test_a_part_that_no_longer_learns_is_saved_with_its_buffers(tmp_path):
    parts = stateful_parts()
    model = build_model(parts, ("markers",), plugins=PLUGINS).load_base_weights()
    model.connector.norm.running_mean += 1
    save_weights(model, parts, TEXT, tmp_path)
    assert (load_file(tmp_path / "visllama.safetensors")["connector.norm.running_mean"] == 1).all()
    assert copy_buffers(model) == {}, "and training changes none of them"


@pytest.fixture
def with_cnn(tmp_path):
    """A model with a frozen encoder of one's own that has BatchNorm, and its weights."""
    parts = tiny_parts() | {"vision_encoder": {"kind": "SmallCNN", "arguments": {"width": 8}}}
    model = build_model(parts, ("connector", "markers"), plugins=PLUGINS).load_base_weights()
    save_weights(model, parts, TEXT, tmp_path)
    return model, tmp_path


def test_persistent_buffers_of_frozen_parts_are_hashed(with_cnn, monkeypatch):
    model, folder = with_cnn
    encoder = model.vision_encoder
    before = frozen_hashes(model)
    model.train()
    model(torch.tensor([[1, *image_span(10), 5]]), torch.zeros(1, 3, 16, 16, dtype=torch.uint8))
    encoder.scratch += 1
    assert frozen_hashes(model) == before, "a frozen part is in eval mode, and what is not persistent is nobody's state"
    load_weights(folder, plugins=PLUGINS)

    encoder.layers[1].running_var[3] += 1e-6
    assert frozen_hashes(model) != before
    encoder.layers[1].running_var[3] = 2
    load = type(encoder).load_base_weights

    def load_another(self, dtype):
        load(self, dtype)
        self.layers[1].running_var[3] = 2

    monkeypatch.setattr(type(encoder), "load_base_weights", load_another)
    with pytest.raises(ConfigError, match="trained with another vision_encoder"):
        load_weights(folder, plugins=PLUGINS)


def test_buffers_of_a_part_that_trains_are_not_frozen(with_cnn):
    model, _ = with_cnn
    model.trainable = ("vision_encoder", "connector", "markers")
    model._freeze()
    before = frozen_hashes(model)
    model.vision_encoder.layers[1].running_mean += 1
    assert frozen_hashes(model) == before and "vision_encoder" not in before
    assert "vision_encoder.layers.1.running_mean" in trained_tensors(model)


def test_hashes_of_the_shipped_models_are_those_of_before(make_model, tmp_path):
    """Weights of before buffers were hashed are still read."""
    save_weights(make_model(dtype=torch.float32), tiny_parts(), TEXT, tmp_path)
    assert json.loads((tmp_path / "visllama.json").read_text())["base_sha256"] == {
        "vision_encoder": "2e6d2d67fbe36541927e53f8b28e358d38b9245a12b282e425f7f22582a4a141",
        "language_model": "d3424988205b6d4eb5f90c0cdbea26d410c1b2ec0c553d5499c6b446805c2f5d",
    }


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_right_weights_are_read_in_every_dtype(make_model, tmp_path, dtype):
    """The base models' hashes are of what is stored: fp16 holds neither bf16's range nor fp32's digits."""
    model = make_model(dtype=torch.float32)
    save_weights(model, tiny_parts(), TEXT, tmp_path)
    loaded, _ = load_weights(tmp_path, dtype)
    trained = torch.promote_types(dtype, torch.float32)
    for (name, tensor), stored in zip(loaded.named_parameters(), model.parameters(), strict=True):
        wanted = dtype if name.startswith(("vision_encoder", "language_model")) else trained
        assert tensor.dtype == wanted and torch.equal(tensor, stored.to(wanted)), name
    size = model.vision_encoder.transform.size_px
    with torch.no_grad():
        logits = loaded(
            torch.tensor([[1, *image_span(10), 5]]), torch.zeros(1, 3, size, size, dtype=torch.uint8)
        ).logits
    assert logits.isfinite().all()


@pytest.mark.parametrize("stored", [torch.bfloat16, torch.float16])
def test_what_was_trained_of_a_base_model_is_not_rounded_to_the_dtype_of_its_files(tmp_path, stored):
    """FSDP leaves a base model as its files have it until the trained tensors are in it."""
    model = build_model(tiny_parts(), ("connector", "markers", "language_model")).load_base_weights(torch.float32)
    with torch.no_grad():
        for parameter in model.language_model.parameters():
            parameter += 1e-4 * torch.randn_like(parameter)
    save_weights(model, tiny_parts(), TEXT, tmp_path)
    expected = trained_tensors(model)

    again = build_model(tiny_parts(), ("connector", "markers", "language_model")).load_base_weights(as_stored=True)
    again.language_model.to(stored)
    load_tensors(again, tmp_path, read_description(tmp_path))
    for name, tensor in trained_tensors(again).items():
        assert torch.equal(tensor, expected[name]), name


def test_buffers_of_a_base_model_that_was_trained_are_not_rounded_either(tmp_path):
    trainable = ("vision_encoder", "connector", "markers")
    parts = tiny_parts() | {"vision_encoder": {"kind": "SmallCNN", "arguments": {"width": 8}}}
    model = build_model(parts, trainable, plugins=PLUGINS).load_base_weights()
    model.vision_encoder.layers[1].running_var += 1e-4
    save_weights(model, parts, TEXT, tmp_path)

    again = build_model(parts, trainable, plugins=PLUGINS).load_base_weights(as_stored=True)
    again.vision_encoder.to(torch.bfloat16)
    load_tensors(again, tmp_path, read_description(tmp_path))
    running_var = again.vision_encoder.layers[1].running_var
    assert torch.equal(running_var, model.vision_encoder.layers[1].running_var)
    assert again.vision_encoder.layers[0].weight.requires_grad


@pytest.mark.skipif(not Path("/proc/self/maps").is_file(), reason="only Linux says what is mapped")
def test_what_was_trained_of_a_base_model_stays_mapped_until_it_is_cut(tmp_path):
    """With FSDP each rank of a machine would hold a copy of the whole language model otherwise."""
    trainable = ("connector", "markers", "language_model")
    model = build_model(tiny_parts(), trainable).load_base_weights(torch.float32)
    save_weights(model, tiny_parts(), TEXT, tmp_path)

    again = build_model(tiny_parts(), trainable).load_base_weights(as_stored=True)
    again.language_model.to(torch.bfloat16)
    load_tensors(again, tmp_path, read_description(tmp_path))
    address = again.language_model.get_input_embeddings().weight.data_ptr()
    for line in Path("/proc/self/maps").read_text().splitlines():
        begin, end = (int(number, 16) for number in line.split()[0].split("-"))
        if begin <= address < end:
            assert line.endswith("/visllama.safetensors")
