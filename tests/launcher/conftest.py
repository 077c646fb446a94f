"""Small run files and a prepared corpus for tests of the launcher."""

from __future__ import annotations

from pathlib import Path

import pytest

SENTENCES = ["今天天气很好，我们去公园散步。", "他在北京的一所大学读书。", "这本书我已经看了两遍。", "河边的柳树绿了。"]

RUN = """
name: small
output: {output}
data:
  sources: [{{path: {corpus}}}]
  tokenizer: {{vocab_size: 300}}
  sequences: {{max_length: 32}}
  masks: {{views: 2}}
  held_out: 0.2
  workers: 1
stages:
  - name: teacher
    kind: pretrain
    model: &small {{hidden_size: 32, num_hidden_layers: 2, num_attention_heads: 2, max_position_embeddings: 32}}
    training: &training {{steps: 2, global_batch_size: 4, micro_batch_tokens: 64, precision: fp32}}
  - name: student
    kind: distill
    teacher: teacher
    student: {{model: {{hidden_size: 16, num_hidden_layers: 1, num_attention_heads: 2, max_position_embeddings: 32}}}}
    objective: [{{kind: kd_ce, temperature: 8}}, {{kind: hidden_mse, layers: [[0, 0], [2, 1]]}}]
    training: *training
launch: {{processes: 2}}
"""


def write_run(folder: Path) -> Path:
    """A run file and its corpus in ``folder``; its runs go to ``folder``/runs."""
    corpus = folder / "corpus.txt"
    texts = [f"{SENTENCES[i % 4]}第{i}回，{SENTENCES[(i * 7 + 1) % 4]}" for i in range(40)]
    corpus.write_text("\n\n".join(texts), encoding="utf-8")
    path = folder / "small.yaml"
    path.write_text(RUN.format(output=folder / "runs", corpus=corpus), encoding="utf-8")
    return path


@pytest.fixture
def run_file(tmp_path: Path) -> Path:
    return write_run(tmp_path)


@pytest.fixture(scope="session")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run file whose data is prepared; tests only read it."""
    from launcher import launch
    from launcher.runfile import open_prep

    path = write_run(tmp_path_factory.mktemp("prepared"))
    config = open_prep(str(path))
    launch.prepare_data(config.data, config.data_folder)
    return path
