"""Render every model_cards/*.json to the card beside it.

Run  python model_cards/render.py                    after the registry, a record or the template has changed
     python model_cards/render.py --run runs/demo    to take a finished distillation in as <name>_<run>.json
"""

import argparse
import json
from pathlib import Path

from dinov2_zoo.hub.card import record_of_run, record_of_source, render
from dinov2_zoo.hub.registry import REGISTRY

HERE = Path(__file__).parent


def main() -> None:
    """Read the command line, render."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path)
    parser.add_argument("--licence", help="of the run's student, the Hub's identifier")
    options = parser.parse_args()
    records = {name: record_of_source(name) for name in REGISTRY}
    if options.run:
        record = record_of_run(options.run, licence=options.licence)
        records[f"{record['name']}_{options.run.name}"] = record
    for name, record in records.items():
        (HERE / f"{name}.json").write_text(json.dumps(record, indent=1) + "\n")
    for file in sorted(HERE.glob("*.json")):
        file.with_suffix(".md").write_text(render(json.loads(file.read_text())))


if __name__ == "__main__":
    main()
