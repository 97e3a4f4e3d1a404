"""Exported files answer as the checkpoint does, in the programs that the formats are for."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from dist_mnist.commands.export import FORMATS
from dist_mnist.config.commands import ExportFormat
from dist_mnist.data.splits import load_part
from dist_mnist.models.classifier import Classifier, load_classifier
from dist_mnist.models.networks import ConvNet
from dist_mnist.training.run import run
from tests.support.command_line import call
from tests.support.configs import SOLO, make_config
from tests.support.picture_folders import FOLDER_DATA, write_digits
from tests.support.processes import python

SHORT = ("data.validation_size=0", "trainer.max_steps=8", "trainer.device=cpu")

Export = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def run_dir(mnist_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A short run on the real MNIST."""
    folder = tmp_path_factory.mktemp("exported") / "run"
    run(make_config(*SHORT, f"data.root={mnist_root}", f"run_dir={folder}"), SOLO)
    return folder


@pytest.fixture(scope="module")
def images(mnist_root: Path) -> torch.Tensor:
    """The whole test set."""
    test, _ = load_part(make_config(f"data.root={mnist_root}").data, train=False)
    return test.resident().images


@pytest.fixture(scope="module")
def expected(run_dir: Path, images: torch.Tensor) -> torch.Tensor:
    return load_classifier(run_dir)(images)


@pytest.fixture
def export(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    run_dir: Path,
) -> Export:
    """Run the command in an empty folder."""
    monkeypatch.chdir(tmp_path)

    def run_command(*arguments: str) -> tuple[int, str, str]:
        return call(monkeypatch, capsys, "export", f"checkpoint={run_dir}", *arguments)

    return run_command


def session(path: str) -> Any:
    return pytest.importorskip("onnxruntime").InferenceSession(path)


@pytest.mark.slow
def test_onnx_answers_alike(export: Export, images: torch.Tensor, expected: torch.Tensor) -> None:
    pytest.importorskip("onnxscript")
    status, out, _ = export()
    assert status == 0
    running = session("model.onnx")
    (taken,), (given,) = running.get_inputs(), running.get_outputs()
    assert (taken.name, taken.type, taken.shape) == (
        *("images", "tensor(uint8)"),
        ["batch", 1, 28, 28],
    )
    assert (given.name, given.type, given.shape) == (
        *("probabilities", "tensor(float)"),
        ["batch", 10],
    )
    for size in (1, 3, 10_000):
        (found,) = running.run(None, {"images": images[:size].numpy()})
        torch.testing.assert_close(torch.from_numpy(found), expected[:size], rtol=1e-4, atol=1e-5)
    assert torch.equal(torch.from_numpy(found).argmax(1), expected.argmax(1))
    assert out.startswith("read back: accuracy 0.")
    assert out.endswith(" of the checkpoint -> model.onnx\n")


@pytest.mark.slow
def test_onnx_tells_what_it_is(export: Export, run_dir: Path, images: torch.Tensor) -> None:
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxscript")
    _, out, _ = export()
    model = onnx.load("model.onnx")
    onnx.checker.check_model(model)
    told = {entry.key: entry.value for entry in model.metadata_props}
    assert json.loads(told["classes"]) == [str(digit) for digit in range(10)]
    assert told["checkpoint"] == str(run_dir / "checkpoints" / "best.safetensors")
    assert told["accuracy"].split()[0] in out
    assert told["version"] == model.producer_version
    assert (told["data"], told["images"]) == ("mnist", "uint8, 0 to 255")
    assert Path("model.onnx").stat().st_size < 200_000
    assert __file__.rpartition("/tests/")[0].encode() not in Path("model.onnx").read_bytes()
    assert [path.name for path in Path().iterdir()] == ["model.onnx"]


def logits(run_dir: Path, images: torch.Tensor) -> tuple[Classifier, torch.Tensor]:
    classifier = load_classifier(run_dir)
    with torch.inference_mode():
        return classifier, classifier.logits(images)


