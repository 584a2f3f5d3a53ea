# SPDX-License-Identifier: AGPL-3.0-only
"""Launches two cameras and the fusion node: `ros2 launch fusion_ros demo.launch.py`.

It takes the arguments of fuse.launch.py too.
"""

from __future__ import annotations

from pathlib import Path

from launch import LaunchContext, LaunchDescription
from launch.actions import DeclareLaunchArgument, IncludeLaunchDescription, OpaqueFunction
from launch.launch_description_sources import PythonLaunchDescriptionSource
from launch_ros.actions import Node

from fusion_ros.cameras.street.scene import SCENES


def start_cameras(context: LaunchContext) -> list[Node]:
    """Start the thermal and the RGB camera, each in its own process."""
    given = context.launch_configurations
    parameters = {
        "scene": given["scene"],
        "source": "files" if given["data"] else "simulated",
        "path": given["data"],
        "use_sim_time": given["use_sim_time"] == "true",
    }
    return [
        Node(
            package="fusion_ros",
            executable="camera_node",
            # Relative, so that a namespace pushed by an including launch file holds here too.
            namespace="/".join(filter(None, (given["namespace"], camera))),
            parameters=[parameters, {"camera": camera}],
            output="screen",
            emulate_tty=True,
        )
        for camera in ("thermal", "rgb")
    ]


def generate_launch_description() -> LaunchDescription:
    fuse = Path(__file__).with_name("fuse.launch.py")
    return LaunchDescription(
        [
            DeclareLaunchArgument(
                "scene",
                default_value="tour",
                choices=list(SCENES),
                description="light and weather of the simulated cameras",
            ),
            DeclareLaunchArgument(
                "data", default_value="", description="folder with ir/ and vi/ to show instead"
            ),
            IncludeLaunchDescription(PythonLaunchDescriptionSource(str(fuse))),
            OpaqueFunction(function=start_cameras),
        ]
    )
