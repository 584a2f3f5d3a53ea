# Environments, demo and tests of fusion_ros; `make help` lists the targets.
#
# A target installs what it needs, and only that, once. A stamp in the environment, named after the
# hash of the requirement files, marks a complete set. Without ROS everything comes as wheels, in
# the versions of constraints.txt. With ROS sourced the environment sees the system's packages:
# rclpy and messages come from there, and so do numpy, OpenCV and onnxruntime where they are new
# enough (an onnxruntime for the GPU of a Jetson stays in use).

METHOD ?= baffm
DATA ?=
DETECTOR ?=
DETECTOR_MODEL ?= yolov8n.pt
PYTEST_ARGS ?=
# Test files are shared out among this many processes.
PROCESSES ?= 2

ifeq ($(ROS_DISTRO)$(AMENT_PREFIX_PATH),)
VENV ?= .venv
CONSTRAINTS := constraints.txt
DEMO := .[cpu,ros,bags]
TRAIN := .[cpu,ros,train,detector]
TEST := .[cpu,ros,train,detector,search,dictionary,tensorrt,lint,test]
else
VENV ?= .venv-$(or $(ROS_DISTRO),ros)
VENV_OPTIONS := --system-site-packages
CONSTRAINTS := $(VENV)/constraints.txt
REQUIREMENTS := -r $(VENV)/requirements.txt
DEMO := .[bags]
TRAIN := .[train,detector]
TEST := .[train,detector,search,dictionary,tensorrt,lint,test]
endif
LINT := .[lint]

# The oldest versions that the package promises to work with.
OLDEST_PYTHONS := $(or $(PYTHON_OLDEST),python3.10 \
  $(wildcard $(HOME)/.pyenv/versions/3.10.*/bin/python3.10))
OLDEST := VENV=.venv-oldest VENV_OPTIONS= CONSTRAINTS=constraints-oldest.txt REQUIREMENTS= \
  TEST='.[cpu,test]' PYTHON='$(OLDEST_PYTHONS)'

PY := $(VENV)/bin/python
# Without compiling, which takes a minute: most of what PyTorch brings is never imported.
PIP := $(PY) -m pip --disable-pip-version-check install --no-compile -c $(CONSTRAINTS)
KEY := $(shell { cat setup.py constraints.txt constraints-oldest.txt; pwd; } | cksum | cut -d' ' -f1)

.PHONY: help chaos demo test lint test-oldest with-oldest detector gpu-check clean
.NOTPARALLEL:

help:
	@echo 'make demo       two simulated cameras, fused and shown in demo_output/; options:'
	@echo '                METHOD=cfi  DATA=<folder with ir/ and vi/>  DETECTOR=<yolo.onnx>'
	@echo 'make test       lint and all tests; PYTEST_ARGS="-k pairing" chooses some tests,'
	@echo '                PROCESSES=0 runs them in one process'
	@echo 'make lint       what ruff finds in the code and in its format'
	@echo 'make test-oldest  the tests without ROS and PyTorch, on the oldest Python, numpy, OpenCV'
	@echo '                and onnxruntime; needs Python 3.10, PYTHON_OLDEST=<path> names one'
	@echo 'make chaos      runs the node among random faults; MINUTES=30 RATE=30 SEED=1'
	@echo 'make detector   puts a YOLO at ~/.cache/fusion_ros/; DETECTOR_MODEL=<name or .pt>'
	@echo 'make gpu-check  what runs on this machine with an NVIDIA GPU, within 10 minutes'
	@echo 'make clean      removes what builds, tests and demos left, not the environment $(VENV)'

demo: $(VENV)/.demo-$(KEY)
	@$(PY) -m fusion_ros demo --method '$(METHOD)' --out demo_output \
	  $(if $(DATA),--data '$(DATA)') $(if $(DETECTOR),--detector '$(DETECTOR)')

