"""Check and import what a config names: classes by a `_target_`, the user's plugins, and a model's parts by their kind.

`plugins` names importable packages of the user's. It is read from the command line and the user's config, never from a
weights folder, a checkpoint, or a run of somebody else's: what lies in a file cannot choose which code runs.
"""

from __future__ import annotations

import inspect
import os
import pkgutil
import re
import sys
from collections.abc import Iterator, Sequence
from difflib import get_close_matches
from functools import cache
from importlib import import_module, metadata
from itertools import chain
from pathlib import Path
from types import ModuleType
from typing import TypeGuard

from visllama.errors import ConfigError

ALLOWED_TARGETS = (
    "visllama.",
    "torch.optim.",
    "lightning.pytorch.callbacks.",
    "lightning.pytorch.loggers.",
    "lightning.pytorch.strategies.",
    "lightning.pytorch.profilers.",
)
"""A `_target_` has to begin with one of these, or with the name of a plugin."""
ROLES = ("vision_encoder", "connector", "language_model")
"""The parts of a model, each of which is chosen by a YAML file."""
_INSTALLERS = {"pip", "setuptools", "wheel", "uv"}
_INTERFACES = {
    "vision_encoder": ("encode", "load_base_weights"),
    "connector": ("consumes", "forward"),
    "language_model": ("build", "load"),
    "source": ("__len__", "__getitem__"),
}
"""The attributes that a class must have to be used in a role."""
_HOW = {"consumes": ' (a class attribute: consumes = "pooled", or "patch")'}
_RECIPES = {
    "vision_encoder": "Vision encoder",
    "connector": "Connector",
    "language_model": "Language model",
    "source": "Data source",
}
"""The headings of the page that has an example for each role."""


def check_target(target: object, plugins: Sequence[str] = ()) -> str:
    """Check that a `_target_` lies in a package that a config may name, and return it unchanged; nothing is imported.

    Args:
        target: The value of `_target_`, of whatever type the config holds there.
        plugins: The names of the user's packages, which are allowed too.

    Raises:
        ConfigError: If the value is no text, or starts neither with one of `ALLOWED_TARGETS` (visllama, torch.optim,
            and some packages of Lightning) nor with a plugin's name and a dot.
    """
    allowed = (*ALLOWED_TARGETS, *_beginnings(plugins))
    if not isinstance(target, str) or not target.startswith(allowed):
        listed = ", ".join(allowed)
        package = _package(target) or "PACKAGE"
        raise ConfigError(
            f"_target_={target!r} is not allowed: a config may name {listed}*; "
            f"a package of your own is let in by plugins=[{package}]"
        )
    return target


def _beginnings(plugins: Sequence[str]) -> tuple[str, ...]:
    """Return the beginning of each path inside a plugin: its name and a dot."""
    return tuple(f"{name}." for name in plugins)


def _package(target: object) -> str | None:
    """Return the package that a `_target_` begins with; None where it is no text."""
    if not isinstance(target, str):
        return None
    package, _, _ = target.partition(".")
    return package


def resolve(target: object, plugins: Sequence[str] = ()) -> type:
    """Import the class that a `_target_` names, and return it.

    Args:
        target: The dotted path of the class, for example "visllama.model.connector.MLPConnector".
        plugins: The names of the user's packages, which are imported and allowed too.

    Raises:
        ConfigError: If the path lies outside `ALLOWED_TARGETS` and the plugins, nothing is there, its module cannot be
            imported, or it names no class or a class that is defined outside those packages.
    """
    path = check_target(target, plugins)
    import_plugins(plugins)
    # A module that is imported can raise anything.
    try:
        located = _locate(path)
    except Exception as error:
        lines = str(error).splitlines() or [repr(error)]
        raise ConfigError(f"_target_={path}: {lines[0]}") from error

    if not inspect.isclass(located):
        raise ConfigError(f"_target_={path} is no class")
    # That the path starts with an allowed package is not enough: `visllama.x.torch.load` does too.
    home = located.__module__
    allowed = (*ALLOWED_TARGETS, *_beginnings(plugins))
    if not f"{home}.".startswith(allowed):
        raise ConfigError(f"_target_={path} is not allowed: it is defined in {home}")
    return located


