"""The database file of a store: how it is opened, its tables, its checksums and what its errors are called.

One process has the file at a time. A committed transaction survives the death of the process at any
moment; if the whole machine loses power, the last ones may be gone, and the file is still sound.
"""

from __future__ import annotations

import functools
import secrets
import sqlite3
import zlib
from pathlib import Path

from sapo_jax.swarm.store.clock import Anchor
from sapo_jax.swarm.wire.signed_content import Envelope

SCHEMA_VERSION = 1
_MAX_IDLE_LOG_BYTES = 16 * 2**20  # what the write-ahead log may keep of the disk after a burst
_APPLICATION_ID = 0x5341504F  # "SAPO": tells our files from other programs' databases

# In a damaged file an error's text may be no text any more, and then Python raises the second one instead.
DATABASE_ERRORS = (sqlite3.Error, UnicodeDecodeError)

# Small columns first: what the index needs is then read without touching the payloads.
_SCHEMA = """
CREATE TABLE store (
    epoch TEXT NOT NULL, store_s REAL NOT NULL, wall_s REAL NOT NULL, monotonic_s REAL NOT NULL, boot TEXT NOT NULL
);
CREATE TABLE groups (
    seq INTEGER PRIMARY KEY AUTOINCREMENT,
    group_id BLOB, publisher TEXT, dataset TEXT, size_bytes INTEGER, hops INTEGER, born_s REAL, expires_s REAL,
    body_check INTEGER, head_check INTEGER, state TEXT, payload BLOB, public_key BLOB, signature BLOB
);
CREATE TABLE seen (group_id BLOB PRIMARY KEY, forget_s REAL NOT NULL) WITHOUT ROWID;
CREATE INDEX seen_by_forget ON seen (forget_s);
CREATE TABLE sequences (node_id TEXT PRIMARY KEY, last INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE outbox (
    seq INTEGER PRIMARY KEY AUTOINCREMENT,
    node_id TEXT, round INTEGER, task TEXT, repeat INTEGER, group_id BLOB, sequence INTEGER, size_bytes INTEGER,
    born_s REAL, expires_s REAL, forget_s REAL, body_check INTEGER, head_check INTEGER,
    payload BLOB, public_key BLOB, signature BLOB,
    UNIQUE (node_id, round, task, repeat)
);
CREATE INDEX outbox_by_forget ON outbox (forget_s);
CREATE TABLE acknowledgements (group_id BLOB, peer_id TEXT, PRIMARY KEY (group_id, peer_id)) WITHOUT ROWID;
"""


class StoreError(RuntimeError):
    """The store cannot do what was asked; the message names its file. What it holds is unchanged."""


class StoreFullError(StoreError):
    """There is no room on the disk, or the file has reached its limit; nothing that was stored is lost."""


class StoreDamagedError(StoreError):
    """The file is damaged where it was read; groups whose own rows are damaged are left out without this."""


def open_database(path: Path | None, *, anchor: Anchor, max_file_bytes: int | None) -> sqlite3.Connection:
    """Returns a connection that is alone on its file, which is made if it is not there.

    Args:
        path: the file; None for a database in memory.
        anchor: the moment at which a new store begins.
        max_file_bytes: how large the file may become.

    Raises:
        StoreError: the file is no store, one of another schema version, damaged, in use or not accessible.
    """
    name = name_of(path)
    try:
        # One connection for all threads: the store's lock is around every use of it.
        database = sqlite3.connect(
            ":memory:" if path is None else path, timeout=0.0, isolation_level=None, check_same_thread=False
        )
    except sqlite3.Error as error:
        raise store_error(name, error) from error
    try:
        # A damaged text must be found by its checksum, not end the reading of all others.
        database.text_factory = functools.partial(str, encoding="utf-8", errors="replace")
        # Alone on the file, SQLite needs no shared memory beside it and takes fewer locks.
        database.execute("PRAGMA locking_mode = EXCLUSIVE")
        database.execute("PRAGMA trusted_schema = OFF")
        database.execute("PRAGMA cell_size_check = ON")
        is_new = _is_new(database, name)
        database.execute("PRAGMA journal_mode = WAL")
        database.execute("PRAGMA synchronous = NORMAL")
        database.execute("PRAGMA temp_store = MEMORY")
        database.execute(f"PRAGMA journal_size_limit = {_MAX_IDLE_LOG_BYTES}")
        if max_file_bytes is not None:
            page_bytes = int(database.execute("PRAGMA page_size").fetchone()[0])
            database.execute(f"PRAGMA max_page_count = {max(1, max_file_bytes // page_bytes)}")
        database.execute("BEGIN IMMEDIATE")  # takes the lock now, so that a second process fails at once
        if is_new:
            _create(database, anchor)
        database.execute("COMMIT")
    except DATABASE_ERRORS as error:
        database.close()
        raise store_error(name, error) from error
    except StoreError:
        database.close()
        raise
    return database


