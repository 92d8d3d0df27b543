"""The access log, shared by many processes."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

from orchestrator.access_log import AccessLog
from orchestrator.policy_selection import EvictionPolicy


def state(log: AccessLog) -> tuple[object, ...]:
    """Return everything that decides evictions."""
    log.follow()
    policy_selector = log.policy_selector
    entries = tuple(policy_selector.entry(f"k{index}", 1) for index in range(40))
    return (
        policy_selector.policy,
        policy_selector.changes,
        dict(policy_selector.uses_by_policy),
        policy_selector._behind_bytes,
        entries,
    )


def test_all_readers_agree_whenever_they_read(tmp_path: Path) -> None:
    rng = random.Random(1)
    path = tmp_path / "uses.log"
    writers = [AccessLog(path, 16) for _ in range(3)]
    frequent, late = AccessLog(path, 16), AccessLog(path, 16)
    for index in range(3_000):
        key = int(rng.paretovariate(0.8)) % 40
        rng.choice(writers).note(f"k{key}", 1 + key % 3, f"t{key % 5}", float(index))
        if index % 7 == 0:
            frequent.follow()
    assert state(frequent) == state(late) == state(writers[0])
    late.forget("k1")
    frequent.follow()
    assert "k1" not in frequent.policy_selector._by_visits


def test_a_torn_line_is_skipped_and_an_incomplete_line_is_read_later(tmp_path: Path) -> None:
    path = tmp_path / "uses.log"
    log = AccessLog(path, 16)
    log.note("a", 1, "t", 1.0)
    with open(path, "ab") as file:
        file.write(b"b 1 2.\nc x 3.0 t\n\xff 1 1.0 -\nd 1 4.0")
    log.follow()
    assert log.policy_selector.uses_by_policy[EvictionPolicy.VISITS] == 1
    with open(path, "ab") as file:
        file.write(b"0 t\n")
    log.follow()
    assert log.policy_selector.uses_by_policy[EvictionPolicy.VISITS] == 2
    assert log.entry("d", 1, 0.0).last_used_s == 4.0


def test_shortening_drops_the_older_half_and_readers_still_agree(tmp_path: Path) -> None:
    path = tmp_path / "uses.log"
    log, other = AccessLog(path, 16, max_bytes=10_000), AccessLog(path, 16, max_bytes=10_000)
    for index in range(1_000):
        log.note(f"k{index % 40}", 1, "", float(index))
        if index % 100 == 0:
            other.follow()
            log.shorten()
    assert path.stat().st_size <= 12_000
    assert state(log) == state(other)
    assert not log.shorten() or path.stat().st_size <= 6_000
    assert [file.name for file in tmp_path.iterdir()] == ["uses.log"]
    assert log.entry("gone", 1, 5.0).last_used_s == 5.0


def test_killed_writers_leave_no_torn_lines(tmp_path: Path) -> None:
    path = tmp_path / "uses.log"
    program = textwrap.dedent(
        """
        import sys
        from pathlib import Path
        from orchestrator.access_log import AccessLog
        log = AccessLog(Path(sys.argv[1]), 16)
        number = 0
        while True:
            log.note(f"k{number % 40}", 1 + number % 3, f"t{sys.argv[2]}", float(number))
            number += 1
        """
    )
    processes = [
        subprocess.Popen([sys.executable, "-c", program, str(path), str(number)], cwd=os.getcwd())
        for number in range(4)
    ]
    reader, rng = AccessLog(path, 16), random.Random(2)
    deadline = time.monotonic() + 60
    try:
        while reader._offset < 200_000:
            assert time.monotonic() < deadline
            reader.follow()
    finally:
        rng.shuffle(processes)
        for process in processes:
            process.send_signal(signal.SIGKILL)
            process.wait()
    lines = path.read_bytes().split(b"\n")
    assert lines.pop() == b""
    assert all(len(line.split(b" ")) == 4 for line in lines)
    assert state(reader) == state(AccessLog(path, 16))
    assert sum(reader.policy_selector.uses_by_policy.values()) == len(lines)
