"""Compares alert rules and dashboard with the metrics that the relay exports: metrics.py BINARY

Every metric and label in a query must exist, every query must parse, and every alert needs tests and a page.
"""

import json
import re
import subprocess
import sys
import tempfile
import urllib.request
from pathlib import Path

import yaml

root = Path(__file__).parents[2]
sys.path.insert(0, str(root / "tests/clients"))
import processes  # noqa: E402
import sse  # noqa: E402
from waiting import wait_for  # noqa: E402

# Prometheus' own.
UP = {"up": set()}
TARGET_LABELS = {"job", "instance", "le"}
WEBHOOK = f"""
[[webhooks]]
id = "crm"
product_id = "{processes.PRODUCT}"
url = "http://127.0.0.1:9/"
secret = "secret-of-the-webhook"
"""


def exported():
    """Returns metric names with their labels, read after a subscriber has disconnected: some series exist only then."""
    with processes.Simulator() as simulator, processes.Relay(simulator, more=WEBHOOK) as relay:
        url = f"http://127.0.0.1:{relay.admin_port}/metrics"

        def read():
            with urllib.request.urlopen(url, timeout=5) as answer:
                return answer.read().decode()

        with sse.Stream(relay.url(), processes.READER) as stream:
            assert stream.status == 200
        wait_for(lambda: "subscriber_disconnects_total{" in read(), "the subscriber is counted as gone")
        metrics = {}
        for name, labels in re.findall(r"^(\w+)(?:\{(.*)\})? ", read(), re.MULTILINE):
            metrics.setdefault(name, set()).update(re.findall(r'(\w+)="', labels))
        return metrics


def queries():
    for group in yaml.safe_load((root / "helm/autoplay-relay/files/alerts.yaml").read_text())["groups"]:
        for rule in group["rules"]:
            yield rule["alert"], rule["expr"]
    dashboard = json.loads((root / "helm/autoplay-relay/files/dashboard.json").read_text())
    for panel in dashboard["panels"]:
        for target in panel.get("targets", []):
            yield f"dashboard: {panel['title']}", target["expr"]
    for variable in dashboard["templating"]["list"]:
        if variable["type"] == "query":
            name, label = re.fullmatch(r"label_values\((\w+), (\w+)\)", variable["query"]).groups()
            yield f"dashboard: ${variable['name']}", f"sum by ({label}) ({name})"


def judge(title, query, metrics):
    query = query.replace("$__rate_interval", "5m").replace("$__range", "1h")
    told = subprocess.run(["promtool", "--experimental", "promql", "format", query], capture_output=True, text=True)
    if told.returncode:
        yield f"{title}: {told.stderr.strip()}"
    words = re.sub(r'"[^"]*"', '""', query)
    names = set(re.findall(r"\b(?:autoplay_relay|process)_\w+|\bup\b", words))
    if not names:
        yield f"{title}: asks for no metric"
    for name in sorted(names - metrics.keys()):
        yield f"{title}: the relay does not export {name}"
    selectors = "".join(re.findall(r"\{([^}]*)\}", words))
    labels = set(re.findall(r"(\w+)\s*(?:=~|!~|!=|=)", selectors))
    for listed in re.findall(r"\b(?:by|without)\s*\(([^)]*)\)", words):
        labels.update(re.findall(r"\w+", listed))
    known = TARGET_LABELS.union(*(metrics.get(name, set()) for name in names))
    for label in sorted(labels - known):
        yield f"{title}: none of its metrics has the label {label}"


def judge_tests():
    """Checks each alert for a case that fires, one that does not, one without data, and the page that its annotation names."""
    rules = yaml.safe_load((root / "helm/autoplay-relay/files/alerts.yaml").read_text())
    cases = {}
    for test in yaml.safe_load((root / "deploy/prometheus/alerts_test.yaml").read_text())["tests"]:
        for case in test["alert_rule_test"]:
            kind = "fires" if case.get("exp_alerts") else "quiet" if test["input_series"] else "without data"
            cases.setdefault(case["alertname"], set()).add(kind)
    pages = set()
    for alert in (rule for group in rules["groups"] for rule in group["rules"]):
        missing = {"fires", "quiet", "without data"} - cases.get(alert["alert"], set())
        if missing:
            yield f"{alert['alert']}: no test case: {', '.join(sorted(missing))}"
        page = root / alert["annotations"]["runbook"]
        pages.add(page)
        if not page.is_file() or f"# {alert['alert']}\n" not in page.read_text():
            yield f"{alert['alert']}: {page.relative_to(root)} is not its page"
    for page in set((root / "docs/runbooks").glob("*.md")) - pages - {root / "docs/runbooks/README.md"}:
        yield f"{page.relative_to(root)}: no alert leads there"


def main():
    processes.binary = sys.argv[1]
    with tempfile.TemporaryDirectory() as folder:
        processes.log_dir = Path(folder)
        metrics = exported() | UP
    asked = list(queries())
    findings = [finding for title, query in asked for finding in judge(title, query, metrics)]
    findings += judge_tests()
    print("\n".join([*findings, f"{len(asked)} queries, {len(findings)} findings"]))
    sys.exit(bool(findings))


main()
