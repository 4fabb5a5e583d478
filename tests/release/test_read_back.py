"""What is read back is compared in earnest: with the probe of another model it is refused."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.support.exported import VICUNA
from visllama.errors import ConfigError
from visllama.evaluation.runner import sample_maker
from visllama.release.llava import write_llava
from visllama.release.read_back import make_probe, read_back_llava, same_prompts


@pytest.fixture
def exported(save_model, tmp_path):
    """Return a model, what makes its samples, and its LLaVA folder."""
    model, _ = save_model()
    (tmp_path / "llava").mkdir()
    write_llava(tmp_path / "llava", model, VICUNA, [3], 40, "5GB")
    return model, sample_maker(model, VICUNA), tmp_path / "llava"


@pytest.mark.parametrize("part", ["connector", "markers"])
def test_another_connector_or_marker_is_noticed(exported, part):
    """The probe looks at an image between its markers."""
    model, maker, folder = exported
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.startswith(part):
                parameter.add_(0.1)
    with pytest.raises(ConfigError, match="computes something else"):
        read_back_llava(folder, make_probe(model, maker), torch.float32)


@pytest.mark.parametrize("change", ["missing", "unexpected"])
def test_a_tensor_too_few_or_too_many_is_an_error(exported, change):
    model, maker, folder = exported
    tensors = load_file(folder / "model.safetensors")
    if change == "missing":
        del tensors["multi_modal_projector.linear_1.bias"]
    else:
        tensors["multi_modal_projector.linear_9.bias"] = torch.zeros(3)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(ConfigError, match=f"{change}_keys"):
        read_back_llava(folder, make_probe(model, maker), torch.float32)


def test_a_chat_template_of_another_run_is_named(exported):
    _, maker, folder = exported
    assert same_prompts(folder, maker, 480) == []
    (folder / "chat_template.jinja").write_text((folder / "chat_template.jinja").read_text().replace("USER", "HUMAN"))
    different = same_prompts(folder, maker, 480)
    assert "a question about an image" in different and "a caption" not in different
