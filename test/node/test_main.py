# SPDX-License-Identifier: AGPL-3.0-only
"""The process of the fusion node: exit codes, messages and signals."""

from __future__ import annotations

import itertools
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence

import pytest

pytest.importorskip("rclpy")

PATIENCE_S = 120
names = (f"test_main_{number}" for number in itertools.count())

RUN = "import sys; from fusion_ros.node.main import main; sys.exit(main())"

ENDLESS = "while True: time.sleep(0.1)"
"""Code of something that takes too long, such as building an engine."""


class Process:
    """The node in a process of its own."""

    def __init__(self, *python: str, parameters: Sequence[str] = (), ros: Sequence[str] = ()):
        command = [sys.executable, *python, "--ros-args", "-r", f"__ns:=/{next(names)}", *ros]
        for parameter in parameters:
            command += ["-p", parameter]
        self._process = subprocess.Popen(
            command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
        )
        # A process that hangs ends the wait for its output too.
        self._limit = threading.Timer(PATIENCE_S, self._process.kill)
        self._limit.start()
        self.log = ""

    def wait_for(self, text: str) -> None:
        for line in self._process.stderr:
            self.log += line
            if text in line:
                return
        pytest.fail(f"ended without '{text}':\n{self.log}")

    def send(self, number: int) -> None:
        self._process.send_signal(number)

    def end(self) -> int:
        self.log += self._process.stderr.read()
        code = self._process.wait()
        self.kill()
        return code

    def kill(self) -> None:
        self._limit.cancel()
        self._process.kill()
        self._process.wait()
        self._process.stderr.close()


@pytest.fixture
def start(average) -> Iterator:
    made: list[Process] = []

    def start(*python: str, **options) -> Process:
        made.append(Process(*(python or ("-m", "fusion_ros.node.main")), **options))
        return made[-1]

    yield start
    for process in made:
        process.kill()


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("method:=nonsense", "choose one of"),
        ("tolerance:=-3.0", "tolerance"),
        (f"method:={'x' * 300}.onnx", "parameter method"),
        ("bad name:=1", "bad name"),
    ],
)
def test_a_wrong_parameter_ends_the_process_with_a_line_that_names_it(start, override, says):
    process = start(parameters=[override])
    assert process.end() == 1, process.log
    assert says in process.log
    assert "Traceback" not in process.log


@pytest.mark.parametrize(
    ("override", "code", "says"),
    [
        ("image_size:=61x43", 0, "ready for images of 61x43: "),
        ("threads:=1", 0, "ready for images of 640x480: "),
        ("detector:=/nowhere.onnx", 1, "/nowhere.onnx"),
    ],
)
def test_with_build_only_the_process_prepares_the_networks_and_ends(
    start, average, override, code, says
):
    process = start(parameters=["build_only:=true", f"method:={average}", override])
    assert process.end() == code, process.log
    assert says in process.log
    assert "Traceback" not in process.log
    assert "fusing by" not in process.log


@pytest.mark.parametrize(
    ("library", "remedy"),
    [
        ("rclpy", "source /opt/ros/"),
        ("cv2", "python3-opencv"),
        ("onnxruntime", "pip install 'onnxruntime>="),
    ],
)
def test_a_missing_library_ends_the_process_with_its_remedy_in_one_line(
    start, average, library, remedy
):
    hide = f"import sys; sys.modules['{library}'] = None; "
    process = start("-c", hide + RUN, parameters=[f"method:={average}", "backend:=onnxruntime_cpu"])
    assert process.end() == 1, process.log
    line = process.log.splitlines()[-1]
    assert library in line
    assert remedy in line
    assert "Traceback" not in process.log


# --- Signals ------------------------------------------------------------------------------------

SINGLE = ((signal.SIGINT,), (signal.SIGTERM,))
DOUBLE = ((signal.SIGINT, signal.SIGINT), (signal.SIGINT, signal.SIGTERM))


def end_cleanly(process: Process, signals: Sequence[int]) -> None:
    for number in signals:
        process.send(number)
    assert process.end() == 0, process.log
    assert "Traceback" not in process.log
    assert "Exception" not in process.log


@pytest.mark.parametrize(
    ("module", "signals"),
    [
        ("argparse", SINGLE[0]),
        ("numpy", SINGLE[0]),
        ("rclpy.node", DOUBLE[0]),
        ("fusion_ros.node.fuse_node", DOUBLE[1]),
    ],
)
def test_signals_during_imports_end_the_process_cleanly(start, average, module, signals):
    process = start("-X", "importtime", "-m", "fusion_ros", "fuse_node")
    process.wait_for(module)
    end_cleanly(process, signals)


