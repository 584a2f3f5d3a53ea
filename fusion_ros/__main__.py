# SPDX-License-Identifier: AGPL-3.0-only
"""`python -m fusion_ros <command>`, which is `fusion_ros <command>`."""

import sys

if __name__ == "__main__":
    try:
        from fusion_ros.commands.main import main
    except KeyboardInterrupt:
        sys.exit(130)
    sys.exit(main())
