"""What is handed to Slurm, without a Slurm: the script word by word, and what gets into none."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from configs.cluster import SlurmCluster, Supervision, load_cluster
from configs.errors import ConfigError, LaunchError
from launcher import launch, sweep
from launcher.backends.slurm import Slurm, submit
from launcher.job import ROOT, Job
from launcher.node import encoded
from launcher.runfile import open_run

GOLDEN = """\
#!/bin/bash
#SBATCH --job-name=zhengliu-my_run_s
#SBATCH --partition=gpu
#SBATCH --account=lab
#SBATCH --nodes=1-2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64
#SBATCH --mem=0
#SBATCH --time=1-00:00:00
#SBATCH --signal=B:USR1@300
#SBATCH --open-mode=append
#SBATCH --requeue
#SBATCH --export=HOME,LANG,LC_ALL,LD_LIBRARY_PATH,LOGNAME,MODULEPATH,MODULESHOME,PATH,SHELL,USER
#SBATCH --constraint=a100|h100
#SBATCH --exclusive

place='FOLDER/launch/m1'
# The Python that submitted this.
agent=(/venv/bin/python -P ROOT/launcher/node.py JOB)

asked= agents=
pass_on() {
    asked=1
    [ -z "$agents" ] || kill -USR1 "$agents" 2> /dev/null
}
trap pass_on USR1 TERM

rm -f -- "$place"/link.json "$place"/verdict.json "$place"/node-*.json  # of an earlier turn
scontrol show hostnames "$SLURM_JOB_NODELIST" > "$place"/hosts
if [ -z "$asked" ]; then
    srun --nodes="$SLURM_JOB_NUM_NODES" --ntasks-per-node=1 --kill-on-bad-exit=0 --wait=60 --export=ALL \\
        "${agent[@]}" --node SLURM_PROCID --show &
    agents=$!
    while kill -0 "$agents" 2> /dev/null; do wait "$agents"; done
fi
"${agent[@]}" --outcome
status=$?
[ -z "$asked" ] || [ -e "$place"/verdict.json ] || status=75

case $status in
    75) turns=1000 ;; # stopped, with a checkpoint
    69) turns=3 ;; # a rank or a node was lost
    *) turns=0 ;;
esac
count=$(cat "$place/turns-$status" 2> /dev/null || echo 0)
# Only while it is ours to ask: a job that is cancelled stays so, and one that is preempted is in the queue already.
if [ "$count" -lt "$turns" ] && [ "$(squeue --noheader --jobs="$SLURM_JOB_ID" --format=%T)" = RUNNING ]; then
    echo $((count + 1)) > "$place/turns-$status"
    echo "Status $status: back into the queue ($((count + 1)) of $turns)."
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$status"
"""


def cluster(**settings: object) -> SlurmCluster:
    return SlurmCluster.model_validate({"kind": "slurm", "partition": "gpu", **settings})


def test_the_script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/venv/bin/python")
    backend = Slurm(
        cluster(
            account="lab",
            nodes=2,
            gpus=8,
            cpus=64,
            memory_gb=0,
            time="1-00:00:00",
            sbatch={"constraint": "a100|h100", "exclusive": ""},
            supervision=Supervision(restarts=3, min_nodes=1),
        )
    )
    folder = tmp_path / "my run's"
    job = Job(folder, 8, nodes=2, mark="m1", scheduled=True)
    golden = GOLDEN.replace("FOLDER/launch/m1'", "FOLDER'").replace("my_run_s", "my_run_s")
    golden = golden.replace("'FOLDER'", shlex.quote(f"{folder}/launch/m1"))
    golden = golden.replace("ROOT", str(ROOT)).replace("JOB)", encoded(job.place / "job.json") + ")")
    script = backend.script(job)
    assert script == golden
    subprocess.run(["bash", "-n"], input=script, text=True, check=True)


def test_a_dry_run_says_what_waits_for_what(run_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The numbers of jobs are known only once they are in the queue; names stand for them."""
    monkeypatch.setattr("launcher.devices.gpus", lambda *_, **__: 0)
    cluster = SlurmCluster(kind="slurm", partition="p")
    config = open_run(str(run_file))
    said = launch.dry_run(config, None, cluster)
    after = "afterok:ID-OF-zhengliu-shards:ID-OF-zhengliu-shards-end"
    assert f" --dependency={after} --kill-on-invalid-dep=yes " in said.splitlines()[-1]
    assert said.count("sbatch --export=ALL,RUN_OFFSET=0 ") == 2
    assert not config.folder.exists()
    run_file.write_text(run_file.read_text() + "sweep: {grid: {seed: [1, 2, 3]}, at_once: 2}\n")
    several = sweep.open_sweep(str(run_file))
    assert several is not None
    lines = [line for line in sweep.dry_run(several, None, cluster).splitlines() if line.startswith("sbatch ")]
    assert [f"--dependency={after} " in line for line in lines] == [True, True, False]
    assert f"--dependency={after},afterany:ID-OF-0001-seed-1 " in lines[2]
    assert not several.folder.exists()


