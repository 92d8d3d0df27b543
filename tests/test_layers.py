"""The import rules between packages."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Collection
from pathlib import Path

ROOT = Path(__file__).parent.parent
TORCH = ("diffusers", "torch", "transformers")


def test_import_contracts() -> None:
    command = [str(Path(sys.executable).parent / "lint-imports"), "--no-cache"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout


def imported(code: str, names: Collection[str]) -> list[str]:
    """Return which of ``names`` a process has imported after ``code``."""
    code += f"\nimport sys; print([name for name in {sorted(names)} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    found: list[str] = ast.literal_eval(done.stdout)
    return found


def test_a_gateway_imports_no_torch_and_no_code_of_the_pool() -> None:
    names = {
        *TORCH,
        "orchestrator.file_tier",
        "router.scheduler",
        "serving.cluster.replicas",
        "serving.pool.dispatcher",
        "serving.worker",
    }
    assert imported("import serving.cluster.gateway", names) == []
    # It looks these actors up, and Ray then imports their classes' modules.
    actors = "import serving.cluster.dispatcher_actor, serving.cluster.ingest_actor"
    assert imported(actors, {*names, "ray.serve"}) == []


def test_a_dispatcher_imports_no_torch_and_no_web_framework() -> None:
    names = {*TORCH, "fastapi", "sqlalchemy"}
    assert imported("import serving.pool.autoscaler", names) == []


def test_core_packages_import_no_ray_web_framework_or_torch() -> None:
    code = (
        "import assets.library.library, orchestrator.provision, router.scheduler\n"
        "import serving.generation.service"
    )
    assert imported(code, {*TORCH, "ray", "fastapi", "starlette"}) == []


def test_a_class_name_has_one_meaning() -> None:
    """Except for the wire's models."""
    defined: dict[str, Path] = {}
    for package in ("assets", "orchestrator", "router", "serving", "benchmarks"):
        for path in sorted((ROOT / package).rglob("*.py")):
            if path.parent.name == "models":
                continue
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.ClassDef):
                    assert node.name not in defined, (path, defined[node.name])
                    defined[node.name] = path
