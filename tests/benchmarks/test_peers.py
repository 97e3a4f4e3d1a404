"""The scripts that dist_mnist is compared with run, and the benchmark can read their output."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from dist_mnist.data.splits import load_splits
from dist_mnist.training.build import build_training_state
from tests.benchmarks.peers import (
    OURS,
    PEERS,
    _complaints,
    _markdown,
    draw,
    figures_of,
    unpack,
    write_initial_weights,
)
from tests.support.configs import CHECKOUT, SOLO, make_config
from tests.support.processes import torchrun


def run_contender(script: str, weights: Path, data: Path) -> dict[str, Any]:
    done = torchrun(
        2,
        *("--model=mlp", f"--weights={weights}", f"--data={data}", "--global-batch-size=64"),
        *("--epochs=2", "--workers=0", "--limit=12"),
        module=f"tests.benchmarks.contenders.{script}",
        cwd=CHECKOUT,
        CUDA_VISIBLE_DEVICES="",  # two processes may be more than there are GPUs
    )
    assert done.returncode == 0, done.stderr
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("{")]
    result: dict[str, Any] = json.loads(line)
    return result


@pytest.mark.slow
@pytest.mark.parametrize("name", PEERS)
def test_a_contender_trains_in_two_processes(name: str, mnist_root: Path, tmp_path: Path) -> None:
    script, package = PEERS[name]
    pytest.importorskip(package)
    unpack(mnist_root)
    result = run_contender(script, write_initial_weights("mlp", tmp_path), mnist_root)
    assert len(result["seconds_per_epoch"]) == 2
    assert all(0 < seconds < 60 for seconds in result["seconds_per_epoch"])
    assert 0 < result["evaluation_seconds"] < 60
    assert 0.3 < result["test_accuracy"] <= 1  # after 24 steps; it begins near 0.1
    assert 50 < result["peak_memory_mb"] < 20_000
    assert result["world_size"] == 2


def test_initial_weights_match_a_run(mnist_root: Path, tmp_path: Path) -> None:
    config = make_config("model=cnn", "seed=0", f"data.root={mnist_root}")
    splits = load_splits(config.data, config.seed, config.trusted_modules)
    expected = build_training_state(config, SOLO, splits).model.state_dict()
    found = torch.load(write_initial_weights("cnn", tmp_path), weights_only=True)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def measured(accuracy: float, seconds: float) -> list[dict[str, Any]]:
    return [
        {
            "seconds_per_epoch": [9.0, seconds + round_seconds],
            "test_accuracy": accuracy,
            "wall_seconds": 20.0,
            "largest_process_mb": 700.0,
        }
        for round_seconds in (0.0, 0.5, 1.0)
    ]


def result_of(runs: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    contenders = {name: figures_of(runs[name]) for name in runs}
    return {"workers": 1, "left_out": ["Ignite"], "contenders": contenders}


def test_a_contender_that_skips_work_is_named() -> None:
    runs = {OURS: measured(0.96, 2.0), "honest": measured(0.955, 4.0), "lazy": measured(0.9, 1.0)}
    (complaint,) = _complaints("mlp", result_of(runs))
    assert "lazy" in complaint


def test_every_contender_is_shown(tmp_path: Path) -> None:
    result = result_of({OURS: measured(0.96, 2.0), "plain PyTorch": measured(0.96, 5.0)})
    markdown = _markdown("mlp, batch 128, 1 process", result)
    assert "| dist_mnist | 2.5 (2 to 3) | 1 | 96.00 % " in markdown
    assert "| plain PyTorch | 5.5 (5 to 6) | 2.2 (2 to 2.5) | 96.00 % " in markdown
    assert "| Ignite | not installed |" in markdown
    draw(tmp_path / "peers.png", {"mlp": result, "cnn": result, "cnn, twice": result})
    assert (tmp_path / "peers.png").stat().st_size > 10_000
