# SPDX-License-Identifier: AGPL-3.0-only
"""`python -m fusion_ros <command>`, which is `fusion_ros <command>`."""

import sys

from fusion_ros.commands.main import main

if __name__ == "__main__":
    sys.exit(main())
