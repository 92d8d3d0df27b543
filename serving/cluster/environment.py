"""What Ray is told: its security settings, which it reads once, when it is imported; where the
one of a kind belongs. Imports no Ray."""

from __future__ import annotations

import os
import secrets
import sys

#: For an actor that must be where `serve` runs: its folders are there, and no autoscaler takes it.
ON_THE_HEAD = {"node:__internal_head__": 0.001}


def require_tokens() -> None:
    """Make a Ray that is started here require a token; call before Ray is imported.

    A token or a mode that the operator has set already is left as it is.
    """
    if "ray" in sys.modules:
        raise RuntimeError("require_tokens() must run before Ray is imported")
    os.environ.setdefault("RAY_AUTH_MODE", "token")
    if os.environ["RAY_AUTH_MODE"] == "token":
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")


def listen_on_loopback() -> None:
    """Make a Ray of one node, which is started here, listen on loopback only, including its metrics
    exporters; call before Ray is imported."""
    # On Linux its only effect is that a node's address is 127.0.0.1.
    os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
