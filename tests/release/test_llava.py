"""The LLaVA folder computes what the model computes, and never says a marker."""

from __future__ import annotations

import json

import pytest
import torch
from PIL import Image
from transformers import AutoProcessor, CLIPImageProcessorPil, LlavaForConditionalGeneration, LlavaImageProcessorPil

from tests.support.exported import VICUNA
from tests.support.families import save_language_model
from visllama.errors import ConfigError
from visllama.evaluation.runner import sample_maker
from visllama.images.transform import ImageTransform
from visllama.model.export_formats import find_obstacle
from visllama.release.llava import image_processor_config, write_llava
from visllama.release.read_back import make_probe, read_back_llava, same_prompts


@pytest.fixture
def export(save_model, tmp_path):
    """Write LLaVA's folder of a tiny model; return the model (LoRA merged) and the folder."""

    def write(max_shard_size: str = "5GB", dtype=torch.float32, **parts):
        model, _ = save_model(**parts)
        model.merge_adapter()
        model.language_model.to(dtype)
        model.vision_encoder.to(dtype)
        folder = tmp_path / "llava"
        folder.mkdir()
        write_llava(folder, model, VICUNA, [3], 40, max_shard_size)
        return model, folder

    return write


@pytest.mark.parametrize("lora", [False, True])
@pytest.mark.parametrize("family", ["llama", "mistral", "qwen2"])
def test_its_logits_are_the_models(export, tmp_path, family, lora):
    """Qwen's head is tied to the embeddings. 1e-5: the same sums of fp32, of logits below 30."""
    model, folder = export(lora=lora, language_model=save_language_model(family, tmp_path / family))
    maker = sample_maker(model, VICUNA)
    probe = make_probe(model, maker)
    assert read_back_llava(folder, probe, torch.float32) <= 1e-5
    assert same_prompts(folder, maker, probe.logits.shape[-1]) == []
    assert probe.logits.std() > 0.05, "logits that are all alike would prove little"


def test_a_model_that_computes_more_is_noticed(export, tmp_path):
    """Gemma scales its embeddings, the markers' rows among them."""
    model, folder = export(language_model=save_language_model("gemma", tmp_path / "gemma"))
    assert "has no place for a GemmaForCausalLM" in find_obstacle(model, "llava")
    with pytest.raises(ConfigError, match="computes something else: its logits differ by up to"):
        read_back_llava(folder, make_probe(model, sample_maker(model, VICUNA)), torch.float32)


def test_files_of_a_size_and_bf16(export):
    model, folder = export(max_shard_size="200KB", dtype=torch.bfloat16)
    files = sorted(path.name for path in folder.glob("*.safetensors"))
    assert len(files) > 3 and (folder / "model.safetensors.index.json").is_file()
    probe = make_probe(model, sample_maker(model, VICUNA))
    read_back_llava(folder, probe, torch.bfloat16)
    assert LlavaForConditionalGeneration.from_pretrained(folder).dtype == torch.bfloat16
    suffixes = {path.suffix for path in folder.iterdir()}
    assert suffixes == {".json", ".jinja", ".safetensors"}, "nothing pickled, no code"


@pytest.mark.parametrize("family", ["llama", "qwen2"])
def test_no_marker_is_ever_said(export, tmp_path, family):
    """Greedily in any engine: their logits are a mean of others'. Sampled: transformers suppresses them."""
    model, folder = export(language_model=save_language_model(family, tmp_path / family))
    llava = LlavaForConditionalGeneration.from_pretrained(folder).eval()
    size = model.language_model.get_input_embeddings().num_embeddings
    with torch.no_grad():
        logits = llava(input_ids=torch.randint(size, (8, 64))).logits
    assert (logits.argmax(-1) < size).all()
    torch.manual_seed(0)
    prompts = torch.randint(4, size, (50, 2))
    sampled = llava.generate(
        input_ids=prompts, attention_mask=torch.ones_like(prompts), do_sample=True, temperature=1.0, top_k=0,
        max_new_tokens=200, min_new_tokens=200,
    )[:, 2:]  # fmt: skip
    assert sampled.numel() == 10_000 and (sampled < size).all()
    assert len(sampled.unique()) > size // 4, "it was sampled from all"


def test_the_processor_counts_and_writes_as_the_run_does(export, records):
    model, folder = export()
    processor = AutoProcessor.from_pretrained(folder)
    image = records[0]["image"]
    messages = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What is it?"}]}]
    prompt = processor.apply_chat_template(messages, tokenize=False)
    inputs = processor(images=image, text=prompt, return_tensors="pt")
    assert (inputs["input_ids"] == 482).sum() == model.num_image_tokens and set(inputs) == {
        "input_ids", "attention_mask", "pixel_values",
    }  # fmt: skip
    mean, std = (
        torch.tensor(v)[:, None, None]
        for v in (model.vision_encoder.transform.mean, model.vision_encoder.transform.std)
    )
    expected = (model.vision_encoder.transform(image) / 255 - mean) / std
    assert torch.allclose(inputs["pixel_values"][0], expected, atol=1e-5), "a picture that needs no resize"


@pytest.mark.parametrize("fit", ["crop", "squash", "pad"])
def test_the_image_processor_does_what_the_transform_does(fit, tmp_path):
    """1.5 of 255 on average: Pillow and torch round a resize otherwise."""
    transform = ImageTransform(24, (0.5, 0.4, 0.3), (0.2, 0.3, 0.4), fit, 30 if fit == "crop" else None)
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(image_processor_config(transform)))
    kind = LlavaImageProcessorPil if fit == "pad" else CLIPImageProcessorPil
    processor = kind.from_pretrained(tmp_path)
    generator = torch.Generator().manual_seed(0)
    small = torch.randint(0, 255, (9, 6, 3), generator=generator, dtype=torch.uint8).numpy()
    image = Image.fromarray(small).resize((80, 50), Image.Resampling.BICUBIC)
    mean, std = (torch.tensor(v)[:, None, None] for v in (transform.mean, transform.std))
    found = processor(image, return_tensors="pt")["pixel_values"][0] * std + mean
    assert found.shape == (3, 24, 24)
    assert (255 * found - transform(image)).abs().mean() < 1.5
