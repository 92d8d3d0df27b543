"""One platform for many tests of this package. Modules use different tenants."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.platforms import Running, running


@pytest.fixture(scope="session")
def shared_platform(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """Anonymous requests belong to the tenant "us"."""
    folder = tmp_path_factory.mktemp("shared")
    with running(folder, "--in-process", replicas=2, open_tenant="us") as made:
        made.key("us")
        yield made


@pytest.fixture(scope="module")
def platform(shared_platform: Running) -> Running:
    """The platform of a module; some have their own."""
    return shared_platform
