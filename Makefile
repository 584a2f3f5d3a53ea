# Environment, demo and tests of fusion_ros; `make help` lists the targets.

METHOD ?= baffm
DATA ?=
DETECTOR ?=
PYTEST_ARGS ?=
PYTHON ?= python3
VENV ?= .venv
PY := $(VENV)/bin/python

.PHONY: help demo test clean
.NOTPARALLEL:

help:
	@echo "make demo [METHOD=baffm] [DATA=folder with ir/ and vi/] [DETECTOR=yolo.onnx]"
	@echo "make test [PYTEST_ARGS=...]"

$(VENV)/.created:
	$(PYTHON) -m venv $(VENV) && touch $@

$(VENV)/.demo: setup.py constraints.txt | $(VENV)/.created
	$(PY) -m pip install -q -c constraints.txt -e '.[ros]' && touch $@

$(VENV)/.test: setup.py constraints.txt | $(VENV)/.created
	$(PY) -m pip install -q -c constraints.txt -e '.[ros,train,tensorrt,test]' && touch $@

demo: $(VENV)/.demo
	$(PY) -m fusion_ros.demo --method $(METHOD) $(if $(DATA),--data $(DATA)) $(if $(DETECTOR),--detector $(DETECTOR)) --out demo_output

test: $(VENV)/.test
	$(PY) -m pytest test $(PYTEST_ARGS)

clean:
	rm -rf build install log dist demo_output *.egg-info .pytest_cache