def _locate(path: str) -> object:
    """Return what a path names, importing the modules on the way.

    Raises:
        AttributeError: If a module or class on the way does not have the next name.
        ImportError: If a package holds no module of the next name.
    """
    # `pkgutil.resolve_name` would hide the error of a module that fails, and take `a:B` too, which Hydra does not.
    location, *names = path.split(".")
    current: object = import_module(location)

    for name in names:
        location = f"{location}.{name}"
        if hasattr(current, name) or not inspect.ismodule(current):
            current = getattr(current, name)
        elif hasattr(current, "__path__"):
            # A package: the name may be that of a module in it, which nobody has imported yet.
            current = import_module(location)
        else:
            close = get_close_matches(name, vars(current), 1)
            hint = f"; did you mean {close[0]}?" if close else ""
            raise AttributeError(f"{current.__name__} has no {name}{hint}")
    return current


def check_plugin(name: object) -> None:
    """Check that the name of a plugin is that of a package of the user's own; nothing is imported.

    A module of Python or a library that visllama uses is refused: a config could call anything in it (`os.system`,
    `torch.load`).

    Args:
        name: The name of the package, of whatever type the config holds there. It may have dots.

    Raises:
        ConfigError: If the package belongs to Python or to what visllama requires, or the name is no package's name.
    """
    if not re.fullmatch(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*", str(name)):
        raise ConfigError(f"plugins=[{name}]: {name!r} is no package's name")

    package, _, _ = str(name).partition(".")
    if package in sys.stdlib_module_names or package == "__main__":
        kind = "a part of Python"
    elif package in _own_libraries():
        kind = "a library that visllama itself uses"
    else:
        return
    raise ConfigError(f"plugins=[{name}]: {package} is {kind}: import what you need of it in a package of your own")


@cache
def _own_libraries() -> frozenset[str]:
    """Return the packages of all distributions that visllama requires, and that those require in turn."""
    required: set[str] = set()
    waiting = ["visllama"]
    while waiting:
        distribution = _canonical(waiting.pop())
        if distribution in required:
            continue
        required.add(distribution)

        try:
            requirements = metadata.requires(distribution) or []
        except metadata.PackageNotFoundError:
            # Required on another platform only.
            continue
        for requirement in requirements:
            # Our own extras count too: what tests and queues use is no package of the user's either.
            is_extra = "extra ==" in requirement
            if distribution == "visllama" or not is_extra:
                name, *_ = re.split(r"[^\w.-]", requirement, maxsplit=1)
                waiting.append(name)
    required.remove("visllama")
    required |= _INSTALLERS

    # A namespace package is the user's where one of its distributions is.
    packages = set()
    for package, distributions in metadata.packages_distributions().items():
        if {_canonical(name) for name in distributions} <= required:
            packages.add(package)
    return frozenset(packages)


def _canonical(distribution: str) -> str:
    """Return the name of a distribution as indexes compare it (PEP 503)."""
    return re.sub(r"[-_.]+", "-", distribution).lower()


def import_plugins(plugins: Sequence[str]) -> list[ModuleType]:
    """Import the user's packages, and return them in the order of their names.

    The working folder is added to the end of `sys.path`, so that packages that lie there are found.

    Args:
        plugins: The names of the packages.

    Raises:
        ConfigError: If a name is that of a module of Python or of a library that visllama uses, or the package cannot
            be imported.
    """
    # At the end, so that a file of the working folder hides no library.
    if plugins and os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())

    modules = []
    for name in plugins:
        check_plugin(name)
        # A package of the user's can raise anything.
        try:
            modules.append(import_module(name))
        except Exception as error:
            raise ConfigError(
                f"plugins={list(plugins)}: {name} cannot be imported ({type(error).__name__}: {error}): install it, "
                f"put its folder on PYTHONPATH, or run where it lies"
            ) from error
    return modules


