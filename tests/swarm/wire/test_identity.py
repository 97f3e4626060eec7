from __future__ import annotations

import errno
import os
import stat
import subprocess
import sys

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from sapo_jax.swarm.wire.alias_words import ADJECTIVES, ANIMALS
from sapo_jax.swarm.wire.identity import (
    GROUP_LABEL,
    PEER_LABEL,
    Identity,
    IdentityError,
    alias_of,
    is_signed,
    node_id_of,
)

# RFC 8032, 7.1, test 1: secret key and its public key.
SECRET = bytes.fromhex("9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60")
PUBLIC = bytes.fromhex("d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a")


@pytest.fixture
def identity():
    return Identity(Ed25519PrivateKey.from_private_bytes(SECRET))


def test_the_id_of_a_known_key_never_changes(identity):
    assert identity.public_key == PUBLIC
    # python -c "import base64, hashlib; print(base64.b32encode(hashlib.sha256(PUBLIC).digest()).lower().strip(b'='))"
    assert identity.node_id == "eh7ddx5bksrgcytl7bkai36se4nxx3klnk7elksyq57pi74xeg4q"
    assert identity.alias == alias_of(identity.node_id) == "steady-jackal"


def test_a_known_signature_never_changes(identity):
    assert identity.sign(GROUP_LABEL, b"payload").hex() == (
        "6824291de3cb2c1dc9ade9cc54974f923b2f9f437ac4e1aff61f802611a1c640"
        "908a0b7b522a68e17ef97a2bfd57916d88ab06a168e5e4afdddc0193a8912509"
    )


def test_a_signature_fits_its_key_label_and_content_only(identity):
    signature = identity.sign(GROUP_LABEL, b"payload")
    assert is_signed(PUBLIC, signature, GROUP_LABEL, b"payload")
    assert not is_signed(PUBLIC, signature, GROUP_LABEL, b"Payload")
    assert not is_signed(PUBLIC, signature, PEER_LABEL, b"payload")
    assert not is_signed(Identity.generate().public_key, signature, GROUP_LABEL, b"payload")
    assert not is_signed(PUBLIC, signature[:-1] + bytes([signature[-1] ^ 1]), GROUP_LABEL, b"payload")


@pytest.mark.parametrize("public_key", [b"", bytes(31), bytes(33), bytes(32), b"\xff" * 32])
@pytest.mark.parametrize("signature", [b"", bytes(63), bytes(65), bytes(64), b"\xff" * 64])
def test_odd_keys_and_signatures_are_refused_without_an_error(public_key, signature):
    assert not is_signed(public_key, signature, GROUP_LABEL, b"payload")


def test_labels_do_not_begin_with_each_other():
    assert not GROUP_LABEL.startswith(PEER_LABEL) and not PEER_LABEL.startswith(GROUP_LABEL)


