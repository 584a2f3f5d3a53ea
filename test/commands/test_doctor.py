# SPDX-License-Identifier: AGPL-3.0-only
"""The command `doctor` in made-up environments that lack one piece each."""

from __future__ import annotations

import json
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from fusion_ros.commands import doctor
from fusion_ros.commands.doctor import Check, Level, System, as_json, as_text, examine

PAGE = Path(__file__).resolve().parents[2] / "docs" / "doctor.md"
HOME = Path("/home/user")
CUDA = "fusion_ros.inference.cuda"
TENSORRT = "fusion_ros.inference.tensorrt"


class Network:
    method = "baffm"

    def __init__(self, gpu_unused: str = "") -> None:
        engine = SimpleNamespace(description="onnxruntime 1.31.1", gpu_unused=gpu_unused)
        self.fuser = SimpleNamespace(engine=engine)

    def close(self) -> None:
        pass


class MadeUp(System):
    """A Jazzy machine without a GPU on which all is well; tests take pieces away.

    modules: what is importable, a version, or a namespace that stands for the module.
    """

    def __init__(self) -> None:
        super().__init__()
        self.home = HOME
        self.python = (3, 12, 3)
        self.profile = "/opt/ros/jazzy/share/fusion_ros/config/fastdds_shm.xml"
        self.environ = {"ROS_DISTRO": "jazzy", "FASTRTPS_DEFAULT_PROFILES_FILE": self.profile}
        self.modules: dict[str, object] = {
            "numpy": "1.26.4",
            "cv2": "4.6.0",
            "onnxruntime": module("1.20.1", get_available_providers=lambda: ["CPUProvider"]),
            "rclpy": "7.1.4",
            "rclpy.utilities": module(get_rmw_implementation_identifier=lambda: "rmw_fastrtps_cpp"),
            **{f"{name}.msg": module() for name in doctor._MESSAGES},
            "lifecycle_msgs.srv": module(),
            "vision_msgs.msg": module(),
            "cv_bridge": module(),
            CUDA: module(gpu_is_present=lambda: False),
            "fusion_ros.inference.models": module(list_methods=lambda: ["baffm", "caf"]),
            "fusion_ros.frame.settings": module(Settings=lambda **values: values),
            "fusion_ros.frame.detector": module(
                default_detector_path=lambda: HOME / ".cache/fusion_ros/detector.onnx"
            ),
            "fusion_ros.frame.pipeline": module(
                load_network=lambda settings, size, log: Network(),
                load_detector=lambda settings, size, log: SimpleNamespace(
                    class_names=range(80), close=lambda: None
                ),
            ),
        }
        self.files = {self.profile, str(HOME / ".cache/fusion_ros/detector.onnx")}
        self.free: dict[str, float | None] = {str(HOME): 50_000.0, "/dev/shm": 4000.0}
        self.can_write = True
        self.clock: int | None = 0
        self.time = 1_800_000_000.0

    def load(self, name: str):
        found = self.modules.get(name)
        if found is None:
            raise ModuleNotFoundError(f"No module named '{name}'", name=name)
        if isinstance(found, Exception):
            raise found
        return module(found) if isinstance(found, str) else found

    def text(self, path: str | Path) -> str:
        return {"/proc/driver/nvidia/version": "NVRM: Kernel Module  550.54.14  Release"}.get(
            str(path), ""
        )

    def exists(self, path: str | Path) -> bool:
        return str(path) in self.files

    def free_mb(self, path: str | Path) -> float | None:
        return self.free.get(str(path))

    def writable(self, path: Path) -> bool:
        return self.can_write

    def clock_state(self) -> int | None:
        return self.clock

    def now(self) -> float:
        return self.time

    # --- Taking pieces away ---------------------------------------------------------------------

    def lose(self, name: str) -> None:
        del self.modules[name]

    def break_(self, name: str, error: Exception) -> None:
        self.modules[name] = error

    def add_gpu(self, usable: bool = True, tensorrt: bool = True) -> None:
        def import_library():
            if not tensorrt:
                raise RuntimeError("no usable TensorRT Python package")
            return SimpleNamespace(description="TensorRT 10.3.0")

        self.modules |= {
            CUDA: module(
                gpu_is_present=lambda: True,
                device_name=lambda: "Orin" if usable else "",
                compute_capability=lambda: "8.7",
                driver_major=lambda: 12,
            ),
            TENSORRT: module(import_library=import_library),
            "cuda.bindings.runtime": "12.9.0",
            "onnx": "1.17.0",
        }

    def leave_the_gpu_unused(self) -> None:
        self.add_gpu()
        self.modules["fusion_ros.frame.pipeline"].load_network = lambda *args: Network(
            "tensorrt not used: out of memory"
        )

    def set(self, **values: object) -> None:
        for name, value in values.items():
            setattr(self, name, value)


