"""The command: its address, its errors, and its end."""

import asyncio
import base64
import io
import signal
import socket
from contextlib import closing
from http.client import HTTPConnection
from pathlib import Path

import pytest
from PIL import Image

from tests.support.checkpoints import write_untrained
from tests.support.command_line import call
from tests.support.processes import free_port, python, torchrun
from tests.support.server import post, request, serving
from tests.support.strokes import draw, png

pytest.importorskip("fastapi")
pytestmark = pytest.mark.serve


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_lets_requests_finish(tmp_path: Path, number: signal.Signals) -> None:
    picture = png(draw(7))
    with serving(cwd=tmp_path) as server, closing(HTTPConnection(server.address)) as connection:
        connection.putrequest("POST", "/predict")
        connection.putheader("Content-Type", "image/png")
        connection.putheader("Content-Length", str(len(picture)))
        connection.endheaders(picture[:100])
        request(server, "GET", "/health")  # by now it is reading the picture
        server.process.send_signal(number)
        connection.sock.settimeout(1)
        with pytest.raises(TimeoutError):  # it waits for the rest
            connection.sock.recv(1)
        connection.sock.settimeout(30)
        connection.send(picture[100:])
        answer = connection.getresponse()
        assert answer.status == 200
        assert b'"label":"7"' in answer.read()
        assert server.process.wait(timeout=30) == 0
        assert server.process.stdout is not None
        assert server.process.stdout.read() == f"ended by {number.name}\n"


def test_a_port_in_use_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        status, out, err = call(monkeypatch, capsys, "serve", f"port={port}")
    assert (status, out) == (1, "")
    assert err.startswith(f"error: port={port} is in use by another program: choose another one")


def test_answers_do_not_wait_for_acknowledgements() -> None:
    from dist_mnist.serve.server import listen

    async def accepted_option() -> int:
        accepted: asyncio.Future[int] = asyncio.get_running_loop().create_future()

        def accept(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            connection = writer.get_extra_info("socket")
            accepted.set_result(connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))
            writer.close()

        listener = listen("127.0.0.1", 0)
        async with await asyncio.start_server(accept, sock=listener):
            _, writer = await asyncio.open_connection(*listener.getsockname()[:2])
            option = await asyncio.wait_for(accepted, 30)
            writer.close()
        return option

    assert asyncio.run(accepted_option()) == 1


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("port=70000", "port=70000 is not allowed: it must be between 1 and 65535"),
        ("port=-1", "port=-1 is not allowed"),
        ("host=''", "host= is not allowed: it must be an address"),
        ("host=192.0.2.1", "host=192.0.2.1 is not an address of this machine"),
        ("host=no.such.host.invalid", "host=no.such.host.invalid is not an address"),
        ("checkpoint=nowhere", "nowhere does not exist: give a run directory or a checkpoint"),
        ("checkpoint=latest", "there is no run under"),
        ("checkpoint=''", "checkpoint is missing: set it to a run directory"),
        ("chekpoint=x", "chekpoint is not a key"),
    ],
)
def test_a_mistake_is_one_sentence(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    override: str,
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    status, out, err = call(monkeypatch, capsys, "serve", f"port={free_port()}", override)
    assert (status, out) == (1, "")
    assert err.count("\n") == 1
    assert message in err


def test_a_missing_extra_is_named(tmp_path: Path) -> None:
    code = (
        "import sys; sys.modules['uvicorn'] = None; sys.argv[1:] = ['serve'];"
        "from dist_mnist.__main__ import main; main()"
    )
    done = python("-c", code, cwd=tmp_path)
    assert done.returncode == 1
    assert done.stderr == (
        'error: serve needs uvicorn: install it with `pip install "dist_mnist[serve]"`.\n'
    )


def test_serving_needs_no_training(tmp_path: Path) -> None:
    code = (
        "import sys; sys.modules['dist_mnist.training'] = None;"
        "from dist_mnist.serve.app import build_app; build_app(None, []); print('built')"
    )
    assert python("-c", code, cwd=tmp_path).stdout == "built\n"


def test_it_is_one_process(tmp_path: Path) -> None:
    done = torchrun(2, "serve", cwd=tmp_path)
    assert done.returncode != 0
    assert "serve is one process: start it without torchrun" in done.stderr


def test_a_network_of_another_shape_is_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    colors = ("model=linear", "data.image_shape=[3,8,8]")
    path = write_untrained(tmp_path / "small.safetensors", *colors)
    status, _, err = call(monkeypatch, capsys, "serve", f"port={free_port()}", f"checkpoint={path}")
    assert status == 1
    assert err == (
        "error: the checkpoint's network cannot read digits: it does not take images of 28 x 28 "
        "gray pixels.\n"
    )


def test_a_network_of_a_folder_sees_whole_pictures(tmp_path: Path) -> None:
    folder = ("data=image_folder", "data.num_classes=10", "data.image_shape=[3,8,8]")
    path = write_untrained(tmp_path / "folder.safetensors", *folder, "model=linear")
    photo = io.BytesIO()
    Image.new("RGB", (40, 20), "red").save(photo, "PNG")
    with serving(f"checkpoint={path}", cwd=tmp_path) as server:
        answer = request(server, "POST", "/predict", photo.getvalue()).json
    assert (answer["box"], answer["more"]) == ([0, 0, 40, 20], [])
    seen = Image.open(io.BytesIO(base64.b64decode(answer["picture"])))
    assert (seen.mode, seen.size) == ("RGB", (8, 8))
    assert seen.getpixel((4, 4)) == (255, 0, 0)
    assert seen.getpixel((4, 0)) == (0, 0, 0)  # a black bar: the aspect is kept


def test_listening_beyond_this_machine_warns(tmp_path: Path) -> None:
    with serving("host=0.0.0.0", cwd=tmp_path) as server:
        assert "warning: host=0.0.0.0 lets everyone who can reach this machine" in server.printed


def test_a_failing_network_is_reported(tmp_path: Path) -> None:
    trusted = "trusted_modules=[tests.support.networks]"
    fragile = ("model=mlp", "model._target_=tests.support.networks.Fragile", trusted)
    path = write_untrained(tmp_path / "fragile.safetensors", *fragile)
    with serving(f"checkpoint={path}", trusted, cwd=tmp_path) as server:
        model = request(server, "GET", "/model").json
        assert model["checkpoint"] == str(path)
        assert model["network"] == "Fragile"
        for _ in range(2):
            answer = post(server, png(draw(7)))
            assert answer.status == 500
            assert answer.json == {"detail": "the server failed at this request."}
            assert answer.headers["content-security-policy"].startswith("default-src 'none'")
            assert request(server, "GET", "/health").status == 200
