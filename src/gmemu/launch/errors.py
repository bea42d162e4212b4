# SPDX-License-Identifier: GPL-2.0-or-later
"""The one error of this package."""

__all__ = ["LaunchError"]


class LaunchError(ValueError):
    """A launch can't be planned from what was given.

    The message is one sentence for a person: what was asked or which file was read, what was found, and what is demanded
    or to be done.  The command line prints it and exits with 2.
    """
