"""Runs stages one after the other in the ranks of one torchrun, under every strategy, and writes their losses.

    torchrun --nproc-per-node 2 -m tests.training.golden_worker PLAN.json OUT.json

A plan is a list of {id, stage, overrides}. One process group serves all: closing is left to the end.
"""

from __future__ import annotations

import faulthandler
import importlib
import json
import os
import sys
import traceback
from pathlib import Path

from tests.training.colossal_cpu_sim import install
from tests.training.making import losses
from training.config.load import load_config
from training.strategies import base
from training.strategies.world import leave


def main() -> None:
    plan, out = json.loads(Path(sys.argv[1]).read_text()), Path(sys.argv[2])
    faulthandler.dump_traceback_later(240, exit=True)  # a rank that hangs says where
    install()
    base.close_world = lambda: None  # the next case goes on with this process group
    results: dict[str, object] = {}
    for case in plan:
        config = load_config(case["stage"], {}, case["overrides"])
        try:
            importlib.import_module(f"training.stages.{case['stage']}").run(config)
            if (Path(config.run_dir) / "events.jsonl").exists():
                results[case["id"]] = losses(Path(config.run_dir))
        except Exception:  # the other rank may wait for this one: end both at once
            traceback.print_exc()
            sys.stderr.flush()
            os._exit(1)
    if os.environ.get("RANK", "0") == "0":
        out.write_text(json.dumps(results))
    leave(0)


if __name__ == "__main__":
    main()
