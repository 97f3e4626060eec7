"""Trains a swarm: `python -m sapo_jax.main --config=configs/FILE.py[:VARIANT] --workdir=DIR [--config.KEY=VALUE ...]`.

Running the same command again resumes; a larger `--config.rounds` continues a finished run. With
`--listen=HOST:PORT` other processes can join the swarm, with `--join=HOST:PORT --invite=FILE` this one
joins theirs. With `--distributed` several processes share one mesh of devices.
"""

from __future__ import annotations

from functools import partial

from absl import flags
from ml_collections import config_flags

from sapo_jax.command import run_command
from sapo_jax.config import SapoConfig, from_config_dict
from sapo_jax.host import Host
from sapo_jax.mirrored_host import LeadingHost, follow
from sapo_jax.process_group import ProcessGroup
from sapo_jax.process_start import initialize, parse_request
from sapo_jax.progress import Progress
from sapo_jax.report import write_report
from sapo_jax.signals import StopRequest
from sapo_jax.summary import describe
from sapo_jax.swarm_flags import SwarmFlags
from sapo_jax.training import Training
from sapo_jax.wiring import build_host, load_model, select_platform
from sapo_jax.workdir import open_workdir

_OPTIONS = flags.FlagValues()
_CONFIG = config_flags.DEFINE_config_file(
    "config", help_string="Config file, with a variant such as configs/tiny.py:4_4.", flag_values=_OPTIONS
)
_WORKDIR = flags.DEFINE_string(
    "workdir", None, "Directory of the run: config, metrics, checkpoints, report.", flag_values=_OPTIONS
)
_LEAST_ROUND_S = flags.DEFINE_float(
    "least_round_s",
    0.0,
    "Seconds that a round takes at least; the rest of it is left to others on this machine.",
    lower_bound=0.0,
    flag_values=_OPTIONS,
)
_DISTRIBUTED = flags.DEFINE_string(
    "distributed",
    "",
    "Share one mesh with other processes that get the same command: auto (TPU slices, Slurm), or HOST:PORT,COUNT,INDEX "
    "where process INDEX of COUNT runs here and HOST is where process 0 does (in brackets if it is an IPv6 address). "
    "Only on a private network.",
    flag_values=_OPTIONS,
)
_SWARM = SwarmFlags(_OPTIONS)
flags.mark_flags_as_required(["config", "workdir"], flag_values=_OPTIONS)


def main() -> None:
    """Trains until `config.rounds` rounds are done or a signal asks to stop."""
    config = from_config_dict(_CONFIG.value)
    if not _DISTRIBUTED.value:
        select_platform(config)
        _train(config)
        return
    request = parse_request(_DISTRIBUTED.value)
    initialize(request)
    select_platform(config)
    # jax may number the processes of a TPU slice otherwise; then HOST is not the leader's machine.
    with ProcessGroup(config, request.host if request and request.index == 0 else "") as group:
        if group.leads:
            _train(config, group)
        else:
            print(f"process {group.index} of {group.count}: follows process 0, which reports", flush=True)
            follow(group, partial(build_host, config, load_model(config)))


def _train(config: SapoConfig, group: ProcessGroup | None = None) -> None:
    host_kind = partial(LeadingHost, group) if group else Host
    with open_workdir(_WORKDIR.value or "", config) as workdir, Progress(config.rounds) as progress:
        request = _SWARM.request(workdir.path)
        with (
            StopRequest(progress.print) as stop,
            Training(config, workdir, progress, stop, request, host_kind=host_kind) as training,
        ):
            if group:
                group.on_stop(stop.request)
            done = training.run(least_round_s=_LEAST_ROUND_S.value or 0.0)
        if not workdir.metrics_path.is_file():
            progress.print(f"{workdir.path}: stopped before the first evaluation; the same command begins again")
            return
        with progress.stage("writing the report", announce=False):
            pictures = write_report(workdir.path)
    print(describe(workdir.path, done, config.rounds, pictures))


if __name__ == "__main__":
    run_command(main, _OPTIONS)
