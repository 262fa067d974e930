# On a fresh machine `make run`, `make test` and `make docs` first make .venv (Python 3.11 or later) and install the package into it.
# One environment serves all: the `dev` extra holds what users and what developers need, so that `make run` and `make test` cannot disagree.
PYTHON ?= python3
BIN    := .venv/bin
STAMP  := .venv/.installed
DATA   ?=
ARGS   ?=
KEEP   ?=
RELEASE ?=

.PHONY: help run test test-fast test-breaks test-wheel docs course slides bench gpu prepare clean
help:          ## these lines
	@grep -E '^[a-z-]+:.*## ' Makefile | sed -E 's/^([a-z-]+):[^#]*## /  make \1\t/' | expand -t 22

$(STAMP): settings.ini setup.py pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "libkd needs Python 3.11 or later, this is " + sys.version.split()[0] + ": make PYTHON=/path/to/python3.11")'
	@test -x $(BIN)/python || { echo "set-up: .venv from $$($(PYTHON) --version), then about 5 GB of packages, once"; $(PYTHON) -m venv .venv; }
	$(BIN)/python -m pip install --disable-pip-version-check -e '.[dev]'
	@touch $@

run: $(STAMP)          ## teach a student on the embedded images, or DATA=<folder of class folders>; ARGS="--plan", "-p epochs 5", …
	@$(BIN)/libkd run $(if $(DATA),'$(DATA)') $(ARGS)

test: $(STAMP)         ## everything: drift, notebooks, pytest, breaks
	@.ci/test all
test-fast: $(STAMP)    ## the quick half: drift, quick notebooks, pytest without the tests marked slow
	@.ci/test fast
test-breaks: $(STAMP)  ## break each promise; its test must go red. ARGS="4.5 -v" for some of them
	@$(BIN)/python tests/breaks.py $(ARGS)
test-wheel: $(STAMP)   ## build the wheel, install it with the newest fastai into an empty environment, run the ten lines there (slow, downloads)
	@$(BIN)/python tests/fresh.py

docs: $(STAMP)         ## the site, complete and offline, in _site/html, and a look at every page; KEEP=<folder> puts it there as latest, RELEASE=yes as a release too
	@$(BIN)/python .ci/docs/build.py
	@$(BIN)/python .ci/docs/check.py
	@$(if $(KEEP),$(BIN)/python .ci/docs/versions.py '$(KEEP)' $(if $(RELEASE),--release))
course: $(STAMP)       ## execute the lessons in place, with minutes and megabytes; ARGS="04-10" for some of them
	@$(BIN)/python .ci/course.py $(ARGS)
	@$(BIN)/nbdev_clean --fname nbs/tutorials
slides: $(STAMP)       ## the course's key points as slides.html: one file to project, no network
	@$(BIN)/python -c "from libkd.course import write_slides; print(write_slides('slides.html'))"
bench: $(STAMP)        ## execute the benchmarks in nbs/bench in place
	@for nb in nbs/bench/[!_]*.ipynb; do echo "$$nb"; OMP_NUM_THREADS=1 $(BIN)/jupyter nbconvert --log-level=WARN --to notebook --execute --inplace "$$nb" || exit 1; done
	@$(BIN)/nbdev_clean
gpu: $(STAMP)          ## measure on a GPU, to nbs/bench/gpu.json; goes on where it was. DATA=<32-pixel photographs>, ARGS="--minutes 4"
	@$(BIN)/python nbs/bench/gpu.py $(if $(DATA),--data '$(DATA)') $(ARGS)
prepare: $(STAMP)      ## before a commit: export, clean, README from nbs/index.ipynb, stubs for editors
	$(BIN)/nbdev_export
	$(BIN)/nbdev_clean
	$(BIN)/python .ci/docs/readme.py
	$(BIN)/python .ci/drift.py
clean:                 ## what the commands above made, .venv excepted
	rm -rf _proc _src _site _docs build dist slides.html .pytest_cache
