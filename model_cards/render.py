"""Render every model_cards/*.json to the card beside it.

Run  python model_cards/render.py                    after a record or the template has changed
     python model_cards/render.py --run runs/demo    to take a finished distillation in as <name>_<run>.json
"""

import argparse
import json
from pathlib import Path

from dinov2_zoo.hub.card import empty_record, record_of_run, render

HERE = Path(__file__).parent
SIZES = ("vitti14_reg4", "vits14_reg4", "vitb14_reg4", "vitl14_reg4", "vitg14_reg4")


def main() -> None:
    """Read the command line, render."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path)
    run = parser.parse_args().run
    records = {name: empty_record(name) for name in SIZES}
    if run:
        record = record_of_run(run)
        records[f"{record['name']}_{run.name}"] = record
    for name, record in records.items():
        file = HERE / f"{name}.json"
        if name not in SIZES or not file.exists():
            file.write_text(json.dumps(record, indent=1) + "\n")
    for file in sorted(HERE.glob("*.json")):
        file.with_suffix(".md").write_text(render(json.loads(file.read_text())))


if __name__ == "__main__":
    main()
