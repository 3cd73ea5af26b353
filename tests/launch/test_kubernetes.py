"""launch/kubernetes/mpijob.yaml against the schema that Kubernetes checks it with."""

from __future__ import annotations

import copy
import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import tyro
import yaml

from ddp_gd.commands.config import TrainConfig

ROOT = Path(__file__).resolve().parents[2]
CLAIM, JOB = yaml.safe_load_all((ROOT / "launch/kubernetes/mpijob.yaml").read_text())
DOCKERFILE = (ROOT / "launch/Dockerfile").read_text()
REPLICAS = JOB["spec"]["mpiReplicaSpecs"]
PODS = [replica["template"]["spec"] for replica in REPLICAS.values()]


def strict(schema: Any) -> Any:
    """The schema, refusing fields that it does not name, as `kubectl apply` does.

    What is an object without named fields (`metadata`, checked elsewhere) may hold anything.
    """
    if isinstance(schema, list):
        return [strict(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    made = {name: strict(part) for name, part in schema.items()}
    if isinstance(schema.get("properties"), dict) and schema.get("type") == "object":
        made.setdefault("additionalProperties", False)
    return made


STORED = json.loads((ROOT / "tests/kubernetes/mpijob-v2beta1.json").read_text())
VALIDATOR = jsonschema.Draft202012Validator(strict(STORED["openAPIV3Schema"]))


def problems(job: Any) -> list[str]:
    """What the schema has against a job."""
    return [f"{error.json_path}: {error.message}" for error in VALIDATOR.iter_errors(job)]


def test_the_job_fits_the_operators_schema() -> None:
    """Every field of the MPIJob exists in v2beta1, and has the type that it needs."""
    assert problems(JOB) == []
    assert JOB["apiVersion"] == "kubeflow.org/v2beta1"


def _misspelt(job: Any) -> None:
    job["spec"]["mpiReplicaSpecs"]["Worker"]["template"]["spec"]["securityContex"] = {}


def _in_a_container(job: Any) -> None:
    container(job)["resource"] = {}


def _wrong_type(job: Any) -> None:
    container(job)["args"] = "-D -e"


def _without_workers_number(job: Any) -> None:
    job["spec"]["mpiReplicaSpecs"]["Worker"]["replicas"] = "two"


def _without_replicas(job: Any) -> None:
    del job["spec"]["mpiReplicaSpecs"]


def container(job: Any) -> Any:
    """The workers' container."""
    return job["spec"]["mpiReplicaSpecs"]["Worker"]["template"]["spec"]["containers"][0]


@pytest.mark.parametrize(
    "spoil",
    [_misspelt, _in_a_container, _wrong_type, _without_workers_number, _without_replicas],
)
def test_the_check_finds_mistakes(spoil: Callable[[Any], None]) -> None:
    """A misspelt, missing or wrong field, however deep, does not pass."""
    job = copy.deepcopy(JOB)
    spoil(job)
    assert len(problems(job)) == 1


def test_pods_have_no_rights_that_they_do_not_need() -> None:
    """All containers run as the image's ordinary user, without capabilities, and stay so."""
    user = next(line for line in DOCKERFILE.splitlines() if line.startswith("RUN useradd"))
    assert "--uid 1000" in user
    assert DOCKERFILE.rindex("\nUSER mpiuser") > DOCKERFILE.rindex("\nRUN ")
    assert "privileged" not in json.dumps(JOB)
    for pod in PODS:
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"]["runAsUser"] == 1000
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert pod["automountServiceAccountToken"] is False
        assert not {"hostNetwork", "hostPID", "hostIPC", "initContainers"} & set(pod)
        for each in pod["containers"]:
            assert each["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "capabilities": {"drop": ["ALL"]},
            }
            assert {"cpu", "memory"} <= set(each["resources"]["requests"])
            assert "memory" in each["resources"]["limits"]


def test_all_pods_save_to_the_claim() -> None:
    """The folder of the checkpoints is the claim's, in every pod, and outlives them."""
    for pod in PODS:
        names = {volume["name"] for volume in pod["volumes"]}
        [saved] = [v for v in pod["volumes"] if "persistentVolumeClaim" in v]
        assert saved["persistentVolumeClaim"]["claimName"] == CLAIM["metadata"]["name"]
        for each in pod["containers"]:
            mounts = {mount["name"]: mount["mountPath"] for mount in each["volumeMounts"]}
            assert mounts[saved["name"]] == "/saved"
            assert set(mounts) <= names
    assert CLAIM["spec"]["accessModes"] == ["ReadWriteMany"]


def test_the_launcher_runs_what_exists() -> None:
    """Script and options are real ones, and each restart goes on from the last checkpoint."""
    [launcher] = REPLICAS["Launcher"]["template"]["spec"]["containers"]
    assert launcher["command"][0] == "bash"
    script = ROOT / launcher["command"][1]
    own, training = split_at_dashes(launcher["args"])
    text = subprocess.run(["bash", str(script), "--help"], capture_output=True, text=True).stdout
    for option in (word for word in own if word.startswith("--")):
        assert f"\n  {option} " in text
    config = tyro.cli(TrainConfig, args=training)
    assert config.resume
    assert str(config.checkpoint).startswith("/saved/")
    assert str(config.out).startswith("/saved/")
    assert REPLICAS["Launcher"]["restartPolicy"] == "OnFailure"


def split_at_dashes(words: list[str]) -> tuple[list[str], list[str]]:
    """What is before `--`, and what is after."""
    where = words.index("--")
    return words[:where], words[where + 1 :]


def test_sshd_and_its_clients_agree() -> None:
    """Port, key and configuration file are the same in manifest and image."""
    worker = container(JOB)
    assert f">{worker['args'][-1]}" in DOCKERFILE
    port = worker["readinessProbe"]["tcpSocket"]["port"]
    assert DOCKERFILE.count(f"'Port {port}'") == 2
    assert f"'HostKey {JOB['spec']['sshAuthMountPath']}/id_rsa'" in DOCKERFILE
