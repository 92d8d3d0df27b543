"""One platform for the tests of this package. Modules use different tenants."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.platforms import Running, running


@pytest.fixture(scope="package")
def api_platform(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    folder = tmp_path_factory.mktemp("api")
    with running(folder, "--in-process", replicas=2, open_tenant="us") as server:
        server.key("us")
        yield server


@pytest.fixture(scope="package")
def platform(api_platform: Running) -> Running:
    return api_platform
