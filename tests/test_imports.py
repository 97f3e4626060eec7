"""Who may import whom. A new module or package at the top of sapo_jax gets a line in `MAY_IMPORT`.

`CONCRETE` says it more exactly for modules that others know by a protocol or by their results only.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import sapo_jax

ROOT = Path(sapo_jax.__file__).parent

BASE = {"types", "config", "seeding", "errors"}
RECORDS = {"workdir", "metrics", "statistics", "figures", "report", "progress"}  # what a run leaves and shows
COMMANDS = {"main", "evaluate", "sample", "export", "verify"}
LIGHT_COMMANDS = {"status", "relay", "contribute"}  # run where no jax is
SHELL = {"command", "command_line", "signals", "summary", "swarm_flags", "trained"}  # what the commands share
NODE = {"algo", "models", "sampling", "text", "tasks", "swarm", "learner"}
ASSEMBLY = {"presets", "checkpoint", "evaluation", "host", "node", "prompting", "cold_start", "wiring"}
ASSEMBLY |= {"member", "training"}
GROUP = {"process_start", "process_link", "process_group", "mirrored_host"}  # several processes on one mesh

# Unit (module or package under sapo_jax) -> the other units it may import.
MAY_IMPORT: dict[str, set[str]] = {
    "__init__": set(),
    "types": set(),
    "config": set(),
    "seeding": set(),
    "errors": set(),
    "presets": {"config"},
    "algo": set(),
    "models": BASE | {"algo", "text"},  # text, because weights and tokenizer come from one source
    "sampling": BASE | {"algo", "models", "lengths"},
    "text": BASE,
    "tasks": BASE,
    "swarm": BASE,
    "learner": BASE | {"algo", "models", "text"},
    **{unit: BASE | RECORDS for unit in RECORDS},
    "device_clock": set(),
    "machine_memory": set(),
    "memory_copy": {"machine_memory"},
    "checkpoint": BASE | RECORDS | {"memory_copy"},
    "lengths": set(),
    "host": BASE | {"algo", "models", "sampling", "text", "learner", "device_clock"},
    "prompting": BASE | {"text", "tasks", "host"},
    "evaluation": BASE | NODE | {"statistics", "metrics", "workdir", "host", "prompting"},
    "node": BASE | NODE | {"statistics", "metrics", "host", "prompting", "lengths"},
    "cold_start": BASE | NODE | {"host", "prompting", "lengths"},
    "memory_plan": BASE | {"models"},
    "memory_fit": BASE | {"memory_plan", "machine_memory"},
    "wiring": BASE | NODE | {"host", "node", "prompting", "memory_plan", "memory_fit"},
    "process_link": set(),
    "process_start": BASE | {"command_line"},
    "process_group": BASE | {"process_link", "process_start", "workdir"},
    "mirrored_host": BASE | {"host", "process_group", "process_link", "process_start", "signals"},
    "signals": set(),
    "summary": RECORDS,
    "swarm_flags": {"swarm"},
    "member": BASE | {"tasks", "swarm", "swarm_flags"},
    "training": BASE | RECORDS | NODE | (ASSEMBLY - {"training"}) | {"signals", "swarm_flags"},
    "trained": BASE | RECORDS | NODE | (ASSEMBLY - {"training"}),
    "command_line": BASE,
    "command": BASE | RECORDS | NODE | {"checkpoint", "command_line", "memory_fit", "process_start"},
    **{unit: BASE | RECORDS | NODE | ASSEMBLY | SHELL for unit in COMMANDS},
    "main": BASE | RECORDS | NODE | ASSEMBLY | SHELL | GROUP,
    **{unit: BASE | {"tasks", "swarm", "swarm_flags", "command_line", "signals"} for unit in LIGHT_COMMANDS},
}

# Concrete module or package -> the only units that may import it, its own package not excepted. The
# others get an `Exchange`, a `TaskSource`, a `Tokenizer`, a `Host`, and whoever wires chooses which.
CONCRETE: dict[str, set[str]] = {
    "swarm.memory_exchange": {"wiring"},
    "swarm.network_exchange": {"member"},
    "tasks.reasoning_gym_source": {"tasks", "wiring", "contribute"},
    "tasks.scoring_pool": {"wiring"},
    "text.byte_tokenizer": {"models"},
    "text.gguf_tokenizer": {"models"},
    "models": {"models", "sampling", "learner", "host", "wiring", "trained", "command", "export", "memory_plan"},
    "models.sources": {"wiring", "trained"},
    "models.hf_export": {"export"},
    "learner.optimizer": {"host"},
}

# Third-party package -> the only units that may import it.
OWNED: dict[str, set[str]] = {
    "torch": set(),
    "grpc": {"swarm"},
    "grpc_health": {"swarm"},
    "grpc_reflection": {"swarm"},
    "google": {"swarm"},  # protobuf
    "cryptography": {"swarm"},
    "prometheus_client": {"swarm"},
    "reasoning_gym": {"tasks"},
    "transformers": {"text"},  # tokenizers and chat templates only
    "tokenizers": {"text"},
    "jinja2": {"text"},
    "safetensors": {"models"},
    "gguf": {"models"},
    "huggingface_hub": {"models"},
    "httpx2": {"models"},
    "ml_dtypes": {"models"},
    "orbax": {"checkpoint"},
    "optax": {"learner"},
    "absl": {"command", "command_line", "swarm_flags", *COMMANDS, *LIGHT_COMMANDS},
    "matplotlib": {"figures", "report"},
    "tensorboardX": {"metrics"},
    "rich": {"progress", *COMMANDS},
    "ml_collections": {"config", "presets", *COMMANDS},
}

# Package -> the only files that may import from it: what the wire looks like stays behind them.
OWNED_BY_FILES: dict[str, set[str]] = {
    "sapo_jax.swarm.wire.generated": {
        "swarm/wire/codec_parts.py",
        "swarm/wire/group_calls_codec.py",
        "swarm/wire/group_codec.py",
        "swarm/wire/host_calls_codec.py",
        "swarm/wire/peer_record_codec.py",
        "swarm/calls/grpc_client.py",
        "swarm/calls/grpc_server.py",
        "swarm/mesh/admin_client.py",
        "swarm/mesh/admin_server.py",
        "swarm/mesh/status_codec.py",
    },
    "grpc": {
        "swarm/calls/client_pool.py",
        "swarm/calls/grpc_client.py",
        "swarm/calls/grpc_server.py",
        "swarm/calls/pipeline.py",
        "swarm/calls/status_codes.py",
        "swarm/mesh/admin_client.py",
        "swarm/mesh/admin_server.py",
    },
    "grpc_health": {"swarm/calls/health.py"},
    "grpc_reflection": {"swarm/calls/reflection.py"},
    "google": {
        "swarm/wire/parse.py",
        "swarm/wire/spans.py",
        "swarm/calls/grpc_client.py",
        "swarm/mesh/admin_client.py",
        "swarm/wire/generated/rollout_exchange_pb2.py",
        "swarm/wire/generated/node_admin_pb2.py",
    },
}

# The rooms of sapo_jax/swarm, each of which may import those before it; what lies beside them may import all.
SWARM_ROOMS = ("wire", "store", "calls", "mesh")

JAX = {"jax", "jaxlib", "flax", "optax", "orbax"}
WITHOUT_JAX = BASE | RECORDS | LIGHT_COMMANDS | {"presets", "command_line", "signals", "text", "tasks", "swarm"}


def _unit(path: Path, root: Path) -> str:
    return path.relative_to(root).parts[0].removesuffix(".py")


def _imports(source: str) -> Iterator[str]:
    """Yields all that `source` imports by its full dotted name, nested and type-only imports included."""
    for statement in ast.walk(ast.parse(source)):
        if isinstance(statement, ast.Import):
            yield from (alias.name for alias in statement.names)
        elif isinstance(statement, ast.ImportFrom):
            module = "." * statement.level + (statement.module or "")
            is_ours = module.split(".")[0] == "sapo_jax"  # what is taken from it may be a module, too
            yield from (f"{module}.{alias.name}" for alias in statement.names) if is_ours else (module,)


def _is_free_to(unit: str, name: str) -> bool:
    """Returns whether `CONCRETE` lets `unit` import `name`, a dotted name below sapo_jax."""
    return all(unit in importers for module, importers in CONCRETE.items() if f"{name}.".startswith(f"{module}."))


def _violations(root: Path) -> list[str]:
    found: list[str] = []
    for path in sorted(root.rglob("*.py")):
        unit, where = _unit(path, root), path.relative_to(root)
        if unit not in MAY_IMPORT:
            found.append(f"{where}: unit {unit!r} is not in MAY_IMPORT")
            continue
        for name in _imports(path.read_text()):
            top, _, rest = name.partition(".")
            if not top:
                found.append(f"{where}: relative import of {name!r}")
            elif top == "sapo_jax":
                target = rest.split(".")[0]
                if target not in MAY_IMPORT[unit] | {unit, "", "__version__"} or not _is_free_to(unit, rest):
                    found.append(f"{where}: {unit} may not import {name}")
            elif unit not in OWNED.get(top, {unit}) or (unit in WITHOUT_JAX and top in JAX):
                found.append(f"{where}: {unit} may not import {name}")
            found += [
                f"{where}: only {', '.join(sorted(owners))} may import {name}"
                for owned, owners in OWNED_BY_FILES.items()
                if f"{name}.".startswith(f"{owned}.") and where.as_posix() not in owners
            ]
    return found


def test_imports_point_downward():
    assert _violations(ROOT) == []


def test_the_rooms_of_the_swarm_import_downward():
    for depth, room in enumerate(SWARM_ROOMS):
        may = {f"sapo_jax.swarm.{other}" for other in SWARM_ROOMS[: depth + 1]}
        paths = sorted((ROOT / "swarm" / room).rglob("*.py"))
        assert paths, room
        for path in paths:
            for name in _imports(path.read_text()):
                if name.startswith("sapo_jax.swarm."):
                    assert ".".join(name.split(".")[:3]) in may, f"{path.relative_to(ROOT)} may not import {name}"


def test_units_do_not_import_each_other_in_a_circle():
    graph: dict[str, set[str]] = {}
    for path in ROOT.rglob("*.py"):
        unit = _unit(path, ROOT)
        names = (name.split(".") for name in _imports(path.read_text()) if name.startswith("sapo_jax."))
        graph.setdefault(unit, set()).update(parts[1] for parts in names if parts[1] != unit)
    TopologicalSorter(graph).prepare()  # raises CycleError


def test_concrete_modules_and_their_importers_exist():
    for module, importers in CONCRETE.items():
        path = ROOT.joinpath(*module.split("."))
        assert path.is_dir() or path.with_suffix(".py").is_file(), module
        assert importers <= set(MAY_IMPORT), module


def test_nobody_imports_a_command():
    assert not any(targets & (COMMANDS | LIGHT_COMMANDS) for targets in MAY_IMPORT.values())


@pytest.mark.parametrize(
    ("path", "source", "complaint"),
    [
        ("swarm/pool.py", "import jax.numpy as jnp", "swarm may not import jax.numpy"),
        ("swarm/pool.py", "def f():\n    from flax import nnx", "swarm may not import flax"),
        ("algo/losses.py", "from sapo_jax.config import SapoConfig", "algo may not import sapo_jax.config.SapoConfig"),
        ("models/decoder.py", "from sapo_jax import swarm", "models may not import sapo_jax.swarm"),
        ("node.py", "import orbax.checkpoint as ocp", "node may not import orbax.checkpoint"),
        ("node.py", "import reasoning_gym", "node may not import reasoning_gym"),
        ("host.py", "from sapo_jax.main import main", "host may not import sapo_jax.main.main"),
        ("text/chat.py", "from ..types import Task", "relative import of '..types'"),
        ("learner/step.py", "import torch", "learner may not import torch"),
        ("types.py", "from transformers import AutoTokenizer", "types may not import transformers"),
        ("config.py", "import tokenizers", "config may not import tokenizers"),
        ("seeding.py", "from safetensors.numpy import save_file", "seeding may not import safetensors.numpy"),
        ("swarm/codec_json.py", "import gguf.quants", "swarm may not import gguf.quants"),
        ("sampling/decode.py", "import huggingface_hub", "sampling may not import huggingface_hub"),
        ("algo/losses.py", "import safetensors", "algo may not import safetensors"),
        ("node.py", "import sapo_jax.swarm.memory_exchange", "node may not import sapo_jax.swarm.memory_exchange"),
        (
            "node.py",
            "from sapo_jax.swarm import exchange, memory_exchange",
            "node may not import sapo_jax.swarm.memory_exchange",
        ),
        (
            "node.py",
            "def f():\n    from sapo_jax.tasks.reasoning_gym_source import ReasoningGymSource",
            "node may not import sapo_jax.tasks.reasoning_gym_source.ReasoningGymSource",
        ),
        (
            "swarm/pool.py",
            "from sapo_jax.swarm.memory_exchange import MemoryHub",
            "swarm may not import sapo_jax.swarm.memory_exchange.MemoryHub",
        ),
        ("node.py", "from sapo_jax.models import forward", "node may not import sapo_jax.models.forward"),
        ("node.py", "from sapo_jax import models", "node may not import sapo_jax.models"),
        ("host.py", "from sapo_jax.models.sources import load", "host may not import sapo_jax.models.sources.load"),
        ("host.py", "from sapo_jax.models.decoder import Params", None),
        ("node.py", "from sapo_jax.swarm.exchange import Exchange\nimport sapo_jax.tasks.stream", None),
        ("wiring.py", "import sapo_jax.swarm.memory_exchange\nfrom sapo_jax.models import sources", None),
        ("extra.py", "", "unit 'extra' is not in MAY_IMPORT"),
        ("node.py", "from cryptography import x509", "node may not import cryptography"),
        ("swarm/calls/health.py", "from grpc_health.v1 import health_pb2", None),
        ("swarm/wire/spans.py", "from google.protobuf.duration_pb2 import Duration", None),
        ("swarm/wire/group_codec.py", "from sapo_jax.swarm.wire.generated import rollout_exchange_pb2 as pb", None),
        ("swarm/pool.py", "import numpy\nfrom sapo_jax.types import Task\nimport sapo_jax.swarm.exchange", None),
    ],
)
def test_the_check_sees_what_it_should(tmp_path, path, source, complaint):
    file = tmp_path / path
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(source)
    assert _violations(tmp_path) == ([] if complaint is None else [f"{path}: {complaint}"])


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("swarm/pool.py", "import grpc"),
        ("swarm/pool.py", "import grpc.aio"),
        ("swarm/store/group_store.py", "from google.protobuf.message import Message"),
        ("swarm/calls/service.py", "from sapo_jax.swarm.wire.generated import rollout_exchange_pb2 as pb"),
        ("swarm/calls/service.py", "import sapo_jax.swarm.wire.generated.rollout_exchange_pb2"),
    ],
)
def test_the_check_sees_which_file_imports_the_wire(tmp_path, path, source):
    file = tmp_path / path
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(source)
    (complaint,) = _violations(tmp_path)
    assert complaint.startswith(f"{path}: only swarm/") and " may import " in complaint


def test_every_owner_of_the_wire_is_there():
    owners = {name for names in OWNED_BY_FILES.values() for name in names}
    assert [name for name in sorted(owners) if not (ROOT / name).exists()] == []


def test_a_fresh_process_imports_these_without_loading_jax():
    paths = (path for path in sorted(ROOT.rglob("*.py")) if _unit(path, ROOT) in WITHOUT_JAX)
    modules = [
        ".".join(("sapo_jax", *path.relative_to(ROOT).with_suffix("").parts))
        for path in paths
        if path.name not in ("__init__.py", "__main__.py")
    ]
    script = f"""
import importlib, sys
for name in {modules!r}:
    importlib.import_module(name)
    loaded = {JAX!r} & set(sys.modules)
    assert not loaded, f"{{name}} loads {{loaded}}"
"""
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT.parent)
    assert result.returncode == 0, result.stderr
    assert len(modules) >= 10
