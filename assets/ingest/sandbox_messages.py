"""Messages between the sandbox and its worker, a JSON object per line."""

from __future__ import annotations

from typing import TypedDict

from assets.asset import AssetKind
from assets.content import Component
from assets.families.schema import SchemaJson
from assets.ingest.convert import DeclarationJson
from assets.report import Report


class InspectionJob(TypedDict):
    """``schema``: of the served model. The limits end the inspection."""

    id: str
    path: str
    kind: AssetKind
    schema: SchemaJson
    scratch: str
    declaration: DeclarationJson
    memory_bytes: int
    wall_s: float
    cpu_s: int
    file_bytes: int


class InspectionAnswer(TypedDict, total=False):
    """The result of an inspection.

    ``rejected`` lists the reasons to reject the file. ``broke`` is the error that ended the
    inspection. Otherwise ``components`` names the files in the scratch folder.
    """

    id: str
    rejected: list[str]
    broke: str
    components: list[Component]
    report: Report
    seconds: float
    more_bytes: int
