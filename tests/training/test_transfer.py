"""Frozen weights stay as they are to the bit, and thaw on time, at every world size."""

import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torchvision.models import resnet18

from dist_mnist.config.errors import InputError
from dist_mnist.data.splits import load_splits
from dist_mnist.distributed.session import session
from dist_mnist.distributed.stopping import StopAgreement
from dist_mnist.record import checkpoint
from dist_mnist.training.build import build_training_state
from dist_mnist.training.description import describe
from dist_mnist.training.evaluation import validate
from dist_mnist.training.loop import fit, train_epoch
from dist_mnist.training.recorder import Recorder
from dist_mnist.training.state import TrainingState
from dist_mnist.training.step import set_train_mode
from tests.support.configs import SMALL_DATA, SOLO, make_config
from tests.support.datasets import COLOR_BARS
from tests.support.processes import run_ranks, torchrun
from tests.support.runs import assert_equal, result, run_once

SMALL_CNN = (*SMALL_DATA, "model.channels=[4,4,4]", "scheduler=constant", "trainer.epochs=2")
# All layers but the head, which is number 12.
BODY = "transfer.freeze=[layers.?]"
ADAMW = ("optimizer=adamw", "optimizer.weight_decay=0.5")
SGD = ("optimizer=sgd", "optimizer.weight_decay=0.1", "optimizer.momentum=0.9")


def build_state(root: Path, *overrides: str) -> TrainingState:
    config = make_config(*SMALL_CNN, f"data.root={root}", *overrides)
    return build_training_state(config, SOLO, load_splits(config.data, config.seed))


def bits(state: TrainingState, part: str = "layers") -> dict[str, list[int]]:
    """Return the weights and the statistics of a part of the network, by name, as integers."""
    tensors = {k: value for k, value in state.model.state_dict().items() if k.startswith(part)}
    return {k: v.reshape(-1).view(torch.uint8).tolist() for k, v in tensors.items()}


def changed(before: dict[str, list[int]], state: TrainingState) -> set[str]:
    return {name for name, value in bits(state).items() if value != before[name]}


@pytest.mark.parametrize("optimizer", [ADAMW, SGD], ids=["adamw", "sgd"])
@pytest.mark.parametrize("is_fused", ["true", "false"])
def test_frozen_bits_stay(small_root: Path, optimizer: tuple[str, ...], is_fused: str) -> None:
    options = (*optimizer, f"optimizer.fused={is_fused}", "trainer.gradient_clip_norm=0.1")
    state = build_state(small_root, *options, BODY)
    before = bits(state)
    fit(state, Recorder())
    assert changed(before, state) == {"layers.12.weight", "layers.12.bias"}
    assert sum(len(group["params"]) for group in state.optimizer.param_groups) == 2


@pytest.mark.parametrize("optimizer", [ADAMW, SGD], ids=["adamw", "sgd"])
def test_bits_stay_until_they_thaw(small_root: Path, optimizer: tuple[str, ...]) -> None:
    options = (*optimizer, "trainer.gradient_clip_norm=0.1")
    state = build_state(small_root, *options, BODY, "transfer.thaw_epoch=2")
    frozen = build_state(small_root, *options, BODY)
    state.model.load_state_dict(frozen.model.state_dict())
    before = bits(state)
    for each in (state, frozen):
        train_epoch(each, Recorder(), StopAgreement(SOLO))
    assert changed(before, state) == {"layers.12.weight", "layers.12.bias"}
    # Neither do they have a part in the norm that is clipped, nor has the optimizer seen them.
    assert bits(state) == bits(frozen)
    assert len(state.optimizer.state) == 2
    train_epoch(state, Recorder(), StopAgreement(SOLO))
    assert changed(before, state) == set(before)


def test_a_zero_keeps_its_sign(small_root: Path) -> None:
    state = build_state(small_root, *SGD, BODY, "transfer.thaw_epoch=2")
    with torch.no_grad():
        state.model.get_parameter("layers.4.weight").fill_(-0.0)
    before = bits(state)
    train_epoch(state, Recorder(), StopAgreement(SOLO))
    assert changed(before, state) == {"layers.12.weight", "layers.12.bias"}


