"""A host whose store was damaged while it was down: it says so and goes on."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from sapo_jax.swarm.mesh.network_host import STORE_FILE
from sapo_jax.swarm.wire.identity import Identity
from tests.swarm.network_hubs import Collected, Hubs, wait_for


@pytest.fixture
def hubs() -> Iterator[Hubs]:
    made = Hubs()
    yield made
    made.close_all()


def test_t18_flipped_bytes_cost_the_group_they_are_in_and_nothing_else(hubs: Hubs, scored, tmp_path: Path) -> None:
    who = {"a": Identity.generate()}
    b = hubs.make("b")
    a = hubs.make(identities=who, peers=[b], directory=tmp_path)
    b.connect("b").publish([scored((0, 1), "b", index) for index in range(3)])
    Collected(a.connect("a")).wait(range(3))
    victim = a.host.store.after(0, 10)[1]
    hubs.close(a)
    path = tmp_path / STORE_FILE
    content = bytearray(path.read_bytes())
    place = content.find(victim.signed.envelope.payload)
    assert place > 0
    content[place + 20] ^= 0x40
    path.write_bytes(content)

    again = hubs.make(identities=who, peers=[b], directory=tmp_path)
    inbox = Collected(again.connect("a"))
    inbox.wait([0, 2])  # what is whole is delivered again, since nothing was saved beside the store
    again.connect("a").publish([scored((0, 1), "a", 7)])
    Collected(b.connect("b")).wait([7])
    b.connect("b").publish([scored((0, 1), "b", 8, round=1)])
    inbox.wait([8])
    assert any("1 stored group were damaged" in text for text in again.status().warnings)
    wait_for(lambda: again.host.store.held([victim.group_id]), "the lost group comes again from its publisher")
