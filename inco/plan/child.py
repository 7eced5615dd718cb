"""The process that looks at kinds of runs: it alone imports torch, and is as fresh as a run's
worker. Run as a module by `children`.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from inco.errors import InCoError


def main(job: Mapping[str, Any], result: Path) -> None:
    """Do a job (`survey` of many settings, or `measure` of one kind) and leave what it gives in a
    file, whole at any time.
    """

    def write(found: Mapping[str, Any]) -> None:
        temp = result.with_suffix(".new")
        temp.write_text(json.dumps(found))
        os.replace(temp, result)

    try:
        if job["what"] == "survey":
            from inco.plan.survey import survey

            write({"kinds": [survey(settings) for settings in job["settings"]]})
        else:
            _measure(job, write)
    except InCoError as error:
        write({"error": str(error), "exit_code": error.exit_code})


def _measure(job: Mapping[str, Any], write: Any) -> None:
    until = time.monotonic() + job["seconds"] - (time.time() - job["began"])
    from inco.engine.ranks import Ranks
    from inco.plan.measure import Measuring
    from inco.plan.whole import whole_rounds

    with tempfile.TemporaryDirectory(prefix="inco-plan-") as folder:
        ranks = Ranks.join(0, 1, job["settings"]["engine"]["device"], str(Path(folder) / "store"))
        try:
            if job["whole"]:
                whole_rounds(job["settings"], ranks, job["began"], write)
            else:
                Measuring(job["settings"], job["lines"], ranks, until, write)(job["began"])
        finally:
            ranks.close()


def _end_with(parent: int) -> None:
    """End this process when the planner is gone, however it ended: nobody else would."""
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)


if __name__ == "__main__":
    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()
    main(json.load(sys.stdin), Path(sys.argv[1]))
