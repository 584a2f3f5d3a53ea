# SPDX-License-Identifier: AGPL-3.0-only
"""Every script of `training/` says what it does and which settings it has when asked for help."""

from __future__ import annotations

import importlib
import re
import sys
from pathlib import Path

import pytest

for module in ("torch", "kornia", "lightning_fabric", "ultralytics", "pycocotools", "onnxscript"):
    pytest.importorskip(module, reason=f"needs {module}: pip install '.[train]'")

FOLDER = Path(__file__).parents[2] / "training"
sys.path.insert(0, str(FOLDER))  # as when they run as scripts
SCRIPTS = sorted(path.stem for path in FOLDER.glob("*.py"))


@pytest.mark.parametrize("name", SCRIPTS)
def test_help_shows_how_to_call_a_script_and_names_all_its_settings(name, capsys, monkeypatch):
    script = importlib.import_module(name)
    if name == "export_detector":  # its two arguments have no names
        monkeypatch.setattr(sys, "argv", [name, "--help"])
        with pytest.raises(SystemExit) as ended:
            script.main()
        assert not ended.value.code and "model" in capsys.readouterr().out
        return
    assert script.main(["--help"]) == 0
    text = capsys.readouterr().out
    assert f"python training/{name}.py" in text
    settings = getattr(script, "DEFAULTS", getattr(script, "SETTINGS", ()))
    assert [key for key in settings if not re.search(rf"\b{key}\b", text)] == []
    assert settings or name == "train"  # whose settings differ by method
