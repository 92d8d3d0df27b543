"""Record the messages between processes, and a newer version's.

``python -m tests.golden.messages`` adds a sample of each new kind to ``messages.json`` and never
changes old ones: every later version must still read them. ``newer`` holds the same messages with
two more fields in each object, and one more kind of event.
"""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import msgspec

from tests.support.messages import EVENTS, MESSAGES, with_new_fields

RECORDED = Path(__file__).parent / "messages.json"
NEW_EVENT = {"type": "a_new_event", "temperature": 7}


def recorded(sample: Any) -> str:
    return base64.b64encode(msgspec.msgpack.encode(sample)).decode()


def samples() -> dict[str, Any]:
    return {type(sample).__name__: sample for sample in (*EVENTS, *MESSAGES)}


def newer(data: str) -> str:
    return recorded(with_new_fields(msgspec.msgpack.decode(base64.b64decode(data))))


def main() -> None:
    known: dict[str, dict[str, str]] = {"messages": {}, "newer": {}}
    if RECORDED.exists():
        known = json.loads(RECORDED.read_text())
    for name, sample in samples().items():
        if name not in known["messages"]:
            known["messages"][name] = recorded(sample)
            known["newer"][name] = newer(known["messages"][name])
    known["newer"].setdefault("a_new_event", recorded(NEW_EVENT))
    RECORDED.write_text(json.dumps(known, indent=1) + "\n")


if __name__ == "__main__":
    main()
