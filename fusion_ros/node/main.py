# SPDX-License-Identifier: AGPL-3.0-only
"""The process of the fusion node: start, signals and end.

The main thread only waits for signals, the node runs in another thread. So a signal is noticed
while the node is importing, building an engine or fusing a frame, and no exception is raised in
its thread. The process ends within `_STOP_S` after the first signal.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fusion_ros.node.fuse_node import FuseNode

__all__ = ["main"]

_STOP_S = 2.0
"""How long the node's thread may take to end after a signal, s."""
_FREE_S = 1.2
"""Of that, how long the node waits for the frame in progress, s."""
_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_ENDED, _STUCK = b"\0", b"\xff"
"""What the node's threads write to the pipe; other bytes are numbers of signals."""
_STUCK_STATUS = 3


def main(args: list[str] | None = None) -> int:
    """Run the node until SIGINT or SIGTERM, and return the exit code.

    0 after a signal; 3 if a frame never ends and `exit_when_stuck` is set; 1 if a library is
    missing or parameters or models cannot be used. With `build_only`, 130 if a signal ends it
    before the networks are ready.
    """
    # Python's C code writes a signal's number to the pipe at once, in whichever thread the signal
    # arrives; waiting for a lock instead could miss it.
    events, sender = os.pipe()
    os.set_blocking(sender, False)
    signal.set_wakeup_fd(sender, warn_on_full_buffer=False)
    for number in _SIGNALS:
        signal.signal(number, lambda number, frame: None)
    process = _Process(args)
    thread = threading.Thread(
        target=lambda: (process.run(), os.write(sender, _ENDED)), name="node", daemon=True
    )
    thread.start()
    process.wake = lambda: os.write(sender, _STUCK)
    event = os.read(events, 1)
    ended = event == _ENDED
    # Python restores the default of other handlers at its end, and a late signal would kill it.
    for number in _SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    process.stopped.set()
    thread.join(_STOP_S)
    status = process.status
    if event == _STUCK:
        status = _STUCK_STATUS
    elif not ended:
        status = 130 if process.building else 0
    if thread.is_alive() or not process.freed:
        # A normal exit would unload libraries that other threads still use.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    return status


class _Process:
    """What the node's thread does.

    Attributes:
        stopped: set from outside to end it.
        status: exit code, once the thread has ended.
        building: networks are made ready for `build_only`.
        freed: no thread of the node is left.
        wake: called when the node is stuck and the process is to end.
    """

    def __init__(self, args: list[str] | None) -> None:
        self.stopped = threading.Event()
        self.status = 1
        self.building = False
        self.freed = True
        self.wake: Callable[[], object] = lambda: None
        self._args = args

    def run(self) -> None:
        try:
            self.status = self._run()
        except Exception:
            traceback.print_exc()

    def _run(self) -> int:
        # Imported here, since that takes a second, in which signals must be noticed.
        try:
            import rclpy
            from rclpy.exceptions import ParameterException
            from rclpy.signals import SignalHandlerOptions

            from fusion_ros.node import parameters
            from fusion_ros.node.fuse_node import FuseNode
        except ImportError as error:
            from fusion_ros.missing import remedy

            return _complain(remedy(error))
        if self.stopped.is_set():
            return 0
        try:
            # With rclpy's handlers, a signal would shut the context down under the threads.
            # A writer that sends by itself is held by a reader that stops, and Python with it.
            os.environ.setdefault("RMW_FASTRTPS_PUBLICATION_MODE", "ASYNCHRONOUS")
            rclpy.init(args=self._args, signal_handler_options=SignalHandlerOptions.NO)
        except Exception as error:  # arguments that rcl cannot parse
            return _complain(str(error))
        try:
            node = FuseNode()
        except (ParameterException, ValueError) as error:
            rclpy.try_shutdown()
            return _complain(str(error))
        node.on_stuck = lambda: self.wake()
        try:
            arguments = sys.argv if self._args is None else self._args
            for warning in parameters.unread_files(arguments, node.get_fully_qualified_name()):
                node.get_logger().warning(warning)
            return self._serve(node)
        finally:
            self.freed = node.close(_FREE_S)
            node.destroy_node()
            rclpy.try_shutdown()

    def _serve(self, node: FuseNode) -> int:
        from fusion_ros.node.guard import spin

        if node.get_parameter("build_only").value:
            self.building = True
            ready = node.build()
            self.building = False
            return 0 if ready else 1
        if node.get_parameter("autostart").value and not node.start():
            return 1
        spin(node, self.stopped.is_set)
        return 0


def _complain(problem: str) -> int:
    print(f"fuse_node: {' '.join(problem.split())}", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