def module(version: str | None = None, **names: object) -> SimpleNamespace:
    return SimpleNamespace(**names, **({"__version__": version} if version else {}))


def fail_to_load(*args: object) -> Network:
    raise RuntimeError("nothing runs this model: it is damaged")


# name of the check, level, part of what is found, part of the command that mends it, what is wrong
Wrong = Callable[[MadeUp], object]
CASES: list[tuple[str, Level, str, str, Wrong]] = [
    ("Python", Level.MISSING, "3.8.10, expected 3.10 to 3.14", "setup.bash",
     lambda s: s.set(python=(3, 8, 10))),
    ("clock", Level.WARN, "not synchronised", "timedatectl set-ntp true",
     lambda s: s.set(clock=5)),
    ("clock", Level.WARN, "the year is 1970", "timedatectl set-ntp true",
     lambda s: s.set(time=12.0)),
    ("numpy", Level.MISSING, "cannot be imported", "pip install numpy",
     lambda s: s.lose("numpy")),
    ("numpy", Level.MISSING, "1.21.5, expected 1.21.6 or newer", "pip install --upgrade 'numpy>=",
     lambda s: s.modules.update(numpy="1.21.5")),
    ("OpenCV", Level.MISSING, "cannot be imported", "python3-opencv",
     lambda s: s.lose("cv2")),
    ("OpenCV", Level.MISSING, "multiarray failed", "--force-reinstall 'opencv-python-headless>=",
     lambda s: s.break_("cv2", AttributeError("multiarray failed"))),
    ("onnxruntime", Level.MISSING, "cannot be imported", "pip install 'onnxruntime>=1.18'",
     lambda s: s.lose("onnxruntime")),
    ("onnxruntime", Level.MISSING, "1.16.3, expected 1.18 or newer", "--upgrade 'onnxruntime>=",
     lambda s: s.modules.update(onnxruntime="1.16.3")),
    ("ROS 2", Level.MISSING, "No module named 'rclpy'", "source /opt/ros/",
     lambda s: s.lose("rclpy")),
    ("ROS 2", Level.MISSING, "diagnostic_msgs", "source /opt/ros/",
     lambda s: s.lose("diagnostic_msgs.msg")),
    ("RMW", Level.MISSING, "rmw_zenoh_cpp does not load", "apt install ros-jazzy-rmw-zenoh-cpp",
     lambda s: (s.environ.update(RMW_IMPLEMENTATION="rmw_zenoh_cpp"),
                s.break_("rclpy.utilities", RuntimeError("librmw_zenoh_cpp.so: not found")))),
    ("RMW profile", Level.WARN, "no camera image", "export FASTRTPS_DEFAULT_PROFILES_FILE=",
     lambda s: s.environ.pop("FASTRTPS_DEFAULT_PROFILES_FILE")),
    ("RMW profile", Level.WARN, "there is no file /opt/ros/jazzy", "fastdds_shm.xml",
     lambda s: s.files.remove(s.profile)),
    ("discovery", Level.MISSING, "'one', expected 0 to 232", "unset ROS_DOMAIN_ID",
     lambda s: s.environ.update(ROS_DOMAIN_ID="one")),
    ("vision_msgs", Level.WARN, "no boxes are published", "apt install ros-jazzy-vision-msgs",
     lambda s: s.lose("vision_msgs.msg")),
    ("cv_bridge", Level.OK, "converted by OpenCV", "",
     lambda s: s.lose("cv_bridge")),
    ("GPU", Level.WARN, "CUDA cannot use, driver 550.54.14", "nvidia-smi",
     lambda s: s.add_gpu(usable=False)),
    ("TensorRT", Level.WARN, "no usable TensorRT", "python3-libnvinfer",
     lambda s: s.add_gpu(tensorrt=False)),
    ("cuda-bindings", Level.WARN, "TensorRT needs it", "pip install 'cuda-bindings==12.*'",
     lambda s: (s.add_gpu(), s.lose("cuda.bindings.runtime"))),
    ("onnx", Level.WARN, "the processor converts images", "pip install onnx",
     lambda s: (s.add_gpu(), s.lose("onnx"))),
    ("network", Level.WARN, "the GPU is not used: tensorrt not used: out of memory", "TensorRT",
     lambda s: s.leave_the_gpu_unused()),
    ("network", Level.MISSING, "it is damaged", "one of baffm, caf",
     lambda s: setattr(s.modules["fusion_ros.frame.pipeline"], "load_network", fail_to_load)),
    ("detector", Level.WARN, "none at ~/.cache/fusion_ros/detector.onnx", "make detector",
     lambda s: s.files.remove(str(HOME / ".cache/fusion_ros/detector.onnx"))),
    ("detector", Level.WARN, "it is damaged", "make detector",
     lambda s: setattr(s.modules["fusion_ros.frame.pipeline"], "load_detector", fail_to_load)),
    ("cache", Level.WARN, "cannot be written", 'chown -R "$USER" ~/.cache/fusion_ros',
     lambda s: s.set(can_write=False)),
    ("cache", Level.WARN, "200 MiB are free", "rm -r ~/.cache/fusion_ros",
     lambda s: s.free.update({str(HOME): 200.0})),
    ("shared memory", Level.WARN, "64 MiB free in /dev/shm", "--shm-size=1g",
     lambda s: s.free.update({"/dev/shm": 64.0})),
    ("shared memory", Level.WARN, "there is no /dev/shm", "--ipc=host",
     lambda s: s.free.update({"/dev/shm": None})),
]  # fmt: skip


