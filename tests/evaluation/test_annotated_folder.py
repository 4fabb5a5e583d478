"""A folder of pictures with COCO's or VQA's files: how a picture is found, and what is refused before it is opened."""

from __future__ import annotations

import json

import pytest

from tests.support.photos import jpeg
from visllama.data.sources import fingerprint, judged_sources
from visllama.errors import BadRecord, ConfigError
from visllama.evaluation.annotated_folder import AnnotatedFolder
