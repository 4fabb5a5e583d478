"""`source=coco` and its like: captions in Karpathy's layout (COCO, Flickr30k) or in COCO's own (COCO, nocaps)."""

from __future__ import annotations

import re
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

from visllama.errors import ConfigError
from visllama.prepare.raw import SPLITS, ImageFolder, RawData, RawRecord, RawSplit, is_id, listed, read_json, texts

FOLDERS = ("train2014", "val2014", "test2014", "test2015", "train2017", "val2017", "test2017")
"""What COCO's own archives unpack to."""
_KARPATHY = {"train": "train", "restval": "train", "val": "val", "test": "test"}
_NAMED_2014 = re.compile(r"COCO_(?:train|val)2014_([0-9]{12}\.jpg)")


@dataclass(frozen=True)
class Coco(RawData):
    """COCO's captions: all of an image are one record, which the image's id names.

    Args:
        images: The folder of images, or the one that holds `train2014` and its like.
        captions: Karpathy's `dataset_coco.json` or `dataset_flickr30k.json`, or a file in COCO's own layout:
            `captions_train2017.json`, `nocaps_val_4500_captions.json`. The `domain` of nocaps' images is the `type` of
            their records.
    """

    images: str
    captions: str

    FILES = ("captions",)

    def folder(self) -> ImageFolder:
        return coco_folder(self.images)

    def read(self) -> dict[str, RawSplit]:
        content = read_json("captions", self.captions)
        file = "captions", self.captions, content
        images = listed(*file, "images", "COCO captions file")
        if "annotations" in content:
            return self._official(images, listed(*file, "annotations", "COCO captions file"))
        if not any(isinstance(image, dict) and "sentences" in image for image in images):
            raise ConfigError(
                f"captions={self.captions}: no COCO captions file: neither 'annotations' beside 'images', as "
                f"captions_train2017.json has, nor 'sentences' in each image, as Karpathy's dataset_coco.json has"
            )
        return self._karpathy(images)

    def _official(self, images: list, annotations: list) -> dict[str, RawSplit]:
        split = self.split or split_of_name(self.captions)
        if split is None:
            raise ConfigError(f"captions={self.captions}: its name tells no split: give split={', '.join(SPLITS)}")
        made, captions = RawSplit(), defaultdict(list)
        known = {image["id"] for image in images if isinstance(image, dict) and is_id(image.get("id"))}
        for number, annotation in enumerate(annotations):
            image = annotation.get("image_id") if isinstance(annotation, dict) else None
            if is_id(image) and image in known:
                captions[image].append(annotation.get("caption"))
            else:
                made.skip(f"annotations[{number}]", "no image", f"of image {image!r}, which 'images' does not list")
        for number, image in enumerate(images):
            entry = image if isinstance(image, dict) else {}
            file, found = entry.get("file_name"), captions.get(entry["id"], []) if is_id(entry.get("id")) else []
            _add(made, number, entry.get("id"), names_of_both_years(file), found, entry.get("domain"))
        return {split: made}

    def _karpathy(self, images: list) -> dict[str, RawSplit]:
        made: dict[str, RawSplit] = {}
        for number, image in enumerate(images):
            entry = image if isinstance(image, dict) else {}
            named = str(entry.get("split"))
            split = _KARPATHY.get(named)
            chosen = made.setdefault(split or self.split or "train", RawSplit())
            if split is None:
                chosen.skip(f"images[{number}]", "split", f"split {named!r} is none of {', '.join(_KARPATHY)}")
                continue
            file, below = entry.get("filename"), entry.get("filepath")
            names = names_of_both_years(file)
            if isinstance(below, str) and below:
                names = (f"{below}/{file}", *names)
            sentences = entry.get("sentences")
            captions = [s.get("raw") for s in sentences if isinstance(s, dict)] if isinstance(sentences, list) else []
            _add(chosen, number, entry.get("cocoid", entry.get("imgid")), names, captions)
        if self.split is not None and self.split not in made:
            raise ConfigError(f"split={self.split}: {self.captions} holds {', '.join(made)}")
        return {split: made[split] for split in SPLITS if split in made and self.split in (None, split)}


def _add(made: RawSplit, number: int, image: object, names: tuple, captions: list, domain: object = None) -> None:
    where = f"image {image}" if is_id(image) else f"images[{number}]"
    found = texts(captions)
    if not is_id(image):
        made.skip(where, "id", f"id {image!r} is no whole number of twelve digits")
    elif not found:
        made.skip(where, "no caption", "it has none")
    else:
        kind = {"type": domain} if isinstance(domain, str) else {}
        made.add(RawRecord(f"{image:012d}", (names,), {"captions": found, "image_id": image, **kind}, where))


def names_of_both_years(file: object) -> tuple:
    """Return the names that an image's file may have: the one given, and for a name of 2014 that of 2017.

    The archives of 2017 hold the pictures of 2014 in other folders, each named by COCO's id alone.
    """
    named = _NAMED_2014.fullmatch(file) if isinstance(file, str) else None
    return (file,) if named is None else (file, named.group(1))


def coco_folder(images: str | Path) -> ImageFolder:
    """Return a folder of COCO's images, with the folders that its archives unpack to.

    Each of these may be a link of the user's own.
    """
    return ImageFolder([images, *(Path(images).expanduser() / name for name in FOLDERS)])


def split_of_name(file: str) -> str | None:
    """Return the split that a file's name tells: `captions_train2017.json`."""
    found = re.findall(r"(?<![a-z])(train|val|test)(?![a-z])", Path(file).stem.lower())
    return found[-1] if len(set(found)) == 1 else None
