"""Determine a LoRA's scale, the multiplier of its factors' product.

By precedence: an ``alpha`` tensor (kohya); PEFT's configuration, in the metadata (diffusers'
``lora_adapter_metadata``, a section per component) or ``adapter_config.json``; else alpha equals
the rank, as in other readers. Arithmetic: https://huggingface.co/docs/peft/package_reference/lora.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from assets.content import Component
from assets.errors import IngestRejected
from assets.formats.lora_names import ADAPTED_COMPONENTS

Config = Mapping[str, object]

#: Applied here, or about training, target modules or the library.
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
#: Fields of unsupported computations, and their meaning.
_REFUSED = {
    "fan_in_fan_out": "factors for transposed weights",
    "layer_replication": "repeated layers",
    "modules_to_save": "whole modules in addition to the adapter",
    "trainable_token_indices": "trained token embeddings",
    "target_parameters": "individually addressed parameters",
    "lora_bias": "biases of the factors",
    "alora_invocation_tokens": "an adapter activated by tokens (aLoRA)",
    "use_qalora": "QALoRA",
    "use_bdlora": "BD-LoRA",
    "arrow_config": "Arrow routing",
}
#: Initializations that change the base weights.
_CHANGES_BASE = ("pissa", "olora", "corda", "loftq")
_METADATA, _FILE = "lora_adapter_metadata", "adapter_config.json"
_SUFFIX = re.compile(r"[\w.\\-]+")


@dataclass(frozen=True, slots=True)
class LoraScales:
    """Configurations by component; None covers all others."""

    configs: Mapping[Component | None, Config] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()

    def scale(self, component: Component, module: str, rank: int) -> float:
        """Return the multiplier for a module's factors; ``module`` is its published dotted path."""
        config = self.configs.get(component, self.configs.get(None))
        if config is None:
            return 1.0
        alpha = _pattern_value(config.get("alpha_pattern"), module)
        if alpha is None:
            alpha = _number(config.get("lora_alpha", config.get("alpha")))
        if alpha is None:
            return 1.0
        return alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)

    def uses_dora(self, component: Component) -> bool:
        config = self.configs.get(component, self.configs.get(None))
        return bool(config and config.get("use_dora"))

    def covers(self, component: Component) -> bool:
        return component in self.configs or None in self.configs


def read_scales(metadata: Mapping[str, str], adapter_config: Config | None) -> LoraScales:
    """Read PEFT configurations from the metadata, which wins, and the upload.

    Raises:
        IngestRejected: a configuration is malformed or needs unsupported arithmetic.
    """
    configs: dict[Component | None, Config] = {}
    warnings: dict[str, None] = {}
    from_file: dict[Component | None, Config] = {}
    if adapter_config is not None:
        from_file[None] = adapter_config
    raw = metadata.get(_METADATA)
    from_metadata = {} if raw is None else _sections(_parsed(raw))
    for source, sections in ((_FILE, from_file), (_METADATA, from_metadata)):
        for config in sections.values():
            try:
                _check(config)
            except _Refused as refused:
                raise IngestRejected(f"its {source} {refused}") from None
            warnings |= dict.fromkeys(f"its {source} {unknown}" for unknown in _unknown(config))
        configs |= sections
    return LoraScales(configs, tuple(warnings))


class _Refused(Exception):
    """The reason, as a predicate without the configuration's name."""


def _parsed(raw: str) -> Config:
    try:
        config = json.loads(raw)
    except (ValueError, RecursionError):
        raise IngestRejected(f"its {_METADATA} is not JSON") from None
    if not isinstance(config, dict):
        raise IngestRejected(f"its {_METADATA} is not an object")
    return config


def _sections(config: Config) -> dict[Component | None, Config]:
    """``{"unet.r": 16}`` → ``{"unet": {"r": 16}}``; fields without a component go under None."""
    sections: dict[Component | None, dict[str, object]] = {}
    for name, value in config.items():
        prefix, _, rest = name.partition(".")
        section = next((c for c in ADAPTED_COMPONENTS if c == prefix and rest), None)
        sections.setdefault(section, {})[rest if section else name] = value
    return dict(sections)


def _check(config: Config) -> None:
    for name, feature in _REFUSED.items():
        if config.get(name):
            raise _Refused(f"uses {feature} ({name}), which is not supported")
    init = config.get("init_lora_weights")
    if isinstance(init, str) and init.lower().startswith(_CHANGES_BASE):
        raise _Refused(
            f"has an initialization that changes the base model (init_lora_weights {init!r}); "
            "convert it to a plain LoRA with PEFT (path_initial_model_for_weight_conversion)"
        )
    kind = config.get("peft_type")
    if kind is not None and kind not in ("LORA", "LOHA", "LOKR"):
        raise _Refused(f"has peft_type {kind!r:.60}; LORA, LOHA and LOKR are supported")
    _number(config.get("lora_alpha", config.get("alpha")))
    for name in ("use_rslora", "use_dora"):
        if config.get(name) not in (None, True, False):
            raise _Refused(f"has a {name} that is neither true nor false")
    for name in ("alpha_pattern", "rank_pattern"):
        pattern = config.get(name) or {}
        if not isinstance(pattern, Mapping):
            raise _Refused(f"has {name} that is not an object")
        for suffix, value in pattern.items():
            _number(value)
            if not _SUFFIX.fullmatch(suffix):
                raise _Refused(
                    f"has a regular expression in {name}, {suffix[:60]!r}; only suffixes of module "
                    "names are supported"
                )


def _unknown(config: Config) -> Iterator[str]:
    for name, value in config.items():
        if name not in _NEUTRAL and name not in _REFUSED and value:
            yield f"has the unknown field {name[:60]!r}, which is not applied"


def _pattern_value(pattern: object, module: str) -> float | None:
    """The first key that is a suffix of the path wins. Untrusted regular expressions are not
    run."""
    if not isinstance(pattern, Mapping):
        return None
    for suffix, value in pattern.items():
        if f".{module}".endswith("." + suffix.replace("\\.", ".")):
            return _number(value)
    return None


def _number(value: object) -> float | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise _Refused(f"has an alpha that is not a number: {value!r:.60}")
    try:
        return float(value)
    except OverflowError:
        raise _Refused("has an alpha that is too large") from None
