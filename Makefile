# What one types here; `make help` lists it. Everything runs in .venv, which the first target makes.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PEERS ?= .venv-peers
RUN ?= runs/quickstart

.DEFAULT_GOAL := help
.PHONY: help demo test lint format rust python docs bench bench-sampler wheels gpu-archive study study-small mixtures equal-compute fidelity masks clean

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-13s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

# The package is installed as a user installs it, compiled in release mode, but editable: Python files are read from
# python/, and only a change in rust/ or in the dependencies installs again.
$(VENV)/.installed: pyproject.toml Cargo.toml Cargo.lock $(shell find rust -name '*.rs' -o -name Cargo.toml)
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	touch $@

demo: $(VENV)/.installed  ## prune a model on this machine in minutes: environment, build, quickstart, tables, report
	$(BIN)/drpruning train quickstart --out $(RUN) --resume

test: lint rust python  ## everything: lints, Rust, Python, docs examples

lint: $(VENV)/.installed  ## formats, clippy, ruff, words, mypy strict, stubs against the compiled module
	cargo fmt --all --check
	cargo clippy --workspace --all-targets --quiet -- --deny warnings
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/python docs/check_words.py
	$(BIN)/mypy
	$(BIN)/python -m mypy.stubtest drpruning._native

rust:  ## tests of the Rust crates, docs examples included
	cargo test --package chi2-ball --package drpruning-core --quiet

# Each process runs neighbouring tests, so that they share their fixtures.
python: $(VENV)/.installed  ## tests of the package, docstring and README examples included, in up to four processes
	$(BIN)/pytest --numprocesses logical --maxprocesses 4 --dist worksteal

format: $(VENV)/.installed  ## format and mend what the tools can
	cargo fmt --all
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# The packages it installs have text, so that the demo corpus, made of the text of installed packages, changes.
docs: $(VENV)/.installed  ## write the generated pages, build the site: site/html; warnings and dead links are errors
	$(BIN)/python -m pip install --quiet --editable '.[docs]'
	$(BIN)/python docs/write_pages.py
	$(BIN)/python docs/build_site.py

bench:  ## criterion benchmarks of the core
	cargo bench --package drpruning-benches

# A peer that cannot be installed here is left out, and the table says so.
$(PEERS)/.installed: benches/loader/requirements.txt pyproject.toml Cargo.toml Cargo.lock $(shell find rust -name '*.rs' -o -name Cargo.toml)
	test -x $(PEERS)/bin/python || $(PYTHON) -m venv $(PEERS)
	$(PEERS)/bin/python -m pip install --quiet --requirement benches/loader/requirements.txt || \
		grep -v '^#' benches/loader/requirements.txt | while read -r peer; do $(PEERS)/bin/python -m pip install --quiet "$$peer"; done
	$(PEERS)/bin/python -m pip install --quiet --no-deps --editable .
	touch $@

bench-sampler: $(PEERS)/.installed  ## the sampler and other loaders; writes table and plot of docs/benchmarks/sampler_and_loader.md
	$(PEERS)/bin/python benches/loader

