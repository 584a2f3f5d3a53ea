# SPDX-License-Identifier: AGPL-3.0-only
"""Search of a fusion loss by a perception task (CAF, Algorithm 1), for any registered method."""
