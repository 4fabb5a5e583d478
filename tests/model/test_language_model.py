import torch

from visllama.model.language_model import PretrainedLanguageModel


def test_built_without_memory_then_loaded():
    source = PretrainedLanguageModel("visllama:llama")
    assert next(source.build().parameters()).is_meta
    loaded = source.load(torch.bfloat16)
    assert next(loaded.parameters()).dtype == torch.bfloat16 and not loaded.training


def test_tokenizer_has_llamas_special_ids_and_padding():
    tokenizer = PretrainedLanguageModel("visllama:llama").tokenizer()
    ids = (tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.unk_token_id, tokenizer.eos_token_id)
    assert ids == (0, 1, 2, 3), "with </s> at 2, CLIP's text half would pool by the largest id"


def test_a_tokenizer_without_padding_pads_with_its_end(tmp_path):
    source = PretrainedLanguageModel("visllama:llama")
    tokenizer = source.tokenizer()
    tokenizer.pad_token = None
    source.config.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    assert PretrainedLanguageModel(str(tmp_path)).tokenizer().pad_token == "</s>"


def test_knows_the_world_but_was_never_shown_it():
    """A sentence of the world is far likelier to it than the same words in another order (nats a token)."""
    source = PretrainedLanguageModel("visllama:llama")
    model, tokenizer = source.load(torch.float32), source.tokenizer()

    def loss(text: str) -> float:
        ids = torch.tensor([[1, *tokenizer(text, add_special_tokens=False)["input_ids"]]])
        with torch.no_grad():
            return model(input_ids=ids, labels=ids).loss.item()

    assert loss("a small red ring in the top left") + 1 < loss("left ring the a in top small red")