gpu-archive: $(VENV)/.installed  ## one file with what benches/gpu needs on a machine without network: dist/gpu-bench.pyz
	rm -rf dist/gpu
	$(BIN)/maturin build --release --quiet --out dist/gpu
	$(BIN)/python benches/gpu/archive.py --wheel dist/gpu/*.whl --out dist/gpu-bench.pyz

# zig links against old versions of glibc; without it the wheel is for this machine's version only.
wheels: $(VENV)/.installed  ## the wheel for this platform, audited, installed and checked with numpy alone: dist/wheels
	rm -rf dist/wheels dist/fresh
	$(BIN)/python -m pip install --quiet ziglang abi3audit
	PATH=$(CURDIR)/$(BIN):$$PATH $(BIN)/maturin build --release --locked --zig --compatibility manylinux2014 --out dist/wheels
	$(BIN)/abi3audit --strict --summary dist/wheels/*.whl
	$(PYTHON) -m venv dist/fresh
	dist/fresh/bin/python -m pip install --quiet --no-deps numpy dist/wheels/*.whl
	cd dist && fresh/bin/python ../tests/smoke_wheel.py

STUDY := $(BIN)/drpruning compare benches/study/recipe.yaml

study: $(VENV)/.installed  ## the experiments of docs/benchmarks/study.md: an hour or two of two cores; writes its tables
	$(STUDY) --methods benches/study/methods.yaml --out runs/study --seeds 3
	$(BIN)/python benches/study/page.py study runs/study/results.json
	$(STUDY) --methods benches/study/methods.yaml --strategies constant,drpruning --seeds 3 \
		--set data.reference_ratio=uniform --out runs/even
	$(BIN)/python benches/study/page.py even runs/even/results.json
	$(STUDY) --methods ablations --out runs/ablations --seeds 3
	$(BIN)/python benches/study/page.py ablations runs/ablations/results.json

AUDIT := $(BIN)/drpruning compare benches/study/mixtures-recipe.yaml --methods benches/study/mixtures.yaml --seeds 5

LOWER := constant,tempered,drpruning-lower,drpruning-lower-tempered
MORE := $(BIN)/drpruning compare benches/study/mixtures-recipe.yaml --methods benches/study/mixtures-more.yaml
MORE += --set continue.distill=null --seeds 3
OTHER := {rust: 0.55, javascript: 0.2, vim: 0.12, perl: 0.09, markdown: 0.04}
DEFAULTS := drpruning-lower-bound-2,drpruning-lower-rho-0.05,drpruning-lower-rho-0.2
DEFAULTS := $(DEFAULTS),drpruning-lower-delta-0.1,drpruning-lower-noise-0
PLAIN := $(LOWER),natural,uniform,sheared,chi_square,drpruning,drpruning-tempered,searched

mixtures: $(VENV)/.installed  ## the audit of mixture rules, docs/benchmarks/mixtures.md: eight hours of a core; resumable
	$(AUDIT) --out runs/mixtures-distilled
	$(BIN)/python benches/study/page.py mixtures-distilled runs/mixtures-distilled/results.json
	$(AUDIT) --strategies $(LOWER) --out runs/mixtures-distilled
	$(BIN)/python benches/study/page.py mixtures-lower runs/mixtures-distilled/results.json
	$(AUDIT) --set continue.distill=null --out runs/mixtures-plain --strategies $(PLAIN)
	$(BIN)/python benches/study/page.py mixtures-plain runs/mixtures-plain/results.json
	$(AUDIT) --set continue.distill=null --out runs/mixtures-plain --seeds 1
	$(BIN)/python benches/study/page.py mixtures-plain-all runs/mixtures-plain/results.json
	$(MORE) $(LARGER:%=--set %) --seeds 5 --strategies $(LOWER),uniform,searched --out runs/mixtures-larger
	$(BIN)/python benches/study/page.py mixtures-larger runs/mixtures-larger/results.json
	$(MAKE) runs/few-documents
	$(MORE) --set data.corpus=runs/few-documents --set continue.steps=1600 --set continue.eval_every=64 \
		--strategies $(LOWER),drpruning-lower-epochs,drpruning-lower-tempered-epochs,uniform,unimax \
		--out runs/mixtures-repeat
	$(BIN)/python benches/study/page.py mixtures-repeat runs/mixtures-repeat/results.json
	$(MAKE) runs/other-corpus
	$(MORE) --set data.corpus=runs/other-corpus --set 'data.reference_ratio=$(OTHER)' \
		--strategies $(LOWER),$(DEFAULTS) --out runs/mixtures-other
	$(BIN)/python benches/study/page.py mixtures-other runs/mixtures-other/results.json
	$(MORE) --set data.corpus=runs/other-corpus --set 'data.reference_ratio=$(OTHER)' --set training.eval_tokens=32768 \
		--strategies constant,drpruning-lower,drpruning-lower-tempered --out runs/mixtures-other-32768
	$(BIN)/python benches/study/page.py mixtures-other-32768 runs/mixtures-other-32768/results.json

runs/few-documents: $(VENV)/.installed  # text of mixtures-repeat
	$(BIN)/drpruning prepare runs/demo-corpus --demo
	$(BIN)/python benches/study/few_documents.py runs/demo-corpus $@

# Text of crates (fetched by a build), npm, Vim and Perl, where they are installed: other versions give other figures.
CRATES := $(HOME)/.cargo/registry/src/*
runs/other-corpus: $(VENV)/.installed  # text of mixtures-other
	$(BIN)/drpruning prepare runs/demo-corpus --demo
	$(BIN)/drpruning prepare $@ --tokenizer runs/demo-corpus/tokenizer \
		--holdout 0.2 --near-duplicates --max-errors 50 \
		--text-suffix .rs --text-suffix .js --text-suffix .vim --text-suffix .pm \
		--domain 'rust=$(CRATES)/[p-s]*/src/**/*.rs' --domain 'markdown=$(CRATES)/*/*.md' \
		--domain 'javascript=/usr/lib/node_modules/**/*.js' --domain 'vim=/usr/share/vim/vim*/**/*.vim' \
		--domain 'perl=/usr/share/perl/*/**/*.pm'

