# SPDX-License-Identifier: AGPL-3.0-only
"""`python -m fusion_ros <command>`, which is `fusion_ros <command>`."""

import sys


def main() -> int:
    """Run the command of the command line; see `fusion_ros.commands.main` for its status."""
    try:
        from fusion_ros.commands.main import main as run
    except KeyboardInterrupt:  # the imports take a tenth of a second
        # As the commands do: a signal ends a node as it should, and interrupts everything else.
        return 0 if sys.argv[1:2] and sys.argv[1].endswith("_node") else 130
    return run()


if __name__ == "__main__":
    sys.exit(main())
