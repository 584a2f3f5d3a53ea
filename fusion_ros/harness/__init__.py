# SPDX-License-Identifier: AGPL-3.0-only
"""Start nodes, send pairs to them and wait for their results."""
