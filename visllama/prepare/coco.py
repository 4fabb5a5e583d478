"""Read captions of images, in Karpathy's layout (COCO, Flickr30k) or in COCO's own (COCO, nocaps).

The sources coco, coco2017, nocaps and flickr30k are read by it.
"""

from __future__ import annotations

import re
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

from visllama.errors import ConfigError
from visllama.prepare.raw import SPLITS, ImageFolder, RawData, RawRecord, RawSplit, is_id, listed, read_json, texts

FOLDERS = ("train2014", "val2014", "test2014", "test2015", "train2017", "val2017", "test2017")
"""The folders that COCO's own archives unpack to."""
_KARPATHY = {"train": "train", "restval": "train", "val": "val", "test": "test"}
"""Our split for each split of Karpathy's; `restval` is the part of val2014 that he trains on."""
_NAMED_2014 = re.compile(r"COCO_(?:train|val)2014_([0-9]{12}\.jpg)")
"""The file name of an image in the archives of 2014."""


@dataclass(frozen=True)
class Coco(RawData):
    """The reader of a file of captions: a record is an image with all its captions, and its key is the image's id.

    Args:
        images: The folder of images, or the one that holds `train2014` and the other folders of COCO's archives.
        captions: The path of Karpathy's `dataset_coco.json` or `dataset_flickr30k.json`, or of a file in COCO's own
            layout, for example `captions_train2017.json` or `nocaps_val_4500_captions.json`. The `domain` of nocaps'
            images becomes the `type` of their records.
    """

    images: str
    captions: str

    FILES = ("captions",)

    def folder(self) -> ImageFolder:
        """Return the folder `images` and the folders of COCO's archives below it, as one place to look for images."""
        return coco_folder(self.images)

    def read(self) -> dict[str, RawSplit]:
        """Read the file of captions, and return the records by split; image files are not looked at.

        A file in Karpathy's layout names the split of each image: all splits are returned, or `split` alone. Any other
        file is one split: `split`, or the one that the name of the file contains.

        Raises:
            ConfigError: If the file cannot be read or has neither layout, or its split is not known or not there.
        """
        content = read_json("captions", self.captions)
        images = self._listed(content, "images")
        if "annotations" in content:
            annotations = self._listed(content, "annotations")
            return self._official(images, annotations)

        has_sentences = any(isinstance(image, dict) and "sentences" in image for image in images)
        if not has_sentences:
            raise ConfigError(
                f"captions={self.captions}: not a COCO captions file: neither 'annotations' beside 'images', as "
                f"captions_train2017.json has, nor 'sentences' in each image, as Karpathy's dataset_coco.json has"
            )
        return self._karpathy(images)

    def _listed(self, content: object, name: str) -> list:
        """Return the list that the file of captions holds under a name."""
        return listed("captions", self.captions, content, name, "COCO captions file")

    def _official(self, images: list, annotations: list) -> dict[str, RawSplit]:
        """Return the split of a file in COCO's own layout, whose captions stand apart from the images."""
        # Nothing inside such a file says which split it is.
        split = self.split or split_of_name(self.captions)
        if split is None:
            raise unknown_split("captions", self.captions)

        raw_split = RawSplit()
        captions = _captions_by_image(images, annotations, raw_split)
        for number, image in enumerate(images):
            entry = image if isinstance(image, dict) else {}
            image_id = entry.get("id")
            file = entry.get("file_name")
            names = names_of_both_years(file)
            its_captions = []
            if is_id(image_id):
                its_captions = captions.get(image_id, [])
            domain = entry.get("domain")
            _add(raw_split, number, image_id, names, its_captions, domain)
        return {split: raw_split}

    def _karpathy(self, images: list) -> dict[str, RawSplit]:
        """Return the splits of a file in Karpathy's layout, where each image holds its split and its captions."""
        splits: dict[str, RawSplit] = {}
        for number, image in enumerate(images):
            entry = image if isinstance(image, dict) else {}
            split_name = str(entry.get("split"))
            split = _KARPATHY.get(split_name)
            # An image of an unknown split is counted as skipped, and has to be counted somewhere.
            our_name = split or self.split or "train"
            raw_split = splits.setdefault(our_name, RawSplit())
            if split is None:
                known_names = ", ".join(_KARPATHY)
                raw_split.skip(f"images[{number}]", "split", f"split {split_name!r} is none of {known_names}")
                continue

            # Flickr30k's images have no COCO id.
            image_id = entry.get("cocoid", entry.get("imgid"))
            names = _karpathy_names(entry)
            captions = _karpathy_captions(entry)
            _add(raw_split, number, image_id, names, captions)
        return self._wanted(splits)

    def _wanted(self, splits: dict[str, RawSplit]) -> dict[str, RawSplit]:
        """Return those of the splits of a file that are to be written: all of them, or `split` alone.

        Raises:
            ConfigError: If the file does not hold `split`.
        """
        if self.split is None:
            return {split: splits[split] for split in SPLITS if split in splits}
        if self.split not in splits:
            split_list = ", ".join(splits)
            raise ConfigError(f"split={self.split}: {self.captions} holds {split_list}")
        return {self.split: splits[self.split]}


