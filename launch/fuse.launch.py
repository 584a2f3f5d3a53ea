# SPDX-License-Identifier: AGPL-3.0-only
"""Launches the fusion node: `ros2 launch fusion_ros fuse.launch.py method:=baffm`.

`--show-args` lists the arguments. An empty one keeps the value of `params_file`. When the node
ends, everything that was launched with it ends too, unless it is to respawn.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from ament_index_python.packages import (
    PackageNotFoundError,
    get_package_prefix,
    get_package_share_directory,
)
from launch import LaunchContext, LaunchDescription, LaunchDescriptionEntity
from launch.actions import (
    DeclareLaunchArgument,
    LogInfo,
    OpaqueFunction,
    RegisterEventHandler,
    SetEnvironmentVariable,
    Shutdown,
)
from launch.event_handlers import OnProcessExit
from launch.events.process import ProcessExited
from launch_ros.actions import Node

from fusion_ros.harness.environment import PROFILE_VARIABLE
from fusion_ros.inference import BACKENDS, PRECISIONS
from fusion_ros.inference.models import list_methods, model_path
from fusion_ros.node.parameters import QOS

CONFIG = Path(get_package_share_directory("fusion_ros"), "config")
TOPICS = {
    "thermal_image": "thermal/image_raw",
    "thermal_info": "thermal/camera_info",
    "rgb_image": "rgb/image_raw",
    "rgb_info": "rgb/camera_info",
}
RESPAWN_DELAY_S = 2.0


def arguments() -> list[DeclareLaunchArgument]:
    """All launch arguments, with their choices."""
    boolean = ["true", "false"]
    profile = os.environ.get(PROFILE_VARIABLE, str(CONFIG / "fastdds_shm.xml"))
    declare = DeclareLaunchArgument
    return [
        declare(
            "method",
            default_value="",
            description=f"fusion method ({', '.join(list_methods())}), or the path of a model "
            "(*.onnx)",
        ),
        declare(
            "params_file",
            default_value=str(CONFIG / "fuse.yaml"),
            description="YAML file with the node's parameters",
        ),
        *(
            declare(name, default_value=topic, description=f"topic to read instead of {topic}")
            for name, topic in TOPICS.items()
        ),
        declare(
            "detect",
            default_value="",
            choices=["", *boolean],
            description="detect objects in the fused image",
        ),
        declare(
            "backend",
            default_value="",
            choices=["", *BACKENDS],
            description="backend of the networks",
        ),
        declare(
            "precision",
            default_value="",
            choices=["", *PRECISIONS],
            description="arithmetic of the fusion network",
        ),
        declare(
            "processing_size",
            default_value="",
            description="longer side at which images are fused, px; 0 for their own size, auto for "
            "the largest that keeps the cameras' rate",
        ),
        declare(
            "image_size",
            default_value="",
            description="size of the RGB images, as in 640x480, to make the networks ready for",
        ),
        declare(
            "build_only",
            default_value="",
            choices=["", *boolean],
            description="make the networks ready for image_size, and exit",
        ),
        declare(
            "qos",
            default_value="",
            choices=["", *QOS],
            description="reliability required of the cameras; best_effort matches any",
        ),
        declare(
            "rviz", default_value="false", choices=boolean, description="show the images in rviz2"
        ),
        declare(
            "respawn",
            default_value="false",
            choices=boolean,
            description="start the fusion node again two seconds after it ended",
        ),
        declare("namespace", default_value="", description="namespace of the nodes and topics"),
        declare(
            "use_sim_time",
            default_value="false",
            choices=boolean,
            description="follow /clock, as played from a bag",
        ),
        declare(
            "fastdds_profile",
            default_value=profile,
            description="Fast DDS profile for large images, which camera drivers need too; "
            "empty for none",
        ),
    ]


def set_profile(context: LaunchContext) -> list[SetEnvironmentVariable]:
    """Set the Fast DDS profile of all processes that are started from here on."""
    profile = context.launch_configurations["fastdds_profile"]
    if profile and not Path(profile).is_file():
        raise RuntimeError(f"fastdds_profile: there is no file '{profile}'")
    return [SetEnvironmentVariable(PROFILE_VARIABLE, profile)] if profile else []


def start_node(context: LaunchContext) -> list[LaunchDescriptionEntity]:
    """Start the fusion node; given arguments override the parameter file."""
    given = context.launch_configurations
    build_only = given["build_only"] == "true"
    # A node that only builds has done its work when it ends.
    respawn = given["respawn"] == "true" and not build_only
    node = Node(
        package="fusion_ros",
        executable="fuse_node",
        namespace=given["namespace"],
        parameters=[given["params_file"], overrides(given)],
        remappings=[(topic, given[name]) for name, topic in TOPICS.items()],
        output="screen",
        emulate_tty=True,
        respawn=respawn,
        respawn_delay=RESPAWN_DELAY_S,
    )
    if respawn:
        return [node]
    return [RegisterEventHandler(OnProcessExit(target_action=node, on_exit=end)), node]


def overrides(given: Mapping[str, str]) -> dict[str, object]:
    """Read the node's parameters from launch arguments; raise RuntimeError for wrong values."""
    if not Path(given["params_file"]).is_file():
        raise RuntimeError(f"params_file: there is no file '{given['params_file']}'")
    values: dict[str, object] = {"use_sim_time": given["use_sim_time"] == "true"}
    if given["method"]:
        try:
            path = model_path(given["method"])
        except ValueError as error:
            raise RuntimeError(f"method: {error}") from None
        is_path = given["method"].endswith(".onnx")
        values["method"] = str(path.absolute()) if is_path else given["method"]
    names = ("backend", "precision", "image_size", "qos")
    values |= {name: given[name] for name in names if given[name]}
    if given["processing_size"]:
        size = given["processing_size"]
        if size != "auto" and not size.isdecimal():
            raise RuntimeError(
                f"processing_size: expected pixels, such as 320, or auto, got '{size}'"
            )
        values["processing_size"] = int(size) if size != "auto" else size
    return values | {
        name: given[name] == "true" for name in ("detect", "build_only") if given[name]
    }


def end(event: ProcessExited, context: LaunchContext) -> list[LaunchDescriptionEntity]:
    """End everything else when the fusion node has ended; an error if it failed."""
    if context.is_shutdown:
        return []
    if event.returncode:
        # An exception is the way to make `ros2 launch` return a status other than 0.
        raise RuntimeError(
            f"{event.process_name} ended with exit code {event.returncode}; its output says why"
        )
    return [Shutdown(reason=f"{event.process_name} has ended")]


def start_rviz(context: LaunchContext) -> list[LaunchDescriptionEntity]:
    """Start rviz2 if `rviz` is true and it is installed."""
    given = context.launch_configurations
    if given["rviz"] != "true":
        return []
    try:
        get_package_prefix("rviz2")
    except PackageNotFoundError:
        return [
            LogInfo(
                msg="rviz:=true: rviz2 is not installed, going on without it; "
                "apt install ros-$ROS_DISTRO-rviz2"
            )
        ]
    return [
        Node(
            package="rviz2",
            executable="rviz2",
            namespace=given["namespace"],
            arguments=["-d", str(CONFIG / "fusion.rviz")],
            parameters=[{"use_sim_time": given["use_sim_time"] == "true"}],
            remappings=[(topic, given[name]) for name, topic in TOPICS.items()],
        )
    ]


def generate_launch_description() -> LaunchDescription:
    functions = (set_profile, start_node, start_rviz)
    return LaunchDescription(
        [*arguments(), *(OpaqueFunction(function=function) for function in functions)]
    )
