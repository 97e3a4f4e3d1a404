"""`dist-mnist predict` as a user meets it: files, folders, patterns, pipes, and no pictures."""

import csv
import io
import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dist_mnist.models.classifier import SHIPPED
from dist_mnist.record import checkpoint
from tests.support.command_line import call
from tests.support.configs import CHECKOUT
from tests.support.photos import SCENES, take_photo, write_number
from tests.support.processes import python
from tests.support.strokes import draw, picture


@pytest.fixture(autouse=True)
def pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a photo of 2026, a drawn 7, an empty sheet and a text, in which tests run."""
    folder = tmp_path / "some pictures"
    folder.mkdir()
    (folder / "2026.jpg").write_bytes(take_photo(write_number("2026", 1), SCENES["paper"], 1))
    picture(draw(27)).save(folder / "drawn=7.png")
    Image.new("RGB", (90, 60), "white").save(folder / "empty.GIF")
    (folder / "notes.txt").write_text("no picture")
    monkeypatch.chdir(folder)
    return folder


def test_a_line_for_each_picture(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    status, out, err = call(monkeypatch, capsys, "predict", "2026.jpg", "drawn=7.png", "empty.GIF")
    assert (status, err) == (0, "")
    photo, drawn, empty = out.splitlines()
    assert re.fullmatch(r"2026\.jpg: 2026 [01]\.\d{4}", photo)
    assert re.fullmatch(r"drawn=7\.png: 7 [01]\.\d{4}", drawn)
    assert empty == "empty.GIF: no digit found"


def test_folders_and_patterns(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], pictures: Path
) -> None:
    status, out, err = call(monkeypatch, capsys, "predict", ".", "*.jpg", str(pictures / "*.GIF"))
    assert (status, err) == (0, "")
    names = [line.partition(": ")[0] for line in out.splitlines()]
    assert names[:4] == ["2026.jpg", "drawn=7.png", "empty.GIF", "2026.jpg"]
    assert names[4:] == [str(pictures / "empty.GIF")]


def test_a_broken_picture_does_not_stop_the_rest(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ("nowhere.png", "notes.txt", "no*thing.png", "2026.jpg")
    status, out, err = call(monkeypatch, capsys, "predict", *arguments)
    assert status == 1
    assert out.startswith("2026.jpg: 2026 ")
    assert err.splitlines() == [
        "error: nowhere.png does not exist.",
        "error: notes.txt is not a picture that can be read: it must be PNG, JPEG, BMP, WebP, GIF "
        "or TIFF.",
        "error: no*thing.png does not exist.",
    ]


def test_json(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ("2026.jpg", "empty.GIF", "format=json")
    status, out, _ = call(monkeypatch, capsys, "predict", *arguments)
    photo, empty = (json.loads(line) for line in out.splitlines())
    assert status == 0
    assert (photo["path"], photo["label"]) == ("2026.jpg", "2026")
    assert [digit["label"] for digit in photo["digits"]] == ["2", "0", "2", "6"]
    product = np.prod([digit["confidence"] for digit in photo["digits"]])
    assert photo["confidence"] == pytest.approx(product)
    lefts = [digit["box"][0] for digit in photo["digits"]]
    assert lefts == sorted(lefts)
    assert empty == {"path": "empty.GIF", "label": None, "confidence": None, "digits": []}


def test_csv(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    Path("drawn=7.png").rename('a,"b".png')
    _, out, _ = call(monkeypatch, capsys, "predict", 'a,"b".png', "empty.GIF", "format=csv")
    drawn, empty = csv.DictReader(io.StringIO(out))
    assert (drawn["path"], drawn["label"]) == ('a,"b".png', "7")
    assert 0.9 < float(drawn["confidence"]) <= 1
    assert empty == {"path": "empty.GIF", "label": "", "confidence": ""}


def test_standard_input(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    content = Path("2026.jpg").read_bytes()
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))
    status, out, _ = call(monkeypatch, capsys, "predict", "-")
    assert status == 0
    assert out.startswith("-: 2026 ")


def test_save_draws_the_digits(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    call(monkeypatch, capsys, "predict", "2026.jpg", "empty.GIF", "save=seen.png")
    sheet = np.asarray(Image.open("seen.png").convert("L"))
    assert sheet.shape[1] > 4 * 112  # the four digits, four times as large
    assert (sheet[:130] == 0).mean() > 0.1  # which are white on black
    status, _, err = call(monkeypatch, capsys, "predict", "2026.jpg", "save=nowhere/seen.png")
    assert status == 1
    assert err.startswith("error: nowhere/seen.png cannot be written")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "no picture is given: name files, folders or patterns"),
        (["2026.jpg", "save="], "save= is not allowed: it must be a .png"),
        (["2026.jpg", "format=xml"], "Invalid value 'xml'|format=xml"),
        (["2026.jpg", "checkpoint="], "checkpoint is missing"),
        (["2026.jpg", "checkpoint=latest"], "there is no run under .*outputs: train one"),
        (["2026.jpg", "colour=red"], "colour is not a key"),
    ],
)
def test_mistakes_are_one_sentence(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    message: str,
) -> None:
    status, out, err = call(monkeypatch, capsys, "predict", *arguments)
    assert (status, out) == (1, "")
    assert err.count("\n") == 1
    assert re.match(f"error: .*({message})", err)


def test_names_of_classes_and_plain_pictures(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    content = checkpoint.load(SHIPPED)
    content["classes"] = [f"class {name}" for name in content["classes"]]
    Path("named.safetensors").write_bytes(checkpoint.encode(content))
    arguments = ("2026.jpg", "checkpoint=named.safetensors")
    _, out, _ = call(monkeypatch, capsys, "predict", *arguments)
    assert out.startswith("2026.jpg: class 2 class 0 class 2 class 6 ")
    picture(draw(13)).resize((84, 84)).save("3.png")  # black on white
    _, out, _ = call(monkeypatch, capsys, "predict", "3.png", "plain=true")
    assert out.startswith("3.png: 3 ")


@pytest.mark.slow
def test_a_closed_pipe_is_not_an_error(pictures: Path) -> None:
    code = (
        "import subprocess, sys; process = subprocess.Popen([sys.executable, '-m', 'dist_mnist', "
        "'predict', '.', '.'], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True);"
        "print(process.stdout.readline(), end=''); process.stdout.close();"
        "print(process.stderr.read(), process.wait())"
    )
    run = python("-c", code, cwd=pictures, PYTHONPATH=str(CHECKOUT))
    assert run.stdout.splitlines()[1].strip() == "0"
