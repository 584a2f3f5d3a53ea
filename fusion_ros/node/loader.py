# SPDX-License-Identifier: AGPL-3.0-only
"""Loading networks: at configuration, and later beside the networks that run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from fusion_ros.frame.monitor import Monitor
from fusion_ros.frame.pipeline import Network, Pipeline, load_detector, load_network
from fusion_ros.frame.settings import AUTO
from fusion_ros.node.guard import describe
from fusion_ros.node.parameters import Parameters
from fusion_ros.node.ready import Ready
from fusion_ros.node.worker import Worker

__all__ = ["Loader"]


@dataclass(frozen=True)
class _Request:
    """Parameters, the size where they leave it open, and sizes to make ready ahead."""

    parameters: Parameters
    size: int
    ahead: tuple[int, ...] = ()


class Loader:
    """Brings the pipeline's networks to the parameters, in a thread of its own.

    Args:
        pipeline: gets the networks once they are ready.
        ready: networks that are loaded and do not run.
        monitor: gets what could not be loaded, as faults.
        log: called with what was passed over on the way to an engine.
        replaced: called with each network that replaces another one.
        failed: called with the parameters and the size whose network could not be loaded and the
            network that stays. All three are called in the loader's thread.

    Attributes:
        detector_problem: why there is no detector although the parameters ask for one.
    """

    def __init__(
        self,
        pipeline: Pipeline,
        ready: Ready,
        monitor: Monitor,
        log: Callable[[str], None],
        replaced: Callable[[Network], None],
        failed: Callable[[Parameters, int, Network], None],
    ) -> None:
        self.detector_problem: str | None = None
        self._pipeline = pipeline
        self._ready = ready
        self._monitor = monitor
        self._log = log
        self._replaced = replaced
        self._failed = failed
        self._worker: Worker[_Request] = Worker(
            self._load,
            "loader",
            lambda error: monitor.fault("load_failed", f"loading failed: {describe(error)}"),
        )

    def load_first_detector(self, parameters: Parameters) -> None:
        """Load the detector in the caller's thread; without it the node fuses all the same.

        Where networks are only built (`build_only`), a detector that the parameters name must be
        there: raises what loading it raises.
        """
        if not parameters.detect:
            return
        try:
            self._load_detector(parameters)
        except Exception as error:  # a model file can raise anything
            if parameters.detector and parameters.build_only:
                raise
            self._note_no_detector(error)

    def request(self, parameters: Parameters, size: int = 0, ahead: tuple[int, ...] = ()) -> None:
        """Load the networks that `parameters` name and use them once they are loaded.

        size: where `processing_size` is auto, px; ahead: sizes to make ready beside it.
        """
        if not parameters.detect:
            # Switching it on again is another attempt.
            self.detector_problem = None
        self._worker.submit(_Request(parameters, size, ahead))

    def stop(self, timeout: float) -> None:
        """End the thread, and wait up to `timeout` seconds for that.

        A load in progress, which may build an engine for minutes, ends later. The closed
        pipeline then frees its result.
        """
        self._worker.stop(timeout)

    @property
    def alive(self) -> bool:
        """Whether the thread still runs."""
        return self._worker.alive

    @property
    def busy(self) -> bool:
        """Whether something is being loaded, or waits for that."""
        return bool(self._worker.pending)

    def _load(self, request: _Request) -> None:
        parameters, running = request.parameters, self._pipeline.network
        auto = parameters.processing_size == AUTO
        if not running.fits(parameters) or (auto and running.fuser.processing_size != request.size):
            if running.method != parameters.method:
                self._ready.clear()
            self._change(request, running)
        if auto:
            self._make_ready(request)
        # Tried once each time that `detect` is switched on, not at every change of a parameter.
        if parameters.detect and self._pipeline.detector is None and not self.detector_problem:
            try:
                self._load_detector(parameters)
            except Exception as error:  # as above
                self._note_no_detector(error)

    def _change(self, request: _Request, running: Network) -> None:
        """Replace the running network, which goes on meanwhile."""
        parameters = request.parameters
        size = request.size if parameters.processing_size == AUTO else parameters.processing_size
        try:
            network = self._network(request, request.size)
        except Exception as error:  # a model file can raise anything
            self._monitor.fault(
                "method_load_failed",
                f"still fusing by {running}: {parameters.method} with processing_size {size} "
                f"cannot be loaded: {error}",
            )
            self._failed(parameters, size, running)
        else:
            self._pipeline.change(network=network)
            self._replaced(network)

    def _make_ready(self, request: _Request) -> None:
        """Load the networks for the sizes that may come next, beside the running one."""
        method = request.parameters.method
        if self._pipeline.network.method != method:
            return
        for size in request.ahead:
            if self._ready.has(method, size):
                continue
            try:
                self._ready.keep(self._load_network(request, size))
            except Exception as error:  # as above; said when that size is to run
                self._log(f"{method} at {size} px cannot be made ready: {error}")

    def _network(self, request: _Request, size: int) -> Network:
        if request.parameters.processing_size == AUTO:
            ready = self._ready.take(request.parameters.method, size)
            if ready is not None:
                return ready
        return self._load_network(request, size)

    def _load_network(self, request: _Request, size: int) -> Network:
        images = self._pipeline.rgb_size or request.parameters.expected_size
        return load_network(request.parameters, images, self._log, size)

    def _load_detector(self, parameters: Parameters) -> None:
        size = self._pipeline.rgb_size or parameters.expected_size
        self._pipeline.change(detector=load_detector(parameters, size, self._log))
        self.detector_problem = None

    def _note_no_detector(self, error: Exception) -> None:
        self.detector_problem = str(error) or repr(error)
        self._monitor.fault("detector_missing", f"fusing without a detector: {error}")
