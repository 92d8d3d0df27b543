"""Lists assets, generates and polls a job with a client generated from docs/openapi.json.

``python generated.py URL KEY`` with the client's folder as PYTHONPATH; prints results as JSON.
"""

from __future__ import annotations

import json
import sys
import time
from typing import Any

from asset_orchestrator_client import AuthenticatedClient  # type: ignore[import-not-found]
from asset_orchestrator_client.api.assets import (  # type: ignore[import-not-found]
    create_asset,
    get_asset,
    list_assets,
    update_asset,
)
from asset_orchestrator_client.api.generate import (  # type: ignore[import-not-found]
    generate_native,
    generate_sdxl,
    get_job,
    get_job_result,
)
from asset_orchestrator_client.api.pools import list_pools  # type: ignore[import-not-found]
from asset_orchestrator_client.models import (  # type: ignore[import-not-found]
    ChangeAsset,
    CreateAsset,
    CreateAssetAssetType,
    GenerateRequest,
    GenerateRequestLoras,
)


def main(url: str, key: str) -> dict[str, Any]:
    client = AuthenticatedClient(url, key, timeout=120, raise_on_unexpected_status=True)
    public = list_assets.sync(client=client, is_public=True)
    lora = next(asset for asset in public.data if asset.asset_type == "lora")
    loras = GenerateRequestLoras.from_dict({lora.id: 0.5})
    body = GenerateRequest(prompt="a red circle", loras=loras, steps=2, seed=5)
    generated = generate_native.sync(client=client, body=body)

    accepted = generate_sdxl.sync(client=client, body=body, x_octo_ai_async="1")
    deadline = time.monotonic() + 120
    job = get_job.sync(accepted.response_id, client=client)
    while job.status != "completed" and time.monotonic() < deadline:
        time.sleep(0.2)
        job = get_job.sync(accepted.response_id, client=client)
    result = get_job_result.sync(accepted.response_id, client=client)

    kind = CreateAssetAssetType.LORA
    created = create_asset.sync(client=client, body=CreateAsset(asset_type=kind, name="mine"))
    change = ChangeAsset(description="by a generated client")
    update_asset.sync(created.asset.id, client=client, body=change)
    mine = get_asset.sync(created.asset.id, client=client)
    missing = get_asset.sync("nobody:nothing", client=client)
    return {
        "public": public.total,
        "found": [asset.asset for asset in generated.receipt.assets],
        "lora": lora.id,
        "seeds": generated.seeds,
        "job": [str(job.state), result.images[0].seed, len(result.images)],
        "mine": [mine.asset.description, str(mine.asset.status), mine.transfer_api.put_url != ""],
        "missing": missing.code,
        "pools": [pool.name for pool in list_pools.sync(client=client).data],
    }


if __name__ == "__main__":
    print(json.dumps(main(*sys.argv[1:])))
