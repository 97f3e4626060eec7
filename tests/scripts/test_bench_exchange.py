from __future__ import annotations

import json

import pytest

from sapo_jax.swarm.wire.group_codec import group_id_of, open_group
from scripts import bench_exchange


def test_the_groups_are_valid_different_and_of_the_asked_size():
    groups = bench_exchange.make_groups(20, 8_192)
    opened = [open_group(group, swarm_id=bench_exchange.SWARM) for group in groups]
    assert len({group_id_of(group.envelope) for group in groups}) == 20
    assert len({group.publisher for group in opened}) == bench_exchange.PUBLISHERS
    assert all(0.9 * 8_192 < len(group.envelope.payload) < 1.1 * 8_192 for group in groups)


def test_calls_at_a_time_keep_within_what_one_peer_may_make():
    assert [bench_exchange.calls_of(32, batch) for batch in (1, 4, 16, 32, 64)] == [8, 8, 2, 1, 1]


def test_both_transports_are_measured_against_a_process_of_their_own(tmp_path, capsys):
    out = tmp_path / "bench.json"
    bench_exchange.main(["--groups=40", "--batches=4", f"--json={out}"])
    report = json.loads(out.read_text())
    assert [(case["transport"], case["batch"], case["groups"]) for case in report["cases"]] == [
        ("plain", 4, 40),
        ("TLS", 4, 40),
    ]
    assert all(0 < case["p50_ms"] <= case["p99_ms"] and case["groups_per_s"] > 0 for case in report["cases"])
    assert "groups/s" in capsys.readouterr().out


@pytest.mark.parametrize("argument", ["--batches=x", "--batches=0", "--groups=0", "--in_flight=0"])
def test_an_unusable_argument_is_named(argument, capsys):
    with pytest.raises(SystemExit) as end:
        bench_exchange.main([argument])
    assert end.value.code == 2 and argument.partition("=")[0] in capsys.readouterr().err.splitlines()[-1]