fidelity: $(VENV)/.installed  ## the runs of docs/fidelity.md: half an hour of two cores; fills in its last column
	$(STUDY) --methods fidelity --set mixture.predictions=lower --out runs/fidelity --seeds 3 --jobs 2
	$(BIN)/python benches/study/fidelity.py fidelity runs/fidelity/results.json
	$(STUDY) --methods fidelity --strategies constant,default,noise-0,noise-2 --seeds 3 --jobs 2 \
		--set data.reference_ratio=uniform --set mixture.predictions=lower --out runs/fidelity-even
	$(BIN)/python benches/study/fidelity.py fidelity-even runs/fidelity-even/results.json

EQUAL := $(BIN)/drpruning compare benches/study/mixtures-recipe.yaml --methods benches/study/equal-compute.yaml --equal flops
EQUAL += --set prune.calibration.tokens=16384
LARGER := model.architecture.layers=6 model.architecture.hidden=128 model.architecture.heads=8 model.architecture.kv_heads=4
LARGER += model.architecture.intermediate=384 prune.target.layers=5 prune.target.hidden=96 prune.target.heads=6
LARGER += prune.target.intermediate=288 pretrain.steps=1200 pretrain.learning_rate=3.0e-3 prune.batch_size=16
LARGER += continue.batch_size=16
LARGEST := model.architecture.layers=7 model.architecture.hidden=256 model.architecture.heads=8 model.architecture.kv_heads=4
LARGEST += model.architecture.intermediate=640 prune.target.layers=6 prune.target.hidden=192 prune.target.heads=6
LARGEST += prune.target.intermediate=480 pretrain.steps=1200 pretrain.learning_rate=2.0e-3 prune.batch_size=16
LARGEST += continue.batch_size=16
EVEN_ROWS := one-shot-distilled,repaired,repaired-constant,repaired-tempered,repaired-distilled,repaired-distilled-tempered
EVEN_ROWS := $(EVEN_ROWS),repaired-lower,repaired-lower-tempered,repaired-distilled-lower,repaired-distilled-lower-tempered
CENTRE_ROWS := repaired-fixed-tempered,repaired-slow-tempered,repaired-milder
DISTILLED_CENTRE_ROWS := repaired-distilled-fixed-tempered,repaired-distilled-slow-tempered
EVEN_ROWS := $(EVEN_ROWS),$(CENTRE_ROWS),$(DISTILLED_CENTRE_ROWS)
LOWER_ROWS := one-shot-distilled,repaired-distilled,repaired-constant,repaired-tempered
LOWER_ROWS := $(LOWER_ROWS),repaired-lower-tempered,repaired-distilled-lower-tempered
LOWER_ROWS := $(LOWER_ROWS),$(CENTRE_ROWS),$(DISTILLED_CENTRE_ROWS)
LARGER_ROWS := one-shot-distilled,constant,sheared,activation-distilled,repaired-distilled,repaired-constant
LARGER_ROWS := $(LARGER_ROWS),repaired-tempered,repaired-distilled-tempered
LARGER_LOWER_ROWS := one-shot-distilled,repaired-constant,repaired-tempered,repaired-lower
LARGER_LOWER_ROWS := $(LARGER_LOWER_ROWS),repaired-lower-tempered,repaired-distilled-lower-tempered,$(CENTRE_ROWS)
LARGEST_ROWS := one-shot-distilled,activation-distilled,repaired-constant,repaired-tempered,repaired-lower
LARGEST_ROWS := $(LARGEST_ROWS),repaired-lower-tempered,repaired-distilled-lower-tempered
LARGEST_ROWS := $(LARGEST_ROWS),repaired-fixed-tempered,repaired-milder

