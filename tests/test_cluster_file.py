"""ray_cluster.yaml: schema, simulated launch, node types."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def document() -> dict[str, Any]:
    return dict(yaml.safe_load((ROOT / "ray_cluster.yaml").read_text()))


def test_valid_against_rays_schema(document: dict[str, Any]) -> None:
    import ray

    schema = Path(ray.__file__).parent / "autoscaler" / "ray-schema.json"
    jsonschema.validate(document, json.loads(schema.read_text()))


def test_ray_accepts_the_configuration(document: dict[str, Any]) -> None:
    from ray.autoscaler._private.util import prepare_config, validate_config

    validate_config(prepare_config(document))


def test_rays_launcher_creates_a_node_of_each_type(
    document: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Moto simulates the AWS API."""
    from moto import mock_aws
    from ray.autoscaler._private.util import prepare_config

    (tmp_path / ".ssh").mkdir()  # for the launcher's key pair
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("MOTO_IAM_LOAD_MANAGED_POLICIES", "true")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "simulated")
    with mock_aws():
        from ray.autoscaler._private.aws import config as aws
        from ray.autoscaler._private.aws.node_provider import AWSNodeProvider

        monkeypatch.setattr(aws.time, "sleep", lambda _: None)
        config = aws.bootstrap_aws(prepare_config(copy.deepcopy(document)))
        provider = AWSNodeProvider(config["provider"], config["cluster_name"])
        for name, kind in config["available_node_types"].items():
            tags = {"ray-user-node-type": name}
            (instance,) = provider.create_node(kind["node_config"], tags, 1).values()
            config = document["available_node_types"][name]["node_config"]
            assert (instance.instance_type, instance.image_id) == (
                config["InstanceType"],
                config["ImageId"],
            )


def test_a_head_without_gpu_and_three_kinds_of_worker(document: dict[str, Any]) -> None:
    types = document["available_node_types"]
    head = types[document["head_node_type"]]
    assert head["resources"]["GPU"] == 0
    assert head["max_workers"] == 0
    workers = {name: t for name, t in types.items() if name != document["head_node_type"]}
    assert set(workers) == {"a10g", "a100", "h100"}
    for name, worker in workers.items():
        assert worker["min_workers"] <= worker["max_workers"]
        assert worker["resources"]["GPU"] >= 1
        assert worker["resources"][f"gpu_{name}"] == worker["resources"]["GPU"]
    assert document["idle_timeout_minutes"] > 0
    assert sum(w["max_workers"] for w in workers.values()) >= document["max_workers"] > 0
