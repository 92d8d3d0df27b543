"""Routes of OctoAI's API that this platform does not offer; each answers 501."""

from __future__ import annotations

from fastapi import APIRouter

from serving.api.keyed_route import OpenRoute
from serving.errors import NotSupported

router = APIRouter(tags=["not served"], route_class=OpenRoute)

_FUNCTIONS = {
    "/generate/{engine}": "this engine; only sdxl is available",
    "/predict": "the API of 2023; use /generate/sdxl",
    "/upscaling": "upscaling",
    "/background-removal": "background removal",
    "/adetailer": "detailing",
    "/segment": "segmentation",
    "/v1/tune": "fine-tuning",
    "/v1/tune/{tune}": "fine-tuning",
    "/v1/tune/{tune}/cancel": "fine-tuning",
    "/v1/tunes": "fine-tuning",
    "/v1/chat/completions": "text generation",
    "/v1/completions": "text generation",
}


def _refuse(what: str) -> None:
    async def refuse() -> None:
        raise NotSupported(f"not supported: {what}")

    for path, named in _FUNCTIONS.items():
        if named == what:
            methods = ["GET", "POST", "DELETE"] if "tune" in path else ["POST"]
            router.add_api_route(
                path, refuse, methods=methods, status_code=501, response_model=None,
                name=f"not served {path}", include_in_schema=False,
            )  # fmt: skip


for _what in dict.fromkeys(_FUNCTIONS.values()):
    _refuse(_what)
