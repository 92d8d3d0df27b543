"""Ray's security settings, which it reads once, when it is imported. Imports no Ray."""

from __future__ import annotations

import os
import secrets
import sys


def require_tokens() -> None:
    """Make a Ray that is started here demand a token of its own; call before Ray is imported.

    A token or a mode that the operator has set already is left as it is.
    """
    if "ray" in sys.modules:
        raise RuntimeError("require_tokens() must run before Ray is imported")
    os.environ.setdefault("RAY_AUTH_MODE", "token")
    if os.environ["RAY_AUTH_MODE"] == "token":
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
