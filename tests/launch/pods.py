"""Real pods without a cluster: podman runs the pods that Kubeflow Trainer makes of a TrainJob.

Everything is in one folder except the network, which `Podman.close` takes down.
"""

import copy
import io
import json
import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import time
from pathlib import Path
from typing import Any

from tests.support.configs import CHECKOUT

Manifest = dict[str, Any]

INDEX = "batch.kubernetes.io/job-completion-index"
ANCESTOR = "trainer.kubeflow.org/trainjob-ancestor-step"
NETWORK = "pods"

# For a machine that is a container itself: no systemd, no journal, and limits that it can grant.
CONTAINERS_CONF = """
[containers]
default_ulimits = ["nofile=4096:4096", "nproc=4096:4096"]
log_driver = "k8s-file"
[engine]
cgroup_manager = "cgroupfs"
events_logger = "none"
runtime = "runc"
static_dir = "{folder}/static"
tmp_dir = "{folder}/tmp"
volume_path = "{folder}/volumes"
[network]
network_backend = "netavark"
network_config_dir = "{folder}/networks"
"""
STORAGE_CONF = """
[storage]
driver = "overlay"
graphroot = "{folder}/root"
runroot = "{folder}/run"
"""


def what_is_missing() -> str | None:
    """Return the reason why podman cannot run here, or None."""
    tools = [tool for tool in ("podman", "runc") if shutil.which(tool) is None]
    if tools:
        return f"needs {' and '.join(tools)}"
    return None if os.geteuid() == 0 else "needs root, for the network of the pods"


class Podman:
    """Podman with separate settings, images and volumes, and a network without a way out.

    Args:
        folder: An empty one.
    """

    def __init__(self, folder: Path) -> None:
        (folder / "networks").mkdir()
        for name, text in (("containers.conf", CONTAINERS_CONF), ("storage.conf", STORAGE_CONF)):
            (folder / name).write_text(text.format(folder=folder))
        self._environment = {
            **os.environ,
            "CONTAINERS_CONF": str(folder / "containers.conf"),
            "CONTAINERS_STORAGE_CONF": str(folder / "storage.conf"),
        }
        self("network", "create", "--internal", NETWORK)

    def run(
        self, *arguments: str, data: bytes = b"", timeout: float = 60
    ) -> subprocess.CompletedProcess[bytes]:
        """Run a podman command, however it ends.

        Args:
            arguments: Of podman.
            data: For its standard input.
            timeout: In seconds.
        """
        return subprocess.run(
            ["podman", *arguments],
            input=data,
            timeout=timeout,
            env=self._environment,
            capture_output=True,
            check=False,
        )

    def __call__(self, *arguments: str, data: bytes = b"", timeout: float = 60) -> str:
        """Run a podman command that must succeed, and return its output."""
        done = self.run(*arguments, data=data, timeout=timeout)
        assert done.returncode == 0, f"podman {' '.join(arguments)}: {done.stderr.decode()}"
        return done.stdout.decode().strip()

    def close(self) -> None:
        """End and remove everything, in any state."""
        self.run("pod", "rm", "--all", "--force", "--time=0")
        self.run("rm", "--all", "--force", "--time=0")
        self.run("volume", "rm", "--all", "--force")
        self.run("rmi", "--all", "--force")
        self.run("network", "rm", "--force", NETWORK)

    def play(self, pod: Manifest) -> None:
        """Start a pod, under the name by which the service of its JobSet makes it known."""
        name = pod["metadata"]["name"]
        alias = f"{name}.{pod['spec']['subdomain']}"
        manifest = json.dumps(pod).encode()
        self("kube", "play", f"--network={NETWORK}:alias={alias}", "-", data=manifest)

    def wait(self, pods: list[Manifest], timeout: float = 90) -> list[int]:
        """Return the exit status of each pod's container, once all have ended.

        Not by `podman wait`, which takes 20 s longer where no init collects dead processes.
        """
        deadline, names = time.monotonic() + timeout, [container_of(pod) for pod in pods]
        while True:
            inspected = self("inspect", "--format={{.State.Status}} {{.State.ExitCode}}", *names)
            states = [line.split() for line in inspected.splitlines()]
            if all(state in ("stopped", "exited") for state, _ in states):
                return [int(status) for _, status in states]
            assert time.monotonic() < deadline, f"{states} after {timeout} s: {self.logs(pods)}"
            time.sleep(0.2)

    def remove(self, pods: list[Manifest]) -> None:
        """Tell pods to end, as when Kubernetes deletes them, wait for it, and remove them."""
        for pod in pods:
            grace = pod["spec"]["terminationGracePeriodSeconds"]
            name = pod["metadata"]["name"]
            self("pod", "stop", f"--time={grace}", name, timeout=grace + 30)
            self("pod", "rm", name)

    def logs(self, pods: list[Manifest]) -> str:
        """Return the output of the pods' containers so far."""
        return "\n".join(
            f"{out.stdout.decode()}{out.stderr.decode()}"
            for out in (self.run("logs", container_of(pod)) for pod in pods)
        )

    def make_host_image(self, name: str) -> None:
        """Make an image of next to nothing: `add_host` lends it this machine's programs."""
        archive = io.BytesIO()
        with tarfile.open(fileobj=archive, mode="w") as tar:
            for folder in ("bin", "lib", "lib64"):
                link = tarfile.TarInfo(folder)
                link.type, link.linkname = tarfile.SYMTYPE, f"usr/{folder}"
                tar.addfile(link)
            scratch = tarfile.TarInfo("tmp")
            scratch.type, scratch.mode = tarfile.DIRTYPE, 0o1777
            tar.addfile(scratch)
        path = f"{sysconfig.get_path('scripts')}:/usr/bin"
        variables = (f"PATH={path}", f"PYTHONPATH={CHECKOUT}", "HOME=/tmp")
        changes = [f"--change=ENV {variable}" for variable in variables]
        self("import", *changes, "-", name, data=archive.getvalue())


