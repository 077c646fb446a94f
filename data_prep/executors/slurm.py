"""datatrove's Slurm executor, with paths of any letters: it puts them unquoted into its script."""

from __future__ import annotations

import shlex
from typing import Any

from datatrove.executor.slurm import SlurmPipelineExecutor


class QuotingExecutor(SlurmPipelineExecutor):  # type: ignore[misc]  # datatrove has no types
    def get_sbatch_args(self, max_array: int = 1) -> dict[str, Any]:
        arguments: dict[str, Any] = super().get_sbatch_args(max_array)
        folder = str(self.slurm_logs_folder)
        escaped = folder.replace("%", "%%").replace("\\", "\\\\").replace('"', '\\"')
        for name in ("output", "error"):
            arguments[name] = f'"{escaped}{str(arguments[name]).removeprefix(folder)}"'
        return arguments

    def get_launch_file_contents(self, sbatch_args: dict[str, Any], run_script: str) -> str:
        place = self.logging_dir.resolve_paths("executor.pik").removesuffix("/executor.pik")
        return str(super().get_launch_file_contents(sbatch_args, run_script.replace(place, shlex.quote(place))))
