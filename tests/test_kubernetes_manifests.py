"""examples/kubernetes against Kubernetes' own schemas, which come with a library, and against the driver."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from cloudai_daemon.commands.csi_driver import ENDPOINT_DEFAULT
from cloudai_daemon.commands.csi_driver import csi_driver_command as command
from cloudai_daemon.csi.controller import task_of
from cloudai_daemon.csi.identity import DRIVER_NAME

FOLDER = Path(__file__).parents[1] / "examples" / "kubernetes"
README = FOLDER.parent / "README.md"
VERSIONS = ("1.29", kubernetes_validate.latest_version())
"""Of Kubernetes: the oldest that the library and others still speak of, and the newest that it has."""

OBJECTS = [
    document
    for path in sorted(FOLDER.glob("*.yaml"))
    if path.name != "kustomization.yaml"
    for document in yaml.safe_load_all(path.read_text())
]


def name_of(document: dict[str, Any]) -> str:
    return f"{document['kind']} {document['metadata']['name']}"


def of_kind(kind: str) -> list[dict[str, Any]]:
    return [document for document in OBJECTS if document["kind"] == kind]


def pod_specs() -> Iterator[dict[str, Any]]:
    for document in OBJECTS:
        if document["kind"] == "Pod":
            yield document["spec"]
        elif "template" in document.get("spec", {}):
            yield document["spec"]["template"]["spec"]


def containers() -> list[dict[str, Any]]:
    return [container for spec in pod_specs() for container in spec["containers"]]


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("document", OBJECTS, ids=name_of)
def test_object_is_valid_by_the_schema_of_kubernetes(document: dict[str, Any], version: str) -> None:
    kubernetes_validate.validate(document, version, strict=True)


def test_word_that_kubernetes_does_not_know_would_be_found() -> None:
    (driver,) = of_kind("CSIDriver")
    wrong = {**driver, "spec": {**driver["spec"], "attachRequire": False}}

    with pytest.raises(kubernetes_validate.ValidationError, match="attachRequire"):
        kubernetes_validate.validate(wrong, VERSIONS[-1], strict=True)


def test_all_that_a_cluster_needs_is_there() -> None:
    assert sorted({document["kind"] for document in OBJECTS}) == [
        "CSIDriver",
        "ClusterRole",
        "ClusterRoleBinding",
        "DaemonSet",
        "Deployment",
        "Namespace",
        "PersistentVolumeClaim",
        "Pod",
        "Role",
        "RoleBinding",
        "ServiceAccount",
        "StorageClass",
    ]


def test_names_that_refer_to_each_other_are_there() -> None:
    (driver,), (storage_class,) = of_kind("CSIDriver"), of_kind("StorageClass")
    assert driver["metadata"]["name"] == storage_class["provisioner"] == DRIVER_NAME
    (claim,) = of_kind("PersistentVolumeClaim")
    assert claim["spec"]["storageClassName"] == storage_class["metadata"]["name"]
    accounts = {account["metadata"]["name"] for account in of_kind("ServiceAccount")}
    roles = {(kind, role["metadata"]["name"]) for kind in ("Role", "ClusterRole") for role in of_kind(kind)}
    for binding in [*of_kind("RoleBinding"), *of_kind("ClusterRoleBinding")]:
        assert (binding["roleRef"]["kind"], binding["roleRef"]["name"]) in roles
        assert {subject["name"] for subject in binding["subjects"]} <= accounts
    parameters = storage_class["parameters"]
    for call in ("provisioner", "node-stage"):
        assert f"generic {parameters[f'csi.storage.k8s.io/{call}-secret-name']} " in README.read_text()
        assert parameters[f"csi.storage.k8s.io/{call}-secret-namespace"]
    for spec in pod_specs():
        assert spec.get("serviceAccountName") in {None, *accounts}
        volumes = [volume["name"] for volume in spec["volumes"]]
        mounted = {mount["name"] for container in spec["containers"] for mount in container["volumeMounts"]}
        assert sorted(mounted) == sorted(volumes)


def test_manifests_hold_no_token_and_cover_none() -> None:
    assert not of_kind("Secret")
    text = "".join(path.read_text() for path in FOLDER.glob("*.yaml"))
    assert not re.search(r"eyJ[A-Za-z0-9_-]{8}", text)
    (storage_class,) = of_kind("StorageClass")
    assert not {"token", "secret"} & storage_class["parameters"].keys()


def test_commands_of_the_driver_are_ones_that_it_takes() -> None:
    commands = [container["command"] for container in containers() if container["image"] == "cloudai-fs"]

    contexts = [command.make_context("csi-driver", words[2:]) for words in commands]

    assert [words[:2] for words in commands] == [["cloudai", "csi-driver"]] * 2
    assert {context.params["endpoint"] for context in contexts} == {ENDPOINT_DEFAULT}
    for container in containers():
        for word in container.get("args", []):
            assert (
                not word.startswith("--csi-address=")
                or f"unix://{word.partition('=')[2]}" == ENDPOINT_DEFAULT
            )


def test_volumes_of_the_driver_go_to_the_host_and_its_pods() -> None:
    (daemon_set,) = of_kind("DaemonSet")
    spec = daemon_set["spec"]["template"]["spec"]
    (driver,) = [container for container in spec["containers"] if container["image"] == "cloudai-fs"]
    mounts = {mount["mountPath"]: mount for mount in driver["volumeMounts"]}
    assert mounts["/var/lib/kubelet"]["mountPropagation"] == "Bidirectional"
    assert driver["securityContext"]["privileged"]
    assert spec["hostPID"]
    paths = {volume["name"]: volume.get("hostPath", {}).get("path") for volume in spec["volumes"]}
    for kept in ("/var/lib/cloudai", "/run/cloudai", "/var/cache/cloudai"):
        assert paths[mounts[kept]["name"]] == kept
    (registrar,) = [container for container in spec["containers"] if container is not driver]
    assert f"--kubelet-registration-path={paths['plugin']}/csi.sock" in registrar["args"]


def test_images_name_no_host_and_the_mirror_is_put_before_each() -> None:
    kustomization = yaml.safe_load((FOLDER / "kustomization.yaml").read_text())
    given = {image["name"]: image["newName"] for image in kustomization["images"]}
    names = {container["image"].partition(":")[0] for container in containers()} - {"trainer"}

    assert given == {name: f"MIRROR/{name}" for name in names}
    for name in names:
        assert "." not in name.partition("/")[0]
    assert [FOLDER / name for name in kustomization["resources"]] == [FOLDER / "driver.yaml"]


def test_parameters_of_the_class_are_ones_that_the_driver_takes() -> None:
    (storage_class,) = of_kind("StorageClass")
    metadata = {"csi.storage.k8s.io/pvc/name": "digits", "csi.storage.k8s.io/pvc/namespace": "training"}

    assert task_of({**storage_class["parameters"], **metadata}) == "digits"
