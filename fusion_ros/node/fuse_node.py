# SPDX-License-Identifier: AGPL-3.0-only
"""The fusion node: its lifecycle and its parameters.

`Configured` holds what exists from configuration to cleanup, `Active` what exists while the node
is active. Callbacks only look at an image and pair it; one worker thread takes the newest pair
through the pipeline (`Frames`), another one publishes (`Outputs`), and a third one reports on all
of them (`Reporter`).
"""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import Any

from rcl_interfaces.msg import SetParametersResult
from rclpy.lifecycle import LifecycleState, TransitionCallbackReturn
from rclpy.parameter import Parameter

from fusion_ros.frame.settings import ParameterError
from fusion_ros.inference import EngineError
from fusion_ros.missing import remedy
from fusion_ros.node import parameters as node_parameters
from fusion_ros.node.active import Active
from fusion_ros.node.configured import Configured
from fusion_ros.node.diagnostics import Status, without_network
from fusion_ros.node.guard import GuardedNode, describe
from fusion_ros.node.parameters import Parameters
from fusion_ros.node.reporter import Reporter

__all__ = ["FuseNode"]

_SUCCESS = TransitionCallbackReturn.SUCCESS
_FAILURE = TransitionCallbackReturn.FAILURE
_LONGEST_REASON = 1000
"""Characters of an answer: names and values that are refused can be of any length."""
_CLEANUP_S = 0.5
"""How long the transition `cleanup` waits for the frame in progress, at most, s."""


