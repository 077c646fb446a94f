"""A rank program that says what reached it: ``echo_rank.py FOLDER WORD...``, into FOLDER/said-RANK.json."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

words = [os.fsencode(word).hex() for word in sys.argv[2:]]
variables = {
    os.fsdecode(name): value.hex()
    for name, value in os.environb.items()
    if name.startswith((b"ZHENGLIU_STRING_", b"STRING_"))
}
path = Path(sys.argv[1]) / f"said-{os.environ['RANK']}.json"
path.write_text(json.dumps({"words": words, "variables": variables}))
