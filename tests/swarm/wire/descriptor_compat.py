"""What old nodes cannot stand in a new schema, found by comparing descriptors."""

from __future__ import annotations

from collections.abc import Iterator

from google.protobuf.descriptor_pb2 import DescriptorProto, EnumDescriptorProto, FieldDescriptorProto, FileDescriptorSet


def breaking_changes(old: FileDescriptorSet, new: FileDescriptorSet) -> list[str]:
    """Returns one sentence for each change that breaks nodes of the old schema; none: new ones understand them.

    Messages, fields, enum values and calls may be added. A field or value may go if its number and its
    name are reserved from then on. Everything else about what is there stays.
    """
    found: list[str] = []
    old_messages, new_messages = dict(_messages(old)), dict(_messages(new))
    for name, message in old_messages.items():
        if name not in new_messages:
            found.append(f"message {name} is gone")
        else:
            found += _message_changes(name, message, new_messages[name])
    old_enums, new_enums = dict(_enums(old)), dict(_enums(new))
    for name, enum in old_enums.items():
        if name not in new_enums:
            found.append(f"enum {name} is gone")
        else:
            found += _enum_changes(name, enum, new_enums[name])
    return found + _call_changes(old, new)


def _message_changes(path: str, old: DescriptorProto, new: DescriptorProto) -> Iterator[str]:
    reserved = {number for span in new.reserved_range for number in range(span.start, span.end)}
    fields = {field.number: field for field in new.field}
    for field in old.field:
        if field.number in fields:
            yield from _field_changes(f"{path}.{field.name}", field, fields[field.number])
        elif field.number not in reserved or field.name not in new.reserved_name:
            yield f"{path}.{field.name} = {field.number} is gone, number or name not reserved"
    yield from _lost_reservations(path, old, new, reserved)


def _field_changes(path: str, old: FieldDescriptorProto, new: FieldDescriptorProto) -> Iterator[str]:
    for aspect in ("name", "type", "type_name", "label", "proto3_optional"):
        if getattr(old, aspect) != getattr(new, aspect):
            yield f"{path} = {old.number} has another {aspect}"


def _enum_changes(path: str, old: EnumDescriptorProto, new: EnumDescriptorProto) -> Iterator[str]:
    # Unlike those of messages, these ranges include their end.
    reserved = {number for span in new.reserved_range for number in range(span.start, span.end + 1)}
    names = {value.number: value.name for value in new.value}
    for value in old.value:
        if value.number in names:
            if names[value.number] != value.name:
                yield f"{path}.{value.name} = {value.number} has another name"
        elif value.number not in reserved or value.name not in new.reserved_name:
            yield f"{path}.{value.name} = {value.number} is gone, number or name not reserved"
    for span in old.reserved_range:
        if not set(range(span.start, span.end + 1)) <= reserved:
            yield f"{path} no longer reserves {span.start} to {span.end}"


def _lost_reservations(path: str, old: DescriptorProto, new: DescriptorProto, reserved: set[int]) -> Iterator[str]:
    for span in old.reserved_range:
        if not set(range(span.start, span.end)) <= reserved:
            yield f"{path} no longer reserves {span.start} to {span.end - 1}"
    for name in old.reserved_name:
        if name not in new.reserved_name:
            yield f"{path} no longer reserves the name {name}"


def _call_changes(old: FileDescriptorSet, new: FileDescriptorSet) -> list[str]:
    calls = {name: call for name, call in _calls(new)}
    found: list[str] = []
    for name, call in _calls(old):
        if name not in calls:
            found.append(f"call {name} is gone")
        elif call != calls[name]:
            found.append(f"call {name} has other messages, or streams")
    return found


def _calls(files: FileDescriptorSet) -> Iterator[tuple[str, tuple[str, str, bool, bool]]]:
    for file in files.file:
        for service in file.service:
            for call in service.method:
                name = f"{file.package}.{service.name}.{call.name}"
                yield name, (call.input_type, call.output_type, call.client_streaming, call.server_streaming)


def _messages(files: FileDescriptorSet) -> Iterator[tuple[str, DescriptorProto]]:
    def walk(prefix: str, messages: Iterator[DescriptorProto]) -> Iterator[tuple[str, DescriptorProto]]:
        for message in messages:
            yield f"{prefix}.{message.name}", message
            yield from walk(f"{prefix}.{message.name}", iter(message.nested_type))

    for file in files.file:
        yield from walk(file.package, iter(file.message_type))


def _enums(files: FileDescriptorSet) -> Iterator[tuple[str, EnumDescriptorProto]]:
    for file in files.file:
        yield from ((f"{file.package}.{enum.name}", enum) for enum in file.enum_type)
    for name, message in _messages(files):
        yield from ((f"{name}.{enum.name}", enum) for enum in message.enum_type)
