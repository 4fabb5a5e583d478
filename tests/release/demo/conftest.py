"""One server for the tests of a file: two tiny models, of which one makes a token of each patch."""

from __future__ import annotations

import pytest

pytest.importorskip("gradio")

from tests.support.demo_server import serve_demo, tiny_pipeline


@pytest.fixture(scope="module")
def demo():
    with serve_demo({"patches": tiny_pipeline("patch_mlp"), "pooled": tiny_pipeline("mlp", seed=1)}) as server:
        yield server
