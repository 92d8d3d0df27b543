"""Jobs hold the internal request instead of OctoAI's body."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0015"
down_revision = "0014"
branch_labels = None
depends_on = None

_PARAMS = ("prompt", "prompt_2", "negative_prompt", "negative_prompt_2", "sampler", "steps",
           "cfg_scale")  # fmt: skip


def upgrade() -> None:
    connection = op.get_bind()
    jobs = sa.table("jobs", sa.column("id"), sa.column("request", sa.JSON()))
    rows = connection.execute(sa.select(jobs.c.id, jobs.c.request)).all()
    changed = [
        {"job": row.id, "internal": internal(row.request)}
        for row in rows
        if isinstance(row.request, dict) and "params" not in row.request
    ]
    if changed:
        where = jobs.update().where(jobs.c.id == sa.bindparam("job"))
        connection.execute(where.values(request=sa.bindparam("internal")), changed)


def internal(body: Mapping[str, Any]) -> dict[str, Any]:
    """The internal request of OctoAI's body, whose seeds are fixed."""
    params = {name: body[name] for name in _PARAMS if body.get(name) is not None}
    params["prompt"] = str(params.get("prompt", ""))
    if body.get("image_encoding"):
        params["encoding"] = body["image_encoding"]
    weights, text_weights = {}, {}
    for name, weight in (body.get("loras") or {}).items():
        if isinstance(weight, dict):
            weights[name], text_weights[name] = weight["unet"], weight["text_encoders"]
        else:
            weights[name] = weight
    return {
        "type": "request",
        "params": params,
        "seeds": list(body.get("seed") or ()),
        "selection": {
            "checkpoint": body.get("checkpoint"),
            "vae": body.get("vae"),
            "loras": weights,
            "inversions": dict(body.get("textual_inversions") or {}),
            "lora_text_weights": text_weights,
        },
        "width": body.get("width"),
        "height": body.get("height"),
        "priority": body.get("priority") or 0,
        "gpu": body.get("gpu") or "",
    }


def downgrade() -> None:
    raise NotImplementedError("jobs of this version cannot be read by an earlier one")
