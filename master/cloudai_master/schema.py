"""The database: its tables, and in each column's comment what it means. The comments are THE reference.

Words: a `..._key` is a number that never leaves the database; an `..._id` is what the wire speaks of. Times
are nanoseconds since 1970-01-01 UTC. Nothing here is particular to SQLite but the hints named sqlite_...
"""

from __future__ import annotations

from typing import Final

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    Table,
    Text,
    text,
)

metadata: Final = MetaData(
    naming_convention={
        "ix": "ix_%(column_0_N_label)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "fk": "fk_%(table_name)s_%(column_0_N_name)s",
        "pk": "pk_%(table_name)s",
    }
)

SCHEMA_REVISION: Final = "0004"
"""The migration that makes this schema."""

# SQLite numbers rows by itself in an INTEGER PRIMARY KEY alone; elsewhere 64 bits are asked for.
_Key: Final = BigInteger().with_variant(Integer, "sqlite")

users: Final = Table(
    "users",
    metadata,
    Column("user_key", _Key, primary_key=True),
    Column("name", Text, nullable=False, unique=True, comment="The user's name, as tokens carry it."),
    Column(
        "revision",
        BigInteger,
        nullable=False,
        comment="Counts changes of the user's tasks and runs; what Watch of a user is about.",
    ),
    Column(
        "used_bytes",
        BigInteger,
        nullable=False,
        comment="Invariant: the sum of length_bytes over the user's rows in chunks.",
    ),
    Column("created_at_ns", BigInteger, nullable=False),
)

tasks: Final = Table(
    "tasks",
    metadata,
    Column("task_key", _Key, primary_key=True),
    Column("user_key", ForeignKey("users.user_key"), nullable=False),
    Column("name", Text, nullable=False),
    Column("created_at_ns", BigInteger, nullable=False),
    Column(
        "removed_at_ns",
        BigInteger,
        comment="NULL: it is there. A removed name may be made again, in a new row.",
    ),
    Column(
        "user_revision",
        BigInteger,
        nullable=False,
        comment="users.revision at which this row last changed: Watch of the user sends rows above a"
        " revision.",
    ),
    Index(
        "uq_tasks_present",
        "user_key",
        "name",
        unique=True,
        sqlite_where=text("removed_at_ns IS NULL"),
        postgresql_where=text("removed_at_ns IS NULL"),
    ),
    Index("ix_tasks_user_revision", "user_key", "user_revision"),
)

runs: Final = Table(
    "runs",
    metadata,
    Column("run_key", _Key, primary_key=True),
    Column(
        "user_key", ForeignKey("users.user_key"), nullable=False, comment="The task's user, repeated here."
    ),
    Column("task_key", ForeignKey("tasks.task_key"), nullable=False),
    Column("name", Text, nullable=False, comment="YYYY-MM-DD_HH-MM-SS, UTC."),
    Column(
        "task_id", Text, nullable=False, unique=True, comment="Unique over all runs, removed ones included."
    ),
    Column(
        "root_node_id",
        BigInteger,
        nullable=False,
        comment="The run's own directory; a row of nodes without an edge.",
    ),
    Column("created_at_ns", BigInteger, nullable=False),
    Column("sealed_at_ns", BigInteger, comment="NULL: the run is open. Set once, never changed."),
    Column("exit_status", Integer, comment="Of the task; NULL exactly while the run is open."),
    Column("removed_at_ns", BigInteger, comment="NULL: it is there."),
    Column(
        "revision",
        BigInteger,
        nullable=False,
        comment="The run's change counter. Invariant: the highest revision ever given to a row of changes.",
    ),
    Column(
        "forgotten_revision",
        BigInteger,
        nullable=False,
        comment="Rows of changes up to here may be gone; a watcher that knows less has to list again.",
    ),
    Column("user_revision", BigInteger, nullable=False, comment="As in tasks."),
    Index(
        "uq_runs_present",
        "task_key",
        "name",
        unique=True,
        sqlite_where=text("removed_at_ns IS NULL"),
        postgresql_where=text("removed_at_ns IS NULL"),
    ),
    Index("ix_runs_user_revision", "user_key", "user_revision"),
)

