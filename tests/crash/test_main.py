"""When the crash suite has passed: with all rounds that were asked for, and with nothing less."""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections.abc import Generator, Iterable
from pathlib import Path

import pytest

from crash import __main__ as command
from crash.round_plan import RoundPlan
from crash.rounds import RoundReport
from support.staged_state import NOTHING_STAGED, StagedState

ROOT = Path(__file__).parents[2]
ONE_PENDING = StagedState(pending_count=1, pending_files=0)


def test_round_counts_when_something_was_staged_at_the_kill() -> None:
    plan = RoundPlan.draw(1)

    assert not RoundReport(plan).counts
    assert RoundReport(plan, staged=ONE_PENDING).counts


@pytest.fixture
def ran_seeds(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[int]:
    """In place of real rounds: those with odd seeds find something staged, and seed 100 fails."""
    ran: list[int] = []

    def run_rounds(_directory: Path, seeds: Iterable[int]) -> Generator[RoundReport, None, None]:
        for seed in seeds:
            ran.append(seed)
            report = RoundReport(RoundPlan.draw(seed), staged=ONE_PENDING if seed % 2 else NOTHING_STAGED)
            report.failures += ["file: missing"] * (seed == 100)
            yield report
            if report.failures:
                return

    monkeypatch.setattr(command, "run_rounds", run_rounds)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))  # a failed round's directory is left
    return ran


def test_rounds_that_do_not_count_are_made_up_for(ran_seeds: list[int]) -> None:
    assert command.main(["--rounds", "3", "--seed", "1"]) == 0
    assert ran_seeds == [1, 2, 3, 4, 5]


def test_fewer_rounds_than_asked_for_when_time_runs_out_is_no_success(
    ran_seeds: list[int], capsys: pytest.CaptureFixture[str]
) -> None:
    # No time at all, so that one round is all there is, however fast or slow this machine is.
    assert command.main(["--rounds", "2", "--seed", "1", "--seconds", "-1"]) == 1
    assert ran_seeds == [1]
    assert capsys.readouterr().out.splitlines()[-1] == (
        "time ran out: 1 of the 2 rounds asked for have counted"
    )


def test_last_round_asked_for_may_end_after_the_time(ran_seeds: list[int]) -> None:
    assert command.main(["--rounds", "1", "--seed", "1", "--seconds", "-1"]) == 0
    assert ran_seeds == [1]


def test_failed_round_is_no_success(ran_seeds: list[int], capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["--rounds", "3", "--seed", "99"]) == 1
    assert ran_seeds == [99, 100]
    assert 'once more: make test-crash ARGS="--seed 100 --rounds 1"' in capsys.readouterr().out


def test_two_hundred_rounds_are_asked_for_where_nobody_says_how_many(
    ran_seeds: list[int], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("CRASH_ROUNDS", "CRASH_SEED", "CRASH_SECONDS"):
        monkeypatch.delenv(name, raising=False)

    command.main(["--seed", "101"])

    assert len(ran_seeds) == 399  # those with odd seeds count
    assert "200 of 399 rounds counted" in capsys.readouterr().out


def test_make_target_has_two_hundred_rounds_and_a_minute_of_outage() -> None:
    """What is printed is what it would do. A test that had another name would be an error of pytest's."""
    say = (
        "env",
        "-u",
        "MAKEFLAGS",
        "-u",
        "MAKELEVEL",
        "-u",
        "ARGS",
        "make",
        "-n",
        "-o",
        "setup",
        "test-crash",
    )
    said = subprocess.run(say, cwd=ROOT, capture_output=True, text=True, check=True).stdout

    rounds, outage = said.index("python -m crash \n"), said.index("CLOUDAI_TEST_OUTAGE_SECONDS=60 ")
    assert rounds < outage
    (name,) = re.findall(r"tests/integration/test_network_faults\.py::(\w+)", said[outage:])
    assert f"def {name}(" in (ROOT / "tests/integration/test_network_faults.py").read_text()
