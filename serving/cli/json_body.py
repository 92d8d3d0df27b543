"""Bodies of the API's requests and responses, as the command line handles them."""

from __future__ import annotations

from typing import Any, TypeAlias

Json: TypeAlias = dict[str, Any]