nodes: Final = Table(
    "nodes",
    metadata,
    Column("run_key", ForeignKey("runs.run_key"), primary_key=True),
    Column(
        "node_id",
        BigInteger,
        primary_key=True,
        autoincrement=False,
        comment="Chosen by whoever made the node, unique in its run alone: the id says nothing of other"
        " runs.",
    ),
    Column(
        "kind",
        Integer,
        nullable=False,
        comment="NodeKind of the wire: 1 file, 2 directory, 3 symlink. Never changes.",
    ),
    Column(
        "mode", Integer, nullable=False, comment="Permission bits, setuid, setgid, sticky: at most 07777."
    ),
    Column("uid", BigInteger, nullable=False),
    Column("gid", BigInteger, nullable=False),
    Column("mtime_ns", BigInteger, nullable=False),
    Column("ctime_ns", BigInteger, nullable=False),
    Column("atime_ns", BigInteger, nullable=False),
    Column(
        "size_bytes",
        BigInteger,
        nullable=False,
        comment="Of a file's content or a symlink's target; 0 of a directory.",
    ),
    Column(
        "generation",
        BigInteger,
        nullable=False,
        comment="Of a file's content: 1 at its first commit, one more with each that changes it; 0 of"
        " other kinds.",
    ),
    Column(
        "content_generation",
        BigInteger,
        nullable=False,
        comment="The generation at which the current manifest began. An append adds to the manifest, so all"
        " generations from here to `generation` are prefixes of it.",
    ),
    Column("chunk_count", Integer, nullable=False, comment="Of the manifest at `generation`."),
    Column("digest", LargeBinary, nullable=False, comment="Of a file of exactly one chunk; empty otherwise."),
    Column("symlink_target", LargeBinary, nullable=False, comment="Empty unless a symlink."),
    Column(
        "link_count",
        Integer,
        nullable=False,
        comment="Invariant: how many rows of edges name the node; 1 for the root. 0: removed, and kept for"
        " the trash period, so that who has it open reads on.",
    ),
    Column("revision", BigInteger, nullable=False, comment="Of the run, when this row last changed."),
    Column(
        "xattrs",
        LargeBinary,
        comment="All extended attributes of a file or directory, a serialised cloudai.storage.v1.Xattrs; NULL:"
        " none.",
    ),
    sqlite_with_rowid=False,
)

edges: Final = Table(
    "edges",
    metadata,
    Column("run_key", ForeignKey("runs.run_key"), primary_key=True),
    Column(
        "parent_node_id",
        BigInteger,
        primary_key=True,
        autoincrement=False,
        comment="A directory of the same run.",
    ),
    Column(
        "name", LargeBinary, primary_key=True, comment="1 to 255 bytes without '/' and NUL, not '.' or '..'."
    ),
    Column(
        "node_id",
        BigInteger,
        nullable=False,
        comment="What the name stands for. A directory has one edge at most.",
    ),
    Index("ix_edges_node", "run_key", "node_id"),
    sqlite_with_rowid=False,
)

manifest_chunks: Final = Table(
    "manifest_chunks",
    metadata,
    Column("run_key", ForeignKey("runs.run_key"), primary_key=True),
    Column("node_id", BigInteger, primary_key=True, autoincrement=False),
    Column(
        "content_generation",
        BigInteger,
        primary_key=True,
        autoincrement=False,
        comment="Which manifest of the node: the generation at which it began.",
    ),
    Column("chunk_index", Integer, primary_key=True, autoincrement=False, comment="0-based, without gaps."),
    Column("length_bytes", Integer, nullable=False),
    Column("digest", LargeBinary, nullable=False, comment="Names a row of chunks of the run's user."),
    Column(
        "generation",
        BigInteger,
        nullable=False,
        comment="The generation that added this chunk. The manifest of generation g is the rows with at"
        " most g.",
    ),
    sqlite_with_rowid=False,
)

superseded_contents: Final = Table(
    "superseded_contents",
    metadata,
    Column("run_key", ForeignKey("runs.run_key"), primary_key=True),
    Column("node_id", BigInteger, primary_key=True, autoincrement=False),
    Column(
        "content_generation",
        BigInteger,
        primary_key=True,
        autoincrement=False,
        comment="As in manifest_chunks.",
    ),
    Column(
        "last_generation",
        BigInteger,
        nullable=False,
        comment="The last generation that this manifest was the content of.",
    ),
    Column("size_bytes", BigInteger, nullable=False, comment="At last_generation."),
    Column(
        "superseded_at_ns",
        BigInteger,
        nullable=False,
        comment="When the next content came: the trash period starts here.",
    ),
    sqlite_with_rowid=False,
)

