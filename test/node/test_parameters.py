# SPDX-License-Identifier: AGPL-3.0-only
"""Parameters: values they take and refuse, their types in ROS, and their table."""

from __future__ import annotations

import array
from pathlib import Path

import numpy as np
import pytest
from support import write_fusion_onnx

from fusion_ros.frame.settings import ParameterError
from fusion_ros.inference.models import list_methods
from fusion_ros.node.parameters import (
    Parameters,
    explain_unknown,
    main,
    markdown_table,
    unread_files,
)


def test_defaults_are_allowed():
    defaults = {name: getattr(Parameters, name) for name in Parameters.specs()}
    assert Parameters() == Parameters(**defaults)


@pytest.mark.parametrize(
    ("name", "value", "allowed"),
    [
        ("confidence", 1.5, "from 0 to 1"),
        ("confidence", "high", "a number"),
        ("confidence", float("nan"), "a number"),
        ("confidence", True, "a number"),
        ("detect", 1, "true or false"),
        ("queue_size", 0, "from 1 to 1000"),
        ("queue_size", 2.5, "a whole number"),
        ("processing_size", -1, "from 0 to"),
        ("processing_size", 20, "32 or more, or 0 for"),
        ("processing_size", 0.5, "a whole number"),
        ("processing_size", [320, 240], "a whole number"),
        ("image_size", "large", "width x height, as in 640x480"),
        ("image_size", "640x0", "width x height, as in 640x480"),
        ("image_size", "640 x 480", "width x height, as in 640x480"),
        ("image_size", 640, "text"),
        ("build_only", "yes", "true or false"),
        ("backend", "quantum", "onnxruntime_cpu"),
        ("dropout_policy", "panic", "wait, pass, blank"),
        ("gain_mode", "magic", "percentile, linear, plateau, fixed, none"),
        ("gain_low", 99.5, "gain_high"),
        ("homography", [1.0, 2.0], "9 numbers"),
        ("homography", [0.0] * 9, "singular"),
        ("homography", "identity", "a list of numbers"),
        ("thermal_rotation", [0.1, 0.2], "roll, pitch, yaw"),
        ("thermal_rotation", [2.0] * 9, "rotation"),
        ("classes", ["person", 3], "a list of texts"),
        ("classes", "person", "a list of texts"),
        ("method", "nonsense", ", ".join(list_methods())),
        ("method", "/nowhere/net.onnx", "/nowhere/net.onnx"),
        ("method", 3, "text"),
        ("method", "~no-such-user/x.onnx", "x.onnx"),
        ("method", "x" * 300 + ".onnx", "too long"),
        ("qos", "nonsense", "reliable, best_effort"),
    ],
)
def test_a_value_that_is_not_allowed_is_refused_with_those_that_are(name, value, allowed):
    with pytest.raises(ParameterError) as caught:
        Parameters(**{name: value})
    assert caught.value.name == name
    assert f"parameter {name}: " in str(caught.value)
    assert allowed in str(caught.value)


def test_an_integer_is_a_number_too():
    tolerance = Parameters(tolerance=1).tolerance
    assert (tolerance, type(tolerance)) == (1.0, float)


@pytest.mark.parametrize("empty", [None, [], b"", (), array.array("d")])
def test_an_empty_list_needs_no_type(empty):
    assert Parameters(homography=empty, classes=empty).homography == ()


def test_lists_may_have_the_types_that_ros_gives_them():
    identity = [1, 0, 0, 0, 1, 0, 0, 0, 1]
    parameters = Parameters(homography=array.array("q", identity), classes=["person", "car"])
    assert parameters.homography == tuple(map(float, identity))
    assert parameters.classes == ("person", "car")


def test_changes_are_checked():
    parameters = Parameters().replace(tolerance=0.1)
    assert parameters.tolerance == 0.1
    with pytest.raises(ParameterError, match="tolerance"):
        parameters.replace(tolerance=-1.0)


def test_a_change_is_refused_for_its_own_value_and_not_for_others_that_are_wrong():
    now = {"method": "nonsense", "gain_high": 50.0}
    Parameters.check_changes(now, {"tolerance": 0.1, "gain_low": 40.0})
    with pytest.raises(ParameterError, match="parameter tolerance"):
        Parameters.check_changes(now, {"tolerance": -1.0})
    with pytest.raises(ParameterError, match="parameter gain_low"):
        Parameters.check_changes(now, {"gain_low": 60.0})
    with pytest.raises(ParameterError, match="parameter gain_low"):
        Parameters.check_changes({}, {"gain_high": 0.5})


def test_the_expected_size_is_the_given_one_or_with_build_only_640x480():
    assert Parameters().expected_size is None
    assert Parameters(image_size="1280x720").expected_size == (1280, 720)
    assert Parameters(image_size="320x256", build_only=True).expected_size == (320, 256)
    assert Parameters(build_only=True).expected_size == (640, 480)


def test_the_path_of_a_model_is_a_method(tmp_path):
    path = str(write_fusion_onnx(tmp_path / "mine.onnx"))
    assert Parameters(method=path).method == path


