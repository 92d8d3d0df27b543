"""Ray's environment variables, which it reads once on import, and the placement of actors on the
head node. Does not import Ray."""

from __future__ import annotations

import os
import secrets
import sys

#: Resources of an actor that must run on the head, beside `serve`: its folders are there, and the
#: autoscaler never removes the head.
ON_THE_HEAD = {"node:__internal_head__": 0.001}


def require_tokens() -> None:
    """Make the Ray that this process starts require a token; call before Ray is imported.

    A token or mode that the operator has set is kept.

    Raises:
        RuntimeError: Ray is already imported.
    """
    if "ray" in sys.modules:
        raise RuntimeError("require_tokens() must run before Ray is imported")
    os.environ.setdefault("RAY_AUTH_MODE", "token")
    if os.environ["RAY_AUTH_MODE"] == "token":
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")


def listen_on_loopback() -> None:
    """Make a single-node Ray that this process starts listen on loopback only, including its
    metrics exporters; call before Ray is imported."""
    # On Linux the only effect of this variable is that the node's address is 127.0.0.1.
    os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
