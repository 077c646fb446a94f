"""Programs on PATH that stand for ssh and for Slurm, where what they carry is the subject and not how."""

from __future__ import annotations

from pathlib import Path

import pytest

SSH = """\
#!/bin/sh
# As ssh does: the words behind the host, joined by spaces, are a command for a shell in an environment of its own.
while [ "$1" != -- ]; do shift; done
host=$2
shift 2
echo $$ > "{place}/pid-$host"
[ -e "{place}/profile-$host" ] && . "{place}/profile-$host"
cd / && exec env -i HOME="$HOME" PATH="$PATH" USER="$USER" PYTHONPATH="$PYTHONPATH" sh -c "$*"
"""
"""``profile-HOST`` is read as a login shell reads its own."""
SRUN = """\
#!/bin/sh
# One task, here; srun's own options begin with --.
while [ "${1#--}" != "$1" ]; do shift; done
SLURM_PROCID=0 exec "$@"
"""
SCONTROL = """\
#!/bin/sh
case $1 in
    show) echo n1 ;;
    requeue) echo "$2" >> "{place}/requeued" ;;
esac
"""
SQUEUE = "#!/bin/sh\necho RUNNING\n"


def _install(place: Path, monkeypatch: pytest.MonkeyPatch, programs: dict[str, str]) -> Path:
    bin_folder = place / "bin"
    bin_folder.mkdir()
    for name, text in programs.items():
        (bin_folder / name).write_text(text.replace("{place}", str(place)))
        (bin_folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(bin_folder), prepend=":")
    return place


def ssh(place: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """``ssh -- HOST WORDS`` runs them here. While one runs, ``pid-HOST`` holds the number of its process."""
    monkeypatch.delenv("PYTHONPATH", raising=False)
    return _install(place, monkeypatch, {"ssh": SSH})


def slurm(place: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What a batch script calls; ``requeued`` gets the number of a job that is put back."""
    for name, value in {"SLURM_JOB_NODELIST": "n1", "SLURM_JOB_NUM_NODES": "1", "SLURM_JOB_ID": "7"}.items():
        monkeypatch.setenv(name, value)
    return _install(place, monkeypatch, {"srun": SRUN, "scontrol": SCONTROL, "squeue": SQUEUE})
