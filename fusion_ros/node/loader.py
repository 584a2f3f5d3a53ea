# SPDX-License-Identifier: AGPL-3.0-only
"""Loading networks: at configuration, and later beside the networks that run."""

from __future__ import annotations

from collections.abc import Callable

from fusion_ros.frame.monitor import Monitor
from fusion_ros.frame.pipeline import Network, Pipeline, load_detector, load_network
from fusion_ros.inference import EngineError
from fusion_ros.node.guard import describe
from fusion_ros.node.parameters import Parameters
from fusion_ros.node.worker import Worker

__all__ = ["Loader"]


class Loader:
    """Brings the pipeline's networks to the parameters, in a thread of its own.

    Args:
        pipeline: gets the networks once they are ready.
        monitor: gets what could not be loaded, as faults.
        log: called with what was passed over on the way to an engine.
        replaced: called with each network that replaces another one.
        failed: called with the parameters whose network could not be loaded and the network that
            stays. All three are called in the loader's thread.

    Attributes:
        detector_problem: why there is no detector although the parameters ask for one.
    """

    def __init__(
        self,
        pipeline: Pipeline,
        monitor: Monitor,
        log: Callable[[str], None],
        replaced: Callable[[Network], None],
        failed: Callable[[Parameters, Network], None],
    ) -> None:
        self.detector_problem: str | None = None
        self._pipeline = pipeline
        self._monitor = monitor
        self._log = log
        self._replaced = replaced
        self._failed = failed
        self._worker: Worker[Parameters] = Worker(
            self._load,
            "loader",
            lambda error: monitor.fault("load_failed", f"loading failed: {describe(error)}"),
        )

    def load_first_detector(self, parameters: Parameters) -> None:
        """Load the detector in the caller's thread.

        A detector that the parameters name must be there: raises EngineError or ValueError if it
        cannot be loaded. The default one may be missing.
        """
        if not parameters.detect:
            return
        try:
            self._load_detector(parameters)
        except (EngineError, ValueError) as error:
            if parameters.detector:
                raise
            self._note_no_detector(error)

    def request(self, parameters: Parameters) -> None:
        """Have the networks that `parameters` ask for, as soon as they are loaded."""
        if not parameters.detect:
            # The next time that somebody switches it on, it is tried again.
            self.detector_problem = None
        self._worker.submit(parameters)

    def stop(self, timeout: float) -> None:
        """End the thread, and wait up to `timeout` seconds for that.

        A load under way, which may build an engine for minutes, ends by itself later. The closed
        pipeline then frees its result.
        """
        self._worker.stop(timeout)

    @property
    def alive(self) -> bool:
        """Whether the thread still runs."""
        return self._worker.alive

    def _load(self, parameters: Parameters) -> None:
        running = self._pipeline.network
        if not running.fits(parameters):
            try:
                size = self._pipeline.rgb_size or parameters.expected_size
                network = load_network(parameters, size, self._log)
            except Exception as error:  # a model file can raise anything
                self._monitor.fault(
                    "method_load_failed",
                    f"still fusing by {running}: {parameters.method} with processing_size "
                    f"{parameters.processing_size} cannot be loaded: {error}",
                )
                self._failed(parameters, running)
            else:
                self._pipeline.change(network=network)
                self._replaced(network)
        # Tried once for each time that it is asked for, not for every change of a parameter.
        if parameters.detect and self._pipeline.detector is None and not self.detector_problem:
            try:
                self._load_detector(parameters)
            except Exception as error:  # as above
                self._note_no_detector(error)

    def _load_detector(self, parameters: Parameters) -> None:
        size = self._pipeline.rgb_size or parameters.expected_size
        self._pipeline.change(detector=load_detector(parameters, size, self._log))
        self.detector_problem = None

    def _note_no_detector(self, error: Exception) -> None:
        self.detector_problem = str(error)
        self._monitor.fault("detector_missing", f"fusing without a detector: {error}")
