"""The import rules between packages."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent


def test_import_contracts() -> None:
    command = [Path(sys.executable).parent / "lint-imports", "--no-cache"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout


def test_a_gateway_does_not_import_torch() -> None:
    code = (
        "import sys, router.scheduler, serving.api.app, serving.pool.dispatcher;"
        "import serving.cluster.gateway;"
        "print([m for m in ('torch', 'diffusers', 'transformers') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout.strip() == "[]", done.stderr


def test_core_packages_import_no_ray_web_framework_or_torch() -> None:
    code = (
        "import sys, assets.library.library, orchestrator.provision, router.scheduler;"
        "import serving.generation.service;"
        "print([m for m in ('ray', 'fastapi', 'starlette', 'torch') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout.strip() == "[]", done.stderr
