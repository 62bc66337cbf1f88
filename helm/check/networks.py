"""Compares the edge's NetworkPolicy with the networks that the relay's egress guard treats as special: networks.py MANIFESTS"""

import re
import sys
from ipaddress import ip_network
from pathlib import Path

import yaml

source = (Path(__file__).parents[2] / "src/outbound/networks.rs").read_text()


def named(constant):
    table = re.search(rf"const {constant}[^=]*= (.*?);\n", source, re.DOTALL).group(1)
    for family, numbers, prefix in re.findall(r"Ipv([46])Addr::new\(([^)]*)\), (\d+)", table):
        parts = numbers.split(", ")
        address = ".".join(parts) if family == "4" else ":".join(f"{int(part, 16):x}" for part in parts)
        yield ip_network(f"{address}/{prefix}")


expected = {
    ip_network("0.0.0.0/0"): set(named("SPECIAL_V4")),
    # 6to4, where the relay looks at the address inside, which a policy cannot.
    next(named("GLOBAL_UNICAST")): set(named("SPECIAL_V6")) | {ip_network("2002::/16")},
}
policies = [
    document
    for document in yaml.safe_load_all(Path(sys.argv[1]).read_text())
    if document and document["kind"] == "NetworkPolicy" and document["metadata"]["name"].endswith("-edge")
]
blocks = [peer["ipBlock"] for rule in policies[0]["spec"]["egress"] for peer in rule["to"] if "ipBlock" in peer]
allowed = {ip_network(block["cidr"]): set(map(ip_network, block["except"])) for block in blocks if "except" in block}
for network in expected.keys() | allowed.keys():
    for special in expected.get(network, set()) ^ allowed.get(network, set()):
        print(f"{network}: {special} is in one of policy and src/outbound/networks.rs only")
sys.exit(expected != allowed)
