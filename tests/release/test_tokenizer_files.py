"""A tokenizer that is exported: the ids of its new tokens, and the folder."""

from __future__ import annotations

import copy
import json

from tests.support.small_tokenizers import TOKENIZERS
from visllama.release.tokenizer_files import add_image_tokens, write_tokenizer


def test_new_ids_follow_the_embeddings_and_fillers_take_those_between():
    tokenizer = copy.deepcopy(TOKENIZERS["byte_level_bpe"]())
    known = tokenizer.get_vocab()
    size = max(known.values()) + 1 + 5
    mark, added = add_image_tokens(tokenizer, size)
    vocabulary = tokenizer.get_vocab()
    assert [vocabulary[name] for name in (mark.boi, mark.eoi, mark.image)] == [size, size + 1, size + 2]
    assert added == list(range(size - 5, size + 3))
    assert {name: vocabulary[name] for name in known} == known, "no id of before is another one"
    assert tokenizer.decode(added, skip_special_tokens=True) == ""


def test_a_name_that_is_a_token_already_is_not_taken():
    tokenizer = copy.deepcopy(TOKENIZERS["byte_level_bpe"]())
    tokenizer.add_tokens(["<image>"])
    mark, _ = add_image_tokens(tokenizer, len(tokenizer))
    assert str(mark) == "[boi]<visllama_image>[eoi]"


def test_the_folder_names_a_class_that_all_releases_know_and_no_bos_is_added(tmp_path):
    tokenizer = copy.deepcopy(TOKENIZERS["llama3"]())
    tokenizer.pad_token = tokenizer.eos_token
    write_tokenizer(tmp_path, tokenizer, "{{ 1 }}", adds_bos=False, processor="LlavaProcessor")
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    assert config["tokenizer_class"] == "PreTrainedTokenizerFast" and config["add_bos_token"] is False
    assert config["processor_class"] == "LlavaProcessor" and config["pad_token"] == tokenizer.eos_token
    assert not any("auto_map" in path.read_text() for path in tmp_path.iterdir())
    loaded = type(tokenizer).from_pretrained(tmp_path)
    assert loaded("a")["input_ids"] == tokenizer("a", add_special_tokens=False)["input_ids"]
    assert loaded.chat_template == "{{ 1 }}"
