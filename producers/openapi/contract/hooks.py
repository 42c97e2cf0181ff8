"""What a client that reads the documentation does, where JSON Schema cannot say it.

Only requests that are meant to be valid are touched: what is meant to be wrong is sent as it is. Without this
a valid request would often be refused for a good reason, and such refusals would have to be allowed.
"""

import base64
import hashlib
import json
import re

import schemathesis
from schemathesis.generation import GenerationMode


def closed(schema):
    """Closes a response's objects: in the test a member that is not described is a fault. Clients must bear it."""
    if isinstance(schema, dict):
        if "properties" in schema:
            schema.setdefault("additionalProperties", False)
        for value in schema.values():
            closed(value)
    elif isinstance(schema, list):
        for value in schema:
            closed(value)


@schemathesis.hook
def before_load_schema(context, raw_schema):
    for schema in raw_schema["components"]["schemas"].values():
        closed(schema)


def digest(*parts):
    return hashlib.sha256("\n".join(map(str, parts)).encode()).hexdigest()[:32]


def distinct(items):
    """Drops lines whose SKU stands above."""
    seen = set()
    return [i for i in items if not (i["sku"] in seen or seen.add(i["sku"]))]


def plain(value):
    """Writes integers as integers: to JSON Schema 100.0 is one, to a server that counts money it is not."""
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, dict):
        return {name: plain(member) for name, member in value.items()}
    return [plain(item) for item in value] if isinstance(value, list) else value


def is_token(text):
    try:
        return re.fullmatch(rb"[0-9]+ [a-z]+/.+", base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))[16:]) is not None
    except ValueError:
        return False


def is_cursor(text):
    try:
        return re.fullmatch(rb"[0-9]+\.[A-Za-z0-9_.:-]{1,64}", base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))) is not None
    except ValueError:
        return False


@schemathesis.hook
def before_call(context, case, kwargs):
    if case.meta is None or case.meta.generation.mode != GenerationMode.POSITIVE:
        return
    if isinstance(case.body, dict):
        case.body = plain(case.body)
    path, body, headers = case.operation.path, case.body, case.headers
    if path == "/orders" and isinstance(body, dict):
        body["items"] = distinct(body["items"])
    if path == "/transfers" and isinstance(body, dict) and body["from_account"] == body["to_account"]:
        body["to_account"] = body["to_account"][:63] + ("1" if body["to_account"][-1:] != "1" else "2")
    if case.method == "POST":
        # One key per thing that is wanted: the same request, to the byte, has the same key and is replayed.
        headers["Idempotency-Key"] = digest(path, json.dumps(body))
    if case.method in ("PUT", "PATCH") and headers.get("If-None-Match") != "*":
        headers.pop("If-None-Match", None)
    if case.method in ("PUT", "PATCH") and not any(headers.get(name) for name in ("If-Match", "If-None-Match")):
        # Which of the two is needed depends on what is there.
        create = int(digest(path, body), 16) % 2 == 0 and case.method == "PUT"
        headers["If-None-Match" if create else "If-Match"] = "*"
    # What only the server can make is sent when it came out of an answer.
    if not is_token(headers.get("Consistency-Token") or ""):
        headers.pop("Consistency-Token", None)
    if "cursor" in case.query and not is_cursor(case.query["cursor"]):
        del case.query["cursor"]
