# SPDX-License-Identifier: AGPL-3.0-only
"""The commands that a user runs, a parser and a function each."""
