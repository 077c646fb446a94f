"""Which environment variables go to other nodes: an allow-list, for what is called like a secret only by name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from configs.errors import ConfigError

PASSED_ON = ("GLOO_", "HF_DATASETS_", "HF_HUB_", "NCCL_", "OMP_", "TORCH_", "ZHENGLIU_")
PASSED_NAMES = (
    "CUDA_VISIBLE_DEVICES",
    "DS_ACCELERATOR",
    "HF_HOME",
    "LANG",
    "LC_ALL",
    "MKL_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "TZ",
)
SECRET_WORDS = ("AUTH", "COOKIE", "CREDENTIAL", "DSN", "KEY", "PASS", "PWD", "SECRET", "TOKEN", "WANDB_API")
USERS = ("HOME", "LANG", "LC_ALL", "LD_LIBRARY_PATH", "LOGNAME", "PATH", "USER")
"""What any program needs of whoever starts it."""
BY_SLURM = tuple(sorted((*USERS, "MODULEPATH", "MODULESHOME", "SHELL")))
"""What Slurm itself exports, of the environment of whoever submits."""


def like_a_secret(name: str) -> bool:
    return any(word in name.upper() for word in SECRET_WORDS)


def passed_on(base: Mapping[str, str], names: Sequence[str] = ()) -> dict[str, str]:
    """Of the launcher's own environment, what ranks on other nodes get: an allow-list, and what the user names.

    Whatever is called like a secret goes only by name.

    Raises:
        ConfigError: a variable that is named is not set.
    """
    listed = {
        name: value
        for name, value in base.items()
        if (name.startswith(PASSED_ON) or name in PASSED_NAMES) and not like_a_secret(name)
    }
    missing = [name for name in names if name not in base]
    if missing:
        raise ConfigError(
            f"pass_variables names {', '.join(missing)}, which {'is' if len(missing) == 1 else 'are'} not set here. "
            "Set it, or take it out of the cluster file."
        )
    return listed | {name: base[name] for name in names}
