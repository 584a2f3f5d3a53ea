# SPDX-License-Identifier: AGPL-3.0-only
"""Launches the fusion node: `ros2 launch fusion_ros fuse.launch.py method:=baffm`.

`--show-args` lists the arguments. One that is left empty keeps what `params_file` says.
"""

from __future__ import annotations

import os
from pathlib import Path

from ament_index_python.packages import get_package_share_directory
from launch import LaunchContext, LaunchDescription
from launch.actions import DeclareLaunchArgument, OpaqueFunction, SetEnvironmentVariable
from launch.conditions import IfCondition
from launch.substitutions import LaunchConfiguration
from launch_ros.actions import Node

from fusion_ros.inference import BACKENDS, PRECISIONS
from fusion_ros.inference.models import list_methods
from fusion_ros.harness.environment import PROFILE_VARIABLE
from fusion_ros.node.parameters import QOS

CONFIG = Path(get_package_share_directory("fusion_ros"), "config")
TOPICS = {
    "thermal_image": "thermal/image_raw",
    "thermal_info": "thermal/camera_info",
    "rgb_image": "rgb/image_raw",
    "rgb_info": "rgb/camera_info",
}


def arguments() -> list[DeclareLaunchArgument]:
    """All launch arguments, with their choices."""
    boolean = ["true", "false"]
    profile = os.environ.get(PROFILE_VARIABLE, str(CONFIG / "fastdds_shm.xml"))
    declare = DeclareLaunchArgument
    return [
        declare(
            "method", default_value="", choices=["", *list_methods()], description="fusion method"
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
            description="find objects in the fused image",
        ),
        declare(
            "backend",
            default_value="",
            choices=["", *BACKENDS],
            description="what runs the networks",
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
            description="longer side at which images are fused, px; 0 for their own size",
        ),
        declare(
            "image_size",
            default_value="",
            description="size of the RGB images, as in 640x480, to be ready for at the start",
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
            description="reliability to ask of the cameras; best_effort matches any",
        ),
        declare(
            "rviz", default_value="false", choices=boolean, description="show the images in rviz2"
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
            description="Fast DDS profile for large images, which the cameras need too; "
            "empty for none",
        ),
    ]


def set_profile(context: LaunchContext) -> list[SetEnvironmentVariable]:
    """Hand the Fast DDS profile to all that is started from here on."""
    profile = context.launch_configurations["fastdds_profile"]
    if profile and not Path(profile).is_file():
        raise RuntimeError(f"fastdds_profile: there is no file '{profile}'")
    return [SetEnvironmentVariable(PROFILE_VARIABLE, profile)] if profile else []


def start_node(context: LaunchContext) -> list[Node]:
    """The fusion node, with the parameters that were given on top of the file's."""
    given = context.launch_configurations
    if not Path(given["params_file"]).is_file():
        raise RuntimeError(f"params_file: there is no file '{given['params_file']}'")
    overrides = {"use_sim_time": given["use_sim_time"] == "true"}
    names = ("method", "backend", "precision", "image_size", "qos")
    overrides |= {name: given[name] for name in names if given[name]}
    if given["processing_size"]:
        if not given["processing_size"].isdecimal():
            raise RuntimeError(
                f"processing_size: expected pixels, such as 320, got '{given['processing_size']}'"
            )
        overrides["processing_size"] = int(given["processing_size"])
    overrides |= {name: given[name] == "true" for name in ("detect", "build_only") if given[name]}
    return [
        Node(
            package="fusion_ros",
            executable="fuse_node",
            namespace=given["namespace"],
            parameters=[given["params_file"], overrides],
            remappings=[(topic, given[name]) for name, topic in TOPICS.items()],
            output="screen",
            emulate_tty=True,
        )
    ]


def generate_launch_description() -> LaunchDescription:
    return LaunchDescription(
        [
            *arguments(),
            OpaqueFunction(function=set_profile),
            OpaqueFunction(function=start_node),
            Node(
                package="rviz2",
                executable="rviz2",
                namespace=LaunchConfiguration("namespace"),
                arguments=["-d", str(CONFIG / "fusion.rviz")],
                parameters=[{"use_sim_time": LaunchConfiguration("use_sim_time")}],
                remappings=[(TOPICS[name], LaunchConfiguration(name)) for name in TOPICS],
                condition=IfCondition(LaunchConfiguration("rviz")),
            ),
        ]
    )
