# SPDX-License-Identifier: AGPL-3.0-only
"""Which rooms of the project may import which, read from the source."""

from __future__ import annotations

import ast
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("fusion_ros", "fusion_models")
ROS = {
    *("rclpy", "launch", "launch_ros", "cv_bridge", "sensor_msgs", "std_msgs", "vision_msgs"),
    *("diagnostic_msgs", "visualization_msgs", "lifecycle_msgs", "rosidl_runtime_py"),
}

FORBIDDEN = {
    "fusion_ros.size": {"fusion_ros", "fusion_models"},
    "fusion_ros.frame": {
        "fusion_ros.node",
        "fusion_ros.cameras",
        "fusion_ros.harness",
        "fusion_ros.commands",
        "rclpy",
        "sensor_msgs",
    },
    "fusion_ros.inference": {
        "fusion_ros.frame",
        "fusion_ros.node",
        "fusion_ros.cameras",
        "fusion_ros.harness",
        "fusion_ros.commands",
        *ROS,
    },
    "fusion_ros.cameras.street": {
        "fusion_ros.frame",
        "fusion_ros.inference",
        "fusion_ros.node",
        "fusion_ros.harness",
        "fusion_ros.commands",
        *ROS,
    },
    "fusion_ros.cameras": {"fusion_ros.node", "fusion_ros.harness", "fusion_ros.commands"},
    "fusion_ros.node": {"fusion_ros.cameras", "fusion_ros.harness", "fusion_ros.commands"},
    "fusion_ros.harness": {"fusion_ros.commands"},
    "fusion_ros": {"torch", "torchvision", "lightning", "ultralytics", "kornia"},
    "fusion_models": {
        *ROS,
        "fusion_ros.node",
        "fusion_ros.cameras.camera_node",
        "fusion_ros.harness",
        "fusion_ros.commands",
    },
}
"""What the modules of a room do not import, at no place in their source."""


@cache
def modules() -> dict[str, Path]:
    """Every module of the project by its name."""
    found = {}
    for package in PACKAGES:
        for path in (ROOT / package).rglob("*.py"):
            parts = path.relative_to(ROOT).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imports_of(name: str, source: str, is_package: bool = False) -> set[str]:
    """Modules and names that a module imports when it runs, those inside functions included.

    What is imported for type checkers alone is left out.
    """
    found: set[str] = set()
    waiting: list[ast.AST] = [ast.parse(source)]
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            waiting += node.orelse
            continue
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parents = name.split(".")[: len(name.split(".")) - node.level + is_package]
                base = ".".join([*parents, *([node.module] if node.module else [])])
            found |= {f"{base}.{alias.name}" for alias in node.names}
        waiting += ast.iter_child_nodes(node)
    return found


@cache
def imports(name: str) -> frozenset[str]:
    """What a module of the project imports."""
    path = modules()[name]
    source = path.read_text(encoding="utf-8")
    return frozenset(imports_of(name, source, path.name == "__init__.py"))


def lies_in(name: str, room: str) -> bool:
    return name == room or name.startswith(f"{room}.")


def module_of(name: str) -> str:
    """The module of the project that a name is, or is in; empty for others."""
    while name and name not in modules():
        name = name.rpartition(".")[0]
    return name


def circle_in(graph: dict[str, set[str]]) -> list[str]:
    """One circle of a directed graph, as a path that ends where it starts; empty without one."""
    done: set[str] = set()

    def walk(node: str, path: list[str]) -> list[str]:
        if node in path:
            return [*path[path.index(node) :], node]
        if node in done:
            return []
        for successor in sorted(graph[node]):
            found = walk(successor, [*path, node])
            if found:
                return found
        done.add(node)
        return []

    for start in sorted(graph):
        found = walk(start, [])
        if found:
            return found
    return []


def test_imports_are_found_at_every_place_in_a_file():
    source = """
import a.b
from c import d
from . import e
from ..f import g
if TYPE_CHECKING:
    import h
else:
    import i
def function():
    try:
        from j import k
    except ImportError:
        import l
"""
    found = imports_of("package.room.module", source)
    assert found == {
        "a.b", "c.d", "package.room.e", "package.f.g", "i", "j.k", "l",
    }  # fmt: skip
    assert "package.room.e" in imports_of("package.room", "from . import e", is_package=True)


@pytest.mark.parametrize(
    ("graph", "circle"),
    [
        ({"a": {"b", "c"}, "b": {"c"}, "c": set()}, []),
        ({"a": {"b"}, "b": {"c"}, "c": {"b"}}, ["b", "c", "b"]),
        ({"a": {"a"}}, ["a", "a"]),
    ],
)
def test_a_circle_is_found(graph, circle):
    assert circle_in(graph) == circle


def test_no_modules_import_each_other_in_a_circle():
    graph = {name: {module_of(one) for one in imports(name)} - {"", name} for name in modules()}
    assert " -> ".join(circle_in(graph)) == ""


@pytest.mark.parametrize("room", FORBIDDEN)
def test_a_room_does_not_import_the_rooms_above_it(room):
    inside = [name for name in modules() if lies_in(name, room)]
    assert inside
    found = {
        f"{name} imports {target}"
        for name in inside
        for target in imports(name)
        for forbidden in FORBIDDEN[room]
        if lies_in(target, forbidden)
    }
    assert not found