def test_infinite_gradient_of_a_held_weight(small_root: Path) -> None:
    state = build_state(small_root, *SGD, BODY, "transfer.thaw_epoch=2")
    held = state.model.get_parameter("layers.4.weight")
    held.register_hook(lambda gradient: gradient * float("inf"))
    train_epoch(state, Recorder(), StopAgreement(SOLO))
    assert torch.isfinite(held).all()


def test_only_frozen_norms_are_in_eval_mode(small_root: Path) -> None:
    state = build_state(small_root, 'transfer.freeze=["layers.[0-2]"]', "transfer.thaw_epoch=2")
    set_train_mode(state)
    modes = {name: module.training for name, module in state.model.named_modules()}
    assert [name for name, is_training in modes.items() if not is_training] == ["layers.2"]
    validate(state)
    assert {name: module.training for name, module in state.model.named_modules()} == modes
    state.progress.step = len(state.order)
    set_train_mode(state)
    assert all(module.training for module in state.model.modules())


def test_rates_go_by_name_and_schedule(small_root: Path) -> None:
    rates = "transfer.learning_rates={layers.0:0.001,layers.12:0.5}"
    state = build_state(small_root, *SGD, "optimizer.lr=0.1", rates, "scheduler=step_decay")
    for factor in (1.0, 0.5):
        train_epoch(state, Recorder(), StopAgreement(SOLO))
        now = [group["lr"] for group in state.optimizer.param_groups]
        assert now == pytest.approx([0.1 * factor, 0.001 * factor, 0.5 * factor])


def test_description_counts_frozen_parameters(small_root: Path) -> None:
    state = build_state(small_root, BODY, "transfer.thaw_epoch=2")
    assert "parameters (412 frozen until epoch 2), " in describe(state)
    assert "parameters (412 frozen), " in describe(build_state(small_root, BODY))


def test_a_graph_cannot_thaw(small_root: Path) -> None:
    with pytest.raises(InputError, match=r"cuda_graph=true cannot be used: with transfer\.thaw"):
        build_state(small_root, BODY, "transfer.thaw_epoch=2", "trainer.cuda_graph=true")


EXACT = (
    *SMALL_DATA,
    *("model=mlp", "optimizer=sgd", "scheduler=constant", "trainer.epochs=2"),
    *("trainer.global_batch_size=70", "trainer.gradient_clip_norm=0.5"),  # 153: 70, 70 and 13
    'transfer.freeze=["layers.1"]',
)


def trained(overrides: list[str]) -> tuple[dict[str, torch.Tensor], int]:
    """Train; return the weights, and how many gradients DistributedDataParallel averages."""
    config = make_config(*overrides)
    with session("cpu", timeout_seconds=60) as world:
        state = build_training_state(config, world, load_splits(config.data, config.seed))
        fit(state, Recorder())
        reducer: Any = getattr(state.parallel_model, "reducer", None)
        buckets = reducer._get_zeros_like_grad_buckets() if reducer else []
        weights = {key: value.clone() for key, value in state.model.state_dict().items()}
        return weights, sum(bucket.buffer().numel() for bucket in buckets)


@pytest.mark.parametrize("thaw", ["null", "2"])
def test_world_sizes_freeze_alike(small_root: Path, thaw: str) -> None:
    overrides = [*EXACT, f"data.root={small_root}", f"transfer.thaw_epoch={thaw}"]
    alone, _ = trained(overrides)
    fresh, _ = trained([*overrides, "transfer.thaw_epoch=null", "trainer.max_steps=1"])
    for weights, averaged in run_ranks(2, trained, overrides):
        assert max(float((alone[k] - weights[k]).abs().max()) for k in alone) < 1e-6
        is_frozen = torch.equal(weights["layers.1.weight"], fresh["layers.1.weight"])
        assert is_frozen == (thaw == "null")
        everything = sum(tensor.numel() for tensor in weights.values())
        assert averaged == everything - (784 * 64 + 64) * is_frozen


@pytest.mark.slow
def test_reproducible_run_freezes_alike(small_root: Path) -> None:
    overrides = [*SMALL_CNN, f"data.root={small_root}", BODY, "transfer.thaw_epoch=2"]
    overrides += [
        "trainer.reproducible=true",
        "trainer.global_batch_size=60",
        "trainer.max_steps=4",
    ]
    (alone, _), (together, _) = (
        run_ranks(1, trained, overrides)[0],
        run_ranks(2, trained, overrides)[1],
    )
    assert_equal(alone, together)


