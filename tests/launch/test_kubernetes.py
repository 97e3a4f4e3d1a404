"""The manifests by the Trainer's own models, and their pods by podman: no cluster is needed."""

import copy
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.faults import fingerprint
from tests.launch.pods import (
    Manifest,
    Podman,
    add_host,
    container_of,
    make_pods,
    what_is_missing,
)
from tests.support.configs import CHECKOUT, make_config
from tests.support.datasets import make_small_root
from tests.support.processes import python

pytestmark = pytest.mark.launch

FOLDER = CHECKOUT / "launch" / "kubernetes"
RUNTIME, TRAIN_JOB, VOLUME = (
    yaml.safe_load((FOLDER / f"{name}.yaml").read_text())
    for name in ("runtime", "trainjob", "volume")
)
JOB = RUNTIME["spec"]["template"]["spec"]["replicatedJobs"][0]["template"]
POD = JOB["spec"]["template"]["spec"]
CONTAINER = POD["containers"][0]

needs_podman = pytest.mark.skipif(what_is_missing() is not None, reason=str(what_is_missing()))
TRAINING = (
    "data=fashion_mnist",
    "data.validation_size=50",
    "model=mlp",
    "trainer.reproducible=true",
    "trainer.global_batch_size=50",  # 153 samples: 4 steps an epoch, the last one of 3
    "trainer.epochs=20",
    "trainer.log_every_steps=3",
    "trainer.checkpoint_every_steps=10",
    "trainer.device=cpu",
)


def check_by_trainer(kind: str, manifest: Manifest) -> None:
    """Hold that the Trainer's model of a kind takes a manifest, and loses nothing of it."""
    models = pytest.importorskip("kubeflow_trainer_api.models")
    model = getattr(models, kind)
    assert model.from_dict(manifest).to_dict() == manifest


def check_by_kubernetes(manifest: Manifest) -> None:
    """Check that a manifest follows Kubernetes' schema, without unknown keys."""
    validator = pytest.importorskip("kubernetes_validate")
    validator.validate(manifest, validator.latest_version(), strict=True)


def as_job(runtime: Manifest) -> Manifest:
    """Return the Job that a runtime's template describes."""
    template = runtime["spec"]["template"]["spec"]["replicatedJobs"][0]["template"]
    metadata = {"name": "node", **template["metadata"]}
    return {"apiVersion": "batch/v1", "kind": "Job", "metadata": metadata, "spec": template["spec"]}


def check_runtime(runtime: Manifest) -> None:
    check_by_trainer("TrainerV1alpha1TrainingRuntime", runtime)
    check_by_kubernetes(as_job(runtime))


def check_train_job(train_job: Manifest) -> None:
    check_by_trainer("TrainerV1alpha1TrainJob", train_job)


CHECKS = {
    "runtime": (RUNTIME, check_runtime),
    "trainjob": (TRAIN_JOB, check_train_job),
    "volume": (VOLUME, check_by_kubernetes),
}
JOB_PATH = "spec.template.spec.replicatedJobs.0.template.spec"
POD_PATH = f"{JOB_PATH}.template.spec"


@pytest.mark.parametrize("name", CHECKS)
def test_the_api_takes_a_manifest(name: str) -> None:
    manifest, check = CHECKS[name]
    check(manifest)


@pytest.mark.parametrize(
    ("name", "path", "value"),
    [
        ("runtime", "spec.mlPolicy.torch.numProcPerNode", 2),  # as it was before 2.3
        ("runtime", "spec.template.spec.failurePolicy.maxRestart", 3),
        ("runtime", "spec.template.spec.failurePolicy.maxRestarts", "many"),
        ("runtime", f"{JOB_PATH}.backofLimit", 0),
        ("runtime", f"{POD_PATH}.terminationGracePeriod", 90),
        ("runtime", f"{POD_PATH}.terminationGracePeriodSeconds", "90 s"),
        ("runtime", f"{POD_PATH}.containers.0.resources.requests.cpu", [2]),
        ("runtime", f"{POD_PATH}.containers.0.securityContext.capabilities.dropped", ["ALL"]),
        ("trainjob", "spec.trainer.numNode", 2),
        ("trainjob", "spec.trainer.numNodes", "two"),
        ("trainjob", "spec.trainer.args", "model=mlp"),
        ("trainjob", "spec.podTemplateOverrides", []),  # as it was before 2.3
        ("volume", "spec.accessModes", "ReadWriteMany"),
        ("volume", "spec.resources.request", {"storage": "1Gi"}),
    ],
)
def test_a_mistake_in_a_manifest_is_noticed(name: str, path: str, value: object) -> None:
    manifest, check = CHECKS[name]
    broken = copy.deepcopy(manifest)
    *parents, last = path.split(".")
    place: Any = broken
    for key in parents:
        place = place[int(key) if key.isdigit() else key]
    place[last] = value
    with pytest.raises(Exception, match=r".") as caught:
        check(broken)
    assert not isinstance(caught.value, (KeyError, TypeError))


