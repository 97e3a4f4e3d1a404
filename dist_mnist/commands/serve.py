"""Serves the page where you draw a digit, and a JSON API."""

import importlib.util
import logging

from dist_mnist.config.commands import ServeConfig
from dist_mnist.config.errors import InputError
from dist_mnist.distributed import launcher
from dist_mnist.record.console import log_to_console

logger = logging.getLogger(__name__)

NEEDED = ("fastapi", "uvicorn", "python_multipart")


def run(config: ServeConfig) -> None:
    """Serve until a signal comes."""
    if not launcher.is_alone():
        raise InputError("serve is one process: start it without torchrun, as `dist-mnist serve`.")
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise InputError(
            f'serve needs {", ".join(missing)}: install it with `pip install "dist_mnist[serve]"`.'
        )
    # Not installed everywhere, so imported after the check.
    from dist_mnist.serve.server import listen, serve

    log_to_console(is_main=True)
    with listen(config.host, config.port) as socket:
        from dist_mnist.serve.app import build_app
        from dist_mnist.serve.network import load_network

        network = load_network(config.checkpoint, config.trusted_modules)
        model = network.describe()
        logger.info("%s with %s parameters", model.network, f"{model.parameters:,}")
        serve(build_app(network), socket)