def test_a_method_without_a_float16_model_refuses_float16(tmp_path):
    with pytest.raises(ParameterError, match="fp16"):
        Parameters(method=str(write_fusion_onnx(tmp_path / "mine.onnx")), precision="fp16")


def test_rotation_turns_by_roll_then_pitch_then_yaw():
    quarter = np.pi / 2
    # x to y by yaw; y to z by roll.
    np.testing.assert_allclose(
        Parameters(thermal_rotation=[0, 0, 0.1]).rotation[:, 0],
        [np.cos(0.1), np.sin(0.1), 0],
        atol=1e-12,
    )
    np.testing.assert_allclose(
        Parameters(thermal_rotation=[0.1, 0, 0]).rotation[:, 1],
        [0, np.cos(0.1), np.sin(0.1)],
        atol=1e-12,
    )
    matrix = Parameters(thermal_rotation=[0.1, 0.2, 0.3]).rotation
    np.testing.assert_allclose(Parameters(thermal_rotation=matrix.ravel()).rotation, matrix)
    with pytest.raises(ParameterError, match="thermal_rotation"):
        Parameters(thermal_rotation=[0, 2 * quarter, 0])  # looks backwards
    assert Parameters().rotation is None


@pytest.fixture(scope="module")
def node():
    """An rclpy node with these parameters, some of them given in another type."""
    rclpy = pytest.importorskip("rclpy")
    context = rclpy.Context()
    rclpy.init(context=context)
    overrides = {"tolerance": 1, "homography": [1, 0, 0, 0, 1, 0, 0, 0, 1], "confidence": "high"}
    node = rclpy.create_node(
        "parameters",
        context=context,
        parameter_overrides=[rclpy.Parameter(n, value=v) for n, v in overrides.items()],
    )
    Parameters.declare(node)
    yield node
    node.destroy_node()
    context.shutdown()


@pytest.mark.parametrize(
    ("name", "kind", "value"),
    [
        ("classes", "STRING_ARRAY", []),
        ("thermal_rotation", "DOUBLE_ARRAY", []),
        ("homography", "DOUBLE_ARRAY", [1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0]),
        ("tolerance", "DOUBLE", 1.0),
        ("queue_size", "INTEGER", 10),
        ("confidence", "STRING", "high"),  # refused when the node configures
    ],
)
def test_a_declared_parameter_has_the_type_of_its_kind(node, name, kind, value):
    from rclpy.parameter import Parameter

    parameter = node.get_parameter(name)
    assert parameter.type_ == Parameter.Type[kind]
    assert (list(parameter.value) if isinstance(value, list) else parameter.value) == value
    assert node.describe_parameter(name).type == parameter.type_.value
    assert parameter.to_parameter_msg().value.type == parameter.type_.value


def test_an_unknown_parameter_is_named_with_the_one_that_may_be_meant():
    assert "'toleranze' has no effect" in explain_unknown("toleranze")
    assert "do you mean 'tolerance'?" in explain_unknown("toleranze")
    assert "ros2 param list" in explain_unknown("zzz")
    assert "<publisher or subscription>" in explain_unknown("qos_overrides./x.depth")


@pytest.mark.parametrize(
    ("section", "applies"),
    [
        ("fuse_node", False),
        ("/front/fuse_node", True),
        ("front/fuse_node", True),
        ("/**", True),
        ("/*/fuse_node", True),
        ("/*", False),
        ("/**/fuse_node", True),
        ("/rear/fuse_node", False),
    ],
)
def test_a_parameter_file_for_other_nodes_is_named(tmp_path, section, applies):
    path = tmp_path / "robot.yaml"
    path.write_text(f"{section}:\n  ros__parameters:\n    tolerance: 0.1\n")
    warnings = unread_files(["x", "--ros-args", "--params-file", str(path)], "/front/fuse_node")
    assert len(warnings) == (0 if applies else 1)
    assert all(str(path) in warning and "/**" in warning for warning in warnings)


def test_a_parameter_file_may_nest_the_namespace(tmp_path):
    path = tmp_path / "robot.yaml"
    path.write_text("front:\n  fuse_node:\n    ros__parameters:\n      tolerance: 0.1\n")
    arguments = ["--params-file", str(path)]
    assert unread_files(arguments, "/front/fuse_node") == []
    assert "/front/fuse_node" in unread_files(arguments, "/fuse_node")[0]


def test_the_table_has_a_row_for_each_parameter_and_is_that_of_the_docs():
    table = markdown_table()
    page = (Path(__file__).resolve().parents[2] / "docs" / "parameters.md").read_text()
    assert table in page, "run `python -m fusion_ros.node.parameters docs/parameters.md`"
    assert all(f"| `{name}`" in table for name in Parameters.specs())
    assert all(spec.description for spec in Parameters.specs().values())


def test_the_command_puts_the_table_into_a_page_and_keeps_the_rest(tmp_path):
    page = tmp_path / "parameters.md"
    old = markdown_table().replace("| `method`", "| `renamed`")
    page.write_text(f"# Before\n\n{old}\n\n## After\n")
    main([str(page)])
    assert page.read_text() == f"# Before\n\n{markdown_table()}\n\n## After\n"
