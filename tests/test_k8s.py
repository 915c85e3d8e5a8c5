"""The manifests in `k8s/` and the Dockerfile, rendered and checked without a cluster."""

from __future__ import annotations

import importlib
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
import tomllib
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, requires
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import typer
import yaml
from packaging.requirements import Requirement

from rl.config import load_config
from rl.learning.cluster import INLINE_BYTES

ROOT = Path(__file__).parents[1]
SCHEMAS = ROOT.parent / "shared" / "schemas" / "kuberay-v1.7.0"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXAMPLE_SECRETS = list(yaml.safe_load_all((ROOT / "k8s" / "secrets.example.yaml").read_text()))
RAY_KINDS = {"RayCluster": "raycluster", "RayJob": "rayjob", "RayService": "rayservice"}
ALPHA_FIELDS = {"networkPolicy", "tlsOptions", "historyServerOptions"}
OPERATOR = {
    "namespaceSelector": {},
    "podSelector": {"matchLabels": {"app.kubernetes.io/name": "kuberay-operator"}},
}
COMPONENT = "swing-rl/component"

Tree = dict[str, Any]

pytestmark = [
    # alpaca-py imports it.
    pytest.mark.filterwarnings("ignore:websockets.legacy is deprecated:DeprecationWarning"),
    # Ray Serve's own settings classes.
    pytest.mark.filterwarnings("ignore:Using extra keyword arguments on `Field` is deprecated"),
]


def rendered(folder: str) -> list[Tree]:
    if shutil.which("kubectl") is None:
        pytest.skip("kubectl is not installed: the manifests are NOT checked")
    command = ["kubectl", "kustomize", str(ROOT / "k8s" / folder)]
    return list(yaml.safe_load_all(subprocess.run(command, check=True, capture_output=True, text=True).stdout))


@pytest.fixture(scope="module", params=["base", "overlays/local"])
def objects(request: pytest.FixtureRequest) -> list[Tree]:
    return rendered(request.param)


def of_kind(objects: list[Tree], *kinds: str) -> list[Tree]:
    return [each for each in objects if each["kind"] in kinds]


def named(objects: list[Tree], kind: str, name: str) -> Tree:
    return next(each for each in of_kind(objects, kind) if each["metadata"]["name"] == name)


def cluster_spec(ray_object: Tree) -> Tree:
    spec: Tree = ray_object["spec"]
    return spec.get("rayClusterSpec") or spec.get("rayClusterConfig") or spec


def pods(objects: list[Tree]) -> Iterator[tuple[str, Tree]]:
    """Yields what it is for and the template of every kind of pod."""
    for each in objects:
        name = f"{each['kind']}/{each['metadata']['name']}"
        if each["kind"] == "Deployment":
            yield name, each["spec"]["template"]
        if each["kind"] in RAY_KINDS:
            spec = cluster_spec(each)
            yield f"{name}/head", spec["headGroupSpec"]["template"]
            yield from ((f"{name}/{g['groupName']}", g["template"]) for g in spec["workerGroupSpecs"])
        if each["kind"] == "RayJob":
            yield f"{name}/submitter", each["spec"]["submitterPodTemplate"]


def containers(objects: list[Tree]) -> Iterator[tuple[str, Tree]]:
    for name, template in pods(objects):
        yield from ((f"{name}/{c['name']}", c) for c in template["spec"]["containers"])


def values_of(tree: Any, key: str) -> Iterator[Any]:
    """Yields every value that stands under `key`, at any depth."""
    if isinstance(tree, dict):
        for name, value in tree.items():
            if name == key:
                yield value
            yield from values_of(value, key)
    elif isinstance(tree, list):
        for item in tree:
            yield from values_of(item, key)


def pinned_ray() -> str:
    pins = re.findall(r"ray\[[a-z,]+\]==([0-9.]+)", str(PROJECT["optional-dependencies"]))
    assert len(set(pins)) == 1
    return str(pins[0])


def labels_of(objects: list[Tree]) -> set[str]:
    return {template["metadata"]["labels"][COMPONENT] for _, template in pods(objects)}


def test_base_holds_every_object_of_the_platform() -> None:
    found = {(each["kind"], each["metadata"]["name"]) for each in rendered("base")}
    assert found >= {
        ("RayCluster", "swing"),
        ("RayJob", "swing-train"),
        ("RayJob", "swing-sweep"),
        ("RayService", "swing-policy"),
        ("Deployment", "swing-executor"),
        ("NetworkPolicy", "swing-policy"),
        ("PersistentVolumeClaim", "swing-data"),
    }


