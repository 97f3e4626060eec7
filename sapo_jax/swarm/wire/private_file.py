"""Small files that nobody but their owner may read: written whole with mode 0600, refused when others can read them."""

from __future__ import annotations

import contextlib
import os
import stat
from pathlib import Path

MAX_BYTES = 64 * 1024


class PrivateFileError(ValueError):
    """A private file that cannot be read, is open to others, or cannot be written; the text names the file."""


def read_private(path: Path, what: str) -> bytes:
    """Returns the content of a private file.

    Args:
        path: the file.
        what: how messages call it, such as "certificate file".

    Raises:
        FileNotFoundError: there is no such file.
        PrivateFileError: it is no regular file, others may read it, it is unreadable or larger than any of ours.
    """
    try:
        # O_NONBLOCK: opening a pipe must not hang before its kind is known.
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise PrivateFileError(f"{what} {path}: cannot be read ({error.strerror})") from error
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise PrivateFileError(f"{what} {path}: is no regular file")
        mode = stat.S_IMODE(status.st_mode)
        if mode & 0o077:
            raise PrivateFileError(f"{what} {path}: has mode {mode:04o}, others may read it; run chmod 600 {path}")
        if status.st_size > MAX_BYTES:
            raise PrivateFileError(f"{what} {path}: has {status.st_size} bytes, at most {MAX_BYTES} make sense")
        with os.fdopen(os.dup(descriptor), "rb") as file:
            return file.read(MAX_BYTES + 1)
    finally:
        os.close(descriptor)


def read_or_create_private(path: Path, content: bytes, what: str) -> bytes:
    """Returns what a private file holds; if there is none, writes `content` into a new one and returns that.

    Reading comes first: who has its files starts on a full disk, too.

    Raises:
        PrivateFileError: see `read_private` and `create_private`.
    """
    with contextlib.suppress(FileNotFoundError):
        return read_private(path, what)
    try:
        with contextlib.suppress(FileExistsError):  # another process was faster: its content is the one
            create_private(path, content, what)
            return content
        return read_private(path, what)
    except FileNotFoundError as error:
        raise PrivateFileError(f"{what} {path}: vanished while it was read, or is a link to nothing") from error


def create_private(path: Path, content: bytes, what: str) -> None:
    """Writes a new file with mode 0600 that appears complete or not at all, and never replaces one.

    Raises:
        FileExistsError: there is one.
        PrivateFileError: it cannot be written.
    """
    part = path.with_name(f".{path.name}.{os.getpid()}.{os.urandom(4).hex()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:  # FileExistsError too: something above it is no directory
        raise PrivateFileError(f"{what} {path}: cannot be written ({error.strerror})") from error
    try:
        descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(descriptor)
            os.link(part, path)  # unlike a rename it never replaces
        finally:
            part.unlink()
        _sync_directory(path.parent)  # else a power cut may take the new name back
    except FileExistsError:
        raise
    except OSError as error:
        raise PrivateFileError(f"{what} {path}: cannot be written ({error.strerror})") from error


def _sync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
