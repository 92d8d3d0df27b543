"""Configurations of a model's components, as diffusers and transformers read them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeAlias

from assets.content import Component

ModelConfig: TypeAlias = Mapping[str, Any]
Configs: TypeAlias = Mapping[Component, ModelConfig]