def _karpathy_names(entry: dict) -> tuple:
    """Return the names that the file of an image in Karpathy's layout may have."""
    file = entry.get("filename")
    names = names_of_both_years(file)
    # COCO's own archives have a folder for each of their parts; Flickr30k's has none.
    subfolder = entry.get("filepath")
    if isinstance(subfolder, str) and subfolder:
        return (f"{subfolder}/{file}", *names)
    return names


def _karpathy_captions(entry: dict) -> list:
    """Return the captions of an image in Karpathy's layout."""
    sentences = entry.get("sentences")
    if not isinstance(sentences, list):
        return []
    return [sentence.get("raw") for sentence in sentences if isinstance(sentence, dict)]


def _captions_by_image(images: list, annotations: list, raw_split: RawSplit) -> dict[int, list]:
    """Return the captions of each image id; a caption of no listed image is skipped."""
    known_ids = set()
    for image in images:
        image_id = image.get("id") if isinstance(image, dict) else None
        if is_id(image_id):
            known_ids.add(image_id)

    captions = defaultdict(list)
    for number, annotation in enumerate(annotations):
        image_id = annotation.get("image_id") if isinstance(annotation, dict) else None
        if is_id(image_id) and image_id in known_ids:
            captions[image_id].append(annotation.get("caption"))
        else:
            where = f"annotations[{number}]"
            raw_split.skip(where, "no image", f"of image {image_id!r}, which 'images' does not list")
    return captions


def _add(
    raw_split: RawSplit,
    number: int,
    image_id: object,
    names: tuple,
    captions: list,
    domain: object = None,
) -> None:
    """Add an image with its captions to a split, or skip it."""
    if not is_id(image_id):
        raw_split.skip(f"images[{number}]", "id", f"id {image_id!r} is no whole number of twelve digits")
        return

    where = f"image {image_id}"
    caption_texts = texts(captions)
    if not caption_texts:
        raw_split.skip(where, "no caption", "it has none")
        return

    text: dict[str, object] = {"captions": caption_texts, "image_id": image_id}
    if isinstance(domain, str):
        text["type"] = domain
    key = f"{image_id:012d}"
    record = RawRecord(key, (names,), text, where)
    raw_split.add(record)


def names_of_both_years(file: object) -> tuple:
    """Return the names that a COCO image may have: its own and, if it is one of 2014, also the name it has in 2017.

    The archives of 2017 hold the pictures of 2014 in other folders, each named by COCO's id alone:
    `COCO_val2014_000000000042.jpg` is `000000000042.jpg` there.

    Args:
        file: The file name in the raw data. A value that is no text is returned as it is, as the only name.
    """
    if isinstance(file, str):
        match = _NAMED_2014.fullmatch(file)
        if match:
            return (file, match.group(1))
    return (file,)


def coco_folder(images: str | Path) -> ImageFolder:
    """Return one place to look for COCO's images: a folder, then `train2014` and the others of `FOLDERS` below it.

    Folders that do not exist are left out. Each folder may be a link to another one.

    Args:
        images: The folder; `~` is the home folder.
    """
    parent = Path(images).expanduser()
    subfolders = [parent / name for name in FOLDERS]
    return ImageFolder([images, *subfolders])


def split_of_name(file: str) -> str | None:
    """Return the split that the name of a file contains as a word, "train", "val" or "test"; None for none or several.

    For example, `captions_train2017.json` is "train". The file is not read, and its folder does not count.
    """
    stem = Path(file).stem.lower()
    # Not a part of a word, such as "training" or "latest".
    words = re.findall(r"(?<![a-z])(train|val|test)(?![a-z])", stem)
    splits = set(words)
    return splits.pop() if len(splits) == 1 else None


def unknown_split(key: str, file: str) -> ConfigError:
    """Return, for the caller to raise, the error for a file whose name does not show its split.

    Args:
        key: The key that names the file, for the message.
        file: The path of the file, for the message.
    """
    choices = ", ".join(f"split={split}" for split in SPLITS)
    return ConfigError(f"{key}={file}: its file name does not show which split it is: give one of {choices}")
