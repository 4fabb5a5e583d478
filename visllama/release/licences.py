"""Tables of licences: of base models by their names on the hub, and of training data by the names of `conf/data`.

A licence may change after this table was written: each entry links the page whose text is binding.
"""

from __future__ import annotations

from typing import NamedTuple


class Terms(NamedTuple):
    """The licence of a base model, with its conditions.

    Attributes:
        licence: The Hugging Face hub's identifier of the licence, such as "apache-2.0"; "other" if the hub has none.
        name: The name of the licence for a reader.
        link: The address of a page that has or explains the binding text.
        conditions: The conditions of use in one line; empty if the name says enough.
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

# By the beginning of a model's name: sizes and versions of one family have the same licence.
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
    """Return the licence of a base model, found by the beginning of its name; None if the table does not have it.

    Args:
        name: An id on the hub, or `visllama:NAME` for a model that comes with the package.
    """
    for prefix, terms in _TERMS.items():
        if name.startswith(prefix):
            return terms
    return None


def licence_of(names: list[str]) -> Terms | None:
    """Return the licence that binds a model that was made from some base models.

    Args:
        names: The names of the base models, as `find_terms` takes them.

    Returns:
        Apache-2.0 if each base model is under Apache-2.0 or MIT, or `names` is empty; else the licence of the last base
        model in `names` that is under another licence. None if the table of licences lacks one of the names.
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
    """The content of a data source, with its licence.

    Attributes:
        description: The content and its licence, in one line for a reader.
        dataset: The id of the dataset on the hub; None if the table names none.
    """

    description: str
    dataset: str | None = None


_WEB = "the pictures are their owners', found on the web"
# By the names of the sources in `conf/data/source`.
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
# The keys are those of `holds` in the config of a source of drawn scenes.
_SCENES = {
    "captions": "captions that a grammar wrote",
    "questions": "questions and answers that a grammar wrote",
    "conversations": "all questions on a picture in turn",
    "instructions": "instructions without a picture",
}


def find_data_terms(name: str) -> DataTerms | None:
    """Return the content and licence of a published data source; None if the table does not have its name.

    Args:
        name: The name of the source in the configuration, such as "coco"; the table has some of `conf/data/source`.
    """
    return _DATA.get(name)


def describe_scenes(holds: object) -> str:
    """Return a line for a reader about a data source of drawn scenes, which come with the package.

    Args:
        holds: The source's setting `holds`, the kind of its texts: "captions", "questions", "conversations" or
            "instructions". None means captions; any other value is described in general words.
    """
    texts = _SCENES.get(str(holds or "captions"), "texts that a grammar wrote")
    return f"the embedded world's rendered scenes of colored shapes, with {texts} (Apache-2.0)"
