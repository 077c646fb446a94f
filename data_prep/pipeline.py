"""Raw files -> a prepared data folder, phase by phase; restartable, and the same bytes for any number of workers.

plan       plan.json: what the folder is made from, the blocks in their order          (plan.py)
settle     tokenizer/, tasks.json: the vocabulary, the border of the splits, names      (plan.py)
phases     each block by itself, then once over all of them: shards -> manifest.json    (phases.py, manifest.py)
"""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from configs.cluster import ClusterConfig, SlurmCluster, TasksCluster
from configs.errors import DataError, OutputError, output_error
from configs.loader import differences
from configs.loader import identity as identity_of
from data_prep.atomic import sweep
from data_prep.config import DataConfig
from data_prep.corpus import Corpus
from data_prep.executors import here
from data_prep.manifest import verify
from data_prep.phases import Phase, phases
from data_prep.plan import UNPACKED, Job, as_of_now, block_size, plan, refuse, settle, vocabulary_hash
from data_prep.progress import OnProgress, Progress, watching
from data_prep.readers import open_sources
from data_prep.readers.streams import compression
from data_prep.segment import describe_segmenter

__all__ = ["Progress", "describe", "prepare", "submit", "verify"]


CarryOut = Callable[[Job, Phase], None]
"""Does what is missing of a phase, without its end, and waits for it."""


def prepare(
    config: DataConfig,
    folder: Path,
    on_progress: OnProgress | None = None,
    elsewhere: TasksCluster | CarryOut | None = None,
) -> Corpus:
    """Prepare ``config.sources`` into ``folder``, or return at once when that is done already.

    Finished shards of an interrupted preparation are kept. The manifest is written last. Without sources it lists no
    shards, and the tokenizer is all there is.

    Args:
        elsewhere: a cluster, by datatrove (not ``slurm``: see :func:`submit`), or whatever carries out a phase;
            default: this machine's processes.

    Raises:
        DataError: a source, vocabulary or the whole corpus is unusable; the folder holds something else.
        OutputError: the folder cannot be written, or the disk is full.
        LaunchError: processes of a cluster failed.
    """
    if (folder / "manifest.json").exists():  # without the lock: finished data may be read-only and in use
        return reuse(config, folder)
    with locked(folder):
        if (folder / "manifest.json").exists():
            return reuse(config, folder)
        job = begin(config, folder)
        for phase in phases(config):
            if elsewhere is None:
                here.carry_out(job, phase, config.workers, on_progress)
            else:
                with watching(job, phase, on_progress):
                    carry_out_elsewhere(job, phase, elsewhere)
            phase.close(job)
        return Corpus.open(folder, config.verify)


def carry_out_elsewhere(job: Job, phase: Phase, elsewhere: TasksCluster | CarryOut) -> None:
    """Do what is missing of ``phase``, by others than this machine's processes."""
    if not isinstance(elsewhere, TasksCluster):
        elsewhere(job, phase)
        return
    from data_prep.executors.cluster import carry_out  # datatrove is there only if asked for

    carry_out(job, phase, elsewhere)


def submit(config: DataConfig, folder: Path, cluster: SlurmCluster) -> list[str]:
    """Do what comes before the blocks, hand the rest to Slurm and return the ids of its jobs; [] when all is done.

    Raises: as :func:`prepare`.
    """
    from data_prep.executors import cluster as clusters

    if (folder / "manifest.json").exists():
        reuse(config, folder)
        return []
    with locked(folder):
        return clusters.submit(begin(config, folder), cluster)


def describe(config: DataConfig, folder: Path, cluster: ClusterConfig | None) -> str:
    """What would be started, for ``--dry-run``; nothing is written."""
    blocks = count_blocks(config)
    head = f"# {blocks} blocks into {folder}"
    if isinstance(cluster, SlurmCluster):
        from data_prep.executors.cluster import scripts

        return f"{head}\n\n{scripts(config, folder, blocks, cluster)}"
    if not isinstance(cluster, TasksCluster):
        return f"{head}, {min(config.workers or os.cpu_count() or 1, blocks)} processes on this machine"
    return f"{head}, {min(cluster.prep.tasks, blocks)} tasks, kind: {cluster.kind}"


def count_blocks(config: DataConfig) -> int:
    """Of which the work will consist."""
    return sum(len(reader.blocks(config.block_megabytes << 20)) for reader in open_sources(config))


def begin(config: DataConfig, folder: Path) -> Job:
    """What comes before the work on single blocks, as far as an earlier start has not done it."""
    for place in (folder, folder / "shards"):
        sweep(place)
    job = settle(config, folder, *plan(config, folder))
    check_space(job)
    return job


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the folder's lock, so that two preparations never write into one folder."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "shards").mkdir(exist_ok=True)
        handle = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise output_error(folder, error) from error
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError:
        raise DataError(f"{folder} is being prepared by another process; wait for it, or stop it.") from None
    finally:
        os.close(handle)


def reuse(config: DataConfig, folder: Path) -> Corpus:
    """The finished corpus in ``folder``, unless it was made from something else."""
    corpus = Corpus.open(folder, config.verify)
    changed = differences(as_of_now(corpus.manifest["identity"]), identity_of(config))
    for name, size in corpus.manifest["inputs"].items():
        now = Path(name).stat().st_size if Path(name).is_file() else size  # gone since then: not needed any more
        if now != size:
            changed.append(f"{name}: {size} -> {now} bytes")
    vocab = config.tokenizer.vocab
    if vocab is not None and Path(vocab).exists() and vocabulary_hash(config) != corpus.manifest["tokenizer"]["hash"]:
        changed.append(f"{vocab}: its entries are not those that the data was prepared with")
    words = config.segment.user_dictionary
    dictionary_read = words is not None and Path(words).exists()
    if dictionary_read and describe_segmenter(config.segment) != corpus.manifest["segmenter"]:
        changed.append(f"{words}: it or jieba is not what the data was prepared with")
    if changed:
        refuse(folder, changed)
    return corpus


def check_space(job: Job) -> None:
    """Refuse to begin what cannot end: a low estimate of the bytes to be written against the free ones."""
    config, tasks = job.config, job.missing
    text = sum(block_size(t) * (2 / UNPACKED if compression(t.block.path) else 1) for t in tasks)  # at least
    views = config.masks.views if config.masks.stored("train") else 0
    # A token is three bytes of Chinese text; it takes two bytes, an eighth for its word, and four in a view if masked.
    needed = text / 3 * (2.1 + 4 * config.masks.rate * views * (config.sequences.copies or 1))
    free = shutil.disk_usage(job.folder).free
    if free < needed:
        raise OutputError(
            f"{job.folder} has {free / 1e9:.1f} GB free, but the shards need about {needed / 1e9:.1f} GB. Free some "
            "space, choose another data.folder, or store fewer mask views (data.masks.views, data.masks.mode=dynamic)."
        )
