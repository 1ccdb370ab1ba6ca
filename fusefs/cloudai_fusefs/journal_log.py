"""Whether the journal's write-ahead log is whole, as far as SQLite will not say.

SQLite takes the first frame whose checksum is wrong for the end of the log: right after a death, which can cut
the last one short, and wrong for a byte that was damaged in the middle, with which everything after it would
vanish without a word. The format is described at https://www.sqlite.org/fileformat2.html#the_write_ahead_log,
that of its index at https://www.sqlite.org/walformat.html.
"""

from __future__ import annotations

import os
import struct
import sys
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import BinaryIO, Final

from cloudai_fusefs.journal_errors import JournalDamaged
from cloudai_model.boots import current_boot_id
from cloudai_model.limits import KIB

_HEADER_BYTES: Final = 32
_FRAME_HEADER_BYTES: Final = 24
_INDEX_FRAME_COUNT_OFFSET: Final = 16
_INDEX_HEADER: Final = struct.Struct("=12x?xHI")  # whether it is filled in, bytes of a page, frames
_MAGIC_LITTLE_ENDIAN: Final = 0x377F0682
_MAGIC_BIG_ENDIAN: Final = 0x377F0683
_WORD: Final = 1 << 32


def _log_and_index_of(database_path: Path) -> tuple[Path, Path]:
    """Where SQLite has them: beside the database."""
    name = database_path.name
    return database_path.with_name(f"{name}-wal"), database_path.with_name(f"{name}-shm")


def mark_of_open(database_path: Path) -> Path:
    """A file that is there from when the database was opened until it was closed in order: so long it has a log."""
    return database_path.with_name(database_path.name + ".open")


def mark_open(database_path: Path) -> None:
    """Makes the mark, with the boot's id in it. The database and its log are there. Raises OSError.

    In one stroke: a death or a full disk leaves the mark that was there, which may be all that tells of a lost log.
    """
    mark = mark_of_open(database_path)
    unfinished = mark.with_name(mark.name + ".unfinished")
    try:
        unfinished.touch(mode=0o600)
        unfinished.write_text(current_boot_id())
        _give_moment(unfinished, database_path)
        unfinished.rename(mark)
    except OSError:
        with suppress(OSError):
            unfinished.unlink(missing_ok=True)
        raise


def note_moved(database_path: Path) -> None:
    """The log was moved into the database by who has it open: the mark has the moment of the database's last change.

    Raises OSError.
    """
    _give_moment(mark_of_open(database_path), database_path)


def _give_moment(mark: Path, database_path: Path) -> None:
    moved_ns = database_path.stat().st_mtime_ns
    os.utime(mark, ns=(moved_ns, moved_ns))


def check_log_is_all(database_path: Path) -> None:
    """Raises JournalDamaged for a database that nobody has closed and whose log, or the end of it, is gone.

    To be called before SQLite sees it, which takes what is there for all there was, and forgets how much that was.
    A death takes nothing of either file. A loss of power may, which is why what was opened in an earlier boot passes;
    and so does a log that somebody else has moved into the database since, with SQLite alone. (An empty one leaves no
    trace where it was moved to: it is taken for one that is gone.)
    """
    mark = mark_of_open(database_path)
    if not database_path.exists():
        return  # nor is there anything that a log could belong to
    try:
        boot_id = mark.read_bytes()
    except FileNotFoundError:
        return
    if boot_id != current_boot_id().encode():
        return
    log_path, index_path = _log_and_index_of(database_path)
    try:
        log_bytes = log_path.stat().st_size
    except FileNotFoundError:
        if database_path.stat().st_mtime_ns != mark.stat().st_mtime_ns:
            return  # SQLite has moved the log into it
        raise JournalDamaged("its log is gone", path=str(log_path)) from None
    try:
        with index_path.open("rb") as index:
            header = index.read(_INDEX_HEADER.size)
    except FileNotFoundError:
        raise JournalDamaged(
            "its log's index is gone: who knows how long it was", path=str(index_path)
        ) from None
    # (Empty, or not filled in: a death has cut off SQLite's first look.)
    if len(header) == _INDEX_HEADER.size:
        is_filled_in, page_bytes, frame_count = _read_index(header)
        # (A log without frames may be empty: it has no header either.)
        if is_filled_in and frame_count and log_bytes < _end_of_frames(frame_count, page_bytes):
            raise JournalDamaged("the end of its log is gone", path=str(log_path))


