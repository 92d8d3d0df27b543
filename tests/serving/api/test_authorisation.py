"""The matrix of docs/authorisation.md on a real server.

Forbidden actions get exactly the response for a missing asset.
"""

from __future__ import annotations

import re
import secrets
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import pytest

from assets.principal import KEY_ROLES, ROLES
from tests.assets.test_access import ALLOWED
from tests.support.platforms import Running

PROMPT = {"prompt": "a small red star", "seed": 3, "steps": 1}
PUBLIC_DELETED = "others', public, deleted"
UNKNOWN = "asset_01hzzzzzzzzzzzzzzzzzzzzzzz"


@dataclass
class Matrix:
    clients: dict[str, httpx2.Client]  # by role in "us", or anonymous
    assets: dict[str, str]  # id by row


@pytest.fixture(scope="module")
def matrix(shared_platform: Running, sample_files: dict[str, Path]) -> Iterator[Matrix]:
    file = sample_files["inversion"]
    server, directory = shared_platform, shared_platform.directory
    with ExitStack() as stack:
        directory.add_tenant("them")  # "us" is the open tenant
        for name in ("ann", "bob"):
            directory.add_member("us", name, "owner")

        def client_of(tenant: str, role: str = "owner", member: str | None = None) -> httpx2.Client:
            key = directory.keyring.add_key(tenant, "", role, member=member).text
            headers = {"Authorization": f"Bearer {key}"}
            client = httpx2.Client(base_url=server.url, headers=headers, timeout=60)
            return stack.enter_context(client)

        clients: dict[str, httpx2.Client] = {
            role: client_of("us", role, "ann") for role in KEY_ROLES
        }
        anonymous = httpx2.Client(base_url=server.url, timeout=60)
        clients["anonymous"] = stack.enter_context(anonymous)
        bob, them = client_of("us", member="bob"), client_of("them")

        def make(http: httpx2.Client, *, upload: bool = True, **fields: Any) -> str:
            new = {"asset_type": "textual_inversion", "name": "a" + secrets.token_hex(4), **fields}
            new["data"] = {"asset_type": "textual_inversion", "trigger_words": ["word"]}
            created = http.post("/v1/assets", json=new).json()
            asset_id = str(created["asset"]["id"])
            if upload:
                httpx2.put(created["transfer_api"]["put_url"], content=file.read_bytes())
                http.post(f"/v1/assets/{asset_id}/complete-upload", json={})
                await_ready(http, asset_id)
            return asset_id

        not_uploaded = make(them, upload=False, visibility="public")
        assets = {
            "own, private": make(clients["owner"]),
            "own, public": make(clients["owner"], visibility="public"),
            "own, uploading": make(clients["owner"], upload=False),
            "organisation's": make(bob, visibility="organisation"),
            "a colleague's, private": make(bob),
            "own, deleted": make(clients["owner"]),
            "others', shared with us": make(them, shared_with=["us", "you"]),
            "others', shared with others": make(them, shared_with=["you"]),
            "others', public": make(them, is_public=True),
            "others', public, not ready": not_uploaded,
            "others', public, deleted": make(them, visibility="public"),
            "others', organisation's": make(them, visibility="organisation"),
            "others', private": make(them),
        }
        assert clients["owner"].delete(f"/v1/assets/{assets['own, deleted']}").is_success
        assert them.delete(f"/v1/assets/{assets[PUBLIC_DELETED]}").is_success
        yield Matrix(clients, assets)


def await_ready(http: httpx2.Client, asset_id: str) -> None:
    deadline = time.monotonic() + 60
    while (asset := http.get(f"/v1/assets/{asset_id}").json()["asset"])["status"] != "ready":
        assert asset["status"] == "uploaded", asset
        assert time.monotonic() < deadline
        time.sleep(0.02)


