"""The terms of what a model is made of: base models by their names on the hub, and data by the names of `conf/data`.

A licence changes, and this table does not: each entry has the page that holds.
"""

from __future__ import annotations

from typing import NamedTuple


class Terms(NamedTuple):
    """The terms of a base model.

    Attributes:
        licence: The hub's word for the licence; "other" where it has none.
        name: The licence as a person calls it.
        link: The page that holds.
        told: What it asks, in a line; empty where the name says it.
    """

    licence: str
    name: str
    link: str
    told: str = ""


APACHE = "apache-2.0"
_FREE = (APACHE, "mit")
"""Licences under which what is made from a model may be passed on under Apache-2.0."""
_APACHE_LINK = "https://www.apache.org/licenses/LICENSE-2.0"
_LLAMA_TOLD = (
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
        f"{_LLAMA_TOLD}; its output may not improve other language models",
    ),
    "meta-llama/Meta-Llama-3-": Terms(
        "llama3",
        "Meta Llama 3 Community License",
        "https://www.llama.com/llama3/license/",
        f'{_LLAMA_TOLD}; what is made with it says "Built with Meta Llama 3", and the name of a model made from it '
        f'begins with "Llama 3"',
    ),
    "lmsys/vicuna-7b-v1.5": Terms(
        "llama2",
        "Llama 2 Community License",
        "https://ai.meta.com/llama/license/",
        f"Vicuna 1.5 is made from Llama 2: {_LLAMA_TOLD}. It was tuned on conversations with ChatGPT, for whose use "
        f"OpenAI has terms",
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
    """Return the terms of a base model by the beginning of its name; None where they are not known here."""
    return next((terms for prefix, terms in _TERMS.items() if name.startswith(prefix)), None)


def licence_of(names: list[str]) -> Terms | None:
    """Return the terms that bind what was made from base models.

    Args:
        names: Of the base models; the one with terms of its own binds, the last of several.

    Returns:
        Apache-2.0 where all of them allow it; None where the terms of one are not known.
    """
    found = [find_terms(name) for name in names]
    if None in found:
        return None
    binding = [terms for terms in found if terms.licence not in _FREE]
    return binding[-1] if binding else _TERMS["visllama:"]


class DataTerms(NamedTuple):
    """What a data source is.

    Attributes:
        told: What it holds and under which terms, in a line.
        dataset: Its name among the hub's datasets; None where it has none.
    """

    told: str
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
    """Return what a source of `conf/data/source` is; None for one of the user's own."""
    return _DATA.get(name)


def tell_scenes(holds: object) -> str:
    """Return what a source of the embedded world is, by what it holds."""
    told = _SCENES.get(str(holds or "captions"), "texts that a grammar wrote")
    return f"the embedded world's rendered scenes of colored shapes, with {told} (Apache-2.0)"
