"""Limits that follow from each other, written out by hand."""

from __future__ import annotations

from cloudai_model import limits
from cloudai_proto.storage.v1 import names_pb2 as names
from cloudai_proto.storage.v1 import types_pb2 as types


def test_chunk_is_4_mib_and_a_file_1_tib() -> None:
    assert limits.CHUNK_BYTES_MAX == 4_194_304
    assert limits.FILE_BYTES_MAX == 1_099_511_627_776


def test_node_ids_fit_into_a_signed_64_bit_number() -> None:
    assert limits.NODE_ID_MAX == 9_223_372_036_854_775_807
    assert limits.NODE_ID_MIN == 4_294_967_296


def test_longest_manifest_fits_into_one_commit_message() -> None:
    chunk = types.Chunk(length_bytes=limits.CHUNK_BYTES_MAX, digest=b"\xff" * limits.DIGEST_BYTES)
    per_chunk_bytes = types.Manifest(chunks=[chunk]).ByteSize()

    assert limits.FILE_CHUNKS_MAX * per_chunk_bytes < limits.MESSAGE_BYTES_MAX


def test_fullest_batch_of_small_commits_fits_into_one_message() -> None:
    commit = names.NodeCommit(
        node_id=limits.NODE_ID_MAX,
        kind=types.NODE_KIND_FILE,
        path=b"p" * limits.PATH_BYTES_MAX,
        place=True,
        attributes=types.Attributes(
            mode=0o7777, uid=2**32 - 1, gid=2**32 - 1, mtime_ns=-(2**63), ctime_ns=-(2**63), atime_ns=-(2**63)
        ),
        digest=b"\xff" * limits.DIGEST_BYTES,
        size_bytes=limits.INLINE_BYTES_MAX,
    )
    batch = names.CommitNodesRequest(commits=[commit] * limits.COMMIT_NODES_MAX)

    assert batch.ByteSize() + limits.COMMIT_INLINE_BYTES_MAX < limits.MESSAGE_BYTES_MAX