def test_core_kinds_fit_kubernetes_schemas(objects: list[Tree], tmp_path: Path) -> None:
    core = [each for each in objects if each["kind"] not in RAY_KINDS]
    path = tmp_path / "core.yaml"
    path.write_text(yaml.safe_dump_all(core))
    command = [str(Path(sys.executable).parent / "kubernetes-validate"), "--strict", str(path)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    report = result.stdout + result.stderr
    assert result.returncode == 0, report
    assert "WARN" not in report, report
    assert report.count(" passed for resource ") == len(core)


def ray_schema(kind: str) -> Tree:
    if not SCHEMAS.is_dir():
        pytest.skip(f"no folder {SCHEMAS.name} beside the repository: {kind} is NOT checked against KubeRay")
    schema: Tree = json.loads((SCHEMAS / f"{RAY_KINDS[kind]}.json").read_text())
    return schema


@pytest.mark.parametrize("kind", RAY_KINDS)
def test_ray_kinds_fit_kuberay_schemas(objects: list[Tree], kind: str) -> None:
    validator = jsonschema.Draft202012Validator(ray_schema(kind))
    for each in of_kind(objects, kind):
        errors = [f"{error.json_path}: {error.message}" for error in validator.iter_errors(each)]
        assert not errors, each["metadata"]["name"]


def test_kuberay_schema_refuses_a_misspelt_field(objects: list[Tree]) -> None:
    broken = json.loads(json.dumps(named(objects, "RayCluster", "swing")))
    broken["spec"]["headGroupSpec"]["rayStartParam"] = {}
    with pytest.raises(jsonschema.ValidationError, match="rayStartParam"):
        jsonschema.validate(broken, ray_schema("RayCluster"))


def test_ray_clusters_keep_the_operators_rules(objects: list[Tree]) -> None:
    for each in of_kind(objects, *RAY_KINDS):
        name, spec = each["metadata"]["name"], cluster_spec(each)
        assert re.fullmatch(r"[a-z]([-a-z0-9]{0,45}[a-z0-9])?", name)
        assert spec["rayVersion"] == pinned_ray()
        assert spec["authOptions"]["mode"] == "token"
        for group in spec["workerGroupSpecs"]:
            assert 0 <= group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]
        for _, template in pods([each]):
            assert template["spec"]["containers"]
    for job in of_kind(objects, "RayJob"):
        # The operator refuses a sleeping job that keeps its cluster or has an autoscaler.
        assert job["spec"]["suspend"]
        assert job["spec"]["shutdownAfterJobFinishes"]
        assert not cluster_spec(job).get("enableInTreeAutoscaling")


def test_base_uses_no_alpha_feature_of_kuberay() -> None:
    objects = rendered("base")
    assert {each["kind"] for each in objects if each["apiVersion"].startswith("ray.io")} == set(RAY_KINDS)
    for each in of_kind(objects, *RAY_KINDS):
        spec = cluster_spec(each)
        assert not ALPHA_FIELDS & spec.keys()
        assert spec.get("gcsFaultToleranceOptions", {}).get("backend") != "rocksdb"


def test_images_carry_the_projects_version(objects: list[Tree]) -> None:
    images = {container["image"] for _, container in containers(objects)}
    assert images == {f"{name}:{PROJECT['version']}" for name in ("swing-rl", "swing-rl-executor")}


def test_every_container_is_locked_down(objects: list[Tree]) -> None:
    for name, template in pods(objects):
        pod = template["spec"]["securityContext"]
        assert pod["runAsNonRoot"], name
        assert pod["runAsUser"] == 1000, name
        assert pod["seccompProfile"] == {"type": "RuntimeDefault"}, name
    contexts = [(name, container.get("securityContext")) for name, container in containers(objects)]
    contexts += [(str(o), o["securityContext"]) for o in values_of(objects, "autoscalerOptions")]
    assert len(contexts) == 12
    for name, context in contexts:
        assert context == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }, name


def test_every_container_has_requests_limits_and_room_for_temporary_files(objects: list[Tree]) -> None:
    for name, container in containers(objects):
        for kind in ("requests", "limits"):
            assert container["resources"][kind].keys() == {"cpu", "memory"}, name
        assert {"name": "tmp", "mountPath": "/tmp"} in container["volumeMounts"], name


