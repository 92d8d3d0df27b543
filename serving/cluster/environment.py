"""Ray's environment variables, read on import, and head-node resources. Imports no Ray."""

from __future__ import annotations

import os
import secrets
import sys

#: For actors that must run on the head, beside `serve`: it has their folders and is never removed.
ON_THE_HEAD = {"node:__internal_head__": 0.001}


def require_tokens() -> None:
    """Make this process's Ray require a token; call before importing Ray.

    Keeps the operator's token or mode.

    Raises:
        RuntimeError: Ray is already imported.
    """
    if "ray" in sys.modules:
        raise RuntimeError("require_tokens() must run before Ray is imported")
    os.environ.setdefault("RAY_AUTH_MODE", "token")
    if os.environ["RAY_AUTH_MODE"] == "token":
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # Its handlers deadlock processes that fork; Ray's workers inherit it.
    os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")


def listen_on_loopback() -> None:
    """Bind a single-node Ray and its exporters to loopback; call before importing Ray."""
    # On Linux it only makes the node's address 127.0.0.1.
    os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