def _read_index(header: bytes) -> tuple[bool, int, int]:
    """Whether it is filled in, the bytes of a page, and the log's frames up to its last commit."""
    is_filled_in, page_bytes, frame_count = _INDEX_HEADER.unpack(header)
    return is_filled_in, 64 * KIB if page_bytes == 1 else page_bytes, frame_count  # 64 KiB stand as 1 there


def open_index(database_path: Path) -> int:
    """A descriptor of the log's index, to be closed once the database is, see check_log. Raises OSError."""
    return os.open(_log_and_index_of(database_path)[1], os.O_RDONLY | os.O_CLOEXEC)


def cut_off_refused(database_path: Path, index: int) -> None:
    """Takes from the log what is behind its last commit. The caller keeps all other writers out. Raises OSError.

    Where the index cannot grow, SQLite refuses a transaction that is in the log already, with its commit: after a
    death it would be there all the same, or, half written over, look like damage.
    """
    is_filled_in, page_bytes, frame_count = _read_index(os.pread(index, _INDEX_HEADER.size, 0))
    log_path = _log_and_index_of(database_path)[0]
    end_bytes = _end_of_frames(frame_count, page_bytes)
    if is_filled_in and log_path.stat().st_size > end_bytes:
        os.truncate(log_path, end_bytes)


def _end_of_frames(frame_count: int, page_bytes: int) -> int:
    """Where so many frames end in a log."""
    return _HEADER_BYTES + frame_count * (_FRAME_HEADER_BYTES + page_bytes)


def check_log(database_path: Path) -> int | None:
    """Raises JournalDamaged for a log with commits that SQLite does not see. The database must be open, and read.

    A transaction that a death cut short has no whole frame with a commit, and is none. Reads 24 bytes of each
    frame that SQLite does not see: none of a log that is whole. Returns a descriptor of the log's index, if there is
    one, to be closed once the database is: sooner, it would give up the locks that SQLite has on that file.
    """
    log_path, _ = _log_and_index_of(database_path)
    if not log_path.exists() or log_path.stat().st_size <= _HEADER_BYTES:
        return None
    with log_path.open("rb") as log, ExitStack() as on_failure:
        index = open_index(database_path)
        on_failure.callback(os.close, index)
        header = log.read(_HEADER_BYTES)
        if not _is_header(header):
            raise JournalDamaged("its log has no beginning", path=str(log_path))
        seen_count = int.from_bytes(os.pread(index, 4, _INDEX_FRAME_COUNT_OFFSET), sys.byteorder)
        if _has_commit_after(log, header, seen_count):
            raise JournalDamaged("its log breaks off in the middle", path=str(log_path))
        on_failure.pop_all()
    return index


def _has_commit_after(log: BinaryIO, header: bytes, frame_count: int) -> bool:
    page_bytes = int.from_bytes(header[8:12], "big")
    log.seek(_end_of_frames(frame_count, page_bytes))
    size_bytes = os.fstat(log.fileno()).st_size
    while log.tell() + _FRAME_HEADER_BYTES + page_bytes <= size_bytes:
        frame = log.read(_FRAME_HEADER_BYTES)
        # The database's size after the commit that the frame ends, else 0; the salts of the log, else the
        # frame is of an earlier log in the same file.
        if frame[4:8] != bytes(4) and frame[8:16] == header[16:24]:
            return True
        log.seek(page_bytes, os.SEEK_CUR)
    return False


def _is_header(header: bytes) -> bool:
    magic = int.from_bytes(header[:4], "big")
    if magic not in (_MAGIC_LITTLE_ENDIAN, _MAGIC_BIG_ENDIAN):
        return False
    words = struct.unpack("<6I" if magic == _MAGIC_LITTLE_ENDIAN else ">6I", header[:24])
    first = second = 0
    for position in range(0, len(words), 2):
        first = (first + words[position] + second) % _WORD
        second = (second + words[position + 1] + first) % _WORD
    return struct.pack(">2I", first, second) == header[24:]
