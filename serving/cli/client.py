"""A small HTTP client of the platform's API."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any, Self

import httpx2

from serving.cli.json_body import Json
from serving.cli.naming import named
from serving.cli.output import ApiFailure
from serving.cli.transfer import send, sha256_of


class Client:
    """``url`` has no trailing slash."""

    def __init__(self, url: str, key: str, timeout_s: float = 600.0) -> None:
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        self._url = url
        self._http = httpx2.Client(base_url=url, headers=headers, timeout=timeout_s)

    def close(self) -> None:
        self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def call(self, method: str, path: str, **options: Any) -> Any:
        """Return the JSON. Raises ApiFailure on an error or no response."""
        try:
            response = self._http.request(method, path, **options)
        except httpx2.HTTPError as error:
            raise ApiFailure(
                f"{self._url} does not answer ({type(error).__name__}): check that "
                "'asset-orchestrator serve' runs there"
            ) from None
        if response.is_error:
            try:
                message = response.json().get("message", response.text)
            except ValueError:
                message = response.text
            raise ApiFailure(f"{response.status_code}: {message}")
        return response.json()

    def upload(
        self, path: Path, kind: str, name: str, description: str = "", trigger_words: Any = ()
    ) -> Json:
        """Upload an asset or a taken name's next version, unless stored.

        Does not await the inspection.
        """
        data = {"asset_type": kind, "trigger_words": list(trigger_words)}
        new: Json = {
            "asset_type": kind,
            "name": name,
            "description": description,
            "data": data,
        }
        digest = sha256_of(path)
        place = named(self, name, digest, new_version=True)
        if place.known is not None and place.known["status"] == "ready":
            return place.known
        new["new_version"] = place.new_version
        return send(self, path, new, digest=digest, begun=place.known)

    def asset(self, reference: str) -> Json:
        return dict(self.call("GET", f"/v1/assets/{reference}")["asset"])

    def await_ready(self, asset_id: str, timeout_s: float = 900.0) -> Json:
        """Wait until ready. Raises ApiFailure when rejected or late."""
        deadline = time.monotonic() + timeout_s
        while True:
            asset = self.asset(asset_id)
            if asset["status"] == "ready":
                return asset
            if asset["status"] not in ("uploaded", "uploading"):
                raise ApiFailure(f"{asset['name']} is {asset['status']}: {asset['status_details']}")
            if time.monotonic() > deadline:
                raise ApiFailure(
                    f"{asset['name']} is still {asset['status']} after {timeout_s:.0f} s"
                )
            time.sleep(0.1)

    def generate(self, request: Json) -> Json:
        return dict(self.call("POST", "/generate/sdxl", json=dict(request)))

    def generate_file(self, request: Json) -> tuple[Json, bytes]:
        """Generate one image by the native route, which takes more sizes."""
        answer = dict(self.call("POST", "/generate", json=dict(request)))
        if answer["public_url"] is None:
            raise ApiFailure("the operator's content policy withholds this image")
        try:
            # Without the key: a signed URL may be the object store's.
            image = httpx2.get(answer["public_url"], timeout=60).raise_for_status()
        except httpx2.HTTPError as error:
            raise ApiFailure(f"{answer['public_url']} cannot be downloaded: {error}") from None
        return answer, image.content


def client_from_environment(url: str | None, key: str | None) -> Client:
    """Create a client, by default of AO_URL and AO_API_KEY."""
    return Client(
        (url or os.environ.get("AO_URL") or "http://127.0.0.1:8000").rstrip("/"),
        key or os.environ.get("AO_API_KEY") or "",
    )
