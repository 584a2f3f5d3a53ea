# SPDX-License-Identifier: AGPL-3.0-only
"""What is installed, and what the package says of itself."""

from __future__ import annotations

import ast
import configparser
import email
import importlib
import json
import os
import re
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
import zipfile
from itertools import pairwise
from pathlib import Path

import pytest

import fusion_models
import fusion_ros
from fusion_models.detection import SHIPPED

ROOT = Path(__file__).resolve().parents[2]
# Import name -> rosdep key, where they differ.
ROSDEP_KEYS = {
    "cv2": "python3-opencv",
    "numpy": "python3-numpy",
    "onnxruntime": "python3-onnxruntime-pip",
    "yaml": "python3-yaml",
}
# Used where it is installed, done without where it is not.
OPTIONAL = {
    # Of the extra `bags`.
    *("rosbags", "mcap", "jinja2", "dask", "distributed", "rich", "tqdm", "rerun"),
    "cuda",
    "matplotlib",
    "onnx",
    "tensorrt",
    "tensorrt_rtx",
    "tensorrt_rtx_bindings",
    "tensorrt_rtx_libs",
}


def manifest() -> ElementTree.Element:
    return ElementTree.parse(ROOT / "package.xml").getroot()


def imported_modules(folder: Path) -> set[str]:
    """Top-level names of all absolute imports under `folder`, wherever in a file they stand."""
    names = set()
    for path in folder.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(), str(path))):
            if isinstance(node, ast.Import):
                names |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and not node.level:
                names.add(node.module.partition(".")[0])
    return names


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> zipfile.ZipFile:
    """The wheel that pip builds from this checkout, built beside it."""
    pytest.importorskip("setuptools", minversion="70.1")
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    leave_out = shutil.ignore_patterns(".*", "build", "install", "log", "runs", "demo_output")
    shutil.copytree(ROOT, source, ignore=leave_out)
    pip = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--no-index"]
    run = subprocess.run([*pip, "-w", folder, source], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout + run.stderr
    return zipfile.ZipFile(next(folder.glob("fusion_ros-*.whl")))


def test_the_wheel_has_launch_files_config_and_weights(wheel):
    names = set(wheel.namelist())
    share = next(name for name in names if name.endswith("share/fusion_ros/package.xml"))
    share = share.removesuffix("package.xml")
    for folder, pattern in (
        ("launch", "*.launch.py"), ("config", "*.*"), ("config/training", "*.yaml"),
    ):  # fmt: skip
        expected = {f"{share}{folder}/{path.name}" for path in (ROOT / folder).glob(pattern)}
        assert expected and expected <= names
    weights = [path.name for path in fusion_models.WEIGHTS_DIR.iterdir()]
    assert any(name.endswith(".onnx") for name in weights)
    for name in weights:
        assert {f"fusion_models/weights/{name}", f"{share}weights/{name}"} <= names
    detector = {path.relative_to(ROOT).as_posix() for path in SHIPPED.parent.iterdir()}
    assert len(detector) >= 2 and detector <= names
    index = share.removesuffix("fusion_ros/") + "ament_index/resource_index/packages/fusion_ros"
    assert index in names


def test_the_wheel_has_every_module_and_only_our_packages(wheel):
    names = set(wheel.namelist())
    for package in ("fusion_ros", "fusion_models"):
        for path in (ROOT / package).rglob("*.py"):
            assert path.relative_to(ROOT).as_posix() in names
    packages = {name.partition("/")[0] for name in names if name.endswith(".py")}
    assert {name for name in packages if ".data" not in name} == {"fusion_ros", "fusion_models"}


def test_pip_puts_one_command_on_the_path(wheel):
    scripts = next(name for name in wheel.namelist() if name.endswith("entry_points.txt"))
    parser = configparser.ConfigParser()
    parser.read_string(wheel.read(scripts).decode())
    assert dict(parser["console_scripts"]) == {"fusion_ros": "fusion_ros.__main__:main"}
    assert not any("/scripts/" in name for name in wheel.namelist())


def test_every_command_has_a_script_for_ros2_run(wheel):
    commands = importlib.import_module("fusion_ros.commands.main").COMMANDS
    found = {path.name: path for path in (ROOT / "scripts").iterdir()}
    assert set(found) == set(commands), "ln -s fuse_node scripts/<new command>"
    for name, path in found.items():
        assert os.access(path, os.X_OK)
        entry = next(
            one for one in wheel.infolist() if one.filename.endswith(f"lib/fusion_ros/{name}")
        )
        assert entry.external_attr >> 16 & 0o111, f"{name} is not executable in the wheel"


def required(wheel: zipfile.ZipFile, extra: str = "") -> set[str]:
    """Names of the packages that pip installs with the wheel, or in addition with an extra."""
    path = next(name for name in wheel.namelist() if name.endswith(".dist-info/METADATA"))
    lines = email.message_from_bytes(wheel.read(path)).get_all("Requires-Dist", [])
    names = set()
    for line in lines:
        of = re.search(r"extra == ['\"]([^'\"]+)", line)
        if (of.group(1) if of else "") == extra:
            names.add(re.match(r"[-\w.]+", line).group())
    return names


def test_pip_brings_nothing_over_what_the_system_has(wheel):
    """OpenCV and onnxruntime have several packages: Ubuntu's, NVIDIA's, PyPI's for CPU and GPU."""
    assert required(wheel) == {"numpy"}
    assert required(wheel, "cpu") == {"numpy", "onnxruntime", "opencv-python-headless"}
    assert "onnxruntime-gpu" in required(wheel, "gpu")
    assert "onnxruntime" not in required(wheel, "gpu") | required(wheel, "train")


def test_every_extra_has_its_tested_versions(wheel):
    pinned = re.findall(r"^([-\w.]+)==", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    for extra in ("cpu", "ros", "train", "tensorrt", "bags", "lint", "test", "fuzz"):
        names = {name.lower().replace("_", "-") for name in required(wheel, extra)}
        assert names and names - set(pinned) == set(), extra


def test_the_version_is_the_same_everywhere(wheel):
    version = manifest().findtext("version")
    assert fusion_ros.__version__ == fusion_models.__version__ == version
    assert Path(wheel.filename).name.split("-")[1] == version


def test_the_changelog_opens_with_the_next_or_the_present_version():
    lines = (ROOT / "CHANGELOG.rst").read_text().splitlines()
    headings = [one for one, below in pairwise(lines) if one and set(below) == {"-"}]
    version = manifest().findtext("version")
    assert headings[0] == "Forthcoming" or headings[0].startswith(f"{version} (")


def test_the_manifest_is_one_that_ros_tools_accept():
    root = manifest()
    assert root.get("format") == "3" and root.findtext("name") == "fusion_ros"
    assert root.findtext("export/build_type") == "ament_python"
    assert root.findtext("license") == "AGPL-3.0-only"
    assert (ROOT / root.find("license").get("file")).is_file()
    assert {"rviz2", "cv_bridge"} <= {depend.text for depend in root.findall("exec_depend")}
    # colcon drops the ament hooks without an error where catkin_pkg rejects the address.
    address = root.find("maintainer").get("email")
    assert root.find("author").get("email") == address
    assert re.fullmatch(r"[-\w%+]+(\.[-\w%+]+)*@[-\w%]+(\.[-\w%]+)*\.[a-zA-Z]{2,}", address)


def test_the_manifest_names_every_runtime_import():
    imports = imported_modules(ROOT / "fusion_ros") | imported_modules(ROOT / "launch")
    others = imports - set(sys.stdlib_module_names) - {"fusion_ros", "fusion_models"} - OPTIONAL
    depends = {depend.text for depend in manifest().findall("exec_depend")}
    assert {ROSDEP_KEYS.get(name, name) for name in others} - depends == set()


def test_the_runtime_imports_no_torch():
    """Neither a line of it nor anything that it imports, as far as this environment goes."""
    assert "torch" not in imported_modules(ROOT / "fusion_ros")
    code = (
        "import importlib, pathlib, sys\n"
        "for path in pathlib.Path('fusion_ros').rglob('*.py'):\n"
        "    name = '.'.join(path.with_suffix('').parts).removesuffix('.__init__')\n"
        "    try: importlib.import_module(name)\n"
        "    except ModuleNotFoundError as error:\n"
        "        if (error.name or '').startswith('fusion'): raise\n"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def test_the_parameter_file_holds_declared_parameters_and_their_defaults():
    yaml = pytest.importorskip("yaml")
    parameters = importlib.import_module("fusion_ros.node.parameters").Parameters
    text = (ROOT / "config" / "fuse.yaml").read_text()
    values = yaml.safe_load(text)["/**"]["ros__parameters"]
    defaults = parameters()
    assert {name: getattr(defaults, name) for name in values} == values
    # What has no value that YAML could give, an empty list, stands there as a comment.
    assert {name for name in parameters.specs() if f"    {name}:" not in text} == {
        name for name in parameters.specs() if f"# {name}:" in text
    }


def test_the_fastdds_profile_gives_images_room():
    root = ElementTree.parse(ROOT / "config" / "fastdds_shm.xml").getroot()
    dds = {"dds": "http://www.eprosima.com"}
    segments = root.findall(".//dds:segment_size", dds)
    assert [int(segment.text) for segment in segments] == [64 * 2**20]
    transports = root.findall(".//dds:transport_descriptor", dds)
    types = {one.findtext("dds:transport_id", None, dds): one for one in transports}
    used = [one.text for one in root.findall(".//dds:userTransports/dds:transport_id", dds)]
    assert [types[name].findtext("dds:type", None, dds) for name in used] == ["SHM", "UDPv4"]


def test_rviz_shows_the_topics_of_the_node():
    yaml = pytest.importorskip("yaml")
    layout = yaml.safe_load((ROOT / "config" / "fusion.rviz").read_text())
    shown = [one["Topic"]["Value"] for one in layout["Visualization Manager"]["Displays"]]
    assert shown == ["fused/image", "fused/image_annotated", "thermal/image_raw", "rgb/image_raw"]


def test_foxglove_shows_the_topics_of_the_node_and_of_an_evaluated_bag():
    panels = json.loads((ROOT / "config" / "foxglove_layout.json").read_text())["configById"]
    images = {key: panel["imageMode"] for key, panel in panels.items() if key.startswith("Image!")}
    assert {mode["imageTopic"] for mode in images.values()} == {
        "/fused/image",
        "/fused/image_annotated",
        "/thermal/image_raw",
        "/rgb/image_raw",
    }
    calibrated = [
        mode["calibrationTopic"] for mode in images.values() if "calibrationTopic" in mode
    ]
    assert calibrated == ["/fused/camera_info"]
    topics = {panel["topicToRender"] for panel in panels.values() if "topicToRender" in panel}
    assert topics == {"/diagnostics", "/evaluation/events"}
    (plot,) = [panel for key, panel in panels.items() if key.startswith("Plot!")]
    statuses = [re.search(r'name=="([^"]+)"', path["value"])[1] for path in plot["paths"]]
    assert statuses == ["fuse_node: fusion", "evaluate_bag: fusion"]


def test_generated_vision_msgs_agrees_with_the_real_one_on_the_wire():
    messages = pytest.importorskip("vision_msgs.msg")
    share = Path(messages.__file__).parents[5] / "share" / "vision_msgs"
    description = share / "msg" / "Detection2DArray.json"
    if not description.is_file():
        pytest.skip(f"this distribution installs no type description at {description}")
    hashes = {
        one["type_name"]: one["hash_string"]
        for one in json.loads(description.read_text())["type_hashes"]
    }
    # Of vision_msgs 4.1.1.
    expected = "RIHS01_214274120007f4a683866481336b70310268cfa107aebe9d594a6acf75bda968"
    assert hashes["vision_msgs/msg/Detection2DArray"] == expected


def test_the_parameters_page_lists_every_parameter_and_launch_argument():
    text = (ROOT / "docs" / "parameters.md").read_text()
    names = set(importlib.import_module("fusion_ros.node.parameters").Parameters.specs())
    launch = ast.parse((ROOT / "launch" / "fuse.launch.py").read_text())
    calls = [node for node in ast.walk(launch) if isinstance(node, ast.Call)]
    declared = [call for call in calls if getattr(call.func, "id", "") == "declare"]
    names |= {call.args[0].value for call in declared if isinstance(call.args[0], ast.Constant)}
    assert {name for name in names if f"`{name}`" not in text} == set()


def test_the_workflow_runs_ci_on_each_python_and_each_ros():
    yaml = pytest.importorskip("yaml")
    jobs = yaml.safe_load((ROOT / ".github" / "workflows" / "tests.yml").read_text())["jobs"]
    pythons = jobs["wheels"]["strategy"]["matrix"]["python"]
    assert pythons == ["3.10", "3.11", "3.12", "3.13", "3.14"]
    assert jobs["ros"]["strategy"]["matrix"]["distribution"] == ["humble", "jazzy", "kilted"]
    for name in ("wheels", "ros"):
        lines = [line for step in jobs[name]["steps"] for line in step.get("run", "").split("\n")]
        assert ".ci/run" in lines
    ci = (ROOT / ".ci" / "run").read_text()
    assert "exec make test" in ci and os.access(ROOT / ".ci" / "run", os.X_OK)


def test_commits_are_checked_by_the_ruff_that_make_lint_installs():
    yaml = pytest.importorskip("yaml")
    settings = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())
    version = re.search(r"^ruff==(.+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    assert [repository["rev"] for repository in settings["repos"]] == [f"v{version.group(1)}"]


# Stands for the pytest plugins of an installed ROS, which pytest 9 cannot load.
PLUGINS = ("launch_testing", "launch_ros", "launch_pytest")


def test_the_pytest_plugins_of_an_installed_ros_are_left_out(tmp_path):
    plugins, package = tmp_path / "plugins", tmp_path / "package"
    for name in PLUGINS:
        metadata = plugins / f"{name}-1.0.dist-info"
        metadata.mkdir(parents=True)
        (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        (metadata / "entry_points.txt").write_text(f"[pytest11]\n{name} = {name}_plugin\n")
        (plugins / f"{name}_plugin.py").write_text("raise RuntimeError('loaded')\n")
    package.mkdir()
    (package / "test_one.py").write_text("def test_one():\n    pass\n")
    by_hand = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider"]
    # As colcon-core's Python task starts it.
    by_colcon = [*by_hand, "--tb=short", "--junit-xml", tmp_path / "pytest.xml"]
    by_colcon += ["--junit-prefix=fusion_ros", "-o", "junit_family=xunit2", f"--rootdir={package}"]

    def run(command: list) -> subprocess.CompletedProcess:
        path = os.pathsep.join([str(plugins), os.environ.get("PYTHONPATH", "")])
        env = {**os.environ, "PYTHONPATH": path}
        env.pop("PYTEST_ADDOPTS", None)
        return subprocess.run(
            command, cwd=package, env=env, capture_output=True, text=True, check=False
        )

    assert "loaded" in run(by_hand).stderr  # without our settings
    settings = (ROOT / "pyproject.toml").read_text().replace('testpaths = ["test"]', "")
    (package / "pyproject.toml").write_text(settings)
    for command in (by_hand, by_colcon):
        after = run(command)
        assert after.returncode == 0, after.stdout + after.stderr


def test_the_documents_name_files_that_exist():
    """Links between the pages, and the paths in the table of places in CONTRIBUTING.md."""
    missing = set()
    pages = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]
    for page in pages:
        text = page.read_text()
        links = re.findall(r"\]\((?!https?:)([^)#\s]+)", text)
        missing |= {f"{page.name}: {link}" for link in links if not (page.parent / link).exists()}
    places = re.findall(
        r"`((?:fusion_ros|fusion_models)/[\w/.]+)`", (ROOT / "CONTRIBUTING.md").read_text()
    )
    missing |= {f"CONTRIBUTING.md: {place}" for place in places if not (ROOT / place).exists()}
    for page in pages:
        if page.parent.name != "lab":  # the notebooks keep the names of their time
            scripts = re.findall(r"python (training/\w+\.py)", page.read_text())
            missing |= {f"{page.name}: {name}" for name in scripts if not (ROOT / name).exists()}
    assert len(places) > 8 and missing == set()


def test_links_into_a_page_lead_to_a_heading():
    for page in [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]:
        for link, heading in re.findall(r"\]\((?!https?:)([^)#\s]*)#([^)\s]+)\)", page.read_text()):
            target = page.parent / link if link else page
            titles = re.findall(r"^#+ (.+)$", target.read_text(), re.MULTILINE)
            anchors = {
                re.sub(r"[^\w\- ]", "", one).strip().lower().replace(" ", "-") for one in titles
            }
            assert heading in anchors, f"{page.name}: {link}#{heading}"


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 130


def test_each_source_file_opens_with_its_licence_and_its_subject():
    folders = ("fusion_ros", "fusion_models", "launch", "training", "test")
    paths = [ROOT / "setup.py", *(path for name in folders for path in (ROOT / name).rglob("*.py"))]
    for path in paths:
        text = path.read_text()
        assert text.startswith("# SPDX-License-Identifier: AGPL-3.0-only\n"), path
        subject = (ast.get_docstring(ast.parse(text)) or " ").splitlines()
        assert subject[0].strip() and not "".join(subject[1:2]), path
