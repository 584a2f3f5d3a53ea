# SPDX-License-Identifier: AGPL-3.0-only
"""Start nodes, send pairs to them and wait for their results.

`Rig` joins the parts: `processes` starts nodes, `sender` publishes as the two cameras, `observer`
collects what the fusion node publishes. Demo, benchmark and tests use it.
"""