def test_torchrun_has_time_to_end_its_ranks() -> None:
    environment = {variable["name"]: variable.get("value") for variable in CONTAINER["env"]}
    assert int(environment["PET_SHUTDOWN_TIMEOUT"]) < POD["terminationGracePeriodSeconds"]


def test_manifests_refer_to_each_other() -> None:
    reference = TRAIN_JOB["spec"]["runtimeRef"]
    assert (reference["kind"], reference["name"]) == (RUNTIME["kind"], RUNTIME["metadata"]["name"])
    claims = [
        v["persistentVolumeClaim"]["claimName"]
        for v in POD["volumes"]
        if len(v) == 2 and "persistentVolumeClaim" in v
    ]
    assert claims == [VOLUME["metadata"]["name"]]


def test_train_job_arguments_are_overrides() -> None:
    make_config(*TRAIN_JOB["spec"]["trainer"]["args"])


@pytest.fixture(scope="module")
def podman(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Podman]:
    podman = Podman(tmp_path_factory.mktemp("podman"))
    try:
        podman.make_host_image(CONTAINER["image"])
        yield podman
    finally:
        podman.close()


@pytest.fixture
def work(podman: Podman) -> Iterator[Path]:
    """The volume of the manifest, with data that whoever is of its group may write to."""
    name = VOLUME["metadata"]["name"]
    podman("kube", "play", "-", data=yaml.safe_dump(VOLUME).encode())
    try:
        work = Path(podman("volume", "inspect", "--format={{.Mountpoint}}", name))
        make_small_root(work / "data")
        yield work
    finally:
        podman("pod", "rm", "--all", "--force", "--time=0")
        podman("volume", "rm", name)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The fingerprint of the same training in one process."""
    folder = tmp_path_factory.mktemp("undisturbed")
    make_small_root(folder / "data")
    done = python("-m", "dist_mnist", *TRAINING, "run_dir=run", cwd=folder)
    assert done.returncode == 0, done.stderr
    return fingerprint(folder / "run")


def start(podman: Podman, attempt: int = 0, **trainer: object) -> list[Manifest]:
    """Start all pods of a TrainJob with other values for its trainer, as the JobSet does."""
    train_job = copy.deepcopy(TRAIN_JOB)
    train_job["spec"]["trainer"] |= {"args": [*TRAINING], **trainer}
    pods = make_pods(
        RUNTIME, train_job, uid="5d0c2b9e-6a54-4d4e-9a52-0c8f3f6a7d11", attempt=attempt
    )
    for pod in pods:
        add_host(pod)
        podman.play(pod)
    return pods


def wait_for(podman: Podman, pods: list[Manifest], condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, podman.logs(pods)
        time.sleep(0.05)


def newest_checkpoint(work: Path) -> int:
    """Return the step of it, or -1."""
    steps = (
        path.stem.removeprefix("step-")
        for path in work.glob("outputs/*/checkpoints/step-*.safetensors")
    )
    return max(map(int, steps), default=-1)


@needs_podman
@pytest.mark.slow
def test_two_pods_train_as_one_process(podman: Podman, work: Path, undisturbed: str) -> None:
    pods = start(podman)
    assert podman.wait(pods) == [0, 0], podman.logs(pods)
    assert ": 4 x " in podman.logs(pods)
    (run_dir,) = (work / "outputs").iterdir()
    assert run_dir.stat().st_uid == POD["securityContext"]["runAsUser"] != 0
    assert fingerprint(run_dir) == undisturbed


@needs_podman
@pytest.mark.usefixtures("work")
def test_pod_stopped_at_start(podman: Podman) -> None:
    """Process 1 of a container would not even notice before it has set up its handlers."""
    pods = start(podman, numNodes=1)
    podman("stop", "--time=10", container_of(pods[0]))
    assert podman.wait(pods) == [128 + signal.SIGTERM]


@needs_podman
@pytest.mark.slow
def test_killed_and_evicted_pods(podman: Podman, work: Path, undisturbed: str) -> None:
    """One pod ends, so all are ended and recreated, as by the JobSet; twice."""
    pods = start(podman, attempt=0, numProcPerNode=1)
    wait_for(podman, pods, lambda: newest_checkpoint(work) > 0)
    podman("kill", "--signal=KILL", container_of(pods[1]))
    podman.remove(pods)
    killed_at = newest_checkpoint(work)
    pods = start(podman, attempt=1, numProcPerNode=1)
    wait_for(podman, pods, lambda: newest_checkpoint(work) > killed_at)
    podman.run("stop", f"--time={POD['terminationGracePeriodSeconds']}", container_of(pods[1]))
    statuses = podman.wait(pods)
    logs = podman.logs(pods)
    podman.remove(pods)
    assert statuses == [1, 1], logs
    assert "stopped by a signal to another rank" in logs, logs
    pods = start(podman, attempt=2, numProcPerNode=1)
    assert podman.wait(pods) == [0, 0], podman.logs(pods)
    (run_dir,) = (work / "outputs").iterdir()
    assert fingerprint(run_dir) == undisturbed
