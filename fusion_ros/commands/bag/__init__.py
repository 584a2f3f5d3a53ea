# SPDX-License-Identifier: AGPL-3.0-only
"""The commands about bags: `make_bag` and `evaluate_bag`."""
