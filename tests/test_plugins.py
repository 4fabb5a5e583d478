"""Whose code a config may name, and whose classes a weights folder may."""

from __future__ import annotations

import pickle
import sys
from importlib import metadata
from pathlib import Path

import pytest
import torch

from visllama.config.instantiate import build
from visllama.data.shards.source import ShardSource
from visllama.errors import ConfigError
from visllama.plugins import check_target, class_of_target, import_plugins, part_class

MINE = """
from pathlib import Path
from torch import nn

class Mine(nn.Module):
    consumes = "pooled"
    def __init__(self, vision_dim, language_dim, num_image_tokens):
        super().__init__()
    def forward(self, features):
        return features

class NoConnector(nn.Module):
    pass
"""


@pytest.fixture
def lab(tmp_path, monkeypatch):
    """A package of the user's, in the working folder, whose class lies in a module inside."""
    (tmp_path / "mylab").mkdir()
    (tmp_path / "mylab" / "__init__.py").write_text("from subprocess import Popen")
    (tmp_path / "mylab" / "connectors.py").write_text(MINE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield "mylab"
    for name in [name for name in sys.modules if name.startswith("mylab")]:
        del sys.modules[name]


@pytest.mark.parametrize(
    "target", ["os.system", "builtins.eval", "subprocess.run", "visllamax.f", "torch.load", "mylab.f", None, 3]
)
def test_targets_outside_the_allow_list_are_refused(target):
    with pytest.raises(ConfigError, match="is not allowed"):
        build({"_target_": "visllama.data.scenes.source.ScenesSource", "split": {"deep": [{"_target_": target}]}})


@pytest.mark.parametrize(
    "target",
    ["visllama.model.weights.torch.load", "visllama.plugins.import_plugins", "visllama.data.shards.source.Path",
     "visllama.images.decode.Path", "torch.optim.adamw.Tensor"],
)  # fmt: skip
def test_what_an_allowed_module_only_imports_is_refused(target):
    """An allowed beginning is not enough: the class must be defined where the config may look."""
    with pytest.raises(ConfigError, match=r"is not allowed: it is defined in|is no class"):
        build({"_target_": "visllama.data.scenes.source.ScenesSource", "split": {"_target_": target}})


def test_an_optimizer_of_ones_own(lab):
    (Path("mylab") / "optimizers.py").write_text("import torch\n\nclass Mine(torch.optim.SGD):\n    pass\n")
    node = {"_target_": "mylab.optimizers.Mine", "_partial_": True, "lr": 0.5}
    assert build(node, ["mylab"])([torch.zeros(1, requires_grad=True)]).defaults["lr"] == 0.5
    with pytest.raises(ConfigError, match=r"plugins=\[mylab\]"):
        build(node)


@pytest.mark.parametrize(("content", "says"), [("import no_such_thing", "no_such_thing"), ("assert False", "Assert")])
def test_a_module_that_fails_says_why(lab, content, says):
    (Path("mylab") / "broken.py").write_text(content)
    with pytest.raises(ConfigError, match=rf"_target_=mylab\.broken\.Mine: .*{says}"):
        class_of_target("connector", "mylab.broken.Mine", [lab])


def test_shards_have_a_public_name_that_yaml_runs_and_orders_know():
    """Another one would refuse to go on with runs from before, as of another order."""
    name = "visllama.data.shards.ShardSource"
    assert class_of_target("source", name) is ShardSource
    assert f"{ShardSource.__module__}.{ShardSource.__qualname__}" == name
    assert pickle.loads(pickle.dumps(ShardSource)) is ShardSource  # noqa: S301 - as a loading process is given it


def test_a_plugins_main_is_not_run_and_a_broken_sibling_is_named(lab):
    (Path("mylab") / "__main__.py").write_text("raise SystemExit('ran')")
    with pytest.raises(ConfigError, match="unknown connector 'None'"):
        part_class("connector", "None", [lab])
    (Path("mylab") / "a_broken.py").write_text("import no_such_thing")
    with pytest.raises(ConfigError, match=r"mylab\.a_broken cannot be imported \(ModuleNotFoundError"):
        part_class("connector", "Mine", [lab])
    assert part_class("connector", "Mine", ["mylab.connectors"]).__name__ == "Mine", "the very module needs no search"


def test_modules_behind_the_class_are_not_imported(lab):
    """A plugin may hold much that one model does not need, and that takes seconds or fails on this machine."""
    (Path("mylab") / "z_broken.py").write_text("import no_such_thing")
    assert part_class("connector", "Mine", [lab]).__name__ == "Mine"
    del sys.modules["mylab.connectors"]
    assert part_class("connector", "MLPConnector", [lab]).__name__ == "MLPConnector"
    assert "mylab.connectors" not in sys.modules


def test_the_refusal_names_the_key_that_lets_it_in():
    with pytest.raises(ConfigError, match=r"plugins=\[mylab\]"):
        check_target("mylab.connectors.Mine")


def test_a_plugin_lets_its_own_package_in_and_no_other():
    assert check_target("mylab.connectors.Mine", ["mylab"])
    for target in ("mylabs.Mine", "mylab", "os.system"):
        with pytest.raises(ConfigError):
            check_target(target, ["mylab"])


def test_a_class_is_found_by_its_path_and_by_its_name(lab):
    found = class_of_target("connector", "mylab.connectors.Mine", [lab])
    assert found.__name__ == "Mine" and part_class("connector", "Mine", [lab]) is found
    assert part_class("connector", "MLPConnector", [lab]).__module__ == "visllama.model.connector"


def test_a_name_without_its_plugin_is_refused(lab):
    with pytest.raises(ConfigError, match=r"unknown connector 'Mine': there are MLPConnector.* plugins=\[PACKAGE\]"):
        part_class("connector", "Mine")


@pytest.mark.parametrize(
    "kind", ["Popen", "Path", "NoConnector", "connectors", "__name__", "mylab.connectors.Mine", "", None, 3, {}]
)
def test_only_a_part_of_the_plugin_itself_is_one(lab, kind):
    """Not what it imported from elsewhere, nor a class that is no connector."""
    with pytest.raises(ConfigError, match="unknown connector"):
        part_class("connector", kind, [lab])


def test_what_lacks_its_interface_is_named(lab):
    with pytest.raises(ConfigError, match="is no connector: it has no consumes"):
        class_of_target("connector", "mylab.connectors.NoConnector", [lab])
    with pytest.raises(ConfigError, match=r"mylab\.connectors has no Mien; did you mean Mine\?"):
        class_of_target("connector", "mylab.connectors.Mien", [lab])


def test_what_a_base_class_leaves_open_is_named(tmp_path, monkeypatch):
    code = """
from visllama.model.vision_encoder import VisionEncoder

class Half(VisionEncoder):
    def encode(self, pixel_values):
        return None
"""
    (tmp_path / "half_lab.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ConfigError, match=r"half_lab\.Half is no vision encoder: it has no load_base_weights"):
        class_of_target("vision_encoder", "half_lab.Half", ["half_lab"])


@pytest.mark.parametrize("name", ["no_such_package", "../x", "a b", "", "mylab;x"])
def test_a_plugin_that_is_none_is_named(name):
    with pytest.raises(ConfigError, match="plugins="):
        import_plugins([name])


@pytest.mark.parametrize("name", ["os", "subprocess", "importlib.util", "builtins", "json", "__main__"])
def test_python_itself_is_no_plugin(name):
    with pytest.raises(
        ConfigError,
        match=rf"plugins=\[{name}\]: .* is a part of Python: import what you need of it in a package of your own",
    ):
        import_plugins([name])


@pytest.mark.parametrize("name", ["torch", "torch.nn", "transformers", "hydra", "yaml", "sympy"])
def test_a_library_of_ours_is_no_plugin(name):
    if not metadata.requires("visllama"):
        pytest.skip("visllama is not installed with what it requires")
    with pytest.raises(ConfigError, match=rf"plugins=\[{name}\]: .* is a library that visllama itself uses"):
        import_plugins([name])


def test_an_installed_package_of_the_users_is_a_plugin(tmp_path, monkeypatch):
    (tmp_path / "theirlab.py").write_text("")
    (tmp_path / "theirlab-1.0.dist-info").mkdir()
    (tmp_path / "theirlab-1.0.dist-info" / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: theirlab\nVersion: 1.0\n"
    )
    (tmp_path / "theirlab-1.0.dist-info" / "RECORD").write_text("theirlab.py,,\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert "theirlab" in metadata.packages_distributions()
    assert [module.__name__ for module in import_plugins(["theirlab"])] == ["theirlab"]
    del sys.modules["theirlab"]
