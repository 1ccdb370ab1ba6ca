"""What a look finds: one line that says what is, and what to do about it."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path


class FindingState(StrEnum):
    OK = "ok"
    NOTE = "note"
    """Works, and could be better, or soon will not."""
    PROBLEM = "problem"


@dataclass(frozen=True, kw_only=True)
class Finding:
    check: str
    state: FindingState
    text: str
    advice: str = ""
    """What to do."""


@dataclass(frozen=True, kw_only=True)
class MountFindings:
    mount_point: Path
    source: str
    findings: list[Finding]


def ok(check: str, text: str) -> Finding:
    return Finding(check=check, state=FindingState.OK, text=text)


def note(check: str, text: str, advice: str = "") -> Finding:
    return Finding(check=check, state=FindingState.NOTE, text=text, advice=advice)


def problem(check: str, text: str, advice: str = "") -> Finding:
    return Finding(check=check, state=FindingState.PROBLEM, text=text, advice=advice)


def in_ms(seconds: float) -> str:
    """For people."""
    return f"{seconds * 1000:.1f} ms"