def test_aliases_use_every_word():
    assert len(set(ADJECTIVES)) == len(ADJECTIVES) == len(set(ANIMALS)) == len(ANIMALS) == 64
    aliases = {alias_of(node_id_of(bytes([i // 256, i % 256]) * 16)) for i in range(3000)}
    assert {alias.split("-")[0] for alias in aliases} == set(ADJECTIVES)
    assert {alias.split("-")[1] for alias in aliases} == set(ANIMALS)


def test_a_key_file_is_made_once_with_mode_0600_and_found_again(tmp_path):
    path = tmp_path / "run" / "node.key"
    made = Identity.load_or_create(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    content, changed_ns = path.read_bytes(), path.stat().st_mtime_ns
    assert Identity.load_or_create(path).node_id == made.node_id
    assert (path.read_bytes(), path.stat().st_mtime_ns) == (content, changed_ns)
    assert os.listdir(path.parent) == ["node.key"]  # nothing half-written stays


def test_the_umask_cannot_open_a_key_file_to_others(tmp_path):
    script = f"""
import os
from pathlib import Path
from sapo_jax.swarm.wire.identity import Identity
os.umask(0)
Identity.load_or_create(Path({str(tmp_path / "node.key")!r}))
"""
    subprocess.run([sys.executable, "-c", script], check=True)
    assert stat.S_IMODE((tmp_path / "node.key").stat().st_mode) == 0o600


def test_two_processes_that_start_together_get_one_identity(tmp_path):
    script = f"""
from pathlib import Path
from sapo_jax.swarm.wire.identity import Identity
print(Identity.load_or_create(Path({str(tmp_path / "node.key")!r})).node_id)
"""
    processes = [
        subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True, cwd=os.getcwd())
        for _ in range(4)
    ]
    node_ids = {process.communicate()[0] for process in processes}
    assert len(node_ids) == 1 and all(process.returncode == 0 for process in processes)


def test_a_file_that_appears_while_a_key_is_made_is_kept(tmp_path, monkeypatch):
    path = tmp_path / "node.key"
    other = Identity.load_or_create(tmp_path / "other.key")
    generate = Identity.generate

    def generate_late():
        os.link(tmp_path / "other.key", path)  # another process is faster
        return generate()

    monkeypatch.setattr(Identity, "generate", generate_late)
    assert Identity.load_or_create(path).node_id == other.node_id


def _write(content: bytes, mode: int = 0o600):
    def make(path):
        path.write_bytes(content)
        path.chmod(mode)

    return make


@pytest.mark.parametrize(
    ("make", "complaint"),
    [
        (_write(b""), "has 0 bytes, a key file has 55"),
        (_write(b"sapo_jax ed25519 key 1\n" + bytes(31)), "has 54 bytes, a key file has 55"),
        (_write(b"sapo_jax ed25519 key 1\n" + bytes(33)), "has 56 bytes, a key file has 55"),
        (_write(b"-----BEGIN OPENSSH PRIVATE KEY-----\n" + bytes(19)), "is no key file of sapo_jax"),
        (_write(bytes(55)), "is no key file of sapo_jax"),
        (_write(bytes(100_000)), "has 100000 bytes, at most"),
        (_write(b"sapo_jax ed25519 key 1\n" + bytes(32), 0o640), "has mode 0640, others may read it"),
        (_write(b"sapo_jax ed25519 key 1\n" + bytes(32), 0o604), "has mode 0604, others may read it"),
        (lambda path: path.mkdir(), "is no regular file"),
        (lambda path: os.mkfifo(path), "is no regular file"),
        (lambda path: path.symlink_to("nowhere"), "is a link to nothing"),
    ],
)
def test_an_unusable_key_file_is_named_and_left_as_it_is(tmp_path, make, complaint):
    path = tmp_path / "node.key"
    make(path)
    before = os.lstat(path)
    with pytest.raises(IdentityError, match="node.key") as caught:
        Identity.load_or_create(path)
    assert complaint in str(caught.value)
    after = os.lstat(path)
    assert (after.st_ino, after.st_size, after.st_mode) == (before.st_ino, before.st_size, before.st_mode)


@pytest.mark.parametrize(("call", "verb"), [("open", "read"), ("link", "written")])
def test_a_refusal_by_the_system_is_said(tmp_path, monkeypatch, call, verb):
    def refuse(*arguments, **options):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(os, call, refuse)  # rights do not stop root, who may run these tests
    with pytest.raises(IdentityError, match=rf"node\.key: cannot be {verb} \(Permission denied\)"):
        Identity.load_or_create(tmp_path / "node.key")
    monkeypatch.undo()
    assert os.listdir(tmp_path) == []


def test_a_path_through_a_file_is_an_error_not_a_crash(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(IdentityError, match="Not a directory"):
        Identity.load_or_create(tmp_path / "file" / "node.key")


def test_the_secret_is_not_shown(tmp_path):
    identity = Identity.load_or_create(tmp_path / "node.key")
    secret = (tmp_path / "node.key").read_bytes()[-32:]
    assert repr(identity) == f"Identity({identity.node_id!r})"
    assert secret.hex() not in repr(vars(identity)) and repr(secret) not in repr(vars(identity))
