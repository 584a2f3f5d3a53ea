# SPDX-License-Identifier: AGPL-3.0-only
"""The simulated street and its two cameras."""
