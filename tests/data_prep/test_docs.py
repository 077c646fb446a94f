from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from data_prep.config import PrepConfig
from data_prep.readers import READERS
from data_prep.segment import SEGMENTERS
from data_prep.variants import VARIANTS

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "data.md").read_text(encoding="utf-8")
EXAMPLES = re.findall(r"```yaml\n(.*?)```", PAGE, flags=re.DOTALL)


@pytest.mark.parametrize("example", range(len(EXAMPLES)))
def test_examples_are_run_files(example: int) -> None:
    PrepConfig.model_validate(yaml.safe_load(EXAMPLES[example]))


def test_every_kind_is_told_of() -> None:
    for name in (*READERS, *SEGMENTERS, *VARIANTS):
        assert f"`{name}`" in PAGE, name
