# Environments, demo and tests of fusion_ros; `make help` lists the targets.
#
# A target installs what it needs, and only that, once: a stamp in the environment, named after the
# hash of the requirement files, says that the set is complete. With ROS sourced the environment
# sees its packages and takes rclpy, messages and numpy from there, else they come as wheels.

METHOD ?= baffm
DATA ?=
DETECTOR ?=
DETECTOR_MODEL ?= yolov8n.pt
PYTEST_ARGS ?=

ifeq ($(ROS_DISTRO)$(AMENT_PREFIX_PATH),)
VENV ?= .venv
CONSTRAINTS := constraints.txt
DEMO := .[ros]
TRAIN := .[ros,train]
TEST := .[ros,train,tensorrt,test]
else
VENV ?= .venv-$(or $(ROS_DISTRO),ros)
VENV_OPTIONS := --system-site-packages
CONSTRAINTS := $(VENV)/constraints.txt
DEMO := .
TRAIN := .[train]
TEST := .[train,tensorrt,test]
endif

PY := $(VENV)/bin/python
PIP := $(PY) -m pip --disable-pip-version-check install -c $(CONSTRAINTS)
KEY := $(shell { cat setup.py constraints.txt; pwd; } | cksum | cut -d' ' -f1)

.PHONY: help demo test detector clean
.NOTPARALLEL:

help:
	@echo 'make demo       two simulated cameras, fused and shown in demo_output/; options:'
	@echo '                METHOD=cfi  DATA=<folder with ir/ and vi/>  DETECTOR=<yolo.onnx>'
	@echo 'make test       all tests; PYTEST_ARGS="-k pairing" chooses some'
	@echo 'make detector   puts a YOLO at ~/.cache/fusion_ros/; DETECTOR_MODEL=<name or .pt>'
	@echo 'make clean      removes what builds, tests and demos left, not the environment $(VENV)'

demo: $(VENV)/.demo-$(KEY)
	@$(PY) -m fusion_ros.commands.demo --method '$(METHOD)' --out demo_output \
	  $(if $(DATA),--data '$(DATA)') $(if $(DETECTOR),--detector '$(DETECTOR)')

test: $(VENV)/.test-$(KEY)
	@$(PY) test/messages/generate.py
	FUSION_ROS_TEST_STRICT=1 $(PY) -m pytest $(PYTEST_ARGS)

detector: $(VENV)/.train-$(KEY)
	@$(PY) training/export_detector.py '$(DETECTOR_MODEL)'

clean:
	rm -rf build install log dist demo_output benchmark_output *.egg-info .pytest_cache
	find fusion_ros fusion_models training test launch -name __pycache__ -exec rm -rf {} +

# --- Environments -----------------------------------------------------------------------------

$(VENV)/.demo-$(KEY): $(VENV)/.python
	$(call install,$(DEMO),demo)

$(VENV)/.train-$(KEY): $(VENV)/.python
	$(call install,$(TRAIN),demo train)

$(VENV)/.test-$(KEY): $(VENV)/.python
	$(call install,$(TEST),demo train test)

# $(call install,requirement,sets that it completes)
define install
@echo "installing what 'make $(lastword $(2))' needs into $(VENV), once"
@find $(VENV) -maxdepth 1 -type f -name '.*-*' ! -name '*-$(KEY)' -delete
@{ half=$$($(PY) -c "$$HALF_INSTALLED") && \
   { [ -z "$$half" ] || $(PIP) --ignore-installed --no-deps $$half; } && \
   $(PIP) --use-pep517 -e '$(1)'; } > $(VENV)/pip.log 2>&1 || \
  { grep -v '^WARNING' $(VENV)/pip.log | tail -n 20 >&2; \
    echo "The installation needs the network, once; all of it is in $(VENV)/pip.log." \
      "Run the same command again to resume." >&2; exit 1; }
@touch $(patsubst %,$(VENV)/.%-$(KEY),$(2))
endef

# pip takes a package that an interrupted run left half written for installed.
define HALF_INSTALLED
import sysconfig
from importlib.metadata import Distribution
from pathlib import Path
for path in Path(sysconfig.get_path("purelib")).glob("*.dist-info"):
    one = Distribution.at(path)
    kept = [file for file in one.files or () if file.suffix != ".pyc"]
    if not kept or not all(file.locate().exists() for file in kept):
        print(path.stem.rsplit("-", 1)[0])
endef
export HALF_INSTALLED

PYTHONS := $(or $(PYTHON),python3 python3.14 python3.13 python3.12 python3.11 python3.10)
FITS := import sys, venv, ensurepip; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 14))

$(VENV)/.python:
	@[ ! -e $(VENV) ] || [ -e $(VENV)/.python ] || [ -e $(VENV)/.making ] || { \
	  echo "$(VENV) is there, but not made by this Makefile: remove it, or name another" \
	    "folder: make VENV=<folder>" >&2; exit 1; }
	@rm -rf $(VENV) && mkdir -p $(VENV) && touch $(VENV)/.making
ifndef VENV_OPTIONS
	@test "$$(uname -sm)" = "Linux x86_64" || { echo "ROS comes as wheels for x86_64 Linux only:" \
	  "install ROS 2, source its setup.bash and run the same command again." >&2; exit 1; }
endif
	@for python in $(PYTHONS); do $$python -c '$(FITS)' 2>/dev/null && exit; done; \
	  echo "None of these is Python 3.10 to 3.14 with venv: $(PYTHONS). Install one (Debian and" \
	    "Ubuntu: apt install python3-venv) or name it: make PYTHON=/path/to/python3" >&2; exit 1
	@for python in $(PYTHONS); do \
	  $$python -c '$(FITS)' 2>/dev/null && exec $$python -m venv $(VENV_OPTIONS) $(VENV); done
ifdef VENV_OPTIONS
	@$(PY) -c 'import rclpy' || { echo "ROS is sourced but its rclpy does not load in" \
	  "$$($(PY) --version): name ROS's own Python: make PYTHON=/usr/bin/python3" >&2; exit 1; }
	@$(PY) -c 'import numpy; print("numpy==" + numpy.__version__)' > $(CONSTRAINTS)
endif
	@touch $@

# No environment yet, or its Python went away with an upgrade of the system.
ifeq ($(wildcard $(PY)),)
.PHONY: $(VENV)/.python
endif