@pytest.mark.slow
def test_onnx_without_preprocessing(export: Export, run_dir: Path, images: torch.Tensor) -> None:
    pytest.importorskip("onnxscript")
    assert export("preprocessing=false", "output=raw.onnx")[0] == 0
    running = session("raw.onnx")
    assert running.get_inputs()[0].type == "tensor(float)"
    assert running.get_outputs()[0].name == "logits"
    classifier, expected = logits(run_dir, images)
    (found,) = running.run(None, {"images": classifier.normalization(images).numpy()})
    torch.testing.assert_close(torch.from_numpy(found), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("preprocessing", ["true", "false"])
def test_torch_export_answers_alike(
    export: Export, run_dir: Path, images: torch.Tensor, preprocessing: str
) -> None:
    status, out, _ = export("format=torch_export", f"preprocessing={preprocessing}")
    assert (status, out.split(" -> ")[1]) == (0, "model.pt2\n")
    extra = {"metadata.json": ""}
    function = torch.export.load("model.pt2", extra_files=extra).module()
    classifier, expected = logits(run_dir, images)
    taken = images if preprocessing == "true" else classifier.normalization(images)
    with torch.inference_mode():
        found = function(taken)
        assert len(function(taken[:1])) == 1
    assert torch.equal(found, expected.softmax(1) if preprocessing == "true" else expected)
    assert json.loads(extra["metadata.json"])["data"] == "mnist"
    assert Path("model.pt2").stat().st_size < 300_000


def test_safetensors_hold_the_weights(
    export: Export, run_dir: Path, images: torch.Tensor, expected: torch.Tensor
) -> None:
    from safetensors import safe_open
    from safetensors.torch import load_file

    status, out, _ = export("format=safetensors", "output=weights.safetensors")
    assert (status, out.split(" -> ")[1]) == (0, "weights.safetensors\n")
    with safe_open("weights.safetensors", "pt") as file:
        told = file.metadata()
    config = make_config().model
    model = ConvNet(**{key: value for key, value in config.items() if key != "_target_"})
    model.load_state_dict(load_file("weights.safetensors"))
    mean, std = (
        load_classifier(run_dir).normalization.mean,
        load_classifier(run_dir).normalization.std,
    )
    assert told["normalization"] == f"(pixel / 255 - {mean}) / {std}"
    with torch.inference_mode():
        found = model.eval()((images.float() / 255 - mean) / std).softmax(1)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_nothing_is_overwritten(export: Export) -> None:
    Path("model.pt2").write_text("mine")
    status, out, err = export("format=torch_export")
    assert (status, out) == (1, "")
    assert err == "error: output=model.pt2 exists: delete it, or choose another output.\n"
    assert Path("model.pt2").read_text() == "mine"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["checkpoint="], "checkpoint is missing"),
        (["checkpoint=nowhere"], "nowhere does not exist"),
        (["format=tflite"], "tflite"),
        (["output="], "output= is not allowed: it must be a file"),
        (["output=a.pt"], "output=a.pt does not fit format=onnx: let it end in .onnx"),
        (["format=safetensors", "output=no/a.safetensors"], "no/a.safetensors cannot be written"),
    ],
)
def test_mistake_is_one_sentence(
    export: Export, monkeypatch: pytest.MonkeyPatch, arguments: list[str], message: str
) -> None:
    monkeypatch.setattr("dist_mnist.commands.export.find_spec", lambda name: name)
    status, out, err = export(*arguments)
    assert (status, out) == (1, "")
    assert err.startswith("error: ")
    assert message in err
    assert err.count("\n") == 1
    assert not list(Path().iterdir())


def test_missing_packages_are_named(export: Export, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dist_mnist.commands.export.find_spec", lambda name: None)
    status, _, err = export()
    assert status == 1
    assert "format=onnx needs onnx, onnxscript, onnxruntime: `pip install" in err


def test_wrong_answers_are_refused(export: Export, monkeypatch: pytest.MonkeyPatch) -> None:
    def otherwise(*_: object) -> Callable[[torch.Tensor], torch.Tensor]:
        return lambda taken: torch.zeros(len(taken), 10)

    kind = ExportFormat.safetensors
    monkeypatch.setitem(FORMATS, kind, FORMATS[kind]._replace(read=otherwise))
    status, _, err = export("format=safetensors")
    assert status == 1
    assert "model.safetensors has other predictions than the checkpoint" in err
    assert not list(Path().iterdir())


@pytest.mark.slow
def test_exporting_is_quiet(run_dir: Path, tmp_path: Path) -> None:
    pytest.importorskip("onnxscript")
    done = python("-m", "dist_mnist", "export", f"checkpoint={run_dir}", cwd=tmp_path)
    assert done.returncode == 0
    assert done.stdout.count("\n") == 1
    assert done.stderr == ""


@pytest.mark.parametrize("form", ["onnx", "torch_export"])
def test_a_network_that_fixes_its_batch_leaves_no_file(
    form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("onnxscript")
    monkeypatch.chdir(tmp_path)
    trusted = "trusted_modules=[tests.support.networks]"
    model = ("model=mlp", "model._target_=tests.support.networks.Odd", "+model.how='one by one'")
    run(make_config(*SHORT, *model, trusted, "run_dir=run"), SOLO)
    status, _, err = call(
        monkeypatch, capsys, "export", "checkpoint=run", f"format={form}", trusted
    )
    assert status == 1
    assert "cannot be read back" in err or "cannot express this network" in err
    assert err.count("\n") == 1
    assert not [*tmp_path.glob("*model*")]


def test_without_the_test_set_random_images_are_compared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    write_digits(tmp_path / "pictures", [0, 1] * 20)
    run(make_config(*FOLDER_DATA, "data.root=pictures", "model=linear", "run_dir=run"), SOLO)
    (tmp_path / "pictures").rename(tmp_path / "elsewhere")
    options = ("export", "checkpoint=run", "format=safetensors")
    status, out, _ = call(monkeypatch, capsys, *options)
    assert status == 0
    assert "comparing on 64 random images: data.root=pictures is not a folder" in out
    assert "read back: random images, within" in out
    Path("model.safetensors").unlink()
    status, out, err = call(monkeypatch, capsys, *options, "data.root=missing")
    assert (status, out) == (1, "")
    assert "data.root=missing is not a folder" in err
