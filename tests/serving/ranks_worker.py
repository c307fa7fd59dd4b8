"""One process of the tests in test_ranks.py. Arguments: rank, world size, rendezvous file, scenario.

Process 0 prints one JSON object: what each turn gave.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "generation")]
RANK, WORLD, RENDEZVOUS, SCENARIO = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4]
os.environ["RANK"], os.environ["WORLD_SIZE"] = str(RANK), str(WORLD)

import torch.distributed as dist  # noqa: E402
from scripted import EOS, ScriptedModel, prompt  # noqa: E402

from sat_models import runtime  # noqa: E402
from sat_models.errors import run_script  # noqa: E402
from sat_models.generation.engine import Engine  # noqa: E402
from sat_models.generation.ranks import SharedEngine  # noqa: E402
from sat_models.generation.sampling import SamplingOptions  # noqa: E402

NAN = float("nan")
GOOD, DIFFERENT = [5, 6, EOS], [7, 8, 9, 9, 9]


def _turn(engine: SharedEngine, *, read: int | None = None, length: int = 3) -> dict[str, object]:
    """One turn as process 0 sees it; `read` tokens only, if given."""
    try:
        stream = engine.tokens(prompt(text=length), SamplingOptions(temperature=0.0))
        for count, _ in enumerate(stream, 1):
            if count == read:
                stream.close()
                break
        return {"ids": stream.token_ids, "finish": stream.finish_reason}
    except Exception as error:
        return {"error": f"{type(error).__name__}: {error}"}


def main() -> None:
    """Run the scenario."""
    dist.init_process_group("gloo", init_method=f"file://{RENDEZVOUS}", rank=RANK, world_size=WORLD)
    runtime.init_model_parallel(WORLD)
    # what the other processes' own logits would say must not matter
    good = GOOD if RANK == 0 else DIFFERENT
    scripts = {
        "recovers": [good, [5, 6, 7, EOS], [5, RuntimeError("no memory")], [5, NAN], good],
        "alone": [good, [5, RuntimeError("no memory")] if RANK else [5, 6, 7, EOS], good],
    }[SCENARIO]
    model = ScriptedModel([])
    engine = SharedEngine(Engine(model, eos_id=EOS, max_length=64, device="cpu"), settle_seconds=3)
    _play(model, scripts)
    if not engine.leads:
        engine.follow()
        return
    turns = [_turn(engine)]
    turns += [_turn(engine, read=2), _turn(engine, length=99)] if SCENARIO == "recovers" else []
    turns += [_turn(engine) for _ in scripts[len([turn for turn in turns if "ids" in turn]) :]]
    print(json.dumps({"turns": turns, "usable": engine.usable, "mixins": len(model.mixins)}), flush=True)
    engine.stop()
    engine.leave()


def _play(model: ScriptedModel, scripts: list[list[object]]) -> None:
    """Make each prefill start the next script."""
    forward, turns = model.forward, iter(scripts)

    def play(input_ids: object, *args: object, **kwargs: object) -> object:
        if "vision_image" in kwargs:
            model.script, model.calls = next(turns), []
        return forward(input_ids, *args, **kwargs)

    model.forward = play


if __name__ == "__main__":
    run_script(main)