class FuseNode(GuardedNode):
    """Subscribes to two cameras, publishes fused images, boxes and diagnostics.

    All callbacks belong to one mutually exclusive group, so that no two run at the same time.

    Raises `ParameterException` for overrides outside a parameter's range; other errors in
    parameters are reported by `on_configure`.

    Attributes:
        configured: what exists once the node is configured, else None.
        active: what exists once the node is active, else None.
        stuck: a frame has taken longer than `stuck_timeout`.
        on_stuck: called once, in the diagnostics' thread, when that ends the process by the
            parameter `exit_when_stuck`.
    """

    def __init__(self, **kwargs: Any) -> None:
        self.configured: Configured | None = None
        self.active: Active | None = None
        self._unfinished: list[Configured] = []
        self._logged: set[str] = set()
        self._state = "unconfigured"
        self._problem = ""
        self.reporter: Reporter | None = None
        self.stuck = False
        self.on_stuck: Callable[[], None] = lambda: None
        super().__init__("fuse_node", **kwargs)
        Parameters.declare(self)
        self._warn_of_unknown(lambda name: not name.startswith("qos_overrides."))
        self.reporter = Reporter(self, self._statuses)
        self.reporter.start()

    # --- For those who run it -------------------------------------------------------------------

    def start(self) -> bool:
        """Configure and activate, as `autostart` asks for; return whether that succeeded."""
        return self.trigger_configure() == _SUCCESS and self.trigger_activate() == _SUCCESS

    def build(self) -> bool:
        """Make the networks ready and log them, as `build_only` asks for; return success."""
        if self.trigger_configure() != _SUCCESS:
            return False
        pipeline = self.configured.pipeline
        ready = f"{pipeline.network} on {pipeline.network.fuser.engine.description}"
        if pipeline.detector is not None:
            ready += f"; the detector on {pipeline.detector.engine.description}"
        size = "{}x{}".format(*self.configured.parameters.expected_size)
        self.get_logger().info(f"ready for images of {size}: {ready}")
        return True

    def close(self, timeout: float = 1.5) -> bool:
        """Stop the threads and free the networks, from any state; return whether that is done.

        Waits up to `timeout` seconds. A thread that is busy for longer, such as with building an
        engine, frees what it uses when it is done.
        """
        active, self.active = self.active, None
        if active is not None:
            active.close()
        configured, self.configured = self.configured, None
        if configured is not None and not configured.close(timeout):
            self._unfinished.append(configured)
        self._unfinished = [one for one in self._unfinished if one.alive]
        return not self._unfinished

    def destroy_node(self) -> None:
        """End the diagnostics and destroy the node."""
        # rclpy calls this, too, where its constructor fails.
        if self.reporter is not None:
            self.reporter.stop()
        super().destroy_node()

    # --- For its parts --------------------------------------------------------------------------

    @property
    def overrides(self) -> dict[str, Parameter]:
        """Parameter values that were given at the start, declared or not."""
        return self._parameter_overrides

    def log_once(self, text: str) -> None:
        """Log a text the first time only: the same backends are passed over for every network."""
        if text not in self._logged:
            self._logged.add(text)
            self.get_logger().info(text)

    def call_later(self, callback: Callable[[], None]) -> None:
        """Call `callback` in the executor's thread, from any thread."""
        if self.executor is not None:
            self.executor.create_task(self.guard("a task", callback))

    def callback_failed(self, what: str, error: Exception) -> None:
        """Count and log an exception in a callback."""
        if self.configured is not None:
            self.configured.monitor.fault("callback_failed", f"{what} failed: {describe(error)}")
        else:
            super().callback_failed(what, error)

    # --- Lifecycle ------------------------------------------------------------------------------

    def on_configure(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Load the networks; without them the node stays unconfigured."""
        self._enter("configuring: loading the networks")
        try:
            self.configured = Configured(self, Parameters.from_node(self))
        except Exception as error:
            return self._refuse("not configured", error)
        self._enter("inactive")
        return super().on_configure(state)

    def on_activate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Listen to the cameras."""
        result = super().on_activate(state)
        try:
            self.active = Active(self, self.configured)
        except Exception as error:
            super().on_deactivate(state)
            return self._refuse("not activated", error)
        self._warn_of_unknown(lambda name: name.startswith("qos_overrides."))
        self.reporter.report_now()
        return result

    def on_deactivate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Listen no longer; a frame that takes long is left to the worker."""
        try:
            active, self.active = self.active, None
            active.close()
        except Exception as error:
            self.callback_failed("the transition 'deactivate'", error)
        self.forget_destroyed()
        self.reporter.report_now()
        return super().on_deactivate(state)

    def on_cleanup(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Free the networks."""
        self._close_guarded("cleanup")
        self.forget_destroyed()
        # The parts refer to each other: Python would keep their images for several configurations.
        gc.collect()
        self._enter("unconfigured")
        return super().on_cleanup(state)

    def on_shutdown(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Free everything."""
        self._close_guarded("shutdown")
        self._enter("shut down")
        return super().on_shutdown(state)

    def on_error(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Free everything, and be unconfigured."""
        self._close_guarded("error")
        self._enter("unconfigured")
        return super().on_error(state)

    def _refuse(self, what: str, error: Exception) -> TransitionCallbackReturn:
        if isinstance(error, ImportError):
            text = remedy(error)
        else:
            expected = isinstance(error, (EngineError, ValueError))
            text = str(error) if expected else describe(error)
        self.get_logger().error(f"{what}: {text}")
        self._enter("unconfigured" if self.configured is None else "inactive", text)
        return _FAILURE

    def _enter(self, state: str, problem: str = "") -> None:
        """Note the state that the diagnostics tell; problem: why a transition was refused."""
        self._state, self._problem = state, problem
        self.reporter.report_now()

    def _statuses(self) -> list[Status]:
        """What the diagnostics tell; called in their thread."""
        configured = self.configured
        if configured is None:
            return without_network(
                self.get_fully_qualified_name().lstrip("/"), self._state, self._problem
            )
        self._note_stuck(configured)
        return configured.diagnostics.statuses(configured.parameters)

    def _note_stuck(self, configured: Configured) -> None:
        parameters = configured.parameters
        longest = max(configured.worker.busy_s, configured.outputs.busy_s)
        was, self.stuck = self.stuck, longest > parameters.stuck_timeout
        if self.stuck and not was:
            end = "; the process ends" if parameters.exit_when_stuck else ""
            configured.monitor.fault("stuck", f"a frame has not been done for {longest:.0f} s{end}")
            if parameters.exit_when_stuck:
                self.on_stuck()

    def _close_guarded(self, transition: str) -> None:
        # An exception would be swallowed by rclpy, and the node be left half way.
        try:
            self.close(_CLEANUP_S)
        except Exception as error:
            self.callback_failed(f"the transition '{transition}'", error)

    # --- Parameters -----------------------------------------------------------------------------

    def set_parameters(self, parameter_list: list[Parameter]) -> list[SetParametersResult]:
        """Set parameters one after the other; see `set_parameters_atomically`."""
        return [self.set_parameters_atomically([parameter]) for parameter in parameter_list]

    def set_parameters_atomically(self, parameter_list: list[Parameter]) -> SetParametersResult:
        """Set all of the parameters or none; the services of the node end here too.

        Values are checked and stored in the type of their parameter: 1 for a number becomes 1.0,
        and an empty list a list of that type. Values that cannot be set are refused and named.
        """
        unknown = [one.name for one in parameter_list if not self.has_parameter(one.name)]
        if unknown:
            return _refusal("; ".join(map(node_parameters.explain_unknown, unknown)))
        try:
            typed = [node_parameters.typed(parameter) for parameter in parameter_list]
            parameters = self._changed({p.name: p.value for p in typed})
            result = super().set_parameters_atomically(typed)
            if result.successful and parameters is not None:
                self.configured.use(parameters)
        except Exception as error:
            return _refusal(str(error) if isinstance(error, ValueError) else describe(error))
        return result

    def _changed(self, values: dict[str, Any]) -> Parameters | None:
        """Check changes; return the parameters to use from now on, None if nothing uses them.

        Raises `ParameterError` for a change that is not possible, or not in this state.
        """
        specs = Parameters.specs()
        changes = {name: value for name, value in values.items() if name in specs}
        if not changes:
            return None
        if self.configured is None:
            Parameters.check_changes(
                {
                    name: self.get_parameter(name).value
                    for name in specs
                    if self.has_parameter(name)
                },
                changes,
            )
            return None
        now = self.configured.parameters
        parameters = now.replace(**changes)
        for name in changes.keys() & Parameters.static_names():
            if getattr(parameters, name) != getattr(now, name):
                raise ParameterError(
                    name,
                    "is read when the node configures: set it after the transition 'cleanup', "
                    "then 'configure' and 'activate'",
                )
        self._check_classes(parameters)
        return parameters

    def _check_classes(self, parameters: Parameters) -> None:
        detector = self.configured.pipeline.detector
        known = detector.class_names.values() if detector else ()
        unknown = sorted(set(parameters.classes) - set(known))
        if detector and unknown:
            raise ParameterError(
                "classes",
                f"the detector has no class {', '.join(unknown)}: expected {', '.join(known)}",
            )

    def _warn_of_unknown(self, concerned: Callable[[str], bool]) -> None:
        """Name values that were given at the start for parameters that the node does not have."""
        unknown = [n for n in self.overrides if concerned(n) and not self.has_parameter(n)]
        for name in unknown:
            self.get_logger().warning(node_parameters.explain_unknown(name))


def _refusal(reason: str) -> SetParametersResult:
    short = reason if len(reason) <= _LONGEST_REASON else f"{reason[:_LONGEST_REASON]}..."
    return SetParametersResult(successful=False, reason=short)