SPARSITY_ROWS := one-shot-distilled,constant,activation-distilled,repaired-constant,repaired-tempered
SPARSITY_ROWS := $(SPARSITY_ROWS),repaired-distilled-lower-tempered

equal-compute: $(VENV)/.installed  ## whole methods at equal FLOPs, docs/benchmarks/equal_compute.md: hours of a core; resumable
	$(EQUAL) --seeds 3 --out runs/equal-compute
	$(BIN)/python benches/study/page.py equal-compute runs/equal-compute/results.json
	$(EQUAL) --seeds 3 --out runs/equal-compute --strategies $(LOWER_ROWS)
	$(BIN)/python benches/study/page.py equal-compute-lower runs/equal-compute/results.json
	$(EQUAL) $(LARGER:%=--set %) --seeds 3 --out runs/equal-compute-larger --strategies $(LARGER_ROWS)
	$(BIN)/python benches/study/page.py equal-compute-larger runs/equal-compute-larger/results.json
	$(EQUAL) $(LARGER:%=--set %) --seeds 3 --out runs/equal-compute-larger --strategies $(LARGER_LOWER_ROWS)
	$(BIN)/python benches/study/page.py equal-compute-larger-lower runs/equal-compute-larger/results.json
	$(EQUAL) $(LARGEST:%=--set %) --seeds 1 --out runs/equal-compute-largest --strategies $(LARGEST_ROWS)
	$(BIN)/python benches/study/page.py equal-compute-largest runs/equal-compute-largest/results.json
	$(EQUAL) --set pretrain.mixture=uniform --seeds 3 --out runs/equal-compute-even --strategies $(EVEN_ROWS)
	$(BIN)/python benches/study/page.py equal-compute-even runs/equal-compute-even/results.json
	for shape in '20 4 56 160' '35 3 56 144' '55 2 48 144' '71 2 32 128'; do set -- $$shape; \
		$(EQUAL) --seeds 2 --strategies $(SPARSITY_ROWS) --set prune.target.layers=$$2 --set prune.target.hidden=$$3 \
			--set prune.target.intermediate=$$4 --out runs/sparsity-$$1 && \
		$(BIN)/python benches/study/page.py sparsity-$$1 runs/sparsity-$$1/results.json || exit 1; \
	done

masks: $(VENV)/.installed  ## masks on few tokens, cycles, long runs, docs/benchmarks/masks.md: 2 to 10 minutes of a core per run; resumable
	$(STUDY) --methods benches/study/masks.yaml --out runs/masks --seeds 2
	$(BIN)/python benches/study/page.py masks runs/masks/results.json
	$(BIN)/drpruning compare benches/study/mixtures-recipe.yaml --methods benches/study/crossing.yaml --seeds 2 \
		--set prune.calibration.tokens=16384 --set data.reference_ratio=natural --out runs/crossing
	$(BIN)/python benches/study/page.py crossing runs/crossing/results.json

study-small: $(VENV)/.installed  ## four of its methods with two seeds: 20 minutes; prints tables
	$(STUDY) --methods benches/study/methods.yaml --out runs/study --seeds 2 --strategies constant,resheared,paper,drpruning

clean:  ## remove what was built
	rm -rf $(VENV) $(PEERS) target runs site .mypy_cache .pytest_cache .ruff_cache .hypothesis