@pytest.fixture(scope="module")
def source(small_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that knows the first five classes."""
    run_dir = tmp_path_factory.mktemp("source") / "run"
    classes = ("data.classes=[0,1,2,3,4]", "data.num_classes=5", "data.validation_size=20")
    run_once([*SMALL_CNN, *classes, f"data.root={small_root}", f"run_dir={run_dir}"])
    return run_dir


@pytest.mark.usefixtures("no_pictures")
@pytest.mark.parametrize("stops", [[3], [2, 8, 11]], ids=str)
def test_continued_run_needs_its_source_no_more(
    small_root: Path, source: Path, tmp_path: Path, stops: list[int]
) -> None:
    start = tmp_path / "source.safetensors"
    shutil.copy(source / "checkpoints" / "best.safetensors", start)
    run = [*SMALL_CNN, f"data.root={small_root}", f"transfer.checkpoint={start}", BODY]
    run += ["transfer.thaw_epoch=2", "transfer.learning_rates={layers.?:0.001}"]
    run_once([*run, f"run_dir={tmp_path / 'whole'}"])
    for stop in stops:
        run_once([*run, f"run_dir={tmp_path / 'parts'}", f"trainer.max_steps={stop}"])
        start.unlink(missing_ok=True)
    run_once([*run, f"run_dir={tmp_path / 'parts'}"])
    (whole, lines), (parts, other_lines) = (result(tmp_path / n) for n in ("whole", "parts"))
    for key in ("model", "optimizer"):
        assert_equal(whole[key], parts[key])
    assert [line for line in lines if line["kind"] == "test"] == other_lines[-1:]


@pytest.mark.slow
def test_killed_run_comes_out_equal(small_root: Path, tmp_path: Path) -> None:
    run = [*SMALL_DATA, "model=mlp", f"data.root={small_root}", "tracking=disabled"]
    run += ["model._target_=tests.support.networks.Misbehaving", "+model.step=13", "+model.rank=1"]
    run += ["trusted_modules=[tests.support.networks]", f"+model.once={tmp_path / 'once'}"]
    run += ["trainer.epochs=2", "trainer.checkpoint_every_steps=2", "transfer.thaw_epoch=2"]
    run += ['transfer.freeze=["layers.[1-3]"]', f"run_dir={tmp_path / 'run'}"]
    for status in (1, 0):  # killed in the second epoch, after a checkpoint inside it
        done = torchrun(2, *run, "+model.does=SIGKILL")
        assert done.returncode == status, done.stderr
    whole = torchrun(2, *run[:-1], f"run_dir={tmp_path / 'whole'}", "+model.does=nothing")
    assert whole.returncode == 0, whole.stderr
    killed, undisturbed = (result(tmp_path / name)[0] for name in ("run", "whole"))
    for key in ("model", "optimizer"):
        assert_equal(killed[key], undisturbed[key])


@pytest.mark.usefixtures("no_pictures")
def test_five_digits_start_from_the_other_five(
    small_root: Path, source: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = [*SMALL_CNN, f"data.root={small_root}", f"transfer.checkpoint={source}", BODY]
    run += ["data.classes=[5,6,7]", "data.num_classes=3", "data.samples_per_class=4"]
    with caplog.at_level("INFO", logger="dist_mnist"):
        run_once([*run, "data.validation_size=20", f"run_dir={tmp_path}"])
    theirs = checkpoint.load(checkpoint.resolve(source))["model"]
    ours = checkpoint.load(checkpoint.resolve(tmp_path))["model"]
    assert {k for k in ours if not ours[k].equal(theirs[k])} == {
        "layers.12.weight",
        "layers.12.bias",
    }
    assert f"weights of {source}\n  taken: layers.0, layers.2, layers.4" in caplog.text
    assert "did not fit, reinitialized: layers.12.weight [5, 36] for [3, 36]" in caplog.text


@pytest.mark.usefixtures("no_pictures")
def test_a_gray_network_starts_a_color_one(source: Path, tmp_path: Path) -> None:
    run = [
        *COLOR_BARS,
        "model.channels=[4,4,4]",
        "trainer.epochs=1",
        f"transfer.checkpoint={source}",
    ]
    run_once([*run, 'transfer.freeze=["layers.[4-9]"]', f"run_dir={tmp_path}"])
    theirs = checkpoint.load(checkpoint.resolve(source))["model"]
    ours = checkpoint.load(checkpoint.resolve(tmp_path))["model"]
    same = {name for name in ours if ours[name].equal(theirs[name])}
    assert {name.split(".")[1] for name in same} >= {"4", "6", "8", "9"}
    assert ours["layers.0.weight"].shape == (4, 3, 5, 5)


@pytest.mark.usefixtures("no_pictures")
def test_a_resnet18_of_torchvision(tmp_path: Path) -> None:
    theirs = resnet18()
    torch.save(theirs.state_dict(), tmp_path / "resnet18.pth")
    run = [
        *COLOR_BARS,
        "model=resnet18",
        "optimizer=sgd",
        f"transfer.checkpoint={tmp_path}/resnet18.pth",
    ]
    run += ["transfer.freeze=[conv1,bn1,layer?]", "trainer.max_steps=1"]
    run_once([*run, f"run_dir={tmp_path / 'run'}"])
    ours = checkpoint.load(tmp_path / "run" / "checkpoints" / "last.safetensors")["model"]
    different = {k for k, value in theirs.state_dict().items() if not value.equal(ours[k])}
    assert different == {"fc.weight", "fc.bias"}
    assert ours["fc.weight"].shape == (3, 512)


@pytest.mark.usefixtures("no_pictures")
@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        ([], ["transfer.freeze=[layers.0]"], r"transfer\.freeze=\['layers\.0'\] does not fit"),
        ([BODY], [BODY, "transfer.thaw_epoch=2"], r"transfer\.thaw_epoch=2 does not fit this run"),
        ([], ["transfer.learning_rates={layers.0:1}"], r"transfer\.learning_rates=.* does not fit"),
        ([], ["transfer.checkpoint=elsewhere"], "this run began without one"),
        ([], ["data.samples_per_class=5"], r"data\.samples_per_class=5 does not fit this run"),
    ],
    ids=["freeze", "thaw", "rates", "source", "samples"],
)
def test_a_run_keeps_its_choices(
    small_root: Path, tmp_path: Path, before: list[str], after: list[str], message: str
) -> None:
    run = [*SMALL_CNN, f"data.root={small_root}", f"run_dir={tmp_path}"]
    run_once([*run, *before, "trainer.max_steps=1"])
    with pytest.raises(InputError, match=message):
        run_once([*run, *after])


def begun(run: list[str], starts: list[str]) -> float:
    """Make a short run; each rank names its own file to start from, or none."""
    return run_once([*run, *filter(None, [starts[int(os.environ["RANK"])]])])


@pytest.mark.slow
@pytest.mark.usefixtures("no_pictures")
def test_all_ranks_start_from_rank_0s_file(small_root: Path, source: Path, tmp_path: Path) -> None:
    run = [*SMALL_CNN, f"data.root={small_root}", "trainer.max_steps=1", BODY]
    starts = [f"transfer.checkpoint={source}", "transfer.checkpoint=only/on/rank/0"]
    scores = run_ranks(2, begun, [*run, f"run_dir={tmp_path / 'run'}"], starts)
    assert scores[0] == scores[1]
    ours = checkpoint.load(checkpoint.resolve(tmp_path / "run"))["model"]
    theirs = checkpoint.load(checkpoint.resolve(source))["model"]
    assert torch.equal(ours["layers.8.weight"], theirs["layers.8.weight"])
    with pytest.raises(
        InputError, match=r"transfer\.checkpoint differs between the ranks: True on"
    ):
        run_ranks(2, begun, [*run, f"run_dir={tmp_path / 'other'}"], [starts[0], ""])


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["transfer.checkpoint=' '"], r"transfer\.checkpoint=  is not allowed"),
        (["transfer.learning_rates={layers.0:0}"], "give a rate above 0 for each pattern"),
        (["transfer.learning_rates=[0.1]"], "give a rate above 0 for each pattern"),
        (["transfer.thaw_epoch=2"], "nothing is frozen"),
        ([BODY, "transfer.thaw_epoch=1"], "it must be at least 2"),
        ([BODY, "transfer.thaw_epoch=9"], r"which has trainer\.epochs=5"),
        (["transfer.form=x"], r"transfer\.form is not a key"),
    ],
    ids=["file", "rate", "list", "nothing", "first epoch", "last epoch", "key"],
)
def test_refused_options(overrides: list[str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        make_config(*overrides)
