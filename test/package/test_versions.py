# SPDX-License-Identifier: AGPL-3.0-only
"""What the code names of numpy and OpenCV exists in the installed versions (`make test-oldest`)."""

from __future__ import annotations

import ast
from pathlib import Path

import cv2
import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[2]
MODULES = {"cv2": cv2, "np": np}


def chain(node: ast.expr) -> list[str]:
    """`["cv2", "dnn", "NMSBoxes"]` for the expression `cv2.dnn.NMSBoxes`; empty for another."""
    if isinstance(node, ast.Name):
        return [node.id]
    if isinstance(node, ast.Attribute):
        parts = chain(node.value)
        return [*parts, node.attr] if parts else []
    return []


def harmless(tree: ast.Module) -> set[int]:
    """Ids of the nodes that need not exist: annotations, and what AttributeError is caught for."""
    roots = []
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef):
            roots.append(node.returns)
        elif isinstance(node, (ast.arg, ast.AnnAssign)):
            roots.append(node.annotation)
        elif isinstance(node, ast.Try):
            caught = {
                name
                for handler in node.handlers
                if handler.type
                for one in getattr(handler.type, "elts", [handler.type])
                for name in chain(one)
            }
            roots += node.body if "AttributeError" in caught else []
    return {id(one) for root in roots if root for one in ast.walk(root)}


def missing(text: str) -> set[str]:
    """Names such as `cv2.dnn.NMSBoxesBatched` that a module uses and that do not exist here."""
    tree = ast.parse(text)
    names, ignored = set(), harmless(tree)
    for node in ast.walk(tree):
        parts = chain(node) if isinstance(node, ast.Attribute) else []
        if not parts or parts[0] not in MODULES or id(node) in ignored:
            continue
        value = MODULES[parts[0]]
        for depth, part in enumerate(parts[1:], 2):
            if not hasattr(value, part):
                names.add(".".join(parts[:depth]))
                break
            value = getattr(value, part)
    return names


@pytest.mark.parametrize("folder", ["fusion_ros", "fusion_models", "launch", "training"])
def test_every_function_of_numpy_and_opencv_that_the_code_names_exists(folder):
    found = {
        f"{path.relative_to(ROOT)}: {name}"
        for path in (ROOT / folder).rglob("*.py")
        for name in missing(path.read_text())
    }
    assert found == set(), f"not in OpenCV {cv2.__version__}, numpy {np.__version__}"


def test_a_function_that_does_not_exist_is_noticed():
    text = "x: np.nothing = cv2.dnn.NoSuchFunction(np.float32(1), cv2.INTER_AREA)\n"
    assert missing(text) == {"cv2.dnn.NoSuchFunction"}
    guarded = "try:\n    cv2.newer()\nexcept (OSError, AttributeError):\n    cv2.neither()\n"
    assert missing(guarded) == {"cv2.neither"}
