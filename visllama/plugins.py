"""What a config may name: `_target_`s of our packages and of the user's plugins, and a model's parts by their kind.

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
from pathlib import Path
from types import ModuleType

from visllama.errors import ConfigError

ALLOWED_TARGETS = (
    "visllama.",
    "torch.optim.",
    "lightning.pytorch.callbacks.",
    "lightning.pytorch.loggers.",
    "lightning.pytorch.strategies.",
    "lightning.pytorch.profilers.",
)
ROLES = ("vision_encoder", "connector", "language_model")
"""A model's parts, each of which is a YAML's choice."""
_INSTALLERS = {"pip", "setuptools", "wheel", "uv"}
_INTERFACES = {
    "vision_encoder": ("encode", "load_base_weights"),
    "connector": ("consumes", "forward"),
    "language_model": ("build", "load"),
    "source": ("__len__", "__getitem__"),
}
"""What a class must have to stand in a place."""
_HOW = {"consumes": ' (a class attribute: consumes = "pooled", or "patch")'}
_RECIPES = {
    "vision_encoder": "Vision encoder",
    "connector": "Connector",
    "language_model": "Language model",
    "source": "Data source",
}
"""The headings of the page that has an example of each."""


def check_target(target: object, plugins: Sequence[str] = ()) -> str:
    """Refuse a `_target_` outside the packages that a config may name: it is code that would run.

    Raises:
        ConfigError: If the path does not start with one of `ALLOWED_TARGETS` or with a plugin.
    """
    allowed = (*ALLOWED_TARGETS, *(f"{name}." for name in plugins))
    if not isinstance(target, str) or not target.startswith(allowed):
        raise ConfigError(
            f"_target_={target!r} is not allowed: a config may name {', '.join(allowed)}*; "
            f"a package of your own is let in by plugins=[{_package(target) or 'PACKAGE'}]"
        )
    return target


def _package(target: object) -> str | None:
    return target.partition(".")[0] if isinstance(target, str) else None


def resolve(target: object, plugins: Sequence[str] = ()) -> type:
    """Return the class that a `_target_` names, which must be defined where the config may look.

    That a path starts with an allowed package is not enough: `visllama.x.torch.load` does too.

    Raises:
        ConfigError: If it is not allowed, not there, no class, or a class of somebody else's.
    """
    check_target(target, plugins)
    import_plugins(plugins)
    try:
        found = _locate(target)
    except Exception as error:  # whatever a module raises that is imported
        raise ConfigError(f"_target_={target}: {next(iter(str(error).splitlines()), repr(error))}") from error
    if not inspect.isclass(found):
        raise ConfigError(f"_target_={target} is no class")
    if not f"{found.__module__}.".startswith((*ALLOWED_TARGETS, *(f"{name}." for name in plugins))):
        raise ConfigError(f"_target_={target} is not allowed: it is defined in {found.__module__}")
    return found


def _locate(path: str) -> object:
    """Return what a path names, imported as far as need be.

    `pkgutil.resolve_name` would hide the error of a module that fails, and take `a:B` too, which Hydra does not.
    """
    at, *names = path.split(".")
    found = import_module(at)
    for name in names:
        at = f"{at}.{name}"
        is_inside = hasattr(found, name) or not inspect.ismodule(found)
        if not is_inside and not hasattr(found, "__path__"):  # a module, in which no other can lie
            close = get_close_matches(name, vars(found), 1)
            hint = f"; did you mean {close[0]}?" if close else ""
            raise AttributeError(f"{found.__name__} has no {name}{hint}")
        found = getattr(found, name) if is_inside else import_module(at)
    return found


def check_plugin(name: object) -> None:
    """Refuse what is no package of the user's: Python's own modules, and the libraries that visllama is made with.

    A config could call anything in them (`os.system`, `torch.load`), and nobody needs them as plugins.

    Raises:
        ConfigError: Naming what was found.
    """
    if not re.fullmatch(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*", str(name)):
        raise ConfigError(f"plugins=[{name}]: {name!r} is no package's name")
    package = str(name).partition(".")[0]
    if package in sys.stdlib_module_names or package == "__main__":
        kind = "a part of Python"
    elif package in _own_libraries():
        kind = "a library that visllama itself uses"
    else:
        return
    raise ConfigError(f"plugins=[{name}]: {package} is {kind}: import what you need of it in a package of your own")


@cache
def _own_libraries() -> frozenset[str]:
    """Return the packages of all that visllama requires, and of what that requires in turn."""
    required, waiting = set(), ["visllama"]
    while waiting:
        distribution = _canonical(waiting.pop())
        if distribution in required:
            continue
        required.add(distribution)
        try:
            lines = metadata.requires(distribution) or []
        except metadata.PackageNotFoundError:  # of another platform
            continue
        is_ours = distribution == "visllama"  # with its extras: what tests and queues take is no user's package either
        waiting += [re.match(r"[\w.-]+", line)[0] for line in lines if is_ours or "extra ==" not in line]
    required.remove("visllama")
    required |= _INSTALLERS
    homes = metadata.packages_distributions().items()
    return frozenset(package for package, of in homes if {_canonical(name) for name in of} <= required)


def _canonical(distribution: str) -> str:
    return re.sub(r"[-_.]+", "-", distribution).lower()


def import_plugins(plugins: Sequence[str]) -> list[ModuleType]:
    """Import the user's packages, also from the working folder.

    Raises:
        ConfigError: If a name is none, is no package of the user's, or cannot be imported.
    """
    if plugins and os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    modules = []
    for name in plugins:
        check_plugin(name)
        try:
            modules.append(import_module(name))
        except Exception as error:  # whatever a package of the user's raises
            raise ConfigError(
                f"plugins={list(plugins)}: {name} cannot be imported ({type(error).__name__}: {error}): install it, "
                f"put its folder on PYTHONPATH, or run where it lies"
            ) from error
    return modules


def class_of_target(role: str, target: object, plugins: Sequence[str] = ()) -> type:
    """Return the class that a `_target_` names, once it is allowed and fit for its role.

    Args:
        role: `vision_encoder`, `connector`, `language_model` or `source`.
        target: The path.
        plugins: The user's packages.

    Raises:
        ConfigError: If it is not allowed, not there, or lacks what its role needs.
    """
    found = resolve(target, plugins)
    abstract = getattr(found, "__abstractmethods__", ())  # what its base class leaves to it
    lacking = [name for name in _INTERFACES[role] if not hasattr(found, name)]
    lacking += sorted(name for name in abstract if name not in lacking)
    if lacking:
        told = ", ".join(f"{name}{_HOW.get(name, '')}" for name in lacking)
        raise ConfigError(f"_target_={target} is no {role.replace('_', ' ')}: it has no {told}{example_of(role)}")
    return found


def example_of(role: str) -> str:
    """Return the end of an error message: where there is an example of a part of one's own."""
    page = Path(__file__).with_name("README.md")
    return f'; an example: "{_RECIPES[role]}" in {page}'


