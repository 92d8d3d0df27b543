"""How strongly a LoRA acts: by what its factors' product is multiplied.

In order of precedence: an ``alpha`` tensor beside the factors (kohya and all that follow it);
PEFT's configuration, which diffusers keeps in the file's metadata (``lora_adapter_metadata``, a
section for each component) and PEFT itself in ``adapter_config.json`` beside the file; else
alpha is taken to be the rank, as every reader does.

PEFT's arithmetic: https://huggingface.co/docs/peft/package_reference/lora. What a configuration
says about it is applied, or refused by name; a field that is not known here is a warning.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from assets.content import Component
from assets.errors import IngestRejected
from assets.formats.lora_names import MOVED_COMPONENTS

Config = Mapping[str, Any]

#: Say how an adapter was trained, where it goes or which library wrote it; not how it is applied.
_NEUTRAL = frozenset(
    [
        "r", "lora_alpha", "alpha", "use_rslora", "use_dora", "rank_pattern", "alpha_pattern",
        "init_lora_weights", "init_weights", "peft_type", "task_type", "auto_mapping",
        "base_model_name_or_path", "revision", "inference_mode", "peft_version", "lora_dropout",
        "rank_dropout", "module_dropout", "rank_dropout_scale", "target_modules",
        "exclude_modules", "layers_to_transform", "layers_pattern", "bias", "megatron_config",
        "megatron_core", "loftq_config", "eva_config", "corda_config", "runtime_config",
        "lora_ga_config", "ensure_weight_tying", "use_effective_conv2d", "decompose_both",
        "decompose_factor", "qalora_group_size",
    ]
)  # fmt: skip
#: Change what is computed in ways that are not served.
_REFUSED = {
    "fan_in_fan_out": "factors for transposed weights",
    "layer_replication": "layers that are repeated",
    "modules_to_save": "whole modules beside the adapter",
    "trainable_token_indices": "trained token embeddings",
    "target_parameters": "parameters that are addressed one by one",
    "lora_bias": "biases of the factors",
    "alora_invocation_tokens": "an adapter that acts from a token on (aLoRA)",
    "use_qalora": "QALoRA",
    "use_bdlora": "BD-LoRA",
    "arrow_config": "Arrow routing",
}
#: Initializations that change the base weights, so that the factors alone are not the change.
_CHANGES_BASE = ("pissa", "olora", "corda", "loftq")
#: Where configurations are: in the file, and beside it.
_METADATA, _FILE = "lora_adapter_metadata", "adapter_config.json"
_SUFFIX = re.compile(r"[\w.\\-]+")


@dataclass(frozen=True, slots=True)
class Strengths:
    """A file's configurations by component. The one under None covers every other component."""

    configs: Mapping[Component | None, Config] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()

    def scale(self, component: Component, module: str, rank: int) -> float:
        """What multiplies the factors of rank ``rank`` of a module, by the configuration that
        covers it. ``module`` is its dotted published path in the component."""
        config = self.configs.get(component, self.configs.get(None))
        if config is None:
            return 1.0
        alpha = _of(config.get("alpha_pattern"), module)
        if alpha is None:
            alpha = _number(config.get("lora_alpha", config.get("alpha")))
        if alpha is None:
            return 1.0
        return alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)

    def says_dora(self, component: Component) -> bool:
        config = self.configs.get(component, self.configs.get(None))
        return bool(config and config.get("use_dora"))

    def covers(self, component: Component) -> bool:
        return component in self.configs or None in self.configs


def read_strengths(metadata: Mapping[str, str], adapter_config: Config | None) -> Strengths:
    """From a file's own metadata, and from the PEFT configuration that came with it.

    Raises:
        IngestRejected: it is malformed, or asks for arithmetic that is not served.
    """
    configs: dict[Component | None, Config] = {}
    warnings: dict[str, None] = {}
    beside: dict[Component | None, Config] = {}
    if adapter_config is not None:
        beside[None] = adapter_config
    raw = metadata.get(_METADATA)
    inside = {} if raw is None else _sections(_parsed(raw))
    for where, sections in ((_FILE, beside), (_METADATA, inside)):
        for config in sections.values():
            try:
                _check(config)
            except _Refused as refused:
                raise IngestRejected(f"its {where} {refused}") from None
            warnings |= dict.fromkeys(f"its {where} {unknown}" for unknown in _unknown(config))
        configs |= sections
    return Strengths(configs, tuple(warnings))


class _Refused(Exception):
    """Says what is wrong with a configuration, without its name."""


def _parsed(raw: str) -> Config:
    try:
        config = json.loads(raw)
    except (ValueError, RecursionError):
        raise IngestRejected(f"its {_METADATA} is not JSON") from None
    if not isinstance(config, dict):
        raise IngestRejected(f"its {_METADATA} is not an object")
    return config


def _sections(config: Config) -> dict[Component | None, Config]:
    """``{"unet.r": 16}`` → ``{"unet": {"r": 16}}``; without prefixes, of the whole file."""
    found: dict[Component | None, dict[str, Any]] = {}
    for name, value in config.items():
        prefix, _, rest = name.partition(".")
        section = next((c for c in MOVED_COMPONENTS if c == prefix and rest), None)
        found.setdefault(section, {})[rest if section else name] = value
    return dict(found)


def _check(config: Config) -> None:
    for name, what in _REFUSED.items():
        if config.get(name):
            raise _Refused(f"asks for {what} ({name}), which is not served")
    start = config.get("init_lora_weights")
    if isinstance(start, str) and start.lower().startswith(_CHANGES_BASE):
        raise _Refused(
            f"says that the factors start from a changed base model (init_lora_weights {start!r}); "
            "convert it into a plain LoRA with PEFT (path_initial_model_for_weight_conversion)"
        )
    kind = config.get("peft_type")
    if kind is not None and kind not in ("LORA", "LOHA", "LOKR"):
        raise _Refused(f"is of a {kind!r:.60}; LORA, LOHA and LOKR are served")
    _number(config.get("lora_alpha", config.get("alpha")))
    for name in ("use_rslora", "use_dora"):
        if config.get(name) not in (None, True, False):
            raise _Refused(f"has a {name} that is neither true nor false")
    for name in ("alpha_pattern", "rank_pattern"):
        pattern = config.get(name) or {}
        if not isinstance(pattern, Mapping):
            raise _Refused(f"has an {name} that is not an object")
        for end, value in pattern.items():
            _number(value)
            if not _SUFFIX.fullmatch(end):
                raise _Refused(
                    f"has a regular expression in {name}, {end[:60]!r}; only ends of module names "
                    "are read"
                )


def _unknown(config: Config) -> Iterator[str]:
    for name, value in config.items():
        if name not in _NEUTRAL and name not in _REFUSED and value:
            yield f"has {name[:60]!r}, which is not known here and not applied"


def _of(pattern: object, module: str) -> float | None:
    """The first value whose key the module's path ends with. PEFT matches keys as regular
    expressions; a stranger's are not run here."""
    if not isinstance(pattern, Mapping):
        return None
    for end, value in pattern.items():
        if f".{module}".endswith("." + end.replace("\\.", ".")):
            return _number(value)
    return None


def _number(value: object) -> float | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise _Refused(f"has an alpha that is no number: {value!r:.60}")
    try:
        return float(value)
    except OverflowError:
        raise _Refused("has an alpha that is too large") from None