def test_dry_run_shows_all_files_and_the_command_but_no_secret(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    backend = Slurm(cluster())
    job = Job(tmp_path / "50%", 1, mark="m1", after=("7", "8"), environment={"HF_TOKEN": "canary", "TZ": "UTC"})
    said = backend.describe(job)
    assert backend.script(job) in said + "\n"
    assert '"TZ": "UTC"' in said and "canary" not in said
    last = shlex.split(said.splitlines()[-1])
    place = tmp_path / "50%"
    assert last == [
        "sbatch",
        "--parsable",
        f"--output={tmp_path}/50%%/logs/slurm-%j.log",
        f"--chdir={tmp_path}",
        "--dependency=afterok:7:8",
        "--kill-on-invalid-dep=yes",
        f"{place}/launch/m1/slurm.sh",
    ]
    assert not place.exists()


@pytest.mark.parametrize(
    ("settings", "wanted", "ranks"),
    [({}, None, 1), ({}, 2, 2), ({"gpus": 8}, None, 8), ({"gpus": 2}, 4, 2), ({"processes": 3}, 8, 3)],
)
def test_how_many_ranks(settings: dict[str, int], wanted: int | None, ranks: int) -> None:
    assert Slurm(cluster(**settings)).ranks(wanted) == ranks


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("partition: 'gpu\n#SBATCH --uid=0'", "partition"),
        ("account: $(id)", "account"),
        ("sbatch: {comment: 'a; touch x'}", "sbatch"),
        ('sbatch: {comment: "a\\nb"}', "sbatch"),
        ("sbatch: {'x y': a}", "sbatch"),
        ("sbatch: {output: x}", "output: these have keys of their own"),
        ("time: 5h", "time"),
        ("notice: 0", "notice"),
        ("nodes: 2\nsupervision: {min_nodes: 3}", "min_nodes is 3"),
    ],
)
def test_what_would_not_be_a_word_of_the_script(tmp_path: Path, line: str, said: str) -> None:
    head = "kind: slurm\n" if line.startswith("partition") else "kind: slurm\npartition: gpu\n"
    path = tmp_path / "c.yaml"
    if line.startswith("partition"):
        line = 'partition: "gpu\\n#SBATCH --uid=0"'
    path.write_text(head + line)
    with pytest.raises(ConfigError, match=re.escape(said)):
        load_cluster(path)


def test_what_sbatch_says_reaches_the_user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ConfigError, match="no sbatch on this machine"):
        submit(["sbatch", "x"])
    program = tmp_path / "sbatch"
    program.write_text("#!/bin/sh\necho 'error: invalid partition specified: gpu' >&2\nexit 1\n")
    program.chmod(0o755)
    with pytest.raises(LaunchError, match="refused the job: error: invalid partition"):
        submit(["sbatch", "x"])
    program.write_text('#!/bin/sh\necho "41;cluster"\n[ -z "$SBATCH_ACCOUNT$SLURM_JOB_ID" ]\n')
    monkeypatch.setenv("SBATCH_ACCOUNT", "other")
    monkeypatch.setenv("SLURM_JOB_ID", "3")
    assert submit(["sbatch", "x"]) == "41"
