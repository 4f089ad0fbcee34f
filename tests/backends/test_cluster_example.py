"""The example's cluster: its files, and its NeMo Guardrails configuration on other servers."""

import ast
import asyncio
from pathlib import Path

import pytest
import yaml
from nemoguardrails import LLMRails, RailsConfig

from ttsa_guard.backends.vllm import VLLMOptions
from ttsa_guard.config import GuardConfig
from ttsa_guard.hf.source import Source
from ttsa_guard.nemo import installed_guard

from .vllm_server import Server, running

CLUSTER = Path(__file__).parents[2] / "examples" / "cluster"
MODEL = "meta-llama/Llama-3.1-8B-Instruct"
SECRETS = {"VLLM_API_KEY", "HF_TOKEN"}


def load(name):
    return list(yaml.safe_load_all((CLUSTER / name).read_text(encoding="utf-8")))


@pytest.fixture(scope="module")
def settings():
    return RailsConfig.from_path(str(CLUSTER / "config")).custom_data["ttsa_guard"]


@pytest.fixture(scope="module")
def hosts(settings):
    """The servers that the guard asks."""
    options = VLLMOptions.model_validate(GuardConfig.parse(settings).backend.options)
    assert options.model == MODEL
    return [url.removeprefix("http://").removesuffix(":8000") for url in options.urls]


def test_compose_runs_the_servers_that_the_guard_asks(hosts):
    [file] = load("compose.yaml")
    services = file["services"]
    assert {*hosts, "guard", "prometheus"} == set(services)
    for name, service in services.items():
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", []))
        assert all(
            value.startswith("${")
            for key, value in service.get("environment", {}).items()
            if key in SECRETS
        )
        if name in hosts:
            assert "ports" not in service
            assert {f"--model={MODEL}", "--enable-prompt-embeds"} <= set(service["command"])
    [scrapes] = load("prometheus.yml")
    targets = {
        target
        for job in scrapes["scrape_configs"]
        for group in job["static_configs"]
        for target in group["targets"]
    }
    assert targets == {"guard:9464", *(f"{host}:8000" for host in hosts)}


def test_kubernetes_has_the_servers_that_the_guard_asks_and_shields_them(hosts):
    objects = {(each["kind"], each["metadata"]["name"]): each for each in load("kubernetes.yaml")}
    assert all(("Service", host) in objects for host in hosts)
    servers = objects["StatefulSet", "vllm"]["spec"]
    assert servers["replicas"] == len(hosts)
    [container] = servers["template"]["spec"]["containers"]
    assert {f"--model={MODEL}", "--enable-prompt-embeds"} <= set(container["args"])
    policy = objects["NetworkPolicy", "vllm"]["spec"]
    assert policy["podSelector"] == servers["selector"]
    assert policy["policyTypes"] == ["Ingress"]
    for kind in (servers, objects["Deployment", "guard"]["spec"]):
        [container] = kind["template"]["spec"]["containers"]
        assert all(
            "secretKeyRef" in each["valueFrom"]
            for each in container["env"]
            if each["name"] in SECRETS
        )


def test_ray_serves_the_same_model_with_embeddings():
    tree = ast.parse((CLUSTER / "ray_serve.py").read_text(encoding="utf-8"))
    constants = {node.value for node in ast.walk(tree) if isinstance(node, ast.Constant)}
    assert {MODEL, "enable_prompt_embeds"} <= constants


@pytest.mark.parametrize("where", ["laptop", "cluster"])
def test_the_configuration_moves_from_a_laptop_to_a_cluster(tmp_path, where):
    """With the embedded model in place of the large one, and nothing but the backend's block
    changed."""
    folder = Source.of("embedded").path
    with running(
        Server(folder, name="embedded", context=1024), Server(folder, name="embedded", context=1024)
    ) as servers:
        config = yaml.safe_load(
            (CLUSTER / "config" / "config.yml")
            .read_text(encoding="utf-8")
            .replace(MODEL, "embedded")
        )
        guard = config["custom_data"]["ttsa_guard"]
        if where == "laptop":
            guard["backend"] = {"use": "transformers", "options": {"model": "embedded"}}
        else:
            guard["backend"]["options"]["urls"] = [server.url for server in servers]
        (tmp_path / "config.yml").write_text(yaml.safe_dump(config))
        (tmp_path / "config.py").write_text(
            (CLUSTER / "config" / "config.py").read_text(encoding="utf-8")
        )
        rails = LLMRails(RailsConfig.from_path(str(tmp_path)))

        async def ask():
            try:
                return await rails.generate_async(
                    messages=[{"role": "user", "content": "How do I draw an owl?"}]
                )
            finally:
                await installed_guard(rails).close()

        assert "owl" in asyncio.run(ask())["content"]
        assert bool(sum(len(server.answers) for server in servers)) == (where == "cluster")
