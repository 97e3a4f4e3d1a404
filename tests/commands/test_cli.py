"""The command line as a user meets it, in one process."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from dist_mnist.config import __version__
from dist_mnist.config.commands import COMMANDS
from tests.support.command_line import call


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("optimizer.lrr=1", "optimizer.lrr"),
        ("trainer.epochs=many", "trainer.epochs=many"),
        ("model=unet", "cnn linear mlp resnet"),
        ("trainer.global_batch_size=0", "trainer.global_batch_size=0"),
        ("trainer.device=tpu", "trainer.device=tpu"),
        ("trainer.precision=fp16", "trainer.precision=fp16 needs a GPU"),
        ("trainer.sync_batch_norm=true", "trainer.sync_batch_norm=true needs GPUs"),
        ("optimizer.lr=fast", "optimizer.lr=fast"),
        ("model.channels=[1,2]", "model.channels=[1, 2]"),
        ("loss.label_smoothing=2", "label_smoothing=2"),
        ("scheduler.warmup_fraction=2", "warmup_fraction=2"),
        ("model.num_classes=3", "data.num_classes=10"),
        ("model._target_=os.system", "model._target_=os.system is not allowed"),
        ("+trainer.epochs", "trainer.epochs"),
    ],
)
def test_mistake_is_one_sentence(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    small_root: Path,
    tmp_path: Path,
    override: str,
    message: str,
) -> None:
    status, out, err = call(
        monkeypatch,
        capsys,
        "data=fashion_mnist",
        f"data.root={small_root}",
        "data.validation_size=50",
        "trainer.global_batch_size=50",
        "trainer.device=cpu" if "device" not in override else "trainer.epochs=1",
        f"run_dir={tmp_path / 'run'}",
        override,
    )
    assert status == 1
    assert out == ""
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert message in err
    assert not (tmp_path / "run").exists()


def test_help_and_composed_config(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    status, out, _ = call(monkeypatch, capsys, "--help")
    assert status == 0
    for word in ("torchrun", "model: cnn, linear, mlp, resnet", "experiment:", "--cfg job"):
        assert word in out
    status, out, _ = call(monkeypatch, capsys, "--cfg", "job", "experiment=tutorial")
    assert status == 0
    assert "hidden_sizes:" in out
    assert "global_batch_size: 10" in out


def test_help_lists_the_commands(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    _, out, _ = call(monkeypatch, capsys, "--help")
    for name, command in COMMANDS.items():
        assert f"{name} " in out
        assert command.summary in out


def test_every_command_has_help(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in COMMANDS:
        status, out, _ = call(monkeypatch, capsys, name, "--help")
        assert status == 0
        assert "== Values" in out


@pytest.mark.parametrize(
    ("word", "nearest"), [("evalute", "evaluate"), ("trian", "train"), ("x", "")]
)
def test_mistyped_command_gets_a_suggestion(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], word: str, nearest: str
) -> None:
    status, out, err = call(monkeypatch, capsys, word, "checkpoint=x")
    assert (status, out) == (1, "")
    assert err.startswith(f"error: {word} is not a command: did you mean {nearest}")
    assert err.count("\n") == 1


@pytest.mark.usefixtures("no_pictures")
def test_sweep_jobs_have_own_directories(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    small_root: Path,
    tmp_path: Path,
) -> None:
    monkeypatch.chdir(tmp_path)
    arguments = [
        "--multirun",
        "data=fashion_mnist",
        f"data.root={small_root}",
        "data.validation_size=50",
        "model=linear",
        "trainer.max_steps=1",
        "seed=1,2",
    ]
    assert call(monkeypatch, capsys, *arguments)[0] == 0
    assert len(list(tmp_path.glob("multirun/*/*/[01]/checkpoints/last.safetensors"))) == 2
    assert call(monkeypatch, capsys, *arguments, "run_dir=sweep")[0] == 0
    assert len(list(tmp_path.glob("sweep/[01]/checkpoints/last.safetensors"))) == 2


@pytest.mark.usefixtures("no_pictures")
def test_evaluate_repeats_the_result(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    small_root: Path,
    tmp_path: Path,
) -> None:
    data = ["data=fashion_mnist", f"data.root={small_root}", "data.validation_size=50"]
    arguments = [*data, "trainer.epochs=1", f"run_dir={tmp_path}"]
    trained = call(monkeypatch, capsys, *arguments)
    last = trained[1].splitlines()[-1]
    assert last.startswith("test accuracy 0.")
    assert last.endswith(f" s -> {tmp_path}")
    evaluated = call(monkeypatch, capsys, "evaluate", f"checkpoint={tmp_path}")
    assert (trained[0], evaluated[0]) == (0, 0)
    assert evaluated[1].splitlines()[-1].split(" in ")[0] == last.split(" in ")[0]


def test_evaluate_names_a_bad_checkpoint(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("file.pt").write_bytes(b"nothing of ours")
    Path("empty").mkdir()
    for checkpoint, message in (
        ("latest", f"there is no run under {tmp_path / 'outputs'}: train one"),
        ("nowhere", "nowhere does not exist: give a run directory"),
        ("file.pt", "file.pt is damaged or not a checkpoint"),
        ("empty", "empty holds no checkpoint: best and last.safetensors are missing"),
    ):
        status, out, err = call(monkeypatch, capsys, "evaluate", f"checkpoint={checkpoint}")
        assert (status, out) == (1, "")
        assert err.startswith(f"error: {message}")
        assert err.count("\n") == 1


@pytest.mark.parametrize(
    "arguments", [("--help",), ("evaluate", "--help"), ("--cfg", "job"), ("--info", "defaults")]
)
def test_a_reader_may_go(arguments: tuple[str, ...]) -> None:
    """As with `| head`: no stack, whatever was still to be printed."""
    program = [sys.executable, "-m", "dist_mnist", *arguments]
    with subprocess.Popen(program, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode in (0, -signal.SIGPIPE)


def test_options_that_only_print(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(monkeypatch, capsys, "--version") == (0, f"dist_mnist {__version__}\n", "")
    status, _, err = call(monkeypatch, capsys, "--shell-completion")
    assert (status, err.count("\n")) == (1, 1)
    assert "needs install=SHELL" in err
