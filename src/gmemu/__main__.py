# SPDX-License-Identifier: GPL-2.0-or-later
"""``python -m gmemu``: the same as the `gmemu` command."""

import sys

from .cli.main import main

if __name__ == "__main__":
    sys.exit(main())
