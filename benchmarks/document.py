"""Results as they stand in JSON files."""

from __future__ import annotations

from typing import Any, TypeAlias

#: A result, or a part of one.
Document: TypeAlias = dict[str, Any]