def test_where_nothing_is_missing_every_check_is_ok_and_none_names_a_remedy():
    checks = examine(MadeUp())
    assert {check.level for check in checks} == {Level.OK}
    assert not any(check.mend for check in checks)
    assert as_text(checks).endswith("\nfuse_node runs")


@pytest.mark.parametrize(("name", "level", "found", "mend", "wrong"), CASES)
def test_a_missing_piece_is_named_with_the_command_that_mends_it(name, level, found, mend, wrong):
    system = MadeUp()
    wrong(system)
    checks = examine(system)
    (check,) = [check for check in checks if check.name == name]
    assert check.level is level
    assert found in check.found
    assert mend in check.mend if mend else not check.mend
    others = [check for check in checks if check.name != name]
    expected = {Level.OK, Level.WARN} if name in ("GPU", "TensorRT") else {Level.OK}
    assert {check.level for check in others} <= expected
    # The page shows what the command says.
    assert f"{check.level.value:7}  {name}  {check.found}" in PAGE.read_text()


@pytest.mark.parametrize(
    ("wrong", "status"),
    [
        (lambda s: None, 0),
        (lambda s: s.lose("vision_msgs.msg"), 0),
        (lambda s: s.lose("onnxruntime"), 1),
    ],
)
def test_the_exit_status_tells_whether_the_node_would_run(wrong, status, monkeypatch, capsys):
    system = MadeUp()
    wrong(system)
    monkeypatch.setattr(doctor, "System", lambda: system)
    assert doctor.run(Namespace(json=True, method="")) == status
    assert json.loads(capsys.readouterr().out)["runs"] == (status == 0)


def test_json_holds_all_checks_and_not_the_users_name():
    content = json.loads(as_json(examine(MadeUp())))
    assert {"name", "level", "found", "mend"} == set(content["checks"][0])
    assert "/home/user" not in json.dumps(content)
    assert content["fusion_ros"]


def test_a_check_that_fails_itself_is_a_finding_and_the_others_go_on():
    system = MadeUp()
    system.break_(CUDA, OSError("libcuda.so.1: invalid ELF header"))
    checks = {check.name: check for check in examine(system)}
    assert checks["gpu"] == Check(
        "gpu", Level.WARN, "cannot be checked: OSError: libcuda.so.1: invalid ELF header"
    )
    assert checks["shared memory"].level is Level.OK


def test_this_machine_runs_the_node():
    pytest.importorskip("rclpy")
    checks = examine(System())
    assert not [check for check in checks if check.level is Level.MISSING]
    network = next(check for check in checks if check.name == "network")
    assert "onnxruntime" in network.found or "TensorRT" in network.found
