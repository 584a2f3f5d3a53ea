# SPDX-License-Identifier: AGPL-3.0-only
"""What to install when a library that a command needs cannot be imported."""

from __future__ import annotations

__all__ = ["remedy"]

_SOURCE_ROS = (
    "source /opt/ros/<distribution>/setup.bash where ROS is installed, "
    "or `pip install 'fusion_ros[ros]'`"
)
_REMEDIES = {
    "rclpy": _SOURCE_ROS,
    "rcl_interfaces": _SOURCE_ROS,
    "lifecycle_msgs": _SOURCE_ROS,
    "rosgraph_msgs": _SOURCE_ROS,
    "sensor_msgs": _SOURCE_ROS,
    "std_msgs": _SOURCE_ROS,
    "diagnostic_msgs": _SOURCE_ROS,
    "builtin_interfaces": _SOURCE_ROS,
    "onnxruntime": (
        "`pip install 'onnxruntime>=1.18'`, together with 'numpy<2' beside an installed ROS; on a "
        "Jetson, the onnxruntime-gpu wheel for its JetPack"
    ),
    "cv2": "`apt install python3-opencv` or `pip install opencv-python-headless`",
    "numpy": "`apt install python3-numpy` or `pip install numpy`",
    **dict.fromkeys(
        ("rosbags", "mcap", "jinja2", "dask", "distributed", "rich", "tqdm"),
        "`pip install 'fusion_ros[bags]'`, or `pip install '.[bags]'` in the repository",
    ),
    "yaml": "`apt install python3-yaml` or `pip install PyYAML`",
}


def remedy(error: ImportError) -> str:
    """One line that says which library could not be imported, why, and how to install it."""
    module = (error.name or "").partition(".")[0]
    problem = " ".join(str(error).split()) or type(error).__name__
    if not module:
        return problem
    # A library that is there but built for another Python fails too: `problem` tells.
    install = _REMEDIES.get(module, f"`pip install {module}`")
    return f"{module} cannot be imported ({problem}): {install}"
