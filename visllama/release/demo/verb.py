"""Run the command `visllama demo`: serve a page and a JSON API to talk to trained models."""

from __future__ import annotations

import getpass
import importlib.util
import ipaddress
import os
import signal
import socket
import sys
from dataclasses import replace
from pathlib import Path

from visllama.config.dry_run import check_decoding, check_machine
from visllama.config.schema import DemoConfig
from visllama.console import say, working
from visllama.errors import ConfigError, require
from visllama.inference.verbs import as_list, load_pipeline
from visllama.model.locate import locate
from visllama.release.demo.served import Served, Shelf, names_of

PASSWORD = "VISLLAMA_DEMO_PASSWORD"
"""The environment variable that holds the password, which no config and no log contains."""


def assemble(config: DemoConfig) -> socket.socket:
    """Check the configuration without loading weights, and return a socket that is bound to its host and port.

    The check covers that gradio is installed, that weights are named, that numbers are in their ranges, that a server
    which other machines can reach has a user and a password, that the device is there, and that `generate` takes the
    settings in `decoding`.

    Args:
        config: The command's configuration.

    Raises:
        ConfigError: If one of the checks fails, the port is taken, or this machine has no such address.
    """
    # Looked for, and not imported, which would take seconds.
    if importlib.util.find_spec("gradio") is None:
        raise ConfigError("visllama demo is an extra, which is not there:  pip install 'visllama[demo]'")

    require(as_list(config.weights) != [], "weights=[]: give one weights folder, or several to compare")
    for key in ("max_upload_mb", "requests_per_minute", "max_queue"):
        value = getattr(config, key)
        require(value > 0, f"{key}={value}: must be more than 0")
    is_port = 0 <= config.port < 2**16
    require(is_port, f"port={config.port}: must be from 0, which takes a free one, to 65535")

    _check_password(config)
    check_machine(config.trainer)
    check_decoding(config.decoding)
    return bind(config.host, config.port)


def demo(config: DemoConfig, listening: socket.socket) -> None:
    """Load the models, serve the page and the API until Ctrl-C or SIGTERM, and then delete all uploads.

    SIGTERM ends the program (`SystemExit`); after Ctrl-C the function returns.

    Args:
        config: The command's configuration.
        listening: The socket that `assemble` has returned. It is closed at the end, also after an error.

    Raises:
        ConfigError: If a folder holds no weights, or their base models are missing or others than in training.
    """
    # Without a handler SIGTERM would end the process with the uploads still there.
    signal.signal(signal.SIGTERM, _end)
    try:
        _serve(config, listening)
    except KeyboardInterrupt:
        say("ended; nothing that was uploaded is kept")
    finally:
        listening.close()


def _end(number: int, frame: object) -> None:
    """End the program by an exception, so that the folder of uploads is deleted on its way."""
    sys.exit(0)


def _serve(config: DemoConfig, listening: socket.socket) -> None:
    """Load the models, and serve them until the server is stopped."""
    # Imported here: they take seconds, which a command that `assemble` refuses should not wait for.
    from visllama.release.demo.examples import find_examples
    from visllama.release.demo.guard import Rules
    from visllama.release.demo.server import build_app, make_server, own_hosts, upload_folder

    models = load_models(config)

    # Weights of the embedded world know drawn scenes alone, and are shown some.
    first_model = models.choose()
    encoder = first_model.pipeline.model.vision_encoder
    encoder_path = getattr(encoder, "path", "")
    is_of_scenes = encoder_path == locate("visllama:clip")

    first_weights = as_list(config.weights)[0]
    examples = find_examples(Path(str(first_weights)), is_of_scenes)

    # With port=0 the system has chosen the port.
    host = config.host
    port = listening.getsockname()[1]
    with upload_folder() as uploads:
        rules = Rules(
            is_own_host=own_hosts(host, port),
            max_bytes=int(config.max_upload_mb * 2**20),
            requests_per_minute=config.requests_per_minute,
            uploads=str(uploads),
            user=config.user,
            password=os.environ.get(PASSWORD, ""),
        )
        app = build_app(models, examples, uploads, config.max_upload_mb, config.max_queue)
        server = make_server(app, rules, started=lambda: say(greeting(host, port)))
        server.run(sockets=[listening])


