"""The same preparation on this machine's processes, datatrove's local executor, Ray, and a rendered Slurm job."""

from __future__ import annotations

import gzip
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

from configs.cluster import LocalCluster, PrepJobs, RayCluster, SlurmCluster, load_cluster
from configs.errors import ConfigError, DataError, LaunchError
from data_prep import pipeline
from data_prep.block import Task
from data_prep.config import DataConfig, SegmentConfig, SourceConfig, TokenizerConfig
from data_prep.corpus import Corpus
from data_prep.executors import cluster as clusters
from data_prep.executors.ranks import share
from data_prep.pipeline import prepare, submit
from data_prep.plan import Job, block_size
from data_prep.readers import open_sources
from data_prep.shards import read_manifest
from tests.data_prep.conftest import sample_config
from tests.data_prep.test_pipeline import stable, tree

JOBS = PrepJobs(tasks=2, at_once=2, memory_gb=1)
SBATCH = """#!{python}
# What sbatch does: run the script for each number of its array, in its own working folder, and print an id.
import os, re, subprocess, sys
*options, path = sys.argv[1:]
text = open(path).read()
first, last = map(int, re.search(r"--array=(\\d+)-(\\d+)", text).groups())
place = {place!r}
with open(os.path.join(os.path.dirname(place), "of-sbatch"), "w") as file:
    file.write(" ".join(os.environ))
number = len(os.listdir(place)) + 1
with open(os.path.join(place, f"{{number}}.sh"), "w") as file:
    file.write(f"# {{' '.join(options)}}\\n{{text}}")
settings = dict(word.split("=", 1) for option in options if option.startswith("--export=ALL,")
                for word in option[13:].split(","))
for task in range(first, last + 1):
    environment = os.environ | settings | {{"SLURM_ARRAY_TASK_ID": str(task), "SLURM_NODELIST": "here",
                                            "SLURM_JOB_ID": str(number)}}
    with open(os.path.join(place, f"log-{{number}}-{{task}}"), "w") as log:
        subprocess.run(["bash", path], env=environment, stdout=log, stderr=log)
print(f"Submitted batch job {{number}}")
"""


def texts(place: Path) -> DataConfig:
    for number in range(3):
        lines = [
            f"第{number}卷第{i}回说的是{'春夏秋冬'[i % 4]}天。天气很好，我们走了{i}里路！" for i in range(12 + number)
        ]
        (place / f"{number}.txt").write_text("\n\n".join(lines) + "\n", encoding="utf-8")
    sources = [SourceConfig(path=str(place / f"{number}.txt")) for number in range(3)]
    return sample_config(
        sources=sources, tokenizer=TokenizerConfig(vocab_size=250), segment=SegmentConfig(kind="none"), workers=1
    )


def data(folder: Path) -> dict[str, str]:
    return {name: hash for name, hash in tree(folder).items() if not name.startswith("execution/")}


