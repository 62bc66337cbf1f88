"""Scoped tokens made by another library: PyJWT, with `cryptography` for the algorithms with public keys."""

import json
import time
import urllib.error
import urllib.request

import jwt
import processes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from processes import PRODUCT, Relay, Simulator

SECRET = "jwt-secret-of-the-client-tests-0123456789"


def pem(*private_keys):
    parts = [key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo) for key in private_keys]
    return b"".join(parts)


def page(relay, token, query=""):
    """Returns status and body of a page."""
    url = f"http://127.0.0.1:{relay.port}/events/{PRODUCT}{query}"
    request = urllib.request.Request(url, headers={"Authorization": f"Bearer {token}"})
    try:
        with urllib.request.urlopen(request, timeout=5) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, error.read()


def claims(**more):
    return {"exp": int(time.time()) + 60, "product_id": PRODUCT, **more}


def section(algorithm, lines):
    return f'\n[auth.jwt]\nalgorithm = "{algorithm}"\naudience = "relay"\n{lines}\n'


def check(relay, algorithm, good, bad):
    """Checks that tokens signed by the keys in `good` are accepted and those by the keys in `bad` are not."""
    for key in good:
        status, _ = page(relay, jwt.encode(claims(aud="relay"), key, algorithm))
        assert status == 200, f"{algorithm}: {status}"
        limited = jwt.encode(claims(aud=["relay", "x"], session_id=["nobody"]), key, algorithm, headers={"kid": "7"})
        status, body = page(relay, limited)
        assert status == 200 and body["events"] == [], f"{algorithm}: {status} {body}"
        assert page(relay, limited, "?session_id=other")[0] == 403
        of_user = jwt.encode(claims(aud="relay", user_id="nobody"), key, algorithm)
        status, body = page(relay, of_user)
        assert status == 200 and body["events"] == [], f"{algorithm}: {status} {body}"
        assert page(relay, of_user, "?user_id=other")[0] == 403
        refused = [claims(aud="relay", exp=int(time.time()) - 1), claims(), claims(aud="relay", nbf=time.time() + 60)]
        bodies = {page(relay, jwt.encode(wrong, key, algorithm)) for wrong in refused}
        assert len(bodies) == 1 and bodies.pop()[0] == 401
    for key in bad:
        assert page(relay, jwt.encode(claims(aud="relay"), key, algorithm))[0] == 401, algorithm
    assert page(relay, jwt.encode(claims(aud="relay"), None, "none"))[0] == 401


def test_tokens_that_pyjwt_signs_with_a_secret_are_accepted():
    previous = "previous-secret-of-the-client-tests-0123"
    lines = f'secret = "{SECRET}"\nprevious_secret = "{previous}"'
    with Simulator() as simulator, Relay(simulator, more=section("HS256", lines)) as relay:
        check(relay, "HS256", [SECRET, previous], ["another-secret-of-the-client-tests-0123"])
        assert page(relay, jwt.encode(claims(aud="relay"), SECRET * 2, "HS512"))[0] == 401


def test_tokens_that_pyjwt_signs_with_private_keys_are_accepted_for_every_listed_key():
    makers = {
        "EdDSA": ed25519.Ed25519PrivateKey.generate,
        "ES256": lambda: ec.generate_private_key(ec.SECP256R1()),
        "RS256": lambda: rsa.generate_private_key(public_exponent=65537, key_size=2048),
    }
    with Simulator() as simulator:
        for algorithm, make in makers.items():
            one, two, other = make(), make(), make()
            file = processes.log_dir / f"{algorithm}.pem"
            file.write_bytes(pem(one, two))
            with Relay(simulator, more=section(algorithm, f'public_key_file = "{file}"')) as relay:
                check(relay, algorithm, [one, two], [other])