def load_models(config: DemoConfig) -> Shelf:
    """Load all weights that the configuration names, in their order, each under the name of its run (NAME/ID).

    Args:
        config: The command's configuration; `weights` is one folder or a list of them.

    Raises:
        ConfigError: If a folder holds no weights, or their base models are missing or others than in training.
    """
    folders = [str(folder) for folder in as_list(config.weights)]
    served = []

    with working() as show:
        for name, folder in zip(names_of(folders), folders, strict=True):
            show(f"loading {name}")
            pipeline = load_pipeline(replace(config, weights=folder))
            served.append(Served(name, pipeline, config.decoding, config.max_queue))
    return Shelf(served)


def greeting(host: str, port: int) -> str:
    """Return the text for the terminal when the server has started: its address, how to reach it, how to end it.

    Args:
        host: The name or address that the server listens at.
        port: The port that the server listens at.
    """
    # An IPv6 address stands in brackets before a port.
    bracketed = f"[{host}]" if ":" in host else host
    address = f"http://{bracketed}:{port}"

    lines = [f"The page: {address}"]
    # Nobody else reaches a loopback address, but through ssh.
    if _is_loopback(host):
        user = getpass.getuser()
        machine = socket.gethostname()
        forwarding = f"{port}:{bracketed}:{port}"
        lines.append(f"From elsewhere: ssh -L {forwarding} {user}@{machine}, then the same address")

    lines.append(f"The API: POST {address}/caption and {address}/chat; visllama/release/README.md describes it")
    lines.append("Ctrl-C ends it")
    return "\n".join(lines)


def bind(host: str, port: int) -> socket.socket:
    """Return a new socket that is bound to an address, for the caller to close.

    Args:
        host: A name or an address of this machine; "0.0.0.0" is all its addresses.
        port: The port; 0 takes a free one, which the socket's `getsockname()` then names.

    Raises:
        ConfigError: If the port is taken, in which case the message names a free one, or this machine has no such
            address.
    """
    try:
        addresses = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except OSError as error:
        raise ConfigError(f"host={host}: no address of this machine ({error.strerror})") from error

    family, kind, protocol, _, address = addresses[0]
    bound = socket.socket(family, kind, protocol)
    # A server that has just ended leaves its port reserved for a minute.
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        bound.bind(address)
    except OSError as error:
        bound.close()
        if port == 0:
            raise ConfigError(f"host={host}: cannot be served from here ({error.strerror})") from error

        # Closed at once, so that the user can take it.
        with bind(host, 0) as other:
            free_port = other.getsockname()[1]
        raise ConfigError(f"port={port}: cannot be taken ({error.strerror}): port={free_port} is free") from error
    return bound


def _check_password(config: DemoConfig) -> None:
    """Check that a server which other machines can reach asks for a user and a password.

    Raises:
        ConfigError: If others can reach the server and `user` is not given, or if `user` is given without a password
            or with a colon.
    """
    password = os.environ.get(PASSWORD, "")
    if config.user is not None:
        # HTTP Basic separates the name from the password by the first colon.
        is_name = config.user != "" and ":" not in config.user
        require(is_name, f"user={config.user}: has to be a name, without a colon")
        require(password != "", f"user={config.user}: set the environment variable {PASSWORD} too")
    elif not _is_loopback(config.host):
        raise ConfigError(
            f"host={config.host}: others can reach it: give user=NAME, and the password in the environment variable "
            f"{PASSWORD}; or leave out host= and forward the port by ssh"
        )


def _is_loopback(host: str) -> bool:
    """Return whether a host is a loopback address or "localhost", which this machine alone can reach."""
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
