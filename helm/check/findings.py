"""Compares kube-score's findings with the accepted ones: findings.py REASONS RESULT..."""

import json
import sys
from fnmatch import fnmatch
from pathlib import Path

import yaml

reasons = yaml.safe_load(Path(sys.argv[1]).read_text())
unexplained = set()
for result in map(Path, sys.argv[2:]):
    for scored in json.loads(result.read_text()):
        name = f"{scored['type_meta']['kind']}/{scored['object_meta']['name']}"
        for check in scored["checks"]:
            if check["skipped"] or check["grade"] > 5:  # 5 is a warning, 1 is critical
                continue
            explained = False
            for reason in reasons:
                if (
                    reason["check"] == check["check"]["id"]
                    and fnmatch(name, reason["object"])
                    and fnmatch(result.name, f"*-{reason.get('values', '*')}.json")
                ):
                    reason["used"] = explained = True
            if not explained:
                comments = "; ".join(comment["summary"] for comment in check["comments"] or [])
                unexplained.add(f"{result.name}: {name}: {check['check']['id']}: {comments}")
stale = [reason for reason in reasons if "used" not in reason]
for finding in sorted(unexplained):
    print(finding)
for reason in stale:
    print(f"{reason['object']}: {reason['check']} is found no more; take it off the list")
sys.exit(bool(unexplained or stale))
