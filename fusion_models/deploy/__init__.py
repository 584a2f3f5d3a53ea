# SPDX-License-Identifier: AGPL-3.0-only
"""From a trained network to the ONNX file that the runtime loads."""