def test_only_the_autoscaling_head_has_an_api_token(objects: list[Tree]) -> None:
    with_token = [name for name, t in pods(objects) if t["spec"].get("automountServiceAccountToken", True)]
    assert with_token == ["RayCluster/swing/head"]
    assert cluster_spec(named(objects, "RayCluster", "swing"))["enableInTreeAutoscaling"]
    for account in of_kind(objects, "ServiceAccount"):
        assert account["automountServiceAccountToken"] is False


def test_references_resolve(objects: list[Tree]) -> None:
    names = {
        kind: {each["metadata"]["name"] for each in of_kind(objects, kind)}
        for kind in ("PersistentVolumeClaim", "ServiceAccount", "ConfigMap")
    }
    keys = {secret["metadata"]["name"]: secret["stringData"].keys() for secret in EXAMPLE_SECRETS}
    documented = (ROOT / "k8s" / "README.md").read_text()
    assert {claim["claimName"] for claim in values_of(objects, "persistentVolumeClaim")} == (
        names["PersistentVolumeClaim"]
    )
    assert set(values_of(objects, "serviceAccountName")) == names["ServiceAccount"]
    assert {ref["name"] for key in ("configMap", "configMapKeyRef") for ref in values_of(objects, key)} <= (
        names["ConfigMap"]
    )
    for reference in values_of(objects, "secretKeyRef"):
        assert reference["key"] in keys[reference["name"]]
        assert f"`{reference['name']}`" in documented
        assert f"`{reference['key']}`" in documented
    for name, template in pods(objects):
        volumes = {volume["name"] for volume in template["spec"]["volumes"]}
        mounted = {mount["name"] for c in template["spec"]["containers"] for mount in c["volumeMounts"]}
        assert volumes == mounted, name


def test_no_secret_is_part_of_the_manifests(objects: list[Tree]) -> None:
    assert not of_kind(objects, "Secret")
    for name, container in containers(objects):
        for variable in container.get("env", []):
            if re.search("TOKEN|KEY|SECRET", variable["name"]):
                assert variable.keys() == {"name", "valueFrom"}, name