def container_of(pod: Manifest) -> str:
    """Return podman's name for the one container of a pod."""
    return f"{pod['metadata']['name']}-{pod['spec']['containers'][0]['name']}"


def add_host(pod: Manifest) -> None:
    """Mount the programs of this machine into a pod, and this interpreter's packages."""
    (container,) = pod["spec"]["containers"]
    for number, path in enumerate(sorted({"/usr", sys.prefix, sys.base_prefix, str(CHECKOUT)})):
        volume = {"name": f"host-{number}", "hostPath": {"path": path}}
        pod["spec"]["volumes"].append(volume)
        mount = {"name": f"host-{number}", "mountPath": path, "readOnly": True}
        container["volumeMounts"].append(mount)


def make_pods(runtime: Manifest, train_job: Manifest, uid: str, attempt: int) -> list[Manifest]:
    """Return the pods of a TrainJob, as the controllers of Trainer 2.3 and JobSet 0.12 make them.

    Args:
        runtime: The TrainingRuntime.
        train_job: The TrainJob.
        uid: By which the API server knows the JobSet.
        attempt: How often all its pods have been recreated.
    """
    (job,) = (
        job
        for job in runtime["spec"]["template"]["spec"]["replicatedJobs"]
        if job["template"]["metadata"]["labels"].get(ANCESTOR) == "trainer"
    )
    name, pods = train_job["metadata"]["name"], []
    for index in range(train_job["spec"]["trainer"]["numNodes"]):
        pod = copy.deepcopy(job["template"]["spec"]["template"])
        pod |= {"apiVersion": "v1", "kind": "Pod"}
        pod["metadata"] = {
            "name": f"{name}-{job['name']}-0-{index}",
            "annotations": {INDEX: str(index)},
            "labels": {
                "jobset.sigs.k8s.io/jobset-name": name,
                "jobset.sigs.k8s.io/jobset-uid": uid,
                "jobset.sigs.k8s.io/restart-attempt": str(attempt),
            },
        }
        pod["spec"]["subdomain"] = name
        (container,) = (c for c in pod["spec"]["containers"] if c["name"] == "node")
        _apply_trainer(container, name, train_job["spec"]["trainer"])
        _own_memory(pod)
        pods.append(pod)
    return pods


def _apply_trainer(container: Manifest, name: str, trainer: Manifest) -> None:
    for key in ("image", "command", "args"):
        container[key] = trainer.get(key, container.get(key))
    # Without a number, and without GPUs, there are as many processes as CPUs asked for.
    processes = trainer.get("numProcPerNode", container["resources"]["requests"]["cpu"])
    container["env"] += [
        *trainer.get("env", []),
        {"name": "PET_NNODES", "value": str(trainer["numNodes"])},
        {"name": "PET_NPROC_PER_NODE", "value": str(processes)},
        {
            "name": "PET_NODE_RANK",
            "valueFrom": {"fieldRef": {"fieldPath": f"metadata.annotations['{INDEX}']"}},
        },
        {"name": "PET_MASTER_ADDR", "value": f"{name}-node-0-0.{name}"},
        {"name": "PET_MASTER_PORT", "value": "29500"},
    ]


def _own_memory(pod: Manifest) -> None:
    """Make the names of a pod's empty volumes unique: podman shares volumes by name."""
    volumes = {volume["name"]: volume for volume in pod["spec"]["volumes"]}
    for mount in pod["spec"]["containers"][0]["volumeMounts"]:
        if "emptyDir" in volumes[mount["name"]]:
            mount["name"] = f"{pod['metadata']['name']}-{mount['name']}"
    for name, volume in volumes.items():
        if "emptyDir" in volume:
            volume["name"] = f"{pod['metadata']['name']}-{name}"
