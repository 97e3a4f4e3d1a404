"""Writes a checkpoint for other programs, and reads the file back to compare.

- `onnx`: for onnxruntime and other programs that read https://onnx.ai
- `torch_export`: for `torch.export.load`, without the code of the network
- `safetensors`: the weights alone, by the names of the network's parameters
"""

import copy
import io
import json
import logging
import warnings
from collections.abc import Callable
from contextlib import redirect_stdout
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import load_file
from safetensors.torch import save as save_safetensors
from torch import nn

from dist_mnist.config import __version__
from dist_mnist.config.commands import ExportConfig, ExportFormat
from dist_mnist.config.errors import InputError, refusing
from dist_mnist.config.saved_config import config_from_plain
from dist_mnist.config.schema import Config
from dist_mnist.data.images import ImageTensors
from dist_mnist.data.mapped import Samples
from dist_mnist.data.test_set import choose_test_set, load_test_set
from dist_mnist.distributed.session import session
from dist_mnist.models.classifier import Classifier, classifier_from_checkpoint, find_checkpoint
from dist_mnist.record import checkpoint
from dist_mnist.record.console import log_to_console
from dist_mnist.record.files import write_atomically
from dist_mnist.training.memory import images_at_once

logger = logging.getLogger(__name__)

ONNX_PACKAGES = ("onnx", "onnxscript", "onnxruntime")
RANDOM_IMAGES = 64  # of the comparison, where there is no test set
TOLERANCE = 1e-4  # of a probability, or a logit relative to its size; float32 sums differ by less

Function = Callable[[torch.Tensor], torch.Tensor]
Metadata = dict[str, str]


