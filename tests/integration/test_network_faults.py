"""A network that delays, cuts in the middle of a message, passes one direction only, and comes back.

What was acknowledged is compared at the master, through a mount that does not go through the faulty network and
whose cache is empty.
"""

from __future__ import annotations

import errno
import itertools
import logging
import os
import random
import secrets
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO

import pytest

from cloudai_model.chunks import digest_of
from support.files import write_synced
from support.master_process import MasterProcess
from support.mount_process import MountProcess, wait_until
from support.network_proxy import Act, Fault, NetworkProxy, Way
from support.tree_snapshot import place_in

logger = logging.getLogger(__name__)

KIB = 1024
MIB = 1024 * KIB

IN_FLIGHT_BYTES_MAX = 4 * 4 * MIB

# Which call is meant, where it alone is under way: by the size of its request.
CHUNK_REQUEST_BYTES = MIB
BATCH_REQUEST_BYTES = 32 * KIB
INLINE_BYTES = 60 * KIB
"""The content of a file that travels in its commit, and so says which request that is."""


OPTIONS = "insecure,timeo=50"
"""Longer than the 30 s in which a connection that only swallows is noticed, shorter than gRPC's own minute."""

_run_numbers = itertools.count()


@pytest.fixture(scope="module")
def network(shared_master: MasterProcess) -> Iterator[NetworkProxy]:
    with NetworkProxy(shared_master.address) as network:
        yield network


@pytest.fixture
def proxy(network: NetworkProxy, mount: MountProcess) -> Iterator[NetworkProxy]:
    """The network, well before each test and after it."""
    yield network
    network.slow_down()
    network.restore()
    wait_until(lambda: bool(mount.status()["connected"]), "the mount's notice of it")


