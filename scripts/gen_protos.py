"""Makes the Python stubs of the schemas under protos/ again, or checks that the committed ones are current.

    python scripts/gen_protos.py            writes sapo_jax/swarm/wire/generated/
    python scripts/gen_protos.py --check    exit code 1 and a list of files if anything differs
    python scripts/gen_protos.py --descriptors=tests/swarm/wire/golden/descriptors.binpb
                                            at a release: stores the schemas that later ones must stay compatible with

Uses the compiler inside grpcio-tools, so nothing else needs installing. Service stubs are not made: servers and
clients hand raw bytes to the codec. protoc names modules by the path of the schema; inside the package they lie flat,
so module names are rewritten.
"""

from __future__ import annotations

import argparse
import re
import sys
import tempfile
from collections.abc import Mapping
from importlib import resources
from pathlib import Path

from grpc_tools import protoc

ROOT = Path(__file__).resolve().parents[1]
PROTOS = ROOT / "protos"
GENERATED = ROOT / "sapo_jax" / "swarm" / "wire" / "generated"
PACKAGE = "sapo_jax.swarm.wire.generated"


def compile_stubs(protos: Path = PROTOS) -> Mapping[str, str]:
    """Returns the content of every stub file of the schemas under `protos`, by its name in the package.

    Raises:
        RuntimeError: protoc refuses a schema; it has said why on standard error.
    """
    with tempfile.TemporaryDirectory() as directory:
        _run(protos, f"--python_out={directory}", f"--pyi_out={directory}")
        paths = sorted(Path(directory).rglob("*_pb2.py*"))
        return {path.name: _move_into_package(path.read_text()) for path in paths}


def compile_descriptors(protos: Path = PROTOS) -> bytes:
    """Returns the schemas under `protos` as a serialized FileDescriptorSet, without comments and imports.

    Raises:
        RuntimeError: protoc refuses a schema; it has said why on standard error.
    """
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "descriptors.binpb"
        _run(protos, f"--descriptor_set_out={path}")
        return path.read_bytes()


def differing_files(stubs: Mapping[str, str], directory: Path) -> list[str]:
    """Returns the names of stub files in `directory` that are missing, left over or not equal to `stubs`."""
    present = {path.name: path.read_text() for path in directory.glob("*_pb2.py*")}
    return sorted(name for name in stubs.keys() | present.keys() if stubs.get(name) != present.get(name))


def main(argv: list[str] | None = None) -> int:
    """Writes or checks the stubs; returns the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--check", action="store_true", help="write nothing; fail if a stub is not current")
    parser.add_argument("--descriptors", type=Path, help="write the schemas as a FileDescriptorSet to this file, only")
    arguments = parser.parse_args(argv)
    if arguments.descriptors:
        arguments.descriptors.write_bytes(compile_descriptors())
        return 0
    stubs = compile_stubs()
    differing = differing_files(stubs, GENERATED)
    if arguments.check:
        for name in differing:
            print(f"{GENERATED / name}: not what the schema gives; run python scripts/gen_protos.py", file=sys.stderr)
        return 1 if differing else 0
    for name in differing:
        path = GENERATED / name
        if name in stubs:
            path.write_text(stubs[name])
        else:
            path.unlink()
        print(path)
    return 0


def _run(protos: Path, *outputs: str) -> None:
    schemas = sorted(str(path.relative_to(protos)) for path in protos.rglob("*.proto"))
    well_known = str(resources.files("grpc_tools") / "_proto")
    if protoc.main(["protoc", f"-I{protos}", f"-I{well_known}", *outputs, *schemas]) != 0:
        raise RuntimeError(f"protoc refuses a schema under {protos}")


def _move_into_package(source: str) -> str:
    """Returns a stub with the names of generated modules changed to where they lie in the package."""
    source = re.sub(r"^from sapo\.[\w.]+ import (\w+_pb2)", rf"from {PACKAGE} import \1", source, flags=re.MULTILINE)
    return re.sub(r"'sapo\.[\w.]+\.(\w+_pb2)'", rf"'{PACKAGE}.\1'", source)


if __name__ == "__main__":
    sys.exit(main())