def check_same(one: Corpus, other: Corpus) -> None:
    assert data(one.folder) == data(other.folder)
    assert one.hash == other.hash
    assert stable(one.manifest) == stable(other.manifest)


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Programs of Slurm that carry jobs out at once; the folder with the scripts that were submitted."""
    programs, place = tmp_path / "slurm-bin", tmp_path / "submitted"
    programs.mkdir()
    place.mkdir()
    for name, text in {
        "sbatch": SBATCH.format(python=sys.executable, place=str(place)),
        "srun": '#!/bin/bash\nwhile [[ "$1" == -* ]]; do [[ "$1" == -n ]] && shift; shift; done\nexec "$@"\n',
        "scontrol": "#!/bin/bash\necho here\n",
    }.items():
        (programs / name).write_text(text)
        (programs / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    for name in ("UNNAMED_SECRET", "HF_TOKEN", "NAMED", "SBATCH_PARTITION"):
        monkeypatch.setenv(name, "canary")
    return place


def test_local_executor(tmp_path: Path) -> None:
    config = texts(tmp_path)
    here = prepare(config, tmp_path / "here")
    seen: list[pipeline.Progress] = []
    there = prepare(config, tmp_path / "there", seen.append, LocalCluster(kind="local", prep=JOBS))
    check_same(here, there)
    assert (seen[-1].blocks, seen[-1].total_blocks, seen[-1].documents) == (3, 3, 39)


def test_ray(tmp_path: Path) -> None:
    config = texts(tmp_path)
    there = prepare(config, tmp_path / "there", None, RayCluster(kind="ray", prep=JOBS))
    check_same(prepare(config, tmp_path / "here"), there)


def test_a_rendered_slurm_job(tmp_path: Path, slurm: Path) -> None:
    """The scripts that sbatch gets are run as they are; the shards that are there already are not made again."""
    config = texts(tmp_path)
    here, folder = prepare(config, tmp_path / "here"), tmp_path / "there"
    with pipeline.locked(folder):
        job = pipeline.begin(config, folder)
    made = job.tasks[1]
    pipeline.phases(config)[0].work(made)
    inode = job.shard(made).stat().st_ino
    cluster = SlurmCluster(kind="slurm", partition="cpu", account="us", sbatch={"exclusive": ""}, prep=JOBS)
    cluster = cluster.model_copy(update={"pass_variables": ["NAMED"], "variables": {"SAID": "canary"}})
    ids = submit(config, folder, cluster)
    logs = "".join(p.read_text() for p in sorted(slurm.glob("log-*")))
    assert (folder / "manifest.json").exists(), logs
    check_same(here, prepare(config, folder))
    assert job.shard(made).stat().st_ino == inode
    first, last = ((slurm / f"{number}.sh").read_text() for number in ids)
    for line in ("--partition=cpu", "--account=us", "--exclusive", "--array=0-1%2", "--mem-per-cpu=1G", "--requeue"):
        assert f"#SBATCH {line}\n" in first
    assert f"--dependency=afterok:{ids[0]}" in last.splitlines()[0]
    exported = set((slurm.parent / "of-sbatch").read_text().split())
    assert {"PATH", "HOME", "NAMED", "SAID"} <= exported
    assert not {"UNNAMED_SECRET", "HF_TOKEN", "SBATCH_PARTITION"} & exported
    assert submit(config, folder, cluster) == []


def test_slurm_jobs_that_fail_are_submitted_again(tmp_path: Path, slurm: Path) -> None:
    """A rank fails on a source that cannot be read; the end refuses; once it is mended the same command goes on."""
    config, folder = texts(tmp_path), tmp_path / "there"
    with pipeline.locked(folder):
        job = pipeline.begin(config, folder)
    shard = job.shard(job.tasks[0])
    shard.parent.joinpath(shard.name).write_text("in the way")
    cluster = SlurmCluster(kind="slurm", partition="cpu", prep=JOBS)
    submit(config, folder, cluster)
    assert not (folder / "manifest.json").exists()
    shard.unlink()
    submit(config, folder, cluster)
    check_same(prepare(config, tmp_path / "here"), Corpus.open(folder))


def test_dry_run_prints_the_scripts_and_writes_nothing(tmp_path: Path, slurm: Path) -> None:
    config, folder = texts(tmp_path), tmp_path / "there"
    cluster = SlurmCluster(kind="slurm", partition="cpu", environment="module load python", prep=JOBS)
    shown = pipeline.describe(config, folder, cluster)
    assert "# 3 blocks into" in shown
    assert shown.count("#!/bin/bash") == 2
    assert "#SBATCH --partition=cpu" in shown and "module load python" in shown
    assert f"launch_pickled_pipeline {folder}/execution/shards-" in shown
    first, last = [line for line in shown.splitlines() if line.startswith("# env -i ")]
    assert first.startswith('# env -i HOME="$HOME" ')
    assert f" sbatch --export=ALL,RUN_OFFSET=0 {folder}/execution/shards-" in first
    assert " --dependency=afterok:ID-OF-zhengliu-shards " in last
    assert "canary" not in shown
    assert not folder.exists() and not list(slurm.iterdir())
    scripts = shown.split("#!/bin/bash")[1:]
    for script in scripts:  # what a person would submit is a shell program
        subprocess.run(["bash", "-n"], input="#!/bin/bash" + script, text=True, check=True)
    assert pipeline.describe(config, folder, None).endswith("1 processes on this machine")


def test_the_engine_s_own_markers_count_for_nothing(tmp_path: Path) -> None:
    """All ranks are complete for datatrove, but a shard is gone: it is made again."""
    config, folder = texts(tmp_path), tmp_path / "there"
    cluster = LocalCluster(kind="local", prep=PrepJobs(tasks=2, at_once=1))
    first = prepare(config, folder, None, cluster)
    expected, hash = data(folder), first.hash
    (folder / "manifest.json").unlink()
    victim = next((folder / "shards").rglob("tokens.bin"))
    victim.write_bytes(b"")
    assert prepare(config, folder, None, cluster).hash == hash
    assert data(folder) == expected


def test_what_a_rank_says_reaches_the_user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config, folder = texts(tmp_path), tmp_path / "there"
    with pipeline.locked(folder):
        job = pipeline.begin(config, folder)
    (tmp_path / "2.txt").unlink()
    phase = pipeline.phases(config)[0]
    with pytest.raises((DataError, LaunchError), match=r"2\.txt"):
        clusters.carry_out(job, phase, LocalCluster(kind="local", prep=PrepJobs(tasks=3, at_once=1)))


@pytest.mark.parametrize("ranks", [1, 2, 3, 7])
def test_shares(tmp_path: Path, ranks: int) -> None:
    """Each block belongs to one rank, and no rank has much more than another."""
    with pipeline.locked(tmp_path / "data"):
        job = pipeline.begin(texts(tmp_path), tmp_path / "data")
    shares = [share(job.tasks, rank, ranks) for rank in range(ranks)]
    assert sorted(t.ordinal for own in shares for t in own) == [0, 1, 2]
    counts = [len(own) for own in shares]
    assert max(counts) - min(counts) <= 1


@pytest.mark.parametrize("ranks", [2, 3])
def test_compressed_files_are_weighed_by_their_text(tmp_path: Path, ranks: int) -> None:
    """Beside blocks of plain text, and so that no rank has a third more than its share of it."""
    draws, characters = random.Random(0), [chr(0x4E00 + i) for i in range(400)]
    sizes = [*range(40, 240, 20), 300, 300]
    paths = [tmp_path / f"{n}.jsonl{'' if n > 9 else '.gz'}" for n in range(len(sizes))]
    for path, size in zip(paths, sizes, strict=True):
        content = "".join(draws.choices(characters, k=20 * size)).encode()  # nearly three times as large as packed
        path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    config = sample_config(sources=[SourceConfig(path=str(path)) for path in paths])
    readers = open_sources(config)
    tasks = [Task(config, r, block, i, "", tmp_path, 0) for i, r in enumerate(readers) for block in r.blocks(1 << 20)]
    assert [block_size(task) for task in tasks] == [
        path.stat().st_size * (3 if path.suffix == ".gz" else 1) for path in paths
    ]
    loads = [sum(block_size(task) for task in share(tasks, rank, ranks)) for rank in range(ranks)]
    assert max(loads) <= 4 / 3 * sum(loads) / ranks


def test_another_machine_knows_the_job_from_its_folder(tmp_path: Path) -> None:
    with pipeline.locked(tmp_path / "data"):
        job = pipeline.begin(texts(tmp_path), tmp_path / "data")
    again = Job.open(tmp_path / "data")
    assert [(t.name, t.block, t.ordinal, t.held_out_below) for t in again.tasks] == [
        (t.name, t.block, t.ordinal, t.held_out_below) for t in job.tasks
    ]
    assert again.config.model_copy(update={"workers": 1}) == texts(tmp_path)
    assert read_manifest(tmp_path / "data", "plan.json")["blocks"][0]["path"] == str(tmp_path / "0.txt")


@pytest.mark.parametrize("name", ["local", "slurm", "ray"])
def test_packaged_cluster_files(name: str) -> None:
    assert load_cluster(f"clusters/{name}").kind == name


def test_cluster_files_with_mistakes(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    for text, said in {
        "kind: slrum": "Did you mean 'slurm'",
        "partition: cpu": "no `kind`",
        "kind: slurm": "partition",
        "kind: slurm\npartition: a\nprep: {time: 5h}": "prep.time",
    }.items():
        path.write_text(text)
        with pytest.raises(ConfigError, match=said):
            load_cluster(path)