@pytest.fixture(scope="module")
def mount(
    network: NetworkProxy, shared_master: MasterProcess, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[MountProcess]:
    """A mount behind the proxy."""
    directory = tmp_path_factory.mktemp("behind-the-proxy")
    mount = MountProcess(directory, network.address, shared_master.make_token("user-123"), options=OPTIONS)
    try:
        mount.start()
        yield mount
        mount.umount()
        assert "Traceback" not in mount.log_text()
    finally:
        mount.kill()


@pytest.fixture
def other(second_mount: MountProcess) -> MountProcess:
    """A mount that has nothing to do with the proxy, and in its cache nothing of a run that it has not read."""
    return second_mount


@pytest.fixture
def run(mount: MountProcess) -> Path:
    """An open run of its own for a test, in the mount behind the proxy."""
    return mount.make_run(next_name(), task="network")


def next_name() -> str:
    number = next(_run_numbers)
    return f"2026-11-20_00-{number // 60:02}-{number % 60:02}"


@pytest.fixture
def elsewhere(run: Path, mount: MountProcess, other: MountProcess) -> Path:
    """Where the run is in the other mount, which knows of it and has not looked into it."""
    path = place_in(mount, run, other)
    wait_until(path.parent.is_dir, "the task elsewhere")
    wait_until(lambda: path.name in os.listdir(path.parent), "the run elsewhere")
    return path


@pytest.fixture
def beside() -> Iterator[ThreadPoolExecutor]:
    """What a test does while it does something else."""
    with ThreadPoolExecutor(4) as executor:
        yield executor


def in_the_middle_of(request_bytes_min: int, act: Act) -> Fault:
    return Fault(way=Way.TO_MASTER, act=act, after_bytes=20, request_bytes_min=request_bytes_min)


def in_its_answer(request_bytes_min: int, act: Act) -> Fault:
    return Fault(way=Way.TO_MOUNT, act=act, after_bytes=4, request_bytes_min=request_bytes_min)


def content_or_none(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None


MESSAGES = pytest.mark.parametrize(
    ("fault_of", "request_bytes_min", "size_bytes"),
    [
        pytest.param(in_the_middle_of, CHUNK_REQUEST_BYTES, 9 * MIB, id="in a PutChunk"),
        pytest.param(in_its_answer, CHUNK_REQUEST_BYTES, 9 * MIB, id="in the answer to a PutChunk"),
        pytest.param(in_the_middle_of, BATCH_REQUEST_BYTES, INLINE_BYTES, id="in a CommitNodes"),
        pytest.param(in_its_answer, BATCH_REQUEST_BYTES, INLINE_BYTES, id="in the answer to a CommitNodes"),
    ],
)


@MESSAGES
def test_fsync_goes_through_a_connection_that_is_cut_in_the_middle_of_a_message(
    run: Path,
    elsewhere: Path,
    proxy: NetworkProxy,
    fault_of: Callable[[int, Act], Fault],
    request_bytes_min: int,
    size_bytes: int,
) -> None:
    content = os.urandom(size_bytes)
    connection_count = proxy.connection_count
    proxy.arm(fault_of(request_bytes_min, Act.CUT))

    write_synced(run / "file", content)

    assert not proxy.is_armed
    assert proxy.connection_count == connection_count + 1
    wait_until(lambda: content_or_none(elsewhere / "file") == content, "the file elsewhere")


@MESSAGES
@pytest.mark.parametrize("act", [Act.SWALLOW_TO_MASTER, Act.SWALLOW_TO_MOUNT])
def test_fsync_goes_through_a_network_that_passes_one_direction_only_and_comes_back(
    run: Path,
    elsewhere: Path,
    proxy: NetworkProxy,
    beside: ThreadPoolExecutor,
    fault_of: Callable[[int, Act], Fault],
    request_bytes_min: int,
    size_bytes: int,
    act: Act,
) -> None:
    content = os.urandom(size_bytes)
    proxy.arm(fault_of(request_bytes_min, act))
    synced = beside.submit(write_synced, run / "file", content)
    proxy.wait_for_fault()

    proxy.restore()

    synced.result(60)
    wait_until(lambda: content_or_none(elsewhere / "file") == content, "the file elsewhere")


def test_connection_that_swallows_is_given_up_by_writers_and_watches_without_help(
    run: Path, elsewhere: Path, proxy: NetworkProxy, beside: ThreadPoolExecutor
) -> None:
    content = os.urandom(9 * MIB)
    connection_count = proxy.connection_count
    proxy.arm(Fault(way=Way.TO_MOUNT, act=Act.SWALLOW_ALL, after_bytes=0))

    synced = beside.submit(write_synced, run / "file", content)
    proxy.wait_for_fault()
    write_synced(elsewhere / "news", b"news")

    synced.result(60)
    wait_until(lambda: content_or_none(run / "news") == b"news", "the news", seconds_max=40)
    assert proxy.connection_count == connection_count + 1
    wait_until(lambda: content_or_none(elsewhere / "file") == content, "the file elsewhere")


def test_commit_whose_answer_was_lost_does_not_cover_what_others_committed_since(
    run: Path, elsewhere: Path, mount: MountProcess, proxy: NetworkProxy, beside: ThreadPoolExecutor
) -> None:
    """W4. For one path the last commit wins, whichever mount it came from."""
    first, second = os.urandom(INLINE_BYTES), b"second"
    proxy.arm(in_its_answer(BATCH_REQUEST_BYTES, Act.SWALLOW_TO_MOUNT))
    synced = beside.submit(write_synced, run / "file", first)
    proxy.wait_for_fault()
    proxy.refuse()
    wait_until(lambda: content_or_none(elsewhere / "file") == first, "the commit without its answer")
    write_synced(elsewhere / "file", second)

    proxy.restore()
    synced.result(60)
    mount.wait_durable()

    wait_until(lambda: content_or_none(run / "file") == second, "the other's content here")
    assert content_or_none(elsewhere / "file") == second


def rename_over(run: Path) -> None:
    os.rename(run / "old", run / "new")


def unlink(run: Path) -> None:
    (run / "old").unlink()


def link(run: Path) -> None:
    os.link(run / "old", run / "second name")


@pytest.mark.parametrize("fault_of", [in_the_middle_of, in_its_answer])
@pytest.mark.parametrize(
    ("change", "contents"),
    [
        (rename_over, {"new": b"old"}),
        (unlink, {"new": b"new"}),
        (link, {"new": b"new", "old": b"old", "second name": b"old"}),
    ],
)
def test_change_of_names_is_made_once_through_a_connection_that_is_cut(
    run: Path,
    elsewhere: Path,
    mount: MountProcess,
    proxy: NetworkProxy,
    change: Callable[[Path], None],
    contents: dict[str, bytes],
    fault_of: Callable[[int, Act], Fault],
) -> None:
    write_synced(run / "old", b"old")
    write_synced(run / "new", b"new")
    mount.wait_durable()
    proxy.arm(fault_of(1, Act.CUT))

    change(run)
    mount.wait_durable()  # a removal is sent a moment later

    assert not proxy.is_armed
    assert {path.name: path.read_bytes() for path in elsewhere.iterdir()} == contents


@pytest.mark.parametrize("fault_of", [in_the_middle_of, in_its_answer])
def test_run_is_made_once_through_a_connection_that_is_cut(
    run: Path, elsewhere: Path, proxy: NetworkProxy, fault_of: Callable[[int, Act], Fault]
) -> None:
    name = next_name()
    proxy.arm(fault_of(1, Act.CUT))

    (run.parent / name).mkdir()

    assert not proxy.is_armed
    wait_until(lambda: (elsewhere.parent / name).is_dir(), "the run elsewhere")
    write_synced(run.parent / name / "file", b"content")
    there = elsewhere.parent / name / "file"
    wait_until(lambda: content_or_none(there) == b"content", "the content elsewhere")


@pytest.mark.parametrize("act", list(Act))
def test_read_goes_through_a_connection_that_fails_in_the_middle_of_a_chunk(
    run: Path, elsewhere: Path, proxy: NetworkProxy, beside: ThreadPoolExecutor, act: Act
) -> None:
    content = os.urandom(9 * MIB)
    write_synced(elsewhere / "file", content)
    wait_until((run / "file").exists, "the file behind the proxy")
    proxy.arm(Fault(way=Way.TO_MOUNT, act=act, after_bytes=2 * MIB))
    reading = beside.submit((run / "file").read_bytes)
    proxy.wait_for_fault()

    proxy.restore()

    assert reading.result(60) == content


def test_news_missed_while_the_network_was_away_are_seen_when_it_is_back(
    run: Path, elsewhere: Path, other: MountProcess, proxy: NetworkProxy
) -> None:
    for name in ("kept", "removed", "renamed", "changed"):
        write_synced(elsewhere / name, name.encode())
    wait_until(lambda: len(list(run.iterdir())) == 4, "the files behind the proxy")
    assert (run / "changed").read_bytes() == b"changed"
    proxy.refuse()
    (elsewhere / "removed").unlink()
    os.rename(elsewhere / "renamed", elsewhere / "new name")
    write_synced(elsewhere / "changed", b"since")
    other.seal(elsewhere)

    proxy.restore()

    expected = {"kept", "new name", "changed"}
    wait_until(lambda: {path.name for path in run.iterdir()} == expected, "the names")
    wait_until(lambda: (run / "changed").read_bytes() == b"since", "the content")
    wait_until(lambda: refusal_of((run / "late").touch) == errno.EROFS, "the seal")


def test_log_that_grew_several_times_while_the_network_was_away_is_shown_whole(
    run: Path, elsewhere: Path, proxy: NetworkProxy
) -> None:
    """W8. Who reads a file that grows elsewhere gets the bytes that were written, and none before they were."""
    write_synced(elsewhere / "log", b"one\n")
    wait_until(lambda: content_or_none(run / "log") == b"one\n", "the log behind the proxy")
    proxy.refuse()
    with (elsewhere / "log").open("ab", buffering=0) as log:
        for line in (b"two\n", b"three\n"):
            log.write(line)
            os.fsync(log.fileno())

    proxy.restore()

    wait_until(lambda: content_or_none(run / "log") == b"one\ntwo\nthree\n", "all of its lines")
    assert (run / "log").stat().st_size == 14


def refusal_of(act: Callable[[], object]) -> int:
    """The errno that it fails with; 0: it does not."""
    try:
        act()
    except OSError as error:
        return error.errno or -1
    return 0


def test_upload_goes_on_where_the_network_has_cut_it(
    run: Path, elsewhere: Path, mount: MountProcess, proxy: NetworkProxy
) -> None:
    """Each cut costs what was in flight, and nothing of what had arrived."""
    cut_count, size_bytes, overhead_bytes = 3, 96 * MIB, MIB
    content = os.urandom(size_bytes)
    proxy.slow_down(bytes_per_second=64 * MIB)
    passed_bytes, sent_bytes = proxy.passed_bytes[Way.TO_MASTER], mount.status()["sent_bytes"]
    (run / "big").write_bytes(content)
    for _ in range(cut_count):
        proxy.arm(Fault(way=Way.TO_MASTER, act=Act.CUT, after_bytes=24 * MIB))
        proxy.wait_for_fault()
    proxy.slow_down()

    mount.wait_durable()

    passed_bytes = proxy.passed_bytes[Way.TO_MASTER] - passed_bytes
    assert passed_bytes <= size_bytes + cut_count * IN_FLIGHT_BYTES_MAX + overhead_bytes
    assert mount.status()["sent_bytes"] - sent_bytes == size_bytes
    assert (elsewhere / "big").read_bytes() == content


def test_what_is_acknowledged_under_random_faults_is_at_the_master(
    run: Path, elsewhere: Path, mount: MountProcess, proxy: NetworkProxy, beside: ThreadPoolExecutor
) -> None:
    """CLOUDAI_TEST_SEED repeats a round."""
    seed = int(os.environ.get("CLOUDAI_TEST_SEED") or secrets.randbits(32))
    logger.info("CLOUDAI_TEST_SEED=%d", seed)
    writer = RandomWriter(run, random.Random(seed))
    choices = random.Random(seed + 1)
    stop = threading.Event()
    writing = beside.submit(writer.write_until, stop)
    try:
        for _ in range(RANDOM_FAULT_COUNT):
            let_fail_once(proxy, choices, is_over=writing.done)
    finally:
        stop.set()
        proxy.restore()
    writing.result(120)

    mount.wait_durable()

    assert writer.synced_count > 0
    assert {path.name: path.read_bytes() for path in elsewhere.iterdir()} == writer.expected


RANDOM_FAULT_COUNT = 36
"""A dozen of each act, about."""


def let_fail_once(proxy: NetworkProxy, choices: random.Random, *, is_over: Callable[[], bool]) -> None:
    """Arms one fault, waits for it, and mends what it left."""
    fault = Fault(
        way=choices.choice(list(Way)),
        act=choices.choice(list(Act)),
        after_bytes=int(2 ** choices.uniform(0, choices.choice([12, 22]))),  # in small calls, in large ones
    )
    proxy.slow_down(delay_seconds=choices.choice([0.0, 0.0, 0.005]))
    proxy.arm(fault)
    wait_until(lambda: not proxy.is_armed or is_over(), "a fault", seconds_max=40)
    if choices.random() < 0.3:
        proxy.refuse()
    proxy.restore()


class RandomWriter:
    """Writes in every way that programs do, and knows what has to be there afterwards."""

    def __init__(self, run: Path, choices: random.Random) -> None:
        self._run = run
        self._choices = choices
        self.expected: dict[str, bytes] = {}
        self.synced_count = 0

    def write_until(self, stop: threading.Event) -> None:
        """Raises what a write, a change of names, or a sync that came to no end raises."""
        acts = [
            self._create,
            self._create,
            self._append,
            self._overwrite,
            self._replace,
            self._rename,
            self._remove,
        ]
        while not stop.is_set():
            self._choices.choice(acts)()

    def _create(self) -> None:
        name = f"file-{self._choices.randrange(12)}"
        self._write(name, "wb", self._content())

    def _append(self) -> None:
        for _ in range(5):
            self._write("log", "ab", b"line\n" * self._choices.randrange(1, 50))

    def _overwrite(self) -> None:
        name = self._some_name()
        content = self.expected[name]
        place = self._choices.randrange(len(content) + 1)
        data = self._choices.randbytes(100)
        with (self._run / name).open("r+b") as file:
            file.seek(place)
            file.write(data)
            self._sync_sometimes(file)
        self.expected[name] = content[:place] + data + content[place + len(data) :]

    def _replace(self) -> None:
        self._write("last.tmp", "wb", self._content())
        os.rename(self._run / "last.tmp", self._run / "last")
        self.expected["last"] = self.expected.pop("last.tmp")

    def _rename(self) -> None:
        old, new = self._some_name(), f"file-{self._choices.randrange(12)}"
        if old != new:
            os.rename(self._run / old, self._run / new)
            self.expected[new] = self.expected.pop(old)

    def _remove(self) -> None:
        name = self._some_name()
        (self._run / name).unlink()
        del self.expected[name]

    def _write(self, name: str, mode: str, content: bytes) -> None:
        with (self._run / name).open(mode) as file:
            file.write(content)
            self._sync_sometimes(file)
        before = self.expected.get(name, b"") if mode == "ab" else b""
        self.expected[name] = before + content

    def _sync_sometimes(self, file: IO[bytes]) -> None:
        if self._choices.random() < 0.3:
            file.flush()
            os.fsync(file.fileno())
            self.synced_count += 1

    def _content(self) -> bytes:
        size_bytes = self._choices.choice([0, 100, INLINE_BYTES, 300 * KIB, 5 * MIB])
        return self._choices.randbytes(size_bytes)

    def _some_name(self) -> str:
        if not self.expected:
            self._create()
        return self._choices.choice(sorted(self.expected))


OUTAGE_SECONDS = float(os.environ.get("CLOUDAI_TEST_OUTAGE_SECONDS", "5"))
"""60 is what is promised to a training run; `make test` has a shorter one."""

STEP_SECONDS_MAX = 2.5
"""However long the outage: half of the short one, so that a step that waits for its end is told from a busy machine."""

CHECKPOINT_BYTES = 5 * MIB


def go_silent(network: NetworkProxy) -> None:
    network.swallow(*Way)


@pytest.mark.parametrize("fail", [NetworkProxy.refuse, go_silent])
def test_outage_during_a_training_run_costs_it_nothing(
    run: Path,
    elsewhere: Path,
    mount: MountProcess,
    proxy: NetworkProxy,
    beside: ThreadPoolExecutor,
    fail: Callable[[NetworkProxy], None],
) -> None:
    """For the minute that is promised: `make test-crash`, or CLOUDAI_TEST_OUTAGE_SECONDS=60 in the environment."""
    training = Training(run)
    stop = threading.Event()
    running = beside.submit(training.train_until, stop)
    try:
        wait_until(lambda: training.step_count > 3 * Training.CHECKPOINT_STEPS, "the first checkpoints")
        wait_until(lambda: (elsewhere / "last").exists(), "a checkpoint elsewhere")
        fail(proxy)
        first_step = training.step_count
        outage_over = threading.Timer(OUTAGE_SECONDS, proxy.restore)
        outage_over.start()
        outage_over.join()
        last_step = training.step_count
    finally:
        stop.set()
    running.result(60)
    assert last_step - first_step > 2 * Training.CHECKPOINT_STEPS, "the training stood still"
    assert training.slowest_step_seconds < STEP_SECONDS_MAX

    mount.wait_durable()

    lines = [f"step {step}" for step in range(training.step_count)]
    wait_until(lambda: (elsewhere / "train.log").read_text().splitlines() == lines, "the log elsewhere")
    wait_until(
        lambda: (elsewhere / "last").read_bytes() == training.last_checkpoint, "the last checkpoint elsewhere"
    )
    for step, digest in training.checkpoints.items():
        assert digest_of((elsewhere / f"checkpoint-{step}").read_bytes()) == digest


class Training:
    """A training run as it looks from its directory: a line a step, and now and then a checkpoint under a name of its
    own and one that replaces the last.
    """

    CHECKPOINT_STEPS = 25
    STEP_SECONDS = 0.01

    def __init__(self, run: Path) -> None:
        self._run = run
        self.step_count = 0
        self.slowest_step_seconds = 0.0
        self.checkpoints: dict[int, bytes] = {}
        self.last_checkpoint = b""

    def train_until(self, stop: threading.Event) -> None:
        """Raises what the filesystem does."""
        with (self._run / "train.log").open("w") as log:
            while not stop.wait(self.STEP_SECONDS):
                began = time.monotonic()
                print(f"step {self.step_count}", file=log, flush=True)
                if self.step_count % self.CHECKPOINT_STEPS == 0:
                    self._save(self.step_count)
                self.slowest_step_seconds = max(self.slowest_step_seconds, time.monotonic() - began)
                self.step_count += 1

    def _save(self, step: int) -> None:
        content = os.urandom(CHECKPOINT_BYTES)
        if len(self.checkpoints) < 20:
            (self._run / f"checkpoint-{step}").write_bytes(content)
            self.checkpoints[step] = digest_of(content)
        (self._run / "last.tmp").write_bytes(content)
        os.rename(self._run / "last.tmp", self._run / "last")
        self.last_checkpoint = content


BURST_BYTES = 200 * MIB
DAEMON_GROWTH_BYTES_MAX = 96 * MIB
"""Four chunks in flight, each in up to three copies, and what Python and gRPC keep of it."""


def test_slow_network_bounds_the_memory_of_a_burst_and_holds_up_no_reader(
    run: Path, elsewhere: Path, mount: MountProcess, proxy: NetworkProxy
) -> None:
    small = os.urandom(MIB)
    write_synced(elsewhere / "small", small)
    wait_until((run / "small").exists, "the small file")
    proxy.slow_down(bytes_per_second=MIB)
    before = memory_bytes(mount, "VmRSS")
    Path(f"/proc/{mount.pid}/clear_refs").write_text("5")  # VmHWM counts from here

    with (run / "burst").open("wb", buffering=0) as file:
        for _ in range(BURST_BYTES // MIB):
            file.write(os.urandom(MIB))

    assert (run / "small").read_bytes() == small
    assert mount.status()["staged_bytes"] > BURST_BYTES // 2, "the network was not slow"
    assert memory_bytes(mount, "VmHWM") - before < DAEMON_GROWTH_BYTES_MAX
    (run / "burst").unlink()


def memory_bytes(mount: MountProcess, measure: str) -> int:
    (line,) = [
        line
        for line in Path(f"/proc/{mount.pid}/status").read_text().splitlines()
        if line.startswith(measure)
    ]
    return int(line.split()[1]) * KIB