def class_of_target(role: str, target: object, plugins: Sequence[str] = ()) -> type:
    """Import the class that a `_target_` names, check that it has what its role needs, and return it.

    Args:
        role: What the class is used as: "vision_encoder", "connector", "language_model" or "source".
        target: The dotted path of the class, of whatever type the config holds there.
        plugins: The names of the user's packages, which are imported and allowed too.

    Raises:
        ConfigError: If the path lies outside `ALLOWED_TARGETS` and the plugins, no class is there, or the class lacks
            an attribute that its role needs, or still has an abstract method.
    """
    part = resolve(target, plugins)
    missing = [name for name in _INTERFACES[role] if not hasattr(part, name)]
    # Abstract methods are attributes too, which the class inherits and has not written.
    abstract = getattr(part, "__abstractmethods__", ())
    missing += sorted(name for name in abstract if name not in missing)
    if not missing:
        return part

    descriptions = []
    for name in missing:
        how = _HOW.get(name, "")
        descriptions.append(f"{name}{how}")
    listed = ", ".join(descriptions)
    role_in_words = role.replace("_", " ")
    raise ConfigError(f"_target_={target} is no {role_in_words}: it has no {listed}{example_of(role)}")


def example_of(role: str) -> str:
    """Return the end of an error message: the heading, and the path of visllama's README, with an example for a role.

    Args:
        role: What a class is used as: "vision_encoder", "connector", "language_model" or "source".

    Raises:
        KeyError: If the role is another text.
    """
    page = Path(__file__).with_name("README.md")
    return f'; an example: "{_RECIPES[role]}" in {page}'


def part_class(role: str, kind: object, plugins: Sequence[str] = ()) -> type:
    """Return the class of a model's part by its kind, which is the class's name: one of visllama's, or of a plugin's.

    visllama's own classes are searched first, then the plugins in their order, then the modules inside them. Every
    plugin is imported, and the modules inside them only up to the one that holds the class.

    Args:
        role: The part of the model: "vision_encoder", "connector" or "language_model".
        kind: The name of the class, of whatever type a file holds there.
        plugins: The names of the user's packages.

    Raises:
        ConfigError: If a package or module cannot be imported, or there is no such class that has all that its role
            needs; the message lists the known kinds, and how to name a package that holds another one.
    """
    our_module = import_module(f"visllama.model.{role}")
    packages = import_plugins(plugins)
    # A plugin that has imported a class of another library does not make it a part.
    homes = ("visllama.", *_beginnings(plugins))
    for module in chain([our_module], _modules(packages)):
        part = getattr(module, kind, None) if isinstance(kind, str) else None
        if _is_part(part, role) and f"{part.__module__}.".startswith(homes):
            return part

    known_kinds = sorted(name for name, value in vars(our_module).items() if _is_part(value, role))
    listed = ", ".join(known_kinds)
    hint = "one of your own needs plugins=[PACKAGE]"
    if plugins:
        hint = f"and plugins={list(plugins)} hold no other"
    raise ConfigError(f"unknown {role} {kind!r}: there are {listed}; {hint}")


def _is_part(value: object, role: str) -> TypeGuard[type]:
    """Return whether a value is a class that can be used in a role; base classes and protocols cannot."""
    return (
        inspect.isclass(value)
        and not inspect.isabstract(value)
        and not getattr(value, "_is_protocol", False)
        and all(hasattr(value, name) for name in _INTERFACES[role])
    )


def _modules(packages: Sequence[ModuleType]) -> Iterator[ModuleType]:
    """Yield the packages, then the modules inside them, each imported only when it is asked for."""
    yield from packages
    for package in packages:
        folders = getattr(package, "__path__", [])
        prefix = f"{package.__name__}."
        for module in pkgutil.walk_packages(folders, prefix):
            # To import it would run the user's program.
            if module.name.endswith("__main__"):
                continue
            yield from import_plugins([module.name])