class Exported(nn.Module):
    """The function that the file holds.

    Args:
        classifier: On the CPU, in eval mode.
        preprocessing: True to map uint8 images (B, C, H, W) to probabilities (B, classes); False
            to map normalized float32 images to logits.
    """

    def __init__(self, classifier: Classifier, preprocessing: bool) -> None:
        super().__init__()
        self.model = classifier.model
        self.normalization, self.preprocessing = classifier.normalization, preprocessing

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Map images (B, C, H, W) to probabilities or logits, float32 of shape (B, classes)."""
        if self.preprocessing:
            images = self.normalization(images)
        outputs: torch.Tensor = self.model(images).float()
        return outputs.softmax(dim=1) if self.preprocessing else outputs

    def prepare(self, images: torch.Tensor) -> torch.Tensor:
        """Return the input of `forward` for uint8 images."""
        return images if self.preprocessing else self.normalization(images)


def run(config: ExportConfig) -> None:
    """Write the file, and compare its answers with the checkpoint's on the whole test set.

    Where the test set is not at hand, random images take its place.

    Raises:
        InputError: The file exists, the network cannot be expressed in the format, or the file
            answers differently from the checkpoint; in that case it is deleted.
    """
    with session("cpu", timeout_seconds=60) as world:
        log_to_console(world.is_main)
        if world.is_main:
            _require_packages(config.format)
            _write(config, _free_path(config))


def _require_packages(form: ExportFormat) -> None:
    is_onnx = form is ExportFormat.onnx
    missing = [name for name in ONNX_PACKAGES if is_onnx and find_spec(name) is None]
    if missing:
        raise InputError(
            f"format=onnx needs {', '.join(missing)}: `pip install {' '.join(missing)}`, or "
            f"choose format=torch_export or format=safetensors."
        )


def _free_path(config: ExportConfig) -> Path:
    suffix = FORMATS[config.format].suffix
    path = Path(config.output or f"model{suffix}")
    if path.suffix != suffix:
        raise InputError(
            f"output={path} does not fit format={config.format.value}: let it end in {suffix}."
        )
    if path.exists():
        raise InputError(f"output={path} exists: delete it, or choose another output.")
    return path


def _write(config: ExportConfig, path: Path) -> None:
    source = find_checkpoint(config.checkpoint)
    content = checkpoint.load(source)
    changes = {"data": config.data, "trusted_modules": config.trusted_modules}
    saved = config_from_plain(content["config"], {**changes, "trainer": {"precision": "fp32"}})
    classifier = classifier_from_checkpoint(content, saved, torch.device("cpu"))
    test = _images(config, saved, content)
    exported = Exported(classifier, config.preprocessing)
    expected = _answers(exported, exported, test)
    mean, std = classifier.normalization.mean, classifier.normalization.std
    metadata = {
        "classes": json.dumps(classifier.classes),
        "checkpoint": str(source),
        "data": saved.data.name,
        "images": "uint8, 0 to 255" if config.preprocessing else "float32, normalized",
        "version": __version__,
        "accuracy": _accuracy(expected, test) or "unknown",
        "normalization": f"(pixel / 255 - {mean}) / {std}",
    }
    write_atomically(path, _encode(config.format, exported, test, metadata))
    try:
        with refusing(f"{path} cannot be read back", "; choose another format"):
            actual = _answers(FORMATS[config.format].read(path, exported), exported, test)
        difference = _difference(path, expected, actual)
    except InputError:
        path.unlink()
        raise
    accuracy = _accuracy(actual, test)
    logger.info(
        "read back: %s, within %.1g of the checkpoint -> %s",
        *(f"accuracy {accuracy}" if accuracy else "random images", difference, path),
    )


def _images(config: ExportConfig, saved: Config, content: dict[str, Any]) -> Samples:
    """Return the test set, or random images without labels where there is none."""
    try:
        data = choose_test_set(saved.data, content, saved.trusted_modules)
        return load_test_set(data, [*map(str, content["classes"])], saved.trusted_modules)
    except InputError as error:
        if config.data.get("root") is not None:
            raise
        logger.info("comparing on %d random images: %s", RANDOM_IMAGES, error)
    generator = torch.Generator().manual_seed(0)
    shape = (RANDOM_IMAGES, *saved.data.image_shape)
    images = torch.randint(256, shape, dtype=torch.uint8, generator=generator)
    return ImageTensors(images, torch.full((RANDOM_IMAGES,), -1))


def _accuracy(answers: torch.Tensor, test: Samples) -> str | None:
    """Return the share of right answers; None for random images."""
    if int(test.labels[0]) < 0:
        return None
    correct = int((answers.argmax(dim=1) == test.labels).sum())
    return f"{correct / len(test):.4f} ({correct}/{len(test)})"


def _encode(form: ExportFormat, exported: Exported, test: Samples, metadata: Metadata) -> bytes:
    example = exported.prepare(test.block(slice(2))[0].clone())  # a view would be saved whole
    advice = f"; choose another of {', '.join(other.value for other in ExportFormat)}"
    sentence = f"format={form.value} cannot express this network"
    # torch warns about its own code, and older versions of onnxscript print what they do.
    with refusing(sentence, advice), warnings.catch_warnings(), redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        return FORMATS[form].write(exported, example, metadata)


def _answers(function: Function, exported: Exported, test: Samples) -> torch.Tensor:
    size = images_at_once(None, [*test.block(slice(1))[0].shape[1:]])
    blocks = [slice(start, start + size) for start in range(0, len(test), size)]
    with torch.inference_mode():
        return torch.cat([function(exported.prepare(test.block(block)[0])) for block in blocks])


def _difference(path: Path, expected: torch.Tensor, actual: torch.Tensor) -> float:
    """Return how much a file's answers differ from the checkpoint's.

    Raises:
        InputError: They differ by more than rounding does.
    """
    difference = float((expected - actual).abs().max())
    if not torch.allclose(expected, actual, rtol=TOLERANCE, atol=TOLERANCE):
        raise InputError(
            f"{path} has other predictions than the checkpoint (by up to {difference:.2g}): choose "
            f"another format."
        )
    return difference


def _any_batch() -> dict[str, dict[int, Any]]:
    return {"images": {0: torch.export.Dim("batch")}}


def _write_onnx(exported: Exported, example: torch.Tensor, metadata: Metadata) -> bytes:
    program = torch.onnx.export(
        exported,
        (example,),
        input_names=["images"],
        output_names=["probabilities" if exported.preprocessing else "logits"],
        dynamic_shapes=_any_batch(),
        dynamo=True,
        verbose=False,
    )
    assert program is not None
    for node in program.model.graph:
        node.metadata_props.clear()  # the paths of this machine's source code
    program.model.metadata_props.update(metadata)
    program.model.producer_name, program.model.producer_version = "dist_mnist", metadata["version"]
    content: bytes = program.model_proto.SerializeToString()
    return content


def _read_onnx(path: Path, _: Exported) -> Function:
    import onnxruntime  # not installed everywhere

    onnx: Any = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return lambda images: torch.from_numpy(onnx.run(None, {"images": images.numpy()})[0])


def _write_torch_export(exported: Exported, example: torch.Tensor, metadata: Metadata) -> bytes:
    with torch.no_grad():
        program = torch.export.export(exported, (example,), dynamic_shapes=_any_batch())
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)  # the paths of this machine's source code
    file = io.BytesIO()
    extra = {"metadata.json": json.dumps(metadata, indent=1)}
    torch.export.save(program, file, extra_files=extra)
    return file.getvalue()


def _write_safetensors(exported: Exported, _: torch.Tensor, metadata: Metadata) -> bytes:
    # Copies, since safetensors refuses tied weights, which share their memory.
    weights = {
        key: value.clone(memory_format=torch.contiguous_format)
        for key, value in exported.model.state_dict().items()
    }
    return save_safetensors(weights, {"format": "pt", **metadata})


def _read_safetensors(path: Path, exported: Exported) -> Function:
    restored = copy.deepcopy(exported)
    restored.model.load_state_dict(load_file(path))
    return restored


class Format(NamedTuple):
    """How a file is named, written and read back as a function."""

    suffix: str
    write: Callable[[Exported, torch.Tensor, Metadata], bytes]
    read: Callable[[Path, Exported], Function]


FORMATS = {
    ExportFormat.onnx: Format(".onnx", _write_onnx, _read_onnx),
    ExportFormat.torch_export: Format(
        ".pt2", _write_torch_export, lambda path, _: torch.export.load(str(path)).module()
    ),
    ExportFormat.safetensors: Format(".safetensors", _write_safetensors, _read_safetensors),
}
