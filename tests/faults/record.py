"""Record what R27 compares with: `python tests/faults/record.py FOLDER`.

Once a release, with the release's own code and a new folder beside `tests/golden/checkpoint_0_1`, which stays as it is.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"
sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parents[2])]

import torch  # noqa: E402

from faults.sitting import sit  # noqa: E402
from faults.test_determinism import content  # noqa: E402
from inco.checkpoint import Checkpoints  # noqa: E402
from inco.machine import arithmetic  # noqa: E402

WORDS = ["algorithm=scaffold", "local=sgd", "local.momentum=0", "server=yogi", "model.blocks=[1,1,1,2]", "model.widths=[1,2,2,2]"]
WORDS.append("split.levels=[[1,1,1,1],[1,1,1,2]]")


def checkpoint(place: Path) -> None:
    """Write the folder of a run after two rounds, without what is only looked at, and what its third would give."""
    run = place / "run"
    sit(run, *WORDS, rounds=2)
    for extra in ("report.html", "partition.png", "run.log"):
        (run / extra).unlink(missing_ok=True)
    shutil.rmtree(run / ".hydra")
    shutil.rmtree(min((run / "checkpoint").glob("round_*")))
    (run / "about.json").unlink()
    for old in (run / "clients").rglob("*.r000001"):  # round 2 has newer ones of all clients
        old.unlink()
    saved = Checkpoints(run).load_latest()
    assert saved is not None
    shutil.copytree(run, place / "further")
    after = sit(place / "further", *WORDS, rounds=3)["weights_sha256"]
    shutil.rmtree(place / "further")
    said = {"words": WORDS, "weights_sha256_after_3": {arithmetic(): after}, "content": content(saved)}
    (place / "content.json").write_text(json.dumps(said, indent=1) + "\n")


if __name__ == "__main__":
    torch.set_num_threads(1)
    checkpoint(Path(sys.argv[1]))