test: $(VENV)/.test-$(KEY)
	@$(CHECK_STYLE)
	@$(PY) test/messages/generate.py
	FUSION_ROS_TEST_STRICT=1 $(PY) -m pytest -n $(PROCESSES) --dist loadfile $(PYTEST_ARGS)

lint: $(VENV)/.lint-$(KEY)
	@$(CHECK_STYLE)

CHECK_STYLE = $(PY) -m ruff check && $(PY) -m ruff format --check || { \
  echo "'$(PY) -m ruff check --fix' and '$(PY) -m ruff format' mend most of this." >&2; exit 1; }

test-oldest:
	@$(MAKE) --no-print-directory with-oldest $(OLDEST)

with-oldest: $(VENV)/.test-$(KEY)
	@env -u PYTHONPATH $(PY) -m pytest -n $(PROCESSES) --dist loadfile $(PYTEST_ARGS)

chaos: $(VENV)/.demo-$(KEY)
	@$(PY) -m fusion_ros chaos --minutes $(or $(MINUTES),30) --rate $(or $(RATE),30) \
	  --seed $(or $(SEED),1) --out chaos_output

detector: $(VENV)/.train-$(KEY)
	@$(PY) training/export_detector.py '$(DETECTOR_MODEL)'

gpu-check: $(VENV)/.test-$(KEY)
	@$(PY) -m fusion_ros gpu_check --output gpu_check_output

clean:
	rm -rf build install log dist chaos_output demo_output benchmark_output gpu_check_output *.egg-info .pytest_cache .ruff_cache
	find fusion_ros fusion_models training test launch -name __pycache__ -exec rm -rf {} +

# --- Environments -----------------------------------------------------------------------------

$(VENV)/.demo-$(KEY): $(VENV)/.python
	$(call install,$(DEMO),demo)

$(VENV)/.lint-$(KEY): $(VENV)/.python
	$(call install,$(LINT),lint)

$(VENV)/.train-$(KEY): $(VENV)/.python
	$(call install,$(TRAIN),demo train)

$(VENV)/.test-$(KEY): $(VENV)/.python
	$(call install,$(TEST),demo train lint test)

# $(call install,requirement,sets that it completes)
define install
@echo "installing what 'make $(lastword $(2))' needs into $(VENV), once"
@find $(VENV) -maxdepth 1 -type f -name '.*-*' ! -name '*-$(KEY)' -delete
@{ half=$$($(PY) -c "$$HALF_INSTALLED") && \
   { [ -z "$$half" ] || $(PIP) --ignore-installed --no-deps $$half; } && \
   $(PIP) --use-pep517 $(REQUIREMENTS) -e '$(1)'; } > $(VENV)/pip.log 2>&1 || \
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

# ROS's compiled messages work with each numpy of the major version that they were built for. Ubuntu
# 22.04 has 1.21.5, with which pip would go back to an onnxruntime that cannot read the networks.
define SYSTEM_NUMPY
import numpy
print("numpy>=1.21.6,<2" if numpy.__version__.startswith("1.") else "numpy>=2")
endef
export SYSTEM_NUMPY

define NOT_ON_SYSTEM
import importlib, re
for name, package, least in (
    ("cv2", "opencv-python-headless", (4, 5, 4)), ("onnxruntime", "onnxruntime", (1, 18))
):
    try:
        found = importlib.import_module(name).__version__
    except ImportError:
        found = "0"
    if tuple(map(int, re.findall(r"\d+", found))) < least:
        print(package + ">=" + ".".join(map(str, least)))
endef
export NOT_ON_SYSTEM

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
	@$(PY) -c "$$SYSTEM_NUMPY" > $(CONSTRAINTS)
	@$(PY) -c "$$NOT_ON_SYSTEM" > $(VENV)/requirements.txt
endif
	@touch $@

# No environment yet, or its Python went away with an upgrade of the system.
ifeq ($(wildcard $(PY)),)
.PHONY: $(VENV)/.python
endif
