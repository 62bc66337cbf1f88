"""Has the relay check the configurations that the chart renders: configs.py BINARY MANIFESTS...

The script writes the secrets of a pod's volume as the kubelet would, so it also finds a file that the configuration names and the volume lacks.
"""

import os
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

import yaml

sys.path.insert(0, str(Path(__file__).parents[2] / "tests/clients"))
from processes import free_port  # noqa: E402

SECRETS = "/etc/autoplay-relay/secrets"
binary = sys.argv[1]
bare = {name: value for name, value in os.environ.items() if not name.startswith("AUTOPLAY")}
failures = 0


def openssl(*arguments):
    return subprocess.run(["openssl", *arguments], check=True, capture_output=True, text=True).stdout


def content(source, item):
    """Returns valid content for an item, different for each key of each Secret."""
    if item["path"].endswith("/public_key"):
        with tempfile.NamedTemporaryFile("w") as key:
            key.write(openssl("ecparam", "-name", "prime256v1", "-genkey", "-noout"))
            key.flush()
            return openssl("ec", "-in", key.name, "-pubout")
    if item["path"] == "egress/ca":
        return openssl("req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", "/dev/null", "-subj", "/CN=ca")
    return f"{source['name']}-{item['key']}".ljust(40, "x")


def judge(title, pod, configs):
    with tempfile.TemporaryDirectory() as directory:
        volumes = {volume["name"]: volume for volume in pod["volumes"]}
        for source in volumes.get("secrets", {}).get("projected", {}).get("sources", []):
            for item in source["secret"]["items"]:
                file = Path(directory, item["path"])
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_text(content(source["secret"], item))
        file = Path(directory, "relay.toml")
        file.write_text(configs[volumes["config"]["configMap"]["name"]]["relay.toml"].replace(SECRETS, directory))
        told = subprocess.run([binary, "check", "--config", str(file)], capture_output=True, text=True, env=bare)
        report(title, told.returncode == 0, told.stderr)


def run_sidecar(title, container):
    """Starts the sidecar as declared, with other addresses, and waits until it is ready."""
    probe = f"127.0.0.1:{free_port()}"
    environment = {entry["name"]: entry.get("value", "a-token-from-a-secret") for entry in container["env"]}
    assert environment["AUTOPLAY_RELAY__SERVER__PROBE_LISTEN"].endswith(f":{container['ports'][0]['containerPort']}")
    environment |= {f"AUTOPLAY_RELAY__SERVER__{name}": "127.0.0.1:0" for name in ("LISTEN", "ADMIN_LISTEN")}
    environment["AUTOPLAY_RELAY__SERVER__PROBE_LISTEN"] = probe
    relay = subprocess.Popen([binary, *container["args"]], env=bare | environment, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 20
    while not (ready := answers(f"http://{probe}{container['readinessProbe']['httpGet']['path']}")):
        if time.monotonic() > deadline or relay.poll() is not None:
            break
        time.sleep(0.05)
    relay.send_signal(signal.SIGTERM)
    told = relay.communicate(timeout=30)[1]
    report(title, ready and relay.returncode == 0, told)


def answers(url):
    try:
        with urllib.request.urlopen(url, timeout=2) as answer:
            return answer.status == 200
    except OSError:
        return False


def report(title, is_good, told):
    global failures
    if not is_good:
        failures += 1
        print(f"{title}: {told}")


judged = 0
for manifests in map(Path, sys.argv[2:]):
    documents = [document for document in yaml.safe_load_all(manifests.read_text()) if document]
    configs = {each["metadata"]["name"]: each["data"] for each in documents if each["kind"] == "ConfigMap"}
    for document in documents:
        title = f"{manifests.name}: {document['kind']}/{document['metadata']['name']}"
        if document["kind"] in ("Deployment", "StatefulSet"):
            pod = document["spec"]["template"]["spec"]
            sidecars = [each for each in pod.get("initContainers", []) if each.get("restartPolicy") == "Always"]
            for sidecar in sidecars:
                run_sidecar(title, sidecar)
            if not sidecars:
                judge(title, pod, configs)
            judged += 1
        elif document["kind"] == "Pod":  # the test: its arguments, without a cluster to ask
            arguments = document["spec"]["containers"][0]["args"]
            told = subprocess.run([binary, *arguments, "--help"], capture_output=True, text=True, env=bare)
            report(title, told.returncode == 0, told.stderr)
            judged += 1
print(f"{judged} configurations and commands, {failures} refused")
sys.exit(failures > 0 or judged == 0)