def ask(http: httpx2.Client, verb: str, ref: str) -> httpx2.Response:
    path = f"/v1/assets/{ref}"
    if verb in ("read", "inspect", "download"):
        return http.get(path)
    if verb == "use":
        order = {**PROMPT, "textual_inversions": {ref: ""}, "prompt": "a small red word"}
        path = "/generate/sdxl" if "authorization" in http.headers else "/generate"
        return http.post(path, json=order)
    if verb == "update":
        return http.patch(path, json={"description": "changed"})
    if verb == "share":
        return http.patch(path, json={"visibility": "shared", "shared_with": ["you"]})
    if verb == "delete":
        return http.delete(path)
    return http.post(f"{path}/restore")


def done(verb: str, answer: httpx2.Response) -> bool:
    """Whether it succeeded; for reads, whether the response has the subject."""
    if not answer.is_success:
        return False
    if verb == "inspect":
        return "report" in answer.json()["asset"]
    if verb == "download":
        return bool(answer.json()["transfer_api"]["get_url"])
    return True


VERBS = ("read", "inspect", "download", "use", "update", "share", "delete", "restore")


@pytest.mark.parametrize("role", ROLES)
@pytest.mark.parametrize("what", ALLOWED)
def test_matrix(matrix: Matrix, what: str, role: str) -> None:
    http, asset_id = matrix.clients[role], matrix.assets[what]
    allowed = ALLOWED[what][ROLES.index(role)]
    is_uploading = what == "own, uploading"
    for verb in VERBS:
        if is_uploading and verb in ("use", "download"):
            continue  # allowed, but without content yet
        answer = ask(http, verb, asset_id)
        assert done(verb, answer) == (verb in allowed), (verb, answer.text)
        if verb == "share" and answer.is_error and "update" in allowed:
            assert answer.status_code == 403  # its role may not share its own asset
        elif answer.is_error:
            unknown = ask(http, verb, UNKNOWN)
            assert _normalised(answer, asset_id) == _normalised(unknown, UNKNOWN), verb
        elif verb == "delete":
            assert ask(http, "restore", asset_id).is_success != is_uploading
        elif verb == "restore":
            assert http.delete(f"/v1/assets/{asset_id}").is_success
        elif verb == "share":
            seen_by = {"organisation's": "organisation", "own, public": "public"}
            back = {"visibility": seen_by.get(what, "private")}
            assert http.patch(f"/v1/assets/{asset_id}", json=back).is_success


def _normalised(answer: httpx2.Response, ref: str) -> tuple[int, str, set[str]]:
    """Return status, body and header names without references and request ids."""
    text = re.sub(r'"request_id":"[^"]*"', "", answer.text.replace(ref, "?"))
    return answer.status_code, text, set(answer.headers)


def test_listings_contain_only_readable_assets(matrix: Matrix) -> None:
    ids = set(matrix.assets.values())

    def listed(role: str, **query: Any) -> set[str]:
        page = matrix.clients[role].get("/v1/assets", params=query).json()["data"]
        return {what for what, i in matrix.assets.items() if i in {a["id"] for a in page} & ids}

    own = {"own, private", "own, public", "organisation's"}
    for role in ("reader", "member"):
        assert listed(role) == own
    assert listed("owner") == {*own, "a colleague's, private"}
    for role in KEY_ROLES:
        assert listed(role, shared=True) == {"others', shared with us"}
        assert listed(role, is_public=True) == {"own, public", "others', public"}
        assert listed(role, asset_ids=",".join(ids)) == listed(role)


def test_a_member_cannot_publish_or_share(matrix: Matrix) -> None:
    for fields in ({"is_public": True}, {"visibility": "public"}, {"shared_with": ["you"]}):
        new = {"asset_type": "lora", "name": "leaving", **fields}
        assert matrix.clients["member"].post("/v1/assets", json=new).status_code == 403
        assert matrix.clients["reader"].post("/v1/assets", json=new).status_code == 403
    for fields in ({"visibility": "shared"}, {"visibility": "friends"}, {"shared_with": ["No!"]}):
        new = {"asset_type": "lora", "name": "odd", **fields}
        assert matrix.clients["owner"].post("/v1/assets", json=new).status_code == 422
