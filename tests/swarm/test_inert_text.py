"""Text of strangers where people look at it: terminals, logs, tables and the report stay as they were."""

from __future__ import annotations

import dataclasses
import html
import importlib.util
import io
import logging
import sys
from collections.abc import Iterator
from concurrent import futures
from pathlib import Path

import grpc
import pytest
from rich.console import Console

from sapo_jax.config import SapoConfig
from sapo_jax.metrics import FROM, JsonlTracker
from sapo_jax.report import write_report
from sapo_jax.status import describe
from sapo_jax.swarm.calls.trust import Trust, TrustMode
from sapo_jax.swarm.mesh.network_host import GivenPeer
from sapo_jax.swarm.wire.errors import WireError, WireReason
from sapo_jax.swarm.wire.group_codec import pack_group
from sapo_jax.swarm.wire.printable import printable
from sapo_jax.swarm.wire.signed_content import GeneratorInfo
from sapo_jax.workdir import open_workdir
from tests.swarm.network_hubs import Collected, Hubs, wait_for

SAMPLES = {
    "ansi color": "\x1b[31mred\x1b[0m",
    "ansi title": "\x1b]0;owned\x07",
    "one byte ansi": "\x9b2J",
    "clear line": "fine\r\x1b[2Kerror: none",
    "second line": "a\nwarning: all is well",
    "bidi": "\u202efdp.exe\u2066",
    "html": "<script>alert(1)</script><img src=x onerror=alert(1)>",
    "formula": "=cmd|' /C calc'!A0",
    "other formula": "@SUM(1+1)*cmd|' /C calc'!A0",
    "rich markup": "[red]all is well[/red][link=file:///etc/passwd]x[/link]",
}


def is_inert(text: str) -> bool:
    """Whether nothing in it steers a terminal; line ends are ours."""
    return all(character == "\n" or character.isprintable() for character in text)


@pytest.mark.parametrize("name", SAMPLES)
def test_t16_a_sample_is_one_harmless_line_once_it_is_printable(name: str) -> None:
    shown = printable(SAMPLES[name], 1000)
    assert is_inert(shown) and "\n" not in shown


@pytest.mark.parametrize("name", SAMPLES)
def test_t16_a_datasets_name_is_a_word_or_the_group_is_refused(name: str, rollout) -> None:
    """It becomes a label in metrics and tables, so it is the one text that has a form of its own."""
    group = rollout()
    hostile = dataclasses.replace(group, task_ref=dataclasses.replace(group.task_ref, dataset=SAMPLES[name]))
    with pytest.raises(WireError) as caught:
        pack_group(hostile, swarm_id="s", sequence=1, created_unix_s=0.0, ttl_s=600.0, generator=GeneratorInfo())
    assert (caught.value.reason, caught.value.field) == (WireReason.FIELD, "task.dataset")
    assert SAMPLES[name] not in str(caught.value)


@pytest.fixture
def hubs() -> Iterator[Hubs]:
    made = Hubs()
    yield made
    made.close_all()


class Shouting(grpc.GenericRpcHandler):
    """A peer whose every call fails with a text of its own."""

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler:
        def fail(request: bytes, context: grpc.ServicerContext) -> bytes:
            context.abort(grpc.StatusCode.UNAVAILABLE, " ".join(SAMPLES.values()))
            raise AssertionError

        return grpc.unary_unary_rpc_method_handler(fail)


def test_t16_status_and_log_show_a_peers_words_harmless(hubs: Hubs, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    server = grpc.server(futures.ThreadPoolExecutor(2), handlers=(Shouting(),))
    address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    server.start()
    try:
        hub = hubs.make("a", trust=Trust(mode=TrustMode.INSECURE_LOOPBACK), peers=[GivenPeer(addresses=(address,))])
        wait_for(lambda: hub.host.book.peers()[0].failures > 0, "the peer has shouted")
        shown = describe(hub.status())
    finally:
        server.stop(0)
    assert "owned" in shown and is_inert(shown)  # it is shown, and does nothing
    assert sum("all is well" in line for line in shown.splitlines()) == 1  # no line of its own
    assert all(is_inert(record.getMessage()) for record in caplog.records)


def test_t16_what_a_publisher_calls_its_model_is_shown_nowhere(
    hubs: Hubs, scored, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    a = hubs.make("a")
    hostile = GeneratorInfo(model_name=SAMPLES["ansi color"] + SAMPLES["ansi title"], tokenizer_name=SAMPLES["html"])
    b = hubs.make("b", peers=[a], generator=hostile)
    b.connect("b").publish([scored((0, 1), "b", 1)])
    Collected(a.connect("a")).wait([1])
    for text in (describe(a.status()), caplog.text):
        # "red" is no word to look for: random node ids may spell it.
        assert not any(part in text for part in ("[31m", "owned", "<script", "\x1b"))


def test_t16_the_report_escapes_what_it_did_not_write(tmp_path: Path) -> None:
    with open_workdir(tmp_path, dataclasses.replace(SapoConfig(), rounds=1)) as workdir:
        workdir.fix_resolved(compute_dtype="float32")
        tracker = JsonlTracker(workdir.metrics_path)
        tracker.log(1, 0, {f"{FROM}{text}": 1.0 for text in SAMPLES.values()} | {"reward/own_mean": 0.5})
        tracker.close()
    page = write_report(tmp_path)[-1].read_text()
    assert "<script" not in page and "<img src=x" not in page
    assert html.escape(SAMPLES["html"]) in page


def test_t16_the_table_of_a_swarm_shows_names_and_logs_as_they_are(tmp_path: Path) -> None:
    spec = importlib.util.spec_from_file_location("launcher", Path(__file__).parents[2] / "scripts" / "launch_swarm.py")
    assert spec is not None and spec.loader is not None
    launcher = importlib.util.module_from_spec(spec)
    sys.modules["launcher"] = launcher  # dataclasses look their module up
    spec.loader.exec_module(launcher)
    hosts = [launcher.Host(name=text, config="x", workdir=tmp_path) for text in SAMPLES.values()]
    out = io.StringIO()
    Console(file=out, width=300, force_terminal=True, color_system=None).print(launcher.table(hosts))
    assert is_inert(out.getvalue().replace("\x1b[1m", "").replace("\x1b[0m", "")) and "[red]" in out.getvalue()
    log = tmp_path / "log.txt"
    log.write_text("\n".join(SAMPLES.values()))
    assert is_inert(launcher._tail(log)) and "owned" in launcher._tail(log)
