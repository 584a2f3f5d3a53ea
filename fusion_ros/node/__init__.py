# SPDX-License-Identifier: AGPL-3.0-only
"""The fusion node: lifecycle, parameters, topics, diagnostics and process."""
