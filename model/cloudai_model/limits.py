"""Every limit of the wire and of a run, each with its reason.

Both ends refuse what is over a limit; a client that keeps them never meets the refusal.
"""

from __future__ import annotations

from typing import Final

KIB: Final = 1024
MIB: Final = 1024 * KIB

# 4 MiB: 0.5-0.85 GB/s over gRPC with messages of 1-8 MiB, four in flight; larger ones cost latency
# for a reader that wants 4 KiB and memory for every transfer in flight.
CHUNK_BYTES_MAX: Final = 4 * MIB

# What a chunk is divided into so that a range of it can be verified: 64 KiB cost 10 microseconds to hash and
# hardly more to send than 4 KiB, and the digests of a full chunk's blocks are 2 KiB.
BLOCK_BYTES: Final = 64 * KIB

# What one ReadFiles call may ask for, and where its answer may end.
READ_FILES_MAX: Final = 256
READ_FILES_BYTES_MAX: Final = 4 * MIB

# A file of at most this size travels inside its commit instead of as a chunk of its own: one call
# for a batch of small files.
INLINE_BYTES_MAX: Final = 64 * KIB

# What one CommitNodes call may hold: enough that the call's own cost vanishes, small enough that the
# transaction does not keep other writers waiting.
COMMIT_NODES_MAX: Final = 1000
COMMIT_INLINE_BYTES_MAX: Final = 4 * MIB

# A chunk and its envelope, or a full page of a tree, fit with room to spare.
MESSAGE_BYTES_MAX: Final = 16 * MIB

FIND_MISSING_DIGESTS_MAX: Final = 10_000
TREE_PAGE_EDGES_MAX: Final = 20_000
MANIFEST_PAGE_CHUNKS_MAX: Final = 50_000

# 1 TiB of full chunks: the manifest of such a file still fits into one commit.
FILE_CHUNKS_MAX: Final = 256 * KIB
FILE_BYTES_MAX: Final = FILE_CHUNKS_MAX * CHUNK_BYTES_MAX

# NAME_MAX of Linux. Its PATH_MAX bounds what a program names at once, below the directory that it works in: in a run
# there is room for both. A tree deeper than this is a program's loop.
NAME_BYTES_MAX: Final = 255
PATH_BYTES_MAX: Final = 8191
PATH_DEPTH_MAX: Final = 256
SYMLINK_TARGET_BYTES_MAX: Final = 4095

# Names and values of one node's extended attributes together. They travel with the node, in listings and news, and
# are in the memory of every mount that has looked into the run. 4 KiB is what ext4 keeps, so programs manage with it.
XATTR_BYTES_MAX: Final = 4 * KIB

# Node ids are random positive 63-bit numbers: SQLite's INTEGER and the kernel's inode numbers both
# hold them. Ids below this bound are left to the tree's managed levels (root, users, tasks).
NODE_ID_MIN: Final = 1 << 32
NODE_ID_MAX: Final = (1 << 63) - 1

# Of a time in nanoseconds: the years 1677 to 2262, as the wire, the journal and the database keep it.
TIME_NS_MIN: Final = -(1 << 63)
TIME_NS_MAX: Final = (1 << 63) - 1

REQUEST_ID_BYTES: Final = 16
DIGEST_BYTES: Final = 32

assert COMMIT_INLINE_BYTES_MAX + COMMIT_NODES_MAX * 9 * KIB < MESSAGE_BYTES_MAX
assert CHUNK_BYTES_MAX + 64 * KIB < MESSAGE_BYTES_MAX
assert CHUNK_BYTES_MAX % BLOCK_BYTES == 0
assert READ_FILES_BYTES_MAX + CHUNK_BYTES_MAX < MESSAGE_BYTES_MAX
# An edge of a tree page is at most a name, a symlink's target or extended attributes and about 150 bytes; pages are cut
# by bytes as well (TREE_PAGE_BYTES_MAX).
TREE_PAGE_BYTES_MAX: Final = 4 * MIB
assert MANIFEST_PAGE_CHUNKS_MAX * (DIGEST_BYTES + 16) < MESSAGE_BYTES_MAX
assert FILE_CHUNKS_MAX * (DIGEST_BYTES + 8) + COMMIT_INLINE_BYTES_MAX < MESSAGE_BYTES_MAX
assert INLINE_BYTES_MAX <= CHUNK_BYTES_MAX
# The kernel's own bounds of a value and of a list of names.
assert XATTR_BYTES_MAX <= 64 * KIB