@pytest.mark.parametrize("signals", [SINGLE[1], *DOUBLE])
def test_signals_end_an_active_node_cleanly(start, average, signals):
    process = start(parameters=["detect:=false", f"method:={average}"])
    process.wait_for("fusing by")
    end_cleanly(process, signals)


@pytest.mark.parametrize("signals", [SINGLE[0], DOUBLE[0]])
def test_signals_end_an_unconfigured_node_cleanly(start, signals):
    announce = (
        "import sys; from fusion_ros.node import guard; spin = guard.spin; "
        "guard.spin = lambda *args: print('spins', file=sys.stderr, flush=True) or spin(*args); "
    )
    process = start("-c", announce + RUN, parameters=["autostart:=false"])
    process.wait_for("spins")
    end_cleanly(process, signals)


SLOW = {
    "configuring": f"""
import sys, time
from fusion_ros.node import configured

def load_network(*args):
    print("busy", file=sys.stderr, flush=True)
    {ENDLESS}

configured.load_network = load_network
""",
    "fusing": f"""
import sys, time
from fusion_ros.node import frames, fuse_node

def process(self, job, lane):
    print("busy", file=sys.stderr, flush=True)
    {ENDLESS}

def start(node, start=fuse_node.FuseNode.start):
    assert start(node)
    node.configured.submit(frames.Job(None, None))
    return True

frames.Frames.process = process
fuse_node.FuseNode.start = start
""",
    "loading another method": f"""
import sys, time
from fusion_ros.node import fuse_node, loader

def load_network(*args):
    print("busy", file=sys.stderr, flush=True)
    {ENDLESS}

def start(node, start=fuse_node.FuseNode.start):
    from rclpy.parameter import Parameter
    assert start(node)
    assert node.set_parameters([Parameter("processing_size", value=48)])[0].successful
    return True

loader.load_network = load_network
fuse_node.FuseNode.start = start
""",
    "waiting for the frame in progress": f"""
import sys, time
from fusion_ros.node import frames, fuse_node

def process(self, job, lane):
    {ENDLESS}

def spin(node, stopped):
    node.configured.submit(frames.Job(None, None))
    print("busy", file=sys.stderr, flush=True)

from fusion_ros.node import guard
guard.spin = spin
frames.Frames.process = process
""",
}


@pytest.mark.parametrize(
    ("state", "signals"),
    zip(SLOW, itertools.cycle(SINGLE[:1] + DOUBLE)),
)
def test_signals_end_a_busy_process_cleanly(start, average, state, signals):
    process = start("-c", SLOW[state] + RUN, parameters=["detect:=false", f"method:={average}"])
    process.wait_for("busy")
    end_cleanly(process, signals)


def test_a_frame_that_never_ends_ends_the_process_where_that_is_asked_for(start, average):
    parameters = ["detect:=false", f"method:={average}", "stuck_timeout:=0.2"]
    process = start("-c", SLOW["fusing"] + RUN, parameters=[*parameters, "exit_when_stuck:=true"])
    process.wait_for("busy")
    assert process.end() == 3
    assert "a frame has not been done for" in process.log
    assert "Traceback" not in process.log


LATE = """
import os, signal

class Late:
    # Deleted with the modules, when Python has given the signals their default effect again.
    def __del__(self, kill=os.kill, process=os.getpid(), number=signal.SIGINT):
        kill(process, number)

late = Late()
"""


def test_a_signal_at_the_very_end_does_not_change_the_exit_code(start, average):
    process = start("-c", LATE + RUN, parameters=["detect:=false", f"method:={average}"])
    process.wait_for("fusing by")
    end_cleanly(process, (signal.SIGINT,))


def test_an_interrupted_build_does_not_exit_with_0(start, average):
    parameters = ["build_only:=true", "detect:=false", f"method:={average}"]
    process = start("-c", SLOW["configuring"] + RUN, parameters=parameters)
    process.wait_for("busy")
    process.send(signal.SIGINT)
    assert process.end() == 130, process.log


# --- Parameter files ----------------------------------------------------------------------------


def test_values_that_the_node_does_not_read_are_named(start, average, tmp_path):
    path = tmp_path / "robot.yaml"
    path.write_text("fuse_node:\n  ros__parameters:\n    tolerance: 0.05\n")
    process = start(
        "-m",
        "fusion_ros",
        "fuse_node",
        "tolerance:=0.2",
        parameters=["detect:=false", f"method:={average}", "toleranse:=0.1"],
        ros=["--params-file", str(path)],
    )
    process.wait_for("fusing by")
    end_cleanly(process, (signal.SIGINT,))
    assert "'tolerance:=0.2' is ignored" in process.log
    assert "--ros-args -p tolerance:=0.2" in process.log
    assert "'toleranse' has no effect" in process.log
    assert "do you mean 'tolerance'" in process.log
    assert f"{path} sets no parameter of this node: it is for /fuse_node, expected" in process.log
