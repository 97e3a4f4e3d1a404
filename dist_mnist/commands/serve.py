"""Serves the page where you draw a digit, and a JSON API."""

import importlib.util

from dist_mnist.config.commands import ServeConfig
from dist_mnist.config.errors import InputError
from dist_mnist.distributed import launcher
from dist_mnist.record.console import log_to_console

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
    with listen(config.host, config.port) as listener:
        from dist_mnist.serve.app import build_app  # slow: a port in use is reported before it

        serve(build_app(config.checkpoint, config.trusted_modules), listener)
