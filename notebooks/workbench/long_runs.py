"""Records of long runs of reproduction/train.py, which a chapter shows; none is invented."""

import json

# One JSON object a run, between commas; reproduction/keep.py adds one.
RUNS = """
"""


def read(text: str = RUNS) -> list[dict]:
    """The recorded runs: net, data, date, device, versions, settings, and a list of seeds.

    Each seed has its number, `loss` and `validation` (one number an epoch) and `test`, the accuracy
    after the last epoch. Raises ValueError for what is no JSON.
    """
    return json.loads(f"[{text}]")
