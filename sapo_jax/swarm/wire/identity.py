"""Who a node is: an Ed25519 key in a file, the id that follows from it, and signatures.

A node id is the hash of the public key, so nobody can claim another's; the alias is two words made
from the id, for people. What is signed is a label and the hash of the content: the label keeps a
signature on a group from ever passing as one on a peer record.
"""

from __future__ import annotations

import base64
import functools
import hashlib
from pathlib import Path

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from sapo_jax.swarm.wire.alias_words import ADJECTIVES, ANIMALS
from sapo_jax.swarm.wire.private_file import PrivateFileError, create_private, read_private

GROUP_LABEL = b"sapo.exchange.v1.RolloutGroup\x00"
PEER_LABEL = b"sapo.exchange.v1.PeerRecord\x00"

PUBLIC_KEY_BYTES = 32
NODE_ID_CHARS = 52
SIGNATURE_BYTES = 64

# A key file is this line and the 32 secret bytes, so that a file of another kind is never read as a key.
_MAGIC = b"sapo_jax ed25519 key 1\n"
_SECRET_BYTES = 32


class IdentityError(ValueError):
    """A key file that cannot be used; the message names the file and what to do."""


class Identity:
    """Owns one node's secret key; the key itself never leaves this object."""

    def __init__(self, key: Ed25519PrivateKey) -> None:
        """Takes over `key`; use `load_or_create` or `generate`."""
        self._key = key
        self.public_key = key.public_key().public_bytes_raw()
        self.node_id = node_id_of(self.public_key)
        self.alias = alias_of(self.node_id)

    def __repr__(self) -> str:
        return f"Identity({self.node_id!r})"

    @classmethod
    def generate(cls) -> Identity:
        """Returns a new identity that is kept nowhere."""
        return cls(Ed25519PrivateKey.generate())

    @classmethod
    def load_or_create(cls, path: Path) -> Identity:
        """Returns the identity whose secret key is in `path`, making the file if there is none.

        A new file appears complete, with mode 0600, or not at all. A file that is there is never
        replaced, whatever it holds: to others a new key is a new node, so that is its owner's
        decision.

        Raises:
            IdentityError: the file is unreadable, open to others, no regular file, or no key; or a new one
                cannot be written.
        """
        try:
            return cls(_read_key(path))
        except FileNotFoundError:
            identity = cls.generate()
        try:
            create_private(path, _MAGIC + identity._key.private_bytes_raw(), "key file")
        except PrivateFileError as error:
            raise IdentityError(str(error)) from error
        except FileExistsError:  # another process was faster: its key is the one
            try:
                return cls(_read_key(path))
            except FileNotFoundError:
                raise IdentityError(f"key file {path}: is a link to nothing") from None
        return identity

    def sign(self, label: bytes, content: bytes) -> bytes:
        """Returns the Ed25519 signature, 64 bytes, over `label` and SHA-256(`content`)."""
        return self._key.sign(label + hashlib.sha256(content).digest())


@functools.lru_cache(maxsize=1024)
def node_id_of(public_key: bytes) -> str:
    """Returns the node id of a key: 52 characters, lower-case base32 of its SHA-256 without padding."""
    return base64.b32encode(hashlib.sha256(public_key).digest()).decode().rstrip("=").lower()


def alias_of(node_id: str) -> str:
    """Returns two words for a node id, such as "calm-otter"; for people only, many ids share one."""
    digest = hashlib.sha256(node_id.encode()).digest()
    return f"{ADJECTIVES[digest[0] % len(ADJECTIVES)]}-{ANIMALS[digest[1] % len(ANIMALS)]}"


def short_name(node_id: str) -> str:
    """Returns what to call a node in metrics and tables: its alias, or the id itself within one process."""
    return alias_of(node_id) if len(node_id) == NODE_ID_CHARS else node_id


def is_signed(public_key: bytes, signature: bytes, label: bytes, content: bytes) -> bool:
    """Returns whether `signature` over `label` and SHA-256(`content`) was made with the key; never raises."""
    if len(public_key) != PUBLIC_KEY_BYTES or len(signature) != SIGNATURE_BYTES:
        return False
    try:
        Ed25519PublicKey.from_public_bytes(public_key).verify(signature, label + hashlib.sha256(content).digest())
    except (InvalidSignature, ValueError):
        return False
    return True


def _read_key(path: Path) -> Ed25519PrivateKey:
    """Raises FileNotFoundError if there is no file, IdentityError if it is no key file of ours."""
    try:
        content = read_private(path, "key file")
    except PrivateFileError as error:
        raise IdentityError(str(error)) from error
    if not content.startswith(_MAGIC[: len(content)]):
        raise IdentityError(f"key file {path}: is no key file of sapo_jax; name another file or move it away")
    expected = len(_MAGIC) + _SECRET_BYTES
    if len(content) != expected:
        raise IdentityError(
            f"key file {path}: has {len(content)} bytes, a key file has {expected}; restore it from a copy, "
            "or move it away to start as a new node"
        )
    return Ed25519PrivateKey.from_private_bytes(content[len(_MAGIC) :])
