"""The dependencies' bounds, and other packages' internals in use."""

from __future__ import annotations

import ast
import importlib.util
import pkgutil
import re
import sys
import tomllib
from collections.abc import Iterator
from itertools import chain
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("assets", "orchestrator", "router", "serving")
OWN = {*PACKAGES, *sys.stdlib_module_names}
#: Undocumented objects by package. Upgrades are checked by hand: they have an upper bound.
INTERNALS = {
    "ray": (
        "ray._private.node:Node.dead_processes",
        "ray._private.node:Node.kill_gcs_server",
        "ray._private.node:Node.start_gcs_server",
        "ray._private.worker:global_worker",
        "ray.serve._private.replica:add_port_to_grpc_server",
    ),
    "torch": (
        "torch._dynamo.backends.registry:lookup_backend",
        "torch._dynamo.utils:counters",
        "torch._dynamo:config",
        "torch._inductor.compile_fx:compile_fx",
    ),
    "uvicorn": (
        "uvicorn.protocols.http.httptools_impl:HttpToolsProtocol._unset_keepalive_if_required",
        "uvicorn.protocols.http.httptools_impl:HttpToolsProtocol.on_response_complete",
        "uvicorn.protocols.http.httptools_impl:HttpToolsProtocol.timeout_keep_alive_handler",
        "uvicorn.supervisors:Multiprocess.join_all",
        "uvicorn.supervisors:Multiprocess.keep_subprocess_alive",
        "uvicorn.supervisors:Multiprocess.restart_all",
        "uvicorn.supervisors:Multiprocess.terminate_all",
    ),
}


def requirements() -> dict[str, str]:
    """Version specifiers of dependencies and extras, by package."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lines = [*project["dependencies"], *chain(*project["optional-dependencies"].values())]
    matches = [re.fullmatch(r"([\w-]+)(?:\[[\w,]+\])?(.*)", line) for line in lines]
    return {match[1]: match[2] for match in matches if match}


def pins() -> dict[str, str]:
    """The tested versions, by package."""
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    versions = dict(line.split("==", 1) for line in lines if "==" in line)
    return {re.sub(r"[-_.]+", "-", name).lower(): version for name, version in versions.items()}


def test_lower_bounds_are_the_tested_versions() -> None:
    tested = pins()
    for name, bounds in requirements().items():
        assert bounds.split(",")[0] == f">={tested[name]}", name


@pytest.mark.filterwarnings("ignore::DeprecationWarning:torch.*")
@pytest.mark.parametrize("package", INTERNALS)
def test_packages_whose_internals_are_used_have_an_upper_bound(package: str) -> None:
    major, minor, *_ = pins()[package].split(".")
    assert requirements()[package].endswith(f",<{major}.{int(minor) + 1}")
    for name in INTERNALS[package]:
        assert pkgutil.resolve_name(name) is not None


def private_imports() -> Iterator[str]:
    """Other packages' private modules in use."""
    for package in PACKAGES:
        for path in (ROOT / package).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.ImportFrom):
                    names = [f"{node.module}.{alias.name}" for alias in node.names]
                elif isinstance(node, ast.Import):
                    names = [alias.name for alias in node.names]
                elif isinstance(node, ast.Attribute) and node.attr.startswith("_"):
                    names = [ast.unparse(node)]
                else:
                    continue
                for name in names:
                    root, *parts = name.split(".")
                    private = any(re.match(r"_[a-z]", part) for part in parts)
                    if private and root not in OWN and importlib.util.find_spec(root):
                        yield name


def test_all_used_internals_are_named() -> None:
    named = [name.replace(":", ".") for names in INTERNALS.values() for name in names]
    for name in set(private_imports()):
        # An attribute chain is found with each of its prefixes.
        assert any(f"{known}.".startswith(f"{name}.") for known in named), name


def test_torchvision_is_not_importable() -> None:
    """Where only its CUDA build exists, transformers and diffusers fail to import beside it."""
    assert importlib.util.find_spec("torchvision") is None
    assert "torchvision" not in pins()
