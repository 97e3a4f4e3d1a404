"""A classifier as a file for other programs, and that file as a function again.

- `onnx`: for onnxruntime and whatever else reads https://onnx.ai
- `torch_export`: for `torch.export.load`, without the code of the network
- `safetensors`: the weights alone, by the names of the network's parameters
"""

import copy
import io
import json
import warnings
from collections.abc import Callable, Mapping
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import nn

from dist_mnist.config.errors import InputError, one_line
from dist_mnist.models.classifier import Classifier

Function = Callable[[torch.Tensor], torch.Tensor]

SUFFIXES = {"onnx": ".onnx", "torch_export": ".pt2", "safetensors": ".safetensors"}
ONNX_PACKAGES = ("onnx", "onnxscript", "onnxruntime")


class Exported(nn.Module):
    """The function that the file holds.

    Args:
        classifier: On the CPU, in eval mode.
        preprocessing: Map uint8 images (B, C, H, W) to probabilities (B, classes); else float32
            ones, normalized, to logits.
    """

    shift: torch.Tensor

    def __init__(self, classifier: Classifier, preprocessing: bool) -> None:
        super().__init__()
        self.model = classifier.model
        self._classifier, self._preprocessing = classifier, preprocessing
        mean, std = classifier.normalization.mean, classifier.normalization.std
        self.register_buffer("shift", torch.tensor(-mean / std), persistent=False)
        self._scale = 1 / (255 * std)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Map images (B, C, H, W) to probabilities or logits, float32 of shape (B, classes)."""
        if self._preprocessing:  # as `Normalization`, in operations that ONNX has
            images = torch.add(self.shift, images, alpha=self._scale)
        outputs: torch.Tensor = self.model(images).float()
        return outputs.softmax(dim=1) if self._preprocessing else outputs

    def example(self, images: torch.Tensor) -> torch.Tensor:
        """Return what `forward` takes in the place of uint8 images."""
        return images if self._preprocessing else self._classifier.normalization(images)


def require_packages(kind: str) -> None:
    """Refuse a format whose packages are not installed.

    Raises:
        InputError: One is missing.
    """
    missing = [name for name in ONNX_PACKAGES if kind == "onnx" and find_spec(name) is None]
    if missing:
        raise InputError(
            f"format=onnx needs {', '.join(missing)}: `pip install {' '.join(missing)}`, or "
            f"choose format=torch_export or format=safetensors."
        )


def encode(
    kind: str, exported: Exported, images: torch.Tensor, metadata: Mapping[str, str]
) -> bytes:
    """Return the content of the file.

    Args:
        kind: One of `SUFFIXES`.
        exported: What to write.
        images: Two or more, as an example: uint8 of shape (B, C, H, W); any B fits the file.
        metadata: What a stranger should know.

    Raises:
        InputError: The network has something that the format cannot express.
    """
    encoders = {"onnx": _to_onnx, "torch_export": _to_torch_export, "safetensors": _to_safetensors}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what torch thinks of itself
            # A copy: what it may be a part of would be in the file, too.
            example = exported.example(images.clone())
            return encoders[kind](exported, example, dict(metadata))
    except Exception as error:
        raise InputError(
            f"format={kind} cannot express this network ({one_line(error)[:300]}): choose another "
            f"of {', '.join(SUFFIXES)}."
        ) from error


def _any_batch() -> dict[str, dict[int, Any]]:
    return {"images": {0: torch.export.Dim("batch")}}


def _to_onnx(exported: Exported, example: torch.Tensor, metadata: dict[str, str]) -> bytes:
    program = torch.onnx.export(
        exported,
        (example,),
        input_names=["images"],
        output_names=["logits" if example.is_floating_point() else "probabilities"],
        dynamic_shapes=_any_batch(),
        dynamo=True,
        verbose=False,
    )
    assert program is not None
    for node in program.model.graph:
        node.metadata_props.clear()  # where each one stands in the code of this machine
    program.model.metadata_props.update(metadata)
    program.model.producer_name, program.model.producer_version = "dist_mnist", metadata["version"]
    content: bytes = program.model_proto.SerializeToString()
    return content


def _to_torch_export(exported: Exported, example: torch.Tensor, metadata: dict[str, str]) -> bytes:
    with torch.no_grad():
        program = torch.export.export(exported, (example,), dynamic_shapes=_any_batch())
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)  # where it stands in the code of this machine
    file = io.BytesIO()
    extra = {"metadata.json": json.dumps(metadata, indent=1)}
    torch.export.save(program, file, extra_files=extra)
    return file.getvalue()


def _to_safetensors(exported: Exported, _: torch.Tensor, metadata: dict[str, str]) -> bytes:
    from safetensors.torch import save

    # Copies, since safetensors refuses tied weights, which share their memory.
    weights = {
        key: value.clone(memory_format=torch.contiguous_format)
        for key, value in exported.model.state_dict().items()
    }
    return save(weights, {"format": "pt", **metadata})


def read_back(kind: str, path: Path, exported: Exported) -> Function:
    """Return what a file does, by the program that it is for.

    Args:
        kind: One of `SUFFIXES`.
        path: The file.
        exported: What it was made from; of weights alone, the network that they are put into.
    """
    if kind == "onnx":
        return _from_onnx(path)
    if kind == "torch_export":
        module: Function = torch.export.load(str(path)).module()
        return module
    return _from_safetensors(path, exported)


def _from_onnx(path: Path) -> Function:
    import onnxruntime

    running: Any = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return lambda images: torch.from_numpy(running.run(None, {"images": images.numpy()})[0])


def _from_safetensors(path: Path, exported: Exported) -> Function:
    from safetensors.torch import load_file

    again = copy.deepcopy(exported)
    again.model.load_state_dict(load_file(path))
    again._classifier = replace(again._classifier, model=again.model)
    return again
