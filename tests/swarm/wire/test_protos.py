"""The schemas: stubs are current, names follow rules, everything is commented, old nodes are not left behind."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.descriptor_pb2 import FieldDescriptorProto, FileDescriptorProto, FileDescriptorSet

from sapo_jax.swarm.wire.errors import STATUS_CODE, WireReason
from sapo_jax.swarm.wire.generated import node_admin_pb2, rollout_exchange_pb2
from sapo_jax.swarm.wire.identity import GROUP_LABEL, PEER_LABEL
from sapo_jax.swarm.wire.limits import DEADLINES
from scripts import gen_protos
from tests.swarm.wire.descriptor_compat import breaking_changes

SNAPSHOT = Path(__file__).parent / "golden" / "descriptors.binpb"


@pytest.fixture(scope="module")
def current() -> FileDescriptorSet:
    return FileDescriptorSet.FromString(gen_protos.compile_descriptors())


# Stubs.


def test_the_committed_stubs_are_what_the_schemas_give(capsys):
    assert gen_protos.main(["--check"]) == 0, capsys.readouterr().err


def test_the_check_sees_changed_missing_and_left_over_stubs(tmp_path, capsys, monkeypatch):
    stubs = gen_protos.compile_stubs()
    for name, content in stubs.items():
        (tmp_path / name).write_text(content)
    assert gen_protos.differing_files(stubs, tmp_path) == []
    (tmp_path / "rollout_exchange_pb2.py").write_text("x = 1\n")
    (tmp_path / "node_admin_pb2.pyi").unlink()
    (tmp_path / "old_pb2.py").write_text("")
    wrong = ["node_admin_pb2.pyi", "old_pb2.py", "rollout_exchange_pb2.py"]
    assert gen_protos.differing_files(stubs, tmp_path) == wrong
    monkeypatch.setattr(gen_protos, "GENERATED", tmp_path)
    assert gen_protos.main(["--check"]) == 1
    complaints = capsys.readouterr().err.splitlines()
    assert [complaint.split(":")[0] for complaint in complaints] == [str(tmp_path / name) for name in wrong]
    assert gen_protos.main([]) == 0
    assert gen_protos.main(["--check"]) == 0


def test_stubs_are_modules_of_this_package():
    for module in (rollout_exchange_pb2, node_admin_pb2):
        assert module.DESCRIPTOR.message_types_by_name
        for name in module.DESCRIPTOR.message_types_by_name:
            assert getattr(module, name).__module__ == module.__name__


def test_a_broken_schema_is_an_error(tmp_path, capfd):
    (tmp_path / "bad.proto").write_text('syntax = "proto3"; message A { int32 a = 1; int32 b = 1; }')
    with pytest.raises(RuntimeError, match="protoc refuses"):
        gen_protos.compile_descriptors(tmp_path)
    assert "bad.proto" in capfd.readouterr().err


# Names.

PREPOSITIONS = {
    *("about", "after", "at", "before", "between", "by", "during", "for", "from", "in", "into", "of", "off", "on"),
    *("onto", "out", "over", "per", "since", "through", "to", "under", "until", "up", "upon", "via", "with", "without"),
}
UNIT_SUFFIXES = ("_s", "_ms", "_us", "_ns", "_seconds", "_millis", "_minutes", "_at", "_timestamp")
TIMESTAMP, DURATION = ".google.protobuf.Timestamp", ".google.protobuf.Duration"
IMPERATIVES = {"create", "read", "start", "expire"}


def naming_faults(files: FileDescriptorSet) -> list[str]:
    return [fault for file in files.file for fault in _file_faults(file)]


def _file_faults(file: FileDescriptorProto) -> Iterator[str]:
    if Path(file.name).parent != Path(file.package.replace(".", "/")):
        yield f"{file.name} does not lie where its package {file.package} says"
    if not re.fullmatch(r"sapo\.[a-z]+\.v[1-9][0-9]*", file.package):
        yield f"package {file.package} does not end in a version"
    for service in file.service:
        if not service.name.endswith("Service"):
            yield f"service {service.name} does not end in Service"
        for call in service.method:
            kinds = (call.input_type.rsplit(".", 1)[1], call.output_type.rsplit(".", 1)[1])
            if kinds != (f"{call.name}Request", f"{call.name}Response"):
                yield f"call {call.name} has not its own request and response"
    for message in file.message_type:
        if not re.fullmatch(r"([A-Z][a-z0-9]+)+", message.name):
            yield f"message {message.name} is not in CamelCase"
        if message.nested_type or message.enum_type:
            yield f"message {message.name} hides types inside"
        for field in message.field:
            yield from _field_faults(f"{message.name}.{field.name}", field)
    for enum in file.enum_type:
        prefix = re.sub(r"(?<!^)(?=[A-Z])", "_", enum.name).upper()
        if (enum.value[0].name, enum.value[0].number) != (f"{prefix}_UNSPECIFIED", 0):
            yield f"enum {enum.name} does not begin with {prefix}_UNSPECIFIED = 0"
        yield from (
            f"{enum.name}.{value.name} has not the prefix {prefix}_"
            for value in enum.value
            if not value.name.startswith(f"{prefix}_")
        )


def _field_faults(path: str, field: FieldDescriptorProto) -> Iterator[str]:
    words = field.name.split("_")
    if not re.fullmatch(r"[a-z][a-z0-9]*(_[a-z0-9]+)*", field.name):
        yield f"{path} is not in lower_snake_case"
    if PREPOSITIONS & set(words):
        yield f"{path} has a preposition"
    if field.name.endswith(UNIT_SUFFIXES):
        yield f"{path} is a time without its type"
    if (field.type_name == TIMESTAMP) != field.name.endswith("_time"):
        yield f"{path}: *_time and Timestamp belong together"
    if field.type_name == TIMESTAMP and words[-2] not in IMPERATIVES:
        yield f"{path} is not named in the imperative"
    if field.type_name == DURATION and not {"age", "ttl", "delay", "duration"} & {words[-1]}:
        yield f"{path} does not sound like a span"
    repeated = field.label == FieldDescriptorProto.LABEL_REPEATED
    if repeated != (field.name in PLURALS):
        yield f"{path}: plural and repeated belong together"


PLURALS = {
    *("groups", "results", "datasets", "excluded_publishers", "references", "group_ids", "missing_group_ids"),
    *("deferred_group_ids", "catalog_digests", "peer_records", "completions", "addresses", "nodes", "peers"),
    *("counters", "warnings"),
}


def test_names_follow_the_rules(current):
    assert naming_faults(current) == []


def _field(current: FileDescriptorSet, path: str) -> FieldDescriptorProto:
    message, name = path.split(".")
    return next(field for field in _message(current, message).field if field.name == name)


def _message(current: FileDescriptorSet, name: str) -> Any:
    return next(message for file in current.file for message in file.message_type if message.name == name)


def _enum(current: FileDescriptorSet, name: str) -> Any:
    return next(enum for file in current.file for enum in file.enum_type if enum.name == name)


def _call(current: FileDescriptorSet, name: str) -> Any:
    return next(
        call for file in current.file for service in file.service for call in service.method if call.name == name
    )


def _rename(find: Callable[[FileDescriptorSet], Any], name: str) -> Callable[[FileDescriptorSet], None]:
    return lambda current: setattr(find(current), "name", name)


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (_rename(lambda c: _field(c, "Completion.text"), "text_of_answer"), "has a preposition"),
        (_rename(lambda c: _field(c, "Completion.text"), "answerText"), "is not in lower_snake_case"),
        (_rename(lambda c: _field(c, "SignedGroup.age"), "age_ms"), "is a time without its type"),
        (_rename(lambda c: _field(c, "RolloutGroup.create_time"), "created_at"), "belong together"),
        (_rename(lambda c: _field(c, "RolloutGroup.create_time"), "creation_time"), "not named in the imperative"),
        (_rename(lambda c: _field(c, "RolloutGroup.completions"), "completion"), "plural and repeated"),
        (_rename(lambda c: _field(c, "TaskRef.dataset"), "datasets"), "plural and repeated"),
        (_rename(lambda c: _message(c, "TaskRef"), "task_ref"), "is not in CamelCase"),
        (_rename(lambda c: _enum(c, "LoadLevel").value[0], "LOAD_LEVEL_NONE"), "does not begin with"),
        (_rename(lambda c: _enum(c, "LoadLevel").value[1], "NORMAL"), "has not the prefix"),
        (_rename(lambda c: _call(c, "GetGroups"), "FetchGroups"), "has not its own request"),
        (_rename(lambda c: c.file[1].service[0], "RolloutExchange"), "does not end in Service"),
        (lambda c: setattr(c.file[1], "package", "sapo.exchange"), "does not lie where"),
    ],
)
def test_the_naming_check_sees_what_it_should(current, change, complaint):
    changed = FileDescriptorSet.FromString(current.SerializeToString())
    change(changed)
    assert any(complaint in fault for fault in naming_faults(changed)), naming_faults(changed)


# The line of a message, enum, service or call, of a field, or of an enum's value.
DECLARES = re.compile(r"\s*(message|enum|service|rpc)\b|\s+[\w.]+( \w+)* \w+ = \d+;|\s+[A-Z_0-9]+ = \d+;")
SCHEMAS = sorted(gen_protos.PROTOS.rglob("*.proto"))


def test_everything_in_the_schemas_is_commented():
    assert len(SCHEMAS) == 2
    silent: list[str] = []
    for path in SCHEMAS:
        lines = path.read_text().splitlines()
        for above, line in zip(["", *lines], lines, strict=False):
            if DECLARES.match(line) and not above.strip().startswith("//"):
                silent.append(f"{path.name}: {line.strip()}")
    assert silent == []


@pytest.mark.parametrize("path", SCHEMAS, ids=lambda path: path.name)
def test_the_parts_of_a_schema_stand_in_their_order(path):
    kinds = re.findall(r"^(package|service|message|enum)\b", path.read_text(), re.MULTILINE)
    assert kinds == sorted(kinds, key=["package", "service", "message", "enum"].index)


# Compatibility.


def test_nodes_of_the_last_release_understand_this_schema(current):
    assert breaking_changes(FileDescriptorSet.FromString(SNAPSHOT.read_bytes()), current) == []


def _remove(items: Any, name: str) -> None:
    del items[next(i for i, item in enumerate(items) if item.name == name)]


def _add_field(current: FileDescriptorSet) -> None:
    _message(current, "RolloutGroup").field.add(name="later", number=13, type=FieldDescriptorProto.TYPE_STRING)


def _add_more(current: FileDescriptorSet) -> None:
    file = current.file[1]
    file.message_type.add(name="Later")
    file.enum_type.add(name="Sooner").value.add(name="SOONER_UNSPECIFIED", number=0)
    file.service[0].method.add(name="Later", input_type=".a.B", output_type=".a.C")
    _enum(current, "FinishReason").value.add(name="FINISH_REASON_TIRED", number=4)


def _retire(current: FileDescriptorSet) -> None:
    message = _message(current, "Completion")
    _remove(message.field, "token_count")
    message.reserved_range.add(start=3, end=4)
    message.reserved_name.append("token_count")


@pytest.mark.parametrize("change", [_add_field, _add_more, _retire])
def test_what_old_nodes_can_stand_passes(current, change):
    changed = FileDescriptorSet.FromString(current.SerializeToString())
    change(changed)
    assert changed != current
    assert breaking_changes(current, changed) == []


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (lambda c: setattr(_field(c, "Completion.text"), "number", 9), "Completion.text = 1 is gone"),
        (lambda c: _remove(_message(c, "Completion").field, "text"), "Completion.text = 1 is gone"),
        (
            lambda c: setattr(_field(c, "TaskRef.seed"), "type", FieldDescriptorProto.TYPE_UINT64),
            "TaskRef.seed = 4 has another type",
        ),
        (_rename(lambda c: _field(c, "TaskRef.seed"), "root"), "TaskRef.seed = 4 has another name"),
        (
            lambda c: setattr(_field(c, "TaskRef.seed"), "label", FieldDescriptorProto.LABEL_REPEATED),
            "TaskRef.seed = 4 has another label",
        ),
        (
            lambda c: setattr(_field(c, "RolloutGroup.ttl"), "type_name", TIMESTAMP),
            "RolloutGroup.ttl = 10 has another type_name",
        ),
        (
            lambda c: setattr(_field(c, "Completion.claimed_score"), "proto3_optional", False),
            "Completion.claimed_score = 4 has another proto3_optional",
        ),
        (lambda c: _remove(c.file[1].message_type, "TaskRef"), "message sapo.exchange.v1.TaskRef is gone"),
        (lambda c: _remove(c.file[1].enum_type, "LoadLevel"), "enum sapo.exchange.v1.LoadLevel is gone"),
        (
            lambda c: _remove(_enum(c, "LoadLevel").value, "LOAD_LEVEL_BUSY"),
            "LoadLevel.LOAD_LEVEL_BUSY = 2 is gone",
        ),
        (
            _rename(lambda c: _enum(c, "LoadLevel").value[2], "LOAD_LEVEL_IDLE"),
            "LoadLevel.LOAD_LEVEL_BUSY = 2 has another name",
        ),
        (lambda c: _message(c, "RolloutGroup").ClearField("reserved_range"), "no longer reserves 4 to 4"),
        (lambda c: _message(c, "RolloutGroup").ClearField("reserved_name"), "no longer reserves the name question"),
        (lambda c: _remove(c.file[1].service[0].method, "GetGroups"), "RolloutExchangeService.GetGroups is gone"),
        (lambda c: setattr(_call(c, "GetGroups"), "server_streaming", True), "GetGroups has other messages"),
    ],
)
def test_what_breaks_old_nodes_is_seen(current, change, complaint):
    changed = FileDescriptorSet.FromString(current.SerializeToString())
    change(changed)
    assert any(complaint in found for found in breaking_changes(current, changed)), breaking_changes(current, changed)


# What stands in the schema and in the code.


def test_reasons_of_schema_and_code_are_the_same():
    names = {name.removeprefix("WIRE_REASON_") for name in rollout_exchange_pb2.WireReason.keys()}
    assert names - {"UNSPECIFIED"} == {reason.name for reason in WireReason}


def test_the_schema_says_the_status_code_of_every_reason():
    text = (gen_protos.PROTOS / "sapo" / "exchange" / "v1" / "rollout_exchange.proto").read_text()
    said = {reason: code for code, reason in re.findall(r"\. ([A-Z_]+)\.\n  WIRE_REASON_([A-Z_]+) = ", text)}
    assert said == {reason.name: code for reason, code in STATUS_CODE.items()}


def test_every_call_has_deadlines_and_the_schema_says_them():
    service = rollout_exchange_pb2.DESCRIPTOR.services_by_name["RolloutExchangeService"]
    assert DEADLINES.keys() == set(service.methods_by_name)
    text = (gen_protos.PROTOS / "sapo" / "exchange" / "v1" / "rollout_exchange.proto").read_text()
    text = re.sub(r"\s+(// )?", " ", text)
    for name, deadline in DEADLINES.items():
        said = re.search(rf"Client deadline ([0-9]+) s, at most ([0-9]+) s\. rpc {name}\(", text)
        assert said is not None, name
        assert (float(said[1]), float(said[2])) == (deadline.client_s, deadline.server_max_s), name


def test_the_schema_says_the_labels_of_signatures():
    text = (gen_protos.PROTOS / "sapo" / "exchange" / "v1" / "rollout_exchange.proto").read_text()
    for label in (GROUP_LABEL, PEER_LABEL):
        assert label.endswith(b"\0") and f'the label "{label[:-1].decode()}", one zero byte,' in text
