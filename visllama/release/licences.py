"""The terms of base models, by their names on the hub, and of training data, by the names of `conf/data`.

A licence may change after this table was written: each entry links the page whose text is binding.
"""

from __future__ import annotations

from typing import NamedTuple


class Terms(NamedTuple):
    """The terms of a base model.

    Attributes:
        licence: The hub's identifier of the licence; "other" where it has none.
        name: The name of the licence for a reader.
        link: The address of the binding text.
        conditions: The conditions in one line; empty where the name is enough.
    """

    licence: str
    name: str
    link: str
    conditions: str = ""


APACHE = "apache-2.0"
_FREE = (APACHE, "mit")
"""Licences that let a model that is made from another be published under Apache-2.0."""
_APACHE_LINK = "https://www.apache.org/licenses/LICENSE-2.0"
_LLAMA_TERMS = (
    "Meta's acceptable use policy binds whoever uses it, its licence text goes with it, and above 700 million monthly "
    "users a licence of one's own is needed"
)

_TERMS = {
    "visllama:": Terms(APACHE, "Apache-2.0", _APACHE_LINK),
    "huggyllama/": Terms(
        "other",
        "LLaMA licence (first LLaMA)",
        "https://huggingface.co/huggyllama/llama-7b",
        "non-commercial: research alone, by those to whom Meta has granted it",
    ),
    "meta-llama/Llama-2-": Terms(
        "llama2",
        "Llama 2 Community License",
        "https://ai.meta.com/llama/license/",
        f"{_LLAMA_TERMS}; its output may not improve other language models",
    ),
    "meta-llama/Meta-Llama-3-": Terms(
        "llama3",
        "Meta Llama 3 Community License",
        "https://www.llama.com/llama3/license/",
        f'{_LLAMA_TERMS}; what is made with it says "Built with Meta Llama 3", and the name of a model made from it '
        'begins with "Llama 3"',
    ),
    "lmsys/vicuna-7b-v1.5": Terms(
        "llama2",
        "Llama 2 Community License",
        "https://ai.meta.com/llama/license/",
        f"Vicuna 1.5 is made from Llama 2: {_LLAMA_TERMS}. It was tuned on conversations with ChatGPT, for whose use "
        "OpenAI has terms",
    ),
    "mistralai/Mistral-7B-v0.1": Terms(APACHE, "Apache-2.0", _APACHE_LINK),
    "Qwen/Qwen2.5-7B": Terms(APACHE, "Apache-2.0", _APACHE_LINK),
    "openai/clip-vit-": Terms(
        "mit",
        "MIT",
        "https://github.com/openai/CLIP",
        "the licence is that of OpenAI's code, the hub's page names none; its model card asks that no use go without "
        "tests in its own setting, and rules out surveillance and face recognition",
    ),
    "google/siglip-so400m-": Terms(APACHE, "Apache-2.0", _APACHE_LINK),
    "facebook/dinov2-": Terms(APACHE, "Apache-2.0", _APACHE_LINK),
}


def find_terms(name: str) -> Terms | None:
    """Return the terms of a base model, found by the beginning of its name; None where the table has none."""
    for prefix, terms in _TERMS.items():
        if name.startswith(prefix):
            return terms
    return None


def licence_of(names: list[str]) -> Terms | None:
    """Return the terms that bind a model that was made from base models.

    Args:
        names: The names of the base models.

    Returns:
        Apache-2.0 where the terms of all base models allow it, and otherwise the terms of the last one that does not;
        None where the terms of one are not known.
    """
    binding = _TERMS["visllama:"]
    for name in names:
        terms = find_terms(name)
        if terms is None:
            return None
        if terms.licence not in _FREE:
            binding = terms

    return binding


class DataTerms(NamedTuple):
    """The content and the terms of a data source.

    Attributes:
        description: The content and its terms, in one line.
        dataset: The id of the dataset on the hub; None where it is not there.
    """

    description: str
    dataset: str | None = None


_WEB = "the pictures are their owners', found on the web"
_DATA = {
    "coco": DataTerms(
        "COCO captions (CC BY 4.0), five people's of each picture; the pictures are Flickr's, each with its own licence"
    ),
    "cc3m": DataTerms(
        f"Conceptual Captions 3M: alternative texts of web pages (free to use, Google asks to be named); {_WEB}",
        "google-research-datasets/conceptual_captions",
    ),
    "coyo": DataTerms(
        f"COYO-700M: alternative texts of web pages (CC BY 4.0, unfiltered by people); {_WEB}", "kakaobrain/coyo-700m"
    ),
    "vqa": DataTerms("VQAv2: questions and answers of people (CC BY 4.0) on COCO's pictures, which are Flickr's"),
    "llava_pretrain": DataTerms(
        f"LLaVA-1.5's captions, written by BLIP for pictures of LAION, CC and SBU; {_WEB}", "liuhaotian/LLaVA-Pretrain"
    ),
    "llava_instruct": DataTerms(
        "LLaVA-1.5's mix of conversations, partly written by GPT-4, for whose output OpenAI has terms",
        "liuhaotian/LLaVA-Instruct-150K",
    ),
}
_SCENES = {
    "captions": "captions that a grammar wrote",
    "questions": "questions and answers that a grammar wrote",
    "conversations": "all questions on a picture in turn",
    "instructions": "instructions without a picture",
}


def find_data_terms(name: str) -> DataTerms | None:
    """Return the terms of a source of `conf/data/source`; None where the source is the user's own."""
    return _DATA.get(name)


def describe_scenes(holds: object) -> str:
    """Return a line about a data source of the embedded world.

    Args:
        holds: The source's key `holds`, the kind of its texts. A config that somebody else wrote may hold anything.
    """
    texts = _SCENES.get(str(holds or "captions"), "texts that a grammar wrote")
    return f"the embedded world's rendered scenes of colored shapes, with {texts} (Apache-2.0)"
