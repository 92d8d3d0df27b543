"""The table of docs/formats.md, filled by tests."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

DOCUMENT = Path(__file__).parents[2] / "docs" / "formats.md"

#: The document's titles of cases in test_lycoris.py and test_peft.py.
TITLES = {
    "locon": "LoRA, LoCon",
    "locon-tucker": "LoCon with a core",
    "loha": "LoHa",
    "loha-tucker": "LoHa with cores",
    "lokr": "LoKr",
    "lokr-both": "LoKr, both factors split",
    "lokr-full": "LoKr, full factors",
    "lokr-tucker": "LoKr with a core",
    "dora": "DoRA (outputs)",
    "dora-in": "DoRA (inputs)",
    "doha": "DoRA on LoHa",
    "dokr": "DoRA on LoKr",
    "full": "differences (`.diff`, `.diff_b`)",
    "norm": "LoRA, LoCon and norms",
    "lora": "LoRA, LoCon",
    "patterns": "the same with `rank_pattern`, `alpha_pattern`",
    "dora-peft": "DoRA",
    "rslora": "LoRA with `use_rslora`",
}
COMPONENTS = {"unet": "UNet", "text_encoder": "CLIP-L", "text_encoder_2": "CLIP-G"}


@dataclass
class FormatMatrix:
    """Errors by (case, oracle) and component; verified namings by case."""

    errors: dict[tuple[str, str], dict[str, float]] = field(default_factory=dict)
    namings: dict[str, dict[str, set[str]]] = field(default_factory=dict)

    def measured(self, case: str, component: str, oracle: str, error: float) -> None:
        self.errors.setdefault((case, oracle), {})[component] = error

    def named(self, case: str, component: str, naming: str) -> None:
        self.namings.setdefault(case, {}).setdefault(naming, set()).add(component)

    def table(self) -> str:
        """Return a Markdown row per case and oracle."""
        header = ["kind", "oracle", *(f"error, {c}" for c in COMPONENTS.values()), "namings"]
        rows = [header, ["---"] * len(header)]
        for (case, oracle), errors in self.errors.items():
            cells = [f"{errors[c]:.0e}" if c in errors else "–" for c in COMPONENTS]
            spelled = self.namings.get(case, {})
            names = [
                naming + ("" if len(components) == len(errors) else " (UNet)")
                for naming, components in spelled.items()
            ]
            rows.append([TITLES[case], oracle, *cells, ", ".join(names) or "diffusers"])
        return "\n".join(f"| {' | '.join(row)} |" for row in rows)
