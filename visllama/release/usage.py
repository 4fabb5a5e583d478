"""Write the lines of Python in a model card that show how the exported files are used."""

from __future__ import annotations

from visllama.release.base_models import BaseModel
from visllama.release.run_facts import RunFacts

_LLAVA = """
from PIL import Image
from transformers import AutoProcessor, LlavaForConditionalGeneration
processor, model = AutoProcessor.from_pretrained("{here}"), LlavaForConditionalGeneration.from_pretrained("{here}")
text = processor.apply_chat_template([{{"role": "user", "content": [{{"type": "image"}}]}}], add_generation_prompt=True)
inputs = processor(images=Image.open("photo.jpg"), text=text, return_tensors="pt")
print(processor.decode(model.generate(**inputs, max_new_tokens=40)[0], skip_special_tokens=True))
"""
_ADAPTER = """
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer
model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained("{base}"), "{here}")
tokenizer = AutoTokenizer.from_pretrained("{base}")
print(tokenizer.decode(model.generate(**tokenizer("Hello", return_tensors="pt"), max_new_tokens=40)[0]))
"""
_LANGUAGE_MODEL = """
import visllama
from transformers import AutoModelForCausalLM, AutoTokenizer
model, tokenizer = AutoModelForCausalLM.from_pretrained("{here}"), AutoTokenizer.from_pretrained("{here}")
embeds, mask = visllama.load("WEIGHTS").embed("photo.jpg")  # the connector's side; a question is a second argument
print(tokenizer.decode(model.generate(inputs_embeds=embeds, attention_mask=mask)[0], skip_special_tokens=True))
"""
_TEMPLATES = {"llava": _LLAVA, "adapter": _ADAPTER, "language_model": _LANGUAGE_MODEL}
"""The lines of each format but "hub", with slots for what is loaded and for the base model."""


def usage_lines(form: str, facts: RunFacts, models: list[BaseModel], repo_id: str | None) -> list[str]:
    """Return at most six lines of Python that load exported files and write a text with them.

    Args:
        form: The export format: "hub", "llava", "adapter" or "language_model".
        facts: The facts about the weights, from `read_run`. By its evaluations the format "hub" shows a caption, an
            answer or both.
        models: The vision encoder and the language model, in this order, from `base_models`. The adapter's lines name
            the language model if it is on the hub, else `BASE_MODEL`.
        repo_id: The repository on the hub that the lines load, as `user/name`; with None they load a folder `FOLDER`.

    Raises:
        KeyError: If there is no such export format.
    """
    here = repo_id or "FOLDER"
    if form == "hub":
        return _hub_lines(facts, here, is_on_hub=repo_id is not None)

    _, language_model = models
    base = language_model.name if language_model.is_on_hub else "BASE_MODEL"
    template = _TEMPLATES[form]
    usage = template.strip().format(here=here, base=base)
    return usage.split("\n")


def _hub_lines(facts: RunFacts, here: str, is_on_hub: bool) -> list[str]:
    """Return the lines that load a folder or a repository `here` of the format `hub`, and use what was evaluated."""
    lines = ["import visllama  # pip install visllama"]
    if is_on_hub:
        # A repository may change after a reader has judged it.
        lines.append(f'model = visllama.load("{here}", revision="COMMIT")  # the commit that you have looked at')
    else:
        lines.append(f'model = visllama.load("{here}")')

    tasks = [evaluation.get("task") for evaluation in facts.evaluations.values()]
    if "caption" in tasks or "vqa" not in tasks:
        lines.append('print(model.caption("photo.jpg"))')
    if "vqa" in tasks:
        lines.append('print(model.ask("photo.jpg", "What is on the table?"))')
    return lines