def part_class(role: str, kind: object, plugins: Sequence[str] = ()) -> type:
    """Find the class of a model's part by its kind (the class's name): among ours, then in the plugins.

    Raises:
        ConfigError: If there is none, saying how to name the package that holds it.
    """
    own = import_module(f"visllama.model.{role}")
    homes = ("visllama.", *(f"{name}." for name in plugins))
    for module in [own, *_modules(import_plugins(plugins))]:
        found = getattr(module, kind, None) if isinstance(kind, str) else None
        if _is_part(found, role) and f"{found.__module__}.".startswith(homes):
            return found
    known = sorted(name for name, found in vars(own).items() if _is_part(found, role))
    where = f"and plugins={list(plugins)} hold no other" if plugins else "one of your own needs plugins=[PACKAGE]"
    raise ConfigError(f"unknown {role} {kind!r}: there are {', '.join(known)}; {where}")


def _is_part(found: object, role: str) -> bool:
    return (
        inspect.isclass(found)
        and not inspect.isabstract(found)
        and not getattr(found, "_is_protocol", False)
        and all(hasattr(found, name) for name in _INTERFACES[role])
    )


def _modules(packages: Sequence[ModuleType]) -> Iterator[ModuleType]:
    """Yield the packages, then what lies inside them, imported only when it is looked into."""
    yield from packages
    for package in packages:
        for found in pkgutil.walk_packages(getattr(package, "__path__", []), f"{package.__name__}."):
            if not found.name.endswith("__main__"):
                yield from import_plugins([found.name])
