"""Fine-tune a model of the zoo. Start it with torchrun, or through scripts/finetune_official.sh.

torchrun --standalone --nproc-per-node=2 scripts/finetune.py --from_pretrained cogvlm-tiny --train_data examples \\
    --save_path runs/mine

Settings come from defaults, then the model's preset (configs/finetune/<model>.yaml), then --config files, then flags.
docs/finetuning.md explains them.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from sat_models.errors import run_script


def run() -> int:
    if {"-h", "--help"} & set(sys.argv[1:]):
        from sat_models.training.settings_files import make_parser

        make_parser(__doc__).print_help()
        return 0
    from sat_models.training.finetune import main

    return main()


if __name__ == "__main__":
    run_script(run)