chunks: Final = Table(
    "chunks",
    metadata,
    Column("user_key", ForeignKey("users.user_key"), primary_key=True, comment="Chunks belong to a user."),
    Column("digest", LargeBinary, primary_key=True, comment="32 bytes, BLAKE3."),
    Column(
        "length_bytes",
        Integer,
        nullable=False,
        comment="1 byte to 4 MiB. Invariant: a row exists only once the bytes are on the chunk store's disk.",
    ),
    Column(
        "stored_at_ns",
        BigInteger,
        nullable=False,
        comment="When it was last sent: the grace period of an orphan.",
    ),
    sqlite_with_rowid=False,
)

chunk_blocks: Final = Table(
    "chunk_blocks",
    metadata,
    Column(
        "user_key",
        ForeignKey("users.user_key"),
        primary_key=True,
        comment="With digest: names a row of chunks. Invariant: this row is gone when that is.",
    ),
    Column("digest", LargeBinary, primary_key=True, comment="Of the chunk, which is of more than one block."),
    Column(
        "block_digests",
        LargeBinary,
        nullable=False,
        comment="32 bytes, BLAKE3, for each 64 KiB of the chunk, in order: 2 KiB of a full one. Made from bytes"
        " that were compared with the chunk's digest. A chunk stored by an earlier version has no row until"
        " it is asked for.",
    ),
    # Rows of 2 KiB: in a table without row ids each would spill onto a page of its own.
)

scrub: Final = Table(
    "scrub",
    metadata,
    Column(
        "scrub_key", Integer, primary_key=True, autoincrement=False, comment="1: there is one row at most."
    ),
    Column(
        "started_at_ns",
        BigInteger,
        nullable=False,
        comment="When the pass over all chunks began that is under way, or was the last. When the row was made:"
        " then, so that the first pass is due an interval later.",
    ),
    Column("finished_at_ns", BigInteger, comment="Of that pass; NULL: it is under way."),
    Column(
        "user_key",
        BigInteger,
        nullable=False,
        comment="With digest: the last chunk that was looked at; a pass goes through chunks in order of its key.",
    ),
    Column("digest", LargeBinary, nullable=False),
)

changes: Final = Table(
    "changes",
    metadata,
    Column("run_key", ForeignKey("runs.run_key"), primary_key=True),
    Column(
        "revision",
        BigInteger,
        primary_key=True,
        autoincrement=False,
        comment="Without gaps from 1, until forgotten.",
    ),
    Column(
        "change",
        LargeBinary,
        nullable=False,
        comment="A serialised cloudai.storage.v1.Change: what was true then, not what is true now. Replaying"
        " the rows in order never names a child before its parent.",
    ),
    Column("made_at_ns", BigInteger, nullable=False),
    Index("ix_changes_made_at_ns", "made_at_ns"),
    sqlite_with_rowid=False,
)

requests: Final = Table(
    "requests",
    metadata,
    Column("user_name", Text, primary_key=True, comment="The caller: one user's ids never meet another's."),
    Column("request_id", LargeBinary, primary_key=True, comment="16 random bytes, chosen by the client."),
    Column(
        "fingerprint",
        LargeBinary,
        nullable=False,
        comment="BLAKE3 of the call's name and the serialised request.",
    ),
    Column(
        "response",
        LargeBinary,
        nullable=False,
        comment="The serialised answer, given again when it is asked for again.",
    ),
    Column("answered_at_ns", BigInteger, nullable=False, comment="Forgotten a day later."),
    Index("ix_requests_answered_at_ns", "answered_at_ns"),
    sqlite_with_rowid=False,
)

tokens: Final = Table(
    "tokens",
    metadata,
    Column(
        "token_id",
        Text,
        primary_key=True,
        comment="The token's `jti` claim. The token itself is stored nowhere.",
    ),
    Column("user_name", Text, nullable=False),
    Column("admin", Boolean, nullable=False, comment="Sees and changes what is any user's."),
    Column("task_id", Text, nullable=False, comment="Empty, or the one run that the token is good for."),
    Column("created_at_ns", BigInteger, nullable=False),
    Column("expires_at_ns", BigInteger, nullable=False),
    Column("revoked_at_ns", BigInteger, comment="NULL: not revoked."),
)
