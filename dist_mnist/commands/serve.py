"""Serves the page where you draw a digit, and a JSON API."""

import importlib.util
import logging
from dataclasses import dataclass

from dist_mnist.commands.cli import command
from dist_mnist.config.errors import InputError
from dist_mnist.distributed import launcher

logger = logging.getLogger(__name__)

NEEDED = ("fastapi", "uvicorn", "python_multipart")


@dataclass
class ServeConfig:
    """The network that answers, and the address it listens on."""

    checkpoint: str | None
    host: str
    port: int
    trusted_modules: list[str]

    def __post_init__(self) -> None:
        if not 0 <= self.port <= 65535:
            raise InputError(
                f"port={self.port} is not allowed: it must be from 1 to 65535, or 0 for any that "
                f"is free."
            )
        if not self.host.strip():
            raise InputError(
                "host= is not allowed: it must be an address; 127.0.0.1 is yours only."
            )


def main() -> None:
    """Serve, as the command line says."""
    command("serve", ServeConfig, _serve)


def _serve(config: ServeConfig) -> None:
    if not launcher.is_alone():
        raise InputError("serve is one process: start it without torchrun, as `dist-mnist serve`.")
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise InputError(
            f'serve needs {", ".join(missing)}: install it with `pip install "dist_mnist[serve]"`.'
        )
    from dist_mnist.record.console import log_to_console
    from dist_mnist.serve.server import listen, serve

    log_to_console(is_main=True)
    with listen(config.host, config.port) as socket:
        from dist_mnist.serve.app import build_app
        from dist_mnist.serve.network import load_network

        network = load_network(config.checkpoint, config.trusted_modules)
        model = network.describe()
        logger.info("%s with %s parameters", model.network, f"{model.parameters:,}")
        serve(build_app(network), socket)
