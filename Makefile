# `make` prints the targets. The Python used: PYTHON=... if given, else the active virtual
# environment, else .venv, which is made. What has been installed is not installed again until a
# requirements file changes.

quoted = '$(subst ','\'',$(1))'# one word for the shell, whatever it holds

ifdef PYTHON
  PY := $(call quoted,$(PYTHON))
else ifdef VIRTUAL_ENV
  PY := $(call quoted,$(VIRTUAL_ENV)/bin/python)
else
  PY := .venv/bin/python
  OWN := yes
endif

HTML := _build/html
STAMPS := _build/stamps/$(shell printf %s $(PY) | cksum | cut -d' ' -f1)
SPHINXOPTS ?= -n -W --keep-going
# an edit while NB= is given leaves other notebooks' pages behind: a warning, not an error
OPTIONS = $(if $(NB),$(filter-out -W,$(SPHINXOPTS)),$(SPHINXOPTS))
setting = $(if $($(2)),-D $(call quoted,notebooks_$(1)=$($(2))))
SPHINX = $(PY) -m sphinx $(OPTIONS) $(call setting,only,NB) $(call setting,force,FORCE) \
    $(call setting,jobs,JOBS) $(call setting,warm,WARM) $(call setting,cluster,CLUSTER) \
    $(call setting,memory,MEM)
CHOSEN = $(if $(CONSTRAINTS),-c $(call quoted,$(CONSTRAINTS)))
INSTALL = $(PY) -m pip install --quiet --disable-pip-version-check

.DEFAULT_GOAL := help
.PHONY: help html epub pdf test lab notebooks linkcheck lint mutate serve prune budget constraints bench lighthouse clean distclean

help: ## this list
	@sed -n 's/^\([a-z]*\):.*## */  make \1\t/p' $(firstword $(MAKEFILE_LIST)) | expand -t 18
	@echo "  NB=resnet: run no other notebook; FORCE=1: run although nothing changed; PROFILE=full: real data sets"
	@echo "  JOBS=2: kernels at once; MEM=4: GiB for one; WARM=0: no forked kernels; CLUSTER=tcp://host:8786: on Dask"

html: $(STAMPS)/book ## run the notebooks that changed, write $(HTML)/index.html
	$(SPHINX) -b html . $(HTML)
	@echo "$(HTML)/index.html"

epub: $(STAMPS)/book ## the book as an electronic one, $(HTML)/book.epub
	rm -rf _build/epub
	$(SPHINX) -b epub -d $(HTML)/.doctrees . _build/epub
	@mkdir -p $(HTML) && cp _build/epub/book.epub $(HTML)/book.epub
	@echo "$(HTML)/book.epub"

pdf: $(STAMPS)/test html ## the book printed by a browser, $(HTML)/book.pdf
	PYTHONPATH=tests:_ext $(PY) tools/pdf.py $(HTML) $(HTML)/book.pdf

test: $(STAMPS)/test ## all tests (PYTEST="-k name" selects)
	OMP_NUM_THREADS=1 MPLBACKEND=agg $(PY) -m pytest -n 2 --dist loadgroup $(PYTEST)

lab: $(STAMPS)/lab ## JupyterLab on notebooks/; the .py files open as notebooks
	JUPYTER_CONFIG_DIR=_build/jupyter $(PY) -m jupytext_config set-default-viewer
	JUPYTER_CONFIG_DIR=_build/jupyter $(PY) -m jupyter lab --ServerApp.root_dir=notebooks

notebooks: $(STAMPS)/book ## the self-contained .ipynb files only, in _build/notebooks
	PYTHONPATH=_ext $(PY) -m engine.export notebooks _build/notebooks

linkcheck: $(STAMPS)/book ## visit every link
	$(SPHINX) -b linkcheck . _build/linkcheck

lint: $(STAMPS)/test ## style of the code and of the notebooks
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) tools/lint.py notebooks

mutate: $(STAMPS)/test ## how many small mistakes in definitions the tests find (STEM=resnet or all, N=24)
	PYTHONPATH=tests $(PY) tools/mutate.py $(or $(STEM),all) $(if $(N),-n $(N)) $(if $(JOBS),--jobs $(JOBS))

prune: $(STAMPS)/book ## remove stored outputs that no build used for 30 days (DAYS=1)
	PYTHONPATH=_ext $(PY) -m engine.store prune .store $(or $(DAYS),30)

budget: $(STAMPS)/book ## CPU seconds of each notebook's last run, and what is above the limit
	@PYTHONPATH=_ext $(PY) -m engine.budget notebooks .store

constraints: $(STAMPS)/book ## write constraints.txt anew: the newest versions that the checks install
	$(INSTALL) uv
	$(PY) -m uv pip compile --quiet --python-version 3.11 --no-annotate --no-header \
	    requirements.txt requirements-test.txt > constraints.tmp
	grep -vE '^(torch|torchvision|triton|nvidia-.*|cuda-.*)==' constraints.tmp > constraints.txt
	rm constraints.tmp

bench: $(STAMPS)/bench ## time this engine against MyST-NB's cache and nbsphinx (WHAT=grow, WHAT=book: sizes)
	PYTHONPATH=tests:_ext $(PY) tools/bench.py $(WHAT)

lighthouse: $(STAMPS)/test $(STAMPS)/lighthouse ## Lighthouse's scores of the built site (needs npm and Chromium)
	PYTHONPATH=tests $(PY) tools/lighthouse.py _build/lighthouse

serve: ## serve $(HTML) at http://127.0.0.1:8000
	python3 -m http.server --bind 127.0.0.1 --directory $(HTML) 8000

clean: ## remove what was built, keep what the notebooks printed
	find _build -mindepth 1 -maxdepth 1 ! -name stamps ! -name lighthouse -exec rm -r {} + 2>/dev/null || true

distclean: ## remove everything made: _build, .venv and the store of outputs
	rm -rf _build .store .venv

# ---- set-up --------------------------------------------------------------------------------------

.venv/bin/python:
	@echo python3 -m venv .venv
	@python3 -m venv .venv || { rm -rf .venv; \
	  echo "python3 cannot make a virtual environment; on Debian and Ubuntu: apt install python3-venv" >&2; \
	  exit 1; }

$(STAMPS)/book: requirements.txt requirements-data.txt $(if $(OWN),| .venv/bin/python)
	$(INSTALL) $(CHOSEN) -r requirements.txt
	$(INSTALL) --no-deps -r requirements-data.txt
	@mkdir -p $(@D) && echo 'setuptools < 80' > $(@D)/build.txt
	PIP_CONSTRAINT=$(@D)/build.txt PIP_BUILD_CONSTRAINT=$(@D)/build.txt $(INSTALL) --no-deps visdom==0.2.4 || \
	  echo "visdom was not installed: its page shows a stand-in for its server only" >&2
	@touch $@

$(STAMPS)/test: requirements-test.txt $(STAMPS)/book
	$(INSTALL) $(CHOSEN) -r requirements-test.txt
	@mkdir -p $(@D) && touch $@

$(STAMPS)/bench: $(STAMPS)/book
	$(INSTALL) "nbsphinx >= 0.9.7" "pypandoc_binary >= 1.15"
	@mkdir -p $(@D) && touch $@

$(STAMPS)/lighthouse:
	npm install --silent --no-audit --no-fund --no-package-lock --prefix _build/lighthouse lighthouse@13.5.0
	@mkdir -p $(@D) && touch $@

$(STAMPS)/lab: $(STAMPS)/book
	$(INSTALL) "jupyterlab >= 4.4"
	@mkdir -p $(@D) && touch $@
