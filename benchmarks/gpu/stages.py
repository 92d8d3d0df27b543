"""A program's stages with one deadline. Results are written to disk after each stage."""

from __future__ import annotations

import faulthandler
import json
import os
import time
import traceback
from collections.abc import Callable
from pathlib import Path

from benchmarks.document import Document

#: Figures by name; a list holds all samples.
Row = Document
_ERROR_CHARACTERS = 4000


class Stages:
    """Runs stages in order; a failed stage does not affect the others."""

    def __init__(
        self,
        program: str,
        out: Path | None,
        budget_s: float,
        synchronize: Callable[[], None] = lambda: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """``synchronize`` waits for the device."""
        self._out = out
        self._clock = clock
        self._synchronize = synchronize
        self._end_s = clock() + budget_s
        self.document: Document = {"program": program, "stages": {}}

    def arm(self) -> None:
        """Dump all stacks and exit 5 s after the deadline."""
        faulthandler.dump_traceback_later(self._end_s - self._clock() + 5, exit=True)

    def disarm(self) -> None:
        faulthandler.cancel_dump_traceback_later()

    @property
    def left_s(self) -> float:
        return self._end_s - self._clock()

    @property
    def failed(self) -> list[str]:
        return [name for name, row in self.document["stages"].items() if "error" in row]

    def run(self, name: str, expected_s: float, work: Callable[[], Row]) -> None:
        """Record the result, error or, without ``expected_s`` left, the skip."""
        started = self._clock()
        if expected_s > self.left_s:
            row: Document = {"skipped": f"{self.left_s:.0f} s left, {expected_s:.0f} s expected"}
        else:
            try:
                row = dict(work())
                self._synchronize()
            except BaseException as error:
                text = "".join(traceback.format_exception(error))
                row = {"error": text[-_ERROR_CHARACTERS:]}
                if not isinstance(error, Exception):  # interrupted
                    self._keep(name, row, expected_s, started)
                    raise
        self._keep(name, row, expected_s, started)
        shown = {k: v for k, v in row.items() if not isinstance(v, (list, dict))}
        print(f"{name}: {shown}"[:600], flush=True)

    def _keep(self, name: str, row: Document, expected_s: float, started: float) -> None:
        row["expected_s"], row["s"] = expected_s, self._clock() - started
        self.document["stages"][name] = row
        if self._out is not None:
            self._out.parent.mkdir(parents=True, exist_ok=True)
            part = self._out.with_suffix(".part")
            part.write_text(json.dumps(self.document, indent=1) + "\n")
            os.replace(part, self._out)
