# SPDX-License-Identifier: AGPL-3.0-only
"""Networks that are loaded but do not run: for the sizes that the next change may ask for."""

from __future__ import annotations

import threading
from collections import OrderedDict

from fusion_ros.frame.pipeline import Network

__all__ = ["Ready"]

_MOST = 2
"""Networks to keep: the next smaller size and the next larger one. Each has its own memory."""


class Ready:
    """Keeps a few networks by method and size; the one that was used longest ago is freed."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._networks: OrderedDict[tuple[str, int], Network] = OrderedDict()
        self._closed = False

    def keep(self, network: Network) -> None:
        """Keep a network that does not run; it is freed here later."""
        surplus = [network]
        with self._lock:
            if not self._closed:
                surplus = [self._networks.pop(_key(network), None)]
                self._networks[_key(network)] = network
                while len(self._networks) > _MOST:
                    surplus.append(self._networks.popitem(last=False)[1])
        for one in surplus:
            if one is not None and (one is not network or self._closed):
                one.close()

    def take(self, method: str, size: int) -> Network | None:
        """Return a network and keep it no longer; None if it is not kept."""
        with self._lock:
            return self._networks.pop((method, size), None)

    def has(self, method: str, size: int) -> bool:
        """Whether a network is kept."""
        with self._lock:
            return (method, size) in self._networks

    @property
    def sizes(self) -> list[int]:
        """Sizes that are ready, px, 0 for the images' own."""
        with self._lock:
            return sorted(size for _, size in self._networks)

    def clear(self) -> None:
        """Free all networks."""
        with self._lock:
            networks = list(self._networks.values())
            self._networks.clear()
        for network in networks:
            network.close()

    def close(self) -> None:
        """Free all networks; those that are handed over later are freed at once."""
        with self._lock:
            self._closed = True
        self.clear()


def _key(network: Network) -> tuple[str, int]:
    return network.method, network.fuser.processing_size
