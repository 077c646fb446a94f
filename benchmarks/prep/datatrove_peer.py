"""datatrove's MinHash over one JSONL file, for ``dedup.py``; run by a Python that has datatrove.

``time FILE``: process seconds of its signature stage, without start-up. ``find FILE``: the ids it would drop.
"""

from __future__ import annotations

import contextlib
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from datatrove.data import Document
from datatrove.pipeline.dedup import MinhashDedupBuckets, MinhashDedupCluster, MinhashDedupSignature
from datatrove.pipeline.dedup.minhash import MinhashConfig
from datatrove.utils.hashing import HashConfig

CONFIG = MinhashConfig(n_grams=5, num_buckets=14, hashes_per_bucket=8, hash_config=HashConfig(precision=64))


def documents(path: str) -> list[Any]:
    lines = Path(path).read_text(encoding="utf-8").split("\n")
    return [Document(**json.loads(line)) for line in lines if line]


def main(what: str, path: str) -> dict[str, object]:
    with tempfile.TemporaryDirectory() as name:
        step = MinhashDedupSignature(f"{name}/signatures", CONFIG, language="zho_Hani")
        texts = documents(path)
        step.get_shingles(texts[0].text)  # loads the word tokenizer
        began = time.process_time()
        step.run(texts, 0, 1)
        seconds = time.process_time() - began
        if what == "time":
            return {"seconds": seconds}
        for bucket in range(CONFIG.num_buckets):
            MinhashDedupBuckets(f"{name}/signatures", f"{name}/buckets", config=CONFIG).run(None, bucket, 14)
        MinhashDedupCluster(f"{name}/buckets", f"{name}/remove", config=CONFIG).run(None, 0, 1)
        removed = [int.from_bytes(raw[i : i + 4], "little") for raw in removals(name) for i in range(0, len(raw), 4)]
        return {"dropped": removed}


def removals(name: str) -> list[bytes]:
    return [path.read_bytes() for path in Path(f"{name}/remove").rglob("*.remove")]


if __name__ == "__main__":
    with contextlib.redirect_stdout(sys.stderr):
        answer = main(*sys.argv[1:])
    print(json.dumps(answer))