def read_store_row(database: sqlite3.Connection, name: str) -> tuple[str, Anchor]:
    """Returns the epoch and the last anchor; raises StoreError if the file does not hold them."""
    row = database.execute("SELECT epoch, store_s, wall_s, monotonic_s, boot FROM store").fetchone()
    if row is None or [type(value) for value in row] != [str, float, float, float, str]:
        raise StoreError(f"{name}: is damaged (no valid row in table store); {_REMEDY}")
    return row[0], Anchor(store_s=row[1], wall_s=row[2], monotonic_s=row[3], boot=row[4])


def save_anchor(database: sqlite3.Connection, anchor: Anchor) -> None:
    """Keeps a moment in the file, inside the running transaction."""
    values = (anchor.store_s, anchor.wall_s, anchor.monotonic_s, anchor.boot)
    database.execute("UPDATE store SET store_s = ?, wall_s = ?, monotonic_s = ?, boot = ?", values)


def head_check(*values: object) -> int:
    """Returns the checksum of a row's small columns; whatever types a damaged row shows."""
    return zlib.crc32(repr(values).encode(errors="replace"))


def body_check(payload: object, public_key: object, signature: object) -> int | None:
    """Returns the checksum of an envelope's columns, None if one of them is no bytes."""
    if not (isinstance(payload, bytes) and isinstance(public_key, bytes) and isinstance(signature, bytes)):
        return None
    return zlib.crc32(signature, zlib.crc32(public_key, zlib.crc32(payload)))


def envelope_of(table: str, seq: int, database: sqlite3.Connection) -> Envelope | None:
    """Returns the envelope in a row of `groups` or `outbox`; None if the row is gone or damaged."""
    columns = "body_check, payload, public_key, signature"
    try:
        row = database.execute(f"SELECT {columns} FROM {table} WHERE seq = ?", (seq,)).fetchone()
    except DATABASE_ERRORS as error:
        if primary_code(error) == sqlite3.SQLITE_CORRUPT:
            return None
        raise
    if row is None or row[0] is None or row[0] != body_check(*row[1:]):
        return None
    return Envelope(payload=row[1], public_key=row[2], signature=row[3])


def store_error(name: str, error: sqlite3.Error | UnicodeDecodeError) -> StoreError:
    """Returns what the store raises for an error of SQLite."""
    code = primary_code(error)
    if code == sqlite3.SQLITE_FULL:
        return StoreFullError(f"{name}: no room is left on the disk or below the file's limit")
    if code == sqlite3.SQLITE_NOTADB:
        return StoreError(f"{name}: is not a store; name another file or move it away")
    if code == sqlite3.SQLITE_CORRUPT:
        return StoreDamagedError(f"{name}: is damaged ({error}); {_REMEDY}")
    if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
        return StoreError(f"{name}: is in use by another process")
    return StoreError(f"{name}: {error}")


def primary_code(error: sqlite3.Error | UnicodeDecodeError) -> int:
    """Returns SQLite's code of an error without its details; -1 for errors of Python's module."""
    if isinstance(error, UnicodeDecodeError):
        return sqlite3.SQLITE_CORRUPT
    code = getattr(error, "sqlite_errorcode", None)
    return -1 if code is None else code & 0xFF


def name_of(path: Path | None) -> str:
    """Returns how errors call a store."""
    return "store in memory" if path is None else f"store {path}"


_REMEDY = "move it away to start an empty one, which fills again from peers"


def _is_new(database: sqlite3.Connection, name: str) -> bool:
    """Returns whether the file is still empty; raises StoreError if it is somebody else's or of another version."""
    application_id, version, tables = (
        database.execute(query).fetchone()[0]
        for query in ("PRAGMA application_id", "PRAGMA user_version", "SELECT COUNT(*) FROM sqlite_master")
    )
    if (application_id, version, tables) == (0, 0, 0):
        return True
    if application_id != _APPLICATION_ID:
        raise StoreError(f"{name}: is another program's database; name another file or move it away")
    if version != SCHEMA_VERSION:
        raise StoreError(
            f"{name}: has schema version {version}, this program reads {SCHEMA_VERSION}; "
            "use the program that wrote it, or move it away to start an empty one"
        )
    return False


def _create(database: sqlite3.Connection, anchor: Anchor) -> None:
    for statement in _SCHEMA.split(";"):
        database.execute(statement)
    # Not from a seeded generator: a file made anew by a restarted run must not repeat the epoch.
    values = (secrets.token_hex(16), anchor.store_s, anchor.wall_s, anchor.monotonic_s, anchor.boot)
    database.execute("INSERT INTO store VALUES (?, ?, ?, ?, ?)", values)
    database.execute(f"PRAGMA application_id = {_APPLICATION_ID}")
    database.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