def test_everything_is_in_one_restricted_namespace(objects: list[Tree]) -> None:
    (namespace,) = of_kind(objects, "Namespace")
    assert namespace["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"
    others = [each for each in objects if each["kind"] != "Namespace"]
    assert {each["metadata"]["namespace"] for each in others} == {namespace["metadata"]["name"]}
    assert {each["metadata"]["namespace"] for each in EXAMPLE_SECRETS} == {namespace["metadata"]["name"]}


def test_selectors_match_pods(objects: list[Tree]) -> None:
    components = labels_of(objects)
    deployment = named(objects, "Deployment", "swing-executor")["spec"]
    assert deployment["selector"]["matchLabels"].items() <= deployment["template"]["metadata"]["labels"].items()
    chosen = set()
    for policy in of_kind(objects, "NetworkPolicy"):
        peers = [p for rule in policy["spec"].get("ingress", []) for p in rule.get("from", [])]
        peers += [p for rule in policy["spec"].get("egress", []) for p in rule.get("to", [])]
        own = [p["podSelector"]["matchLabels"] for p in peers if p != OPERATOR]
        assert {labels[COMPONENT] for labels in own} <= components
        if selector := policy["spec"]["podSelector"]:
            chosen.add(selector["matchLabels"][COMPONENT])
    assert chosen == components


def test_only_the_executor_and_the_operator_reach_the_policy_port(objects: list[Tree]) -> None:
    deny = named(objects, "NetworkPolicy", "swing-default-deny")["spec"]
    assert deny == {"podSelector": {}, "policyTypes": ["Ingress"]}
    reach = []
    for policy in of_kind(objects, "NetworkPolicy"):
        if policy["spec"]["podSelector"].get("matchLabels", {}).get(COMPONENT) == "policy":
            reach += policy["spec"]["ingress"]
    outsiders = [rule for rule in reach if rule["from"] != [{"podSelector": {"matchLabels": {COMPONENT: "policy"}}}]]
    assert outsiders == [
        {"from": [{"podSelector": {"matchLabels": {COMPONENT: "executor"}}}], "ports": [{"port": 8000}]},
        {"from": [OPERATOR], "ports": [{"port": 8265}, {"port": 8000}]},
    ]


def test_ray_authentication_is_set_explicitly_everywhere(objects: list[Tree]) -> None:
    ray = [(n, c) for n, c in containers(objects) if c["image"].startswith("swing-rl:")]
    assert ray
    for name, container in ray:
        assert {"name": "RAY_AUTH_MODE", "value": "token"} in container["env"], name


def test_weights_and_gradients_travel_inside_requests_as_in_a_local_cluster(objects: list[Tree]) -> None:
    learning = [(n, c) for n, c in containers(objects) if n.startswith(("RayCluster", "RayJob"))]
    assert learning
    for name, container in learning:
        limit = {"name": "RAY_max_direct_call_object_size", "value": str(INLINE_BYTES)}
        assert limit in container["env"], name


def test_ray_pods_leave_their_probes_to_the_operator(objects: list[Tree]) -> None:
    # KubeRay adds the check of the Serve proxy only where no readiness probe is set; it calls wget.
    for name, container in containers(objects):
        if name.startswith("Ray"):
            assert not {"livenessProbe", "readinessProbe"} & container.keys(), name
    assert "wget" in (ROOT / "Dockerfile").read_text().partition("AS ray\n")[2]


def test_executor_is_single_recreated_and_dry(objects: list[Tree]) -> None:
    spec = named(objects, "Deployment", "swing-executor")["spec"]
    assert (spec["replicas"], spec["strategy"]) == (1, {"type": "Recreate"})
    assert "--mode=dry-run" in spec["template"]["spec"]["containers"][0]["args"]


def test_executor_probes_tell_a_living_loop_from_a_stuck_one(objects: list[Tree], tmp_path: Path) -> None:
    from serving.executor.cycle import _lock

    (container,) = named(objects, "Deployment", "swing-executor")["spec"]["template"]["spec"]["containers"]
    command = container["livenessProbe"]["exec"]["command"]
    assert container["startupProbe"]["exec"]["command"] == command
    journal = next(a for a in container["args"] if a.startswith("--journal=")).partition("=")[2]
    lock = str(Path(journal).with_suffix(".lock"))
    assert lock in command[-1]

    def probe() -> int:
        here = command[-1].replace(lock, str(tmp_path / "executor.lock"))
        run = subprocess.run([sys.executable, "-c", here], capture_output=True, check=False)
        return run.returncode

    assert probe() != 0  # no pass yet
    with _lock(tmp_path / "executor.sqlite") as ours:
        assert ours
    assert probe() == 0
    hour_ago = time.time() - 3600
    os.utime(tmp_path / "executor.lock", (hour_ago, hour_ago))
    assert probe() != 0
    with _lock(tmp_path / "executor.sqlite"):
        pass
    assert probe() == 0


def parsed(console_command: str, arguments: list[str]) -> dict[str, Any]:
    """Returns the parameters that the real command line reads from `arguments`, without running it."""
    module, _, function = PROJECT["scripts"][console_command].partition(":")
    main = importlib.import_module(module)
    assert callable(getattr(main, function))
    apps = [typer.main.get_command(each) for each in vars(main).values() if isinstance(each, typer.Typer)]
    command = next(app.commands[arguments[0]] for app in apps if arguments[0] in app.commands)
    params: dict[str, Any] = command.make_context(arguments[0], arguments[1:]).params
    return params


@pytest.mark.parametrize(("job", "config"), [("swing-train", "train.yaml"), ("swing-sweep", "sweep.yaml")])
def test_job_commands_parse_and_keep_their_results(objects: list[Tree], job: str, config: str) -> None:
    console_command, *arguments = shlex.split(named(objects, "RayJob", job)["spec"]["entrypoint"])
    params = parsed(console_command, arguments)
    assert str(params["config"]) == f"tune_configs/{config}"
    settings = load_config(ROOT / params["config"], params["assignments"])
    assert str(params["out"]).startswith("/data/runs/")
    assert settings.data.store.startswith("/data/")
    assert str(settings.data.panels).startswith("/data/")


def test_executor_command_parses_and_finds_the_policy_service(objects: list[Tree]) -> None:
    from serving.executor.config import ExecutorConfig

    dockerfile = (ROOT / "Dockerfile").read_text()
    assert 'ENTRYPOINT ["swing-live"]' in dockerfile
    container = named(objects, "Deployment", "swing-executor")["spec"]["template"]["spec"]["containers"][0]
    params = parsed("swing-live", container["args"])
    given = {name: value for name, value in params.items() if value}
    config = ExecutorConfig.of(given, "manifest")
    (service,) = of_kind(objects, "RayService")
    port = yaml.safe_load(service["spec"]["serveConfigV2"])["http_options"]["port"]
    assert config.policy_url == f"http://{service['metadata']['name']}-serve-svc:{port}"


def test_serve_config_names_known_fields_and_existing_code(objects: list[Tree]) -> None:
    from ray.serve.schema import DeploymentSchema, ServeApplicationSchema, ServeDeploySchema

    (service,) = of_kind(objects, "RayService")
    config = yaml.safe_load(service["spec"]["serveConfigV2"])
    ServeDeploySchema.model_validate(config)
    # The schema takes unknown keys without a word.
    (application,) = config["applications"]
    assert config.keys() <= ServeDeploySchema.model_fields.keys()
    assert application.keys() <= ServeApplicationSchema.model_fields.keys()
    module, _, builder = application["import_path"].partition(":")
    source = (ROOT / Path(*module.split("."))).with_suffix(".py").read_text()
    assert re.search(rf"^def {builder}\(", source, re.MULTILINE)
    for deployment in application["deployments"]:
        assert deployment.keys() <= DeploymentSchema.model_fields.keys()
        assert re.search(rf"^class {deployment['name']}\b", source, re.MULTILINE)
    assert list(application["args"]) == re.findall(r'args\["(\w+)"\]', source)
    ports = [p["containerPort"] for n, c in containers([service]) for p in c["ports"] if p["name"] == "serve"]
    assert ports == [config["http_options"]["port"]] * 2


def dockerfile_stages() -> dict[str, tuple[str, list[str]]]:
    """Returns stage -> (the stage or image it starts from, its instructions)."""
    stages: dict[str, tuple[str, list[str]]] = {}
    for line in (ROOT / "Dockerfile").read_text().splitlines():
        if match := re.fullmatch(r"FROM (\S+) AS (\S+)", line):
            stages[match[2]] = (match[1], [])
        elif line and not line.startswith("#"):
            list(stages.values())[-1][1].append(line)
    return stages


def instructions_of(target: str) -> list[str]:
    """Returns all instructions that make a target's file system, copied-from stages included."""
    stages = dockerfile_stages()
    if target not in stages:
        return []
    parent, own = stages[target]
    sources = re.findall(r"--from=(\S+)", "\n".join(own))
    return [line for each in (parent, *sources) for line in instructions_of(each)] + own


def test_dockerfile_copies_only_what_exists() -> None:
    for _, lines in dockerfile_stages().values():
        for line in lines:
            words = line.split()
            if words[0] == "COPY" and not words[1].startswith("--from="):
                for source in words[1:-1]:
                    assert (ROOT / source).exists(), line


def test_dockerfile_copies_every_package() -> None:
    packages = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    copied = " ".join(line for line in instructions_of("ray") if line.startswith("COPY"))
    assert {name.partition(".")[0] for name in packages} <= set(copied.split())


@pytest.mark.parametrize(("target", "wanted"), [("ray", "'.[all]'"), ("executor", ".")])
def test_image_installs_what_it_needs_as_an_unprivileged_user(target: str, wanted: str) -> None:
    lines = instructions_of(target)
    installs = [line for line in lines if "pip install" in line]
    assert installs == [f"RUN pip install --constraint constraints.txt {wanted}"]
    assert [line for line in lines if line.startswith("USER")] == ["USER 1000"]


def needed_by(requirement: Requirement, seen: set[tuple[str, str]]) -> Iterator[str]:
    """Yields the names of all distributions that a requirement brings, as installed here."""
    for extra in requirement.extras or {""}:
        if (requirement.name.lower(), extra) in seen:
            continue
        seen.add((requirement.name.lower(), extra))
        yield re.sub(r"[-_.]+", "-", requirement.name).lower()
        try:
            below = map(Requirement, requires(requirement.name) or [])
        except PackageNotFoundError:
            continue
        for each in below:
            if each.marker is None or each.marker.evaluate({"extra": extra}):
                yield from needed_by(each, seen)


def test_base_dependencies_bring_neither_ray_nor_torch() -> None:
    seen: set[tuple[str, str]] = set()
    names = {name for text in PROJECT["dependencies"] for name in needed_by(Requirement(text), seen)}
    assert "numpy" in names
    assert "sseclient-py" in names  # below alpaca-py: the walk goes down
    assert not {"ray", "torch"} & names
