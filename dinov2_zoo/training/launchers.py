"""What started this process (python, accelerate, torchrun, srun, mpirun), and whether it gets what it was started for.

Launchers speak through the environment and, where they are misunderstood, say nothing. So this reads what they said.
"""

import difflib
import os
from collections.abc import MutableMapping
from pathlib import Path

import psutil
import yaml
from accelerate.commands.config.config_args import default_yaml_config_file
from accelerate.commands.launch import launch_command_parser

from dinov2_zoo.config import RuntimeConfig
from dinov2_zoo.errors import ConfigError

# How many processes a launcher started, each in its own words.
COUNTS = ("WORLD_SIZE", "SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "MV2_COMM_WORLD_SIZE")


def adopt_srun(environment: MutableMapping[str, str] = os.environ) -> None:
    """Translate what `srun` tells each of its tasks into torch's words; where it started one task, nothing is to do.

    The first node of the step is the meeting point, as it is with torchrun; MASTER_ADDR and MASTER_PORT win if set.
    """
    tasks = environment.get("SLURM_STEP_NUM_TASKS", "1")
    if tasks == "1" or "WORLD_SIZE" in environment:
        return
    environment["WORLD_SIZE"] = tasks
    environment["RANK"] = environment["SLURM_PROCID"]
    environment["LOCAL_RANK"] = environment["SLURM_LOCALID"]
    # "4(x2),3" is four tasks on each of two nodes and three on the next; nodes of one kind are the rule.
    environment["LOCAL_WORLD_SIZE"] = environment.get("SLURM_STEP_TASKS_PER_NODE", tasks).split("(")[0].split(",")[0]
    environment.setdefault("MASTER_ADDR", first_host(environment.get("SLURM_STEP_NODELIST", "localhost")))
    # accelerate warns where this is unset; how many threads compute is settled by Runtime.
    environment.setdefault("OMP_NUM_THREADS", environment.get("SLURM_CPUS_PER_TASK", "1"))
    # Any port that two jobs on one node do not share.
    environment.setdefault("MASTER_PORT", str(20000 + int(environment.get("SLURM_JOB_ID", "0")) % 20000))


def first_host(nodes: str) -> str:
    """The first of a SLURM list of nodes: "gpu[07-09,12],cpu1" begins with gpu07."""
    name, bracket, rest = nodes.partition("[")
    if not bracket or "," in name:
        return nodes.split(",")[0]
    inside, _, after = rest.partition("]")
    return name + inside.replace("-", ",").split(",")[0] + after.split(",")[0]


def processes_started() -> int:
    """How many processes were started together with this one, by what their launcher says."""
    counts = [os.environ.get(name, "1") for name in COUNTS]
    return max(int(count) for count in counts if count.isdigit())


def flag(name: str) -> bool:
    """Whether an environment variable says yes, in one of accelerate's ways."""
    return os.environ.get(name, "false").lower() in ("true", "1", "yes")


def check_launcher(config: RuntimeConfig) -> None:
    """Refuse what a launcher asks for and we would not do.

    Raises:
        ConfigError: A precision, an FSDP setting or a kind of parallelism that is not supported; a mistyped key.
    """
    precision = os.environ.get("ACCELERATE_MIXED_PRECISION", "no")
    if precision not in ("no", "bf16"):
        raise ConfigError(f"Mixed precision {precision} is not supported: launch with --mixed_precision bf16 or no.")
    if precision == "bf16" and config.precision == "fp32":
        raise ConfigError(
            "The launcher asks for bf16 and runtime.precision for fp32: "
            "drop --mixed_precision bf16, or set runtime.precision to auto."
        )
    if not flag("ACCELERATE_USE_FSDP"):
        return
    if os.environ.get("FSDP_VERSION", "2") != "2":
        raise ConfigError("Only FSDP version 2 is supported: set fsdp_version: 2 in accelerate's configuration file.")
    if flag("FSDP_ACTIVATION_CHECKPOINTING"):
        raise ConfigError(
            "fsdp_activation_checkpointing is accelerate's own: set it to false in its configuration file, and "
            "--runtime.activation_checkpointing true here, which keeps random choices right."
        )
    if flag("FSDP_OFFLOAD_PARAMS"):
        raise ConfigError("fsdp_offload_params is not supported: set it to false in accelerate's configuration file.")
    for kind in ("TP", "CP", "SP"):
        if os.environ.get(f"PARALLELISM_CONFIG_{kind}_SIZE", "1") != "1":
            raise ConfigError(
                f"parallelism_config_{kind.lower()}_size is not supported: of parallelism_config, only "
                "dp_replicate_size and dp_shard_size may be above 1."
            )
    check_fsdp_keys(_accelerate_file())


def replicas(world_size: int) -> int:
    """How many whole copies of each branch the processes hold: accelerate's dp_replicate_size, for hybrid sharding.

    Raises:
        ConfigError: Copies and shards do not multiply to the number of processes.
    """
    if not flag("ACCELERATE_USE_PARALLELISM_CONFIG"):
        return 1
    copies, shards = (int(os.environ.get(f"PARALLELISM_CONFIG_DP_{k}_SIZE", "1")) for k in ("REPLICATE", "SHARD"))
    if copies * shards != world_size:
        raise ConfigError(
            f"parallelism_config asks for {copies} copies of {shards} shards, and there are {world_size} processes: "
            f"let dp_replicate_size x dp_shard_size be {world_size}."
        )
    return copies


def check_fsdp_keys(file: Path | None) -> None:
    """Refuse keys inside accelerate's `fsdp_config` that it does not know, and would ignore without a word.

    Raises:
        ConfigError: Names the key and the nearest known one.
    """
    if file is None or not file.is_file():
        return
    settings = yaml.safe_load(file.read_text()) or {}
    known = [s[2:] for a in launch_command_parser()._actions for s in a.option_strings if s.startswith("--fsdp_")]
    known += ["fsdp_ignored_modules"]  # read from the file only
    for key in settings.get("fsdp_config") or {}:
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1)
            hint = f"did you mean {near[0]}?" if near else f"it knows {', '.join(sorted(known))}."
            raise ConfigError(f"{file}: accelerate does not know `{key}` in fsdp_config and would ignore it: {hint}")


def _accelerate_file() -> Path | None:
    """The configuration file of the `accelerate launch` that started this process; None if it cannot be told."""
    try:
        command = psutil.Process(os.getppid()).cmdline()
    except psutil.Error:
        return None
    for i, word in enumerate(command):
        name, equals, value = word.partition("=")
        if name == "--config_file":
            return Path(value if equals else command[i + 1])
    return Path(default_yaml_config_file)
